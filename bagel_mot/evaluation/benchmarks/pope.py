"""POPE: whether an object is in an image, answered by yes or no, with objects chosen at random, as popular, or to
mislead.

Published and fixed agree. Only the words No, not and no of the first sentence count as no; everything else, an empty
answer too, is yes. With thinking the model reasons step by step and the text behind its final answer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import SHORT_SENTENCE, STEP_BY_STEP, ask_settings, final_answer
from bagel_mot.evaluation.base import Benchmark, BenchmarkInfo, Item, ItemImage, ItemResult, Score, Summary, SummaryRow
from bagel_mot.evaluation.data import locate, read_json_lines, require_complete
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.rows import share_row
from bagel_mot.evaluation.vlmevalkit import kit_table, read_kit_table

_CATEGORIES = {"adversarial": 3000, "popular": 3000, "random": 3000}
_FEWER_RANDOM = 2910  # the questions of random in the list that LLaVA goes by
_CAP, _CAP_THINKING = 100, 1000
_KIT_SENTENCE = "Please answer yes or no."


class Pope(Benchmark):
    """POPE by LLaVA's list: `llava_pope_test.jsonl`, labels in `coco/coco_pope_CATEGORY.json`, images in `val2014`; or
    VLMEvalKit's `POPE.tsv`, where a question that several categories have stands once.
    """

    info = BenchmarkInfo(
        name="pope",
        title="POPE",
        ability="hallucinated objects",
        items=sum(_CATEGORIES.values()) - 3000 + _FEWER_RANDOM,
        needs="",
        scale=100,
        source="https://github.com/AoiDragon/POPE; images of COCO 2014 (val); llava_pope_test.jsonl of LLaVA",
        licence="MIT (not certain); the images by COCO's terms",
        paper="arXiv 2305.10355",
        vlmevalkit={"": "POPE"},
    )

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items, counts = self._listed() if table is None else self._tabled(table)
        expected = dict(_CATEGORIES)
        if counts["random"] == _FEWER_RANDOM:
            expected["random"] = _FEWER_RANDOM
        if table is not None:  # the numbers of its questions, which are told apart otherwise, are not known for certain
            expected = {category: counts[category] or 1 for category in _CATEGORIES}
        files = (image for item in items for image in item.images if isinstance(image, Path))
        require_complete("POPE", counts, expected, files=files, partial=self.options.partial)
        return tuple(items)

    def _listed(self) -> tuple[list[Item], dict[str, int]]:
        """The items of LLaVA's list, and how many each category has."""
        path = locate(self.options.data, "llava_pope_test.jsonl", "pope/llava_pope_test.jsonl")
        rows = read_json_lines(path, columns=("question_id", "image", "text", "category"))
        found: dict[str, list[dict[str, Any]]] = {category: [] for category in _CATEGORIES}
        for row in rows:
            if row["category"] not in found:
                raise DataError(f"{path}: the category {row['category']!r} is none of {', '.join(found)}.")
            found[row["category"]].append(row)
        labels = {}
        for category, asked in found.items():
            for row, label in zip(asked, self._labels(path.parent, category, len(asked)), strict=True):
                if label["image"] != row["image"] or not row["text"].startswith(label["text"]):
                    raise DataError(
                        f"{path}, question {row['question_id']}: its label in coco_pope_{category}.json is another "
                        f"question's ({label['text'][:60]!r})."
                    )
                labels[row["question_id"]] = label["label"]
        items = []
        for row in rows:
            images = (path.parent / "val2014" / row["image"],)
            label = labels[row["question_id"]]
            items.append(self._item(str(row["question_id"]), row["category"], row["text"], label, images, row["image"]))
        return items, {category: len(asked) for category, asked in found.items()}

    def _tabled(self, path: Path) -> tuple[list[Item], dict[str, int]]:
        """The items of VLMEvalKit's table, and how many each category has. Its request for yes or no at the end of a
        question makes way for the sentence of LLaVA's list.
        """
        counts = dict.fromkeys(_CATEGORIES, 0)
        items = []
        for row in read_kit_table(path, columns=("question", "answer", "category")):
            category, answer = row.cells["category"], row.cells["answer"].lower()
            if not set(category.split(",")) <= set(counts) or answer not in ("yes", "no"):
                raise DataError(
                    f"{path}, index {row.index}: {row.cells['answer'][:20]!r} and {category[:40]!r} are not Yes or No "
                    f"and some of {', '.join(counts)}."
                )
            for one in category.split(","):
                counts[one] += 1
            text = f"{row.cells['question'].strip().removesuffix(_KIT_SENTENCE).strip()}\n{SHORT_SENTENCE}"
            items.append(self._item(row.index, category, text, answer, row.images, None))
        return items, counts

    def _labels(self, folder: Path, category: str, count: int) -> list[dict[str, Any]]:
        """The labels of a category, which are in the order of its questions."""
        path = locate(folder, f"coco/coco_pope_{category}.json", f"coco_pope_{category}.json")
        rows = read_json_lines(path, columns=("image", "text", "label"))
        if len(rows) != count:
            raise DataError(f"{path} holds {len(rows)} labels for {count} questions: take both from one release.")
        return rows

    def _item(
        self, id: str, category: str, text: str, label: str, images: tuple[ItemImage, ...], group: str | None
    ) -> Item:
        prompt, cap = text, _CAP
        if self.options.think:
            prompt, cap = STEP_BY_STEP + prompt.replace(SHORT_SENTENCE, "").strip(), _CAP_THINKING
        return Item(
            id,
            "ask",
            prompt,
            images,
            ask_settings(cap),
            facts={"category": category, "truth": label},
            group=group,
            row={
                "category": category,
                "question": f"{text.replace(SHORT_SENTENCE, '').strip()} {_KIT_SENTENCE}",
                "answer": label.capitalize(),
            },
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        extracted = final_answer(result.texts[0]) if self.options.think else result.texts[0]
        label = label_of(extracted)
        return Score({"right": float(label == item.facts["truth"])}, {"extracted": extracted, "label": label})

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        rows: dict[str, SummaryRow] = {}
        f1s, count = [], 0
        for category in _CATEGORIES:
            pairs = [
                (item.facts["truth"], scores[item.id].detail["label"])
                for item in self._items
                if category in item.facts["category"].split(",") and item.id in scores
            ]
            if pairs:
                rows.update({f"{category}/{name}": row for name, row in confusion(pairs).items()})
                f1s.append(rows[f"{category}/f1"].value or 0.0)
                count += len(pairs)
        return Summary({"mean_f1": SummaryRow(sum(f1s) / len(f1s) if f1s else None, count), **rows}, ("mean_f1",))


def label_of(answer: str) -> str:
    """The published label: no, if the first sentence has one of the words No, not and no, else yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def confusion(pairs: Sequence[tuple[str, str]]) -> dict[str, SummaryRow]:
    """Accuracy, precision, recall, F1 and the share of yes, from pairs of truth and label; yes is positive."""
    both = sum(truth == label == "yes" for truth, label in pairs)
    said = sum(label == "yes" for _, label in pairs)
    true = sum(truth == "yes" for truth, _ in pairs)
    precision, recall = both / said if said else 0.0, both / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {
        "accuracy": share_row([float(truth == label) for truth, label in pairs]),
        "precision": SummaryRow(precision, said),
        "recall": SummaryRow(recall, true),
        "f1": SummaryRow(f1, len(pairs)),
        "yes_ratio": SummaryRow(said / len(pairs), len(pairs)),
    }

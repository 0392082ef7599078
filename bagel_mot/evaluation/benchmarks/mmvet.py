"""MM-Vet: open questions about images, whose answers a judge rates from 0 to 1.

The published code has no scorer; the score is that of VLMEvalKit (e8e78f0): one request, repeated with 0.5 more
temperature while its reply is not a number from 0 to 1, and 0 points after five such replies. Published and fixed
differ in one thing: published takes the reply `nan`, which spoils every mean that it enters. In both an item that takes
a single ability counts twice in the row of that ability, as VLMEvalKit has it. The judge's text holds rows of the data
(CC BY-NC), so it is found in the user's copy of VLMEvalKit.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.answers import ask_settings
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemImage,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
)
from bagel_mot.evaluation.data import locate, read_json_file, read_json_lines, require_complete
from bagel_mot.evaluation.judges.base import JudgeMessage, JudgeRequest, Judges
from bagel_mot.evaluation.judges.texts import find_texts
from bagel_mot.evaluation.rows import mean_row
from bagel_mot.evaluation.vlmevalkit import kit_table, read_kit_table
from bagel_mot.files import write_text

HEAD_SHA256 = "3fc869bc48066b81267edb8aabcc8e2697f166393312a5202cbc6483e052f5d4"
"""The hash of the text that begins each request: the rule, seven rated rows, and an empty line."""
ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_ITEMS = 218
_CAP = 1000
_TRIES = 5
_JUDGE = "gpt-4-turbo"
_WHERE = "vlmeval/dataset/utils/mmvet.py of VLMEvalKit (commit e8e78f0)"


class MMVet(Benchmark):
    """MM-Vet: `llava-mm-vet.jsonl` with the questions, `mm-vet.json` with answers and abilities, and `images`; or
    VLMEvalKit's `MMVet.tsv`, which has all of it.

    Args:
        options: the data and the protocol.
        head: the beginning of the judge's text, with its last line end; None finds it, by its hash, in the folder of
            such texts.
    """

    info = BenchmarkInfo(
        name="mmvet",
        title="MM-Vet",
        ability="answers that take several abilities at once",
        items=_ITEMS,
        needs="a judge",
        source="https://github.com/yuweihao/MM-Vet; llava-mm-vet.jsonl of LLaVA",
        licence="CC-BY-NC-4.0 (not certain)",
        paper="arXiv 2308.02490",
        published=(
            PublishedScore(
                "Overall", 67.2, "BAGEL", "BAGEL paper, table 4", "by the benchmark's own service, with a GPT-4 judge"
            ),
            PublishedScore("Overall", 48.2, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        vlmevalkit={"": "MMVet"},
    )

    def __init__(self, options: BenchmarkOptions, head: str | None = None) -> None:
        super().__init__(options)
        self._given_head = head

    def check_judging(self) -> None:
        _ = self._head

    @cached_property
    def _head(self) -> str:
        if self._given_head is not None:
            return self._given_head
        folder = self.options.judge_texts or self.options.data
        # VLMEvalKit's file has the text without the empty line, which is added to it at each call.
        return find_texts(folder, {"head": HEAD_SHA256}, _WHERE, lambda text: (text, f"{text}\n"))["head"]

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        items = self._released() if self._table is None else self._tabled(self._table)
        files = (image for item in items for image in item.images if isinstance(image, Path))
        require_complete(
            "MM-Vet", {"questions": len(items)}, {"questions": _ITEMS}, files=files, partial=self.options.partial
        )
        return tuple(items)

    @cached_property
    def _table(self) -> Path | None:
        return kit_table(self.info, self.options)

    def _released(self) -> list[Item]:
        """The items of the release."""
        path = locate(self.options.data, "llava-mm-vet.jsonl", "mm-vet/llava-mm-vet.jsonl")
        rows = read_json_lines(path, columns=("question_id", "image", "text"))
        truths = read_json_file(locate(path.parent, "mm-vet.json"))
        items = []
        for row in rows:
            truth = truths.get(f"v1_{row['question_id']}") if isinstance(truths, dict) else None
            if not isinstance(truth, dict) or not {"answer", "capability"} <= set(truth):
                raise DataError(f"{path.parent / 'mm-vet.json'} has no answer for v1_{row['question_id']}.")
            images = (path.parent / "images" / row["image"],)
            items.append(self._item(str(row["question_id"]), row["text"], truth["answer"], truth["capability"], images))
        return items

    def _tabled(self, path: Path) -> list[Item]:
        """The items of VLMEvalKit's table, whose categories are abilities with commas between them."""
        items = []
        for row in read_kit_table(path, columns=("question", "answer", "category")):
            question, answer, category = (row.cells[name] for name in ("question", "answer", "category"))
            abilities = [ability.strip() for ability in category.split(",")]
            if strange := [ability for ability in abilities if ability not in ABILITIES]:
                raise DataError(
                    f"{path}, index {row.index}: {strange[0][:20]!r} is no ability of MM-Vet, which has "
                    f"{', '.join(ABILITIES)}."
                )
            items.append(self._item(row.index, question, answer, abilities, row.images))
        return items

    def _item(
        self, id: str, question: str, answer: str, abilities: Sequence[str], images: tuple[ItemImage, ...]
    ) -> Item:
        return Item(
            id,
            "ask",
            f"{question} ",
            images,
            ask_settings(_CAP, self.options.think),
            facts={"question": question, "truth": answer, "abilities": abilities},
            row={"question": question, "answer": answer, "category": abilities},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        if judges.chat is None:
            raise EvaluationError("MM-Vet needs a judge: name one with --judge.")
        fixed = self.options.protocol is Protocol.FIXED
        replies: list[str | None] = []
        value = None
        while value is None and len(replies) < _TRIES:
            request = judge_request(
                self._head, item.facts["question"], item.facts["truth"], result.texts[0], len(replies)
            )
            replies.append(judges.chat.complete(request))
            value = rating(replies[-1], fixed=fixed)
        failed = value is None
        detail = {"replies": replies, "calls": len(replies)}
        if value is not None and math.isnan(value):  # JSON has no such number
            return Score({"score": None}, {**detail, "taken": "nan"}, unparsable=1)
        return Score({"score": 0.0 if value is None else value}, detail, unparsable=int(failed))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        values = {id: _value(score) for id, score in scores.items()}
        abilities, combinations = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for item in self._items:
            if item.id not in scores:
                continue
            for ability in item.facts["abilities"]:
                abilities[ability].append(item.id)
            combination = "_".join(item.facts["abilities"])
            # VLMEvalKit keeps both in one table, so that an item of a single ability counts twice in its row.
            (abilities if combination in ABILITIES else combinations)[combination].append(item.id)
        rows = {"Overall": mean_row(values.values(), 100)}
        for ability in ABILITIES:
            if ability in abilities:
                rows[ability] = mean_row((values[id] for id in abilities[ability]), 100)
        rows.update(
            {f"combination/{name}": mean_row((values[id] for id in ids), 100) for name, ids in combinations.items()}
        )
        return Summary(rows, ("Overall",))

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `results.json`, {"v1_ID": answer}, which the benchmark's own service rates; nothing for VLMEvalKit's
        table, which does not tell the ids.
        """
        if self._table is not None:
            return []
        answers = {f"v1_{item.id}": results[item.id].texts[0] for item in self._items if item.id in results}
        write_text(folder / "results.json", json.dumps(answers, ensure_ascii=False, indent=1))
        return [folder / "results.json"]


def _value(score: Score) -> float | None:
    return math.nan if score.detail.get("taken") == "nan" else score.values["score"]


def judge_request(head: str, question: str, truth: str, prediction: str, attempt: int) -> JudgeRequest:
    """The request that rates an answer: the rule and examples, then a row of the table that lacks its last cell."""
    for mark in ("<AND>", "<OR>"):
        truth = truth.replace(mark, f" {mark} ")
    text = head + " | ".join((question, truth, prediction, ""))
    message = JudgeMessage("user", (text,), plain=True)
    return JudgeRequest((message,), _JUDGE, temperature=0.5 * attempt, attempt=attempt)


def rating(reply: str | None, *, fixed: bool) -> float | None:
    """The number from 0 to 1 that a reply is, or None; as published, `nan` counts as one."""
    try:
        value = float(reply or "")
    except ValueError:
        return None
    if math.isnan(value):
        return None if fixed else value
    return value if 0 <= value <= 1 else None

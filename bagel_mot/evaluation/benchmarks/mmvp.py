"""MMVP: pairs of images that look alike to CLIP, with one question and two options; a pair counts if both are right.

Published and fixed differ in one thing: the published script stops at an empty answer. Both modes take it for wrong;
the report names those items, at which the published script gives no score at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import LETTER_SENTENCE, ask_settings, letter_of, option_lines
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    Item,
    ItemImage,
    ItemResult,
    PublishedScore,
    Score,
    Summary,
)
from bagel_mot.evaluation.data import locate, read_table, require_complete
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.rows import share_row
from bagel_mot.evaluation.vlmevalkit import kit_table, read_kit_table

_ITEMS = 300
_CAP = 100
_INDEX = ("Index", "lndex")  # the second is how the published file has it


class Mmvp(Benchmark):
    """MMVP: `Questions.csv` and the folder `MMVP Images` beside it; or VLMEvalKit's `MMVP.tsv`."""

    info = BenchmarkInfo(
        name="mmvp",
        title="MMVP",
        ability="visual patterns, by pairs of similar images",
        items=_ITEMS,
        needs="",
        scale=100,
        source="https://huggingface.co/datasets/MMVP/MMVP",
        licence="MIT (not certain)",
        hub="MMVP/MMVP",
        paper="arXiv 2401.06209",
        published=(
            PublishedScore("pairs", 0.693, "BAGEL", "BAGEL paper, table 4"),
            PublishedScore("pairs", 0.547, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        vlmevalkit={"": "MMVP"},
    )

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items = self._released() if table is None else self._tabled(table)
        files = (image for item in items for image in item.images if isinstance(image, Path))
        require_complete(
            "MMVP", {"questions": len(items)}, {"questions": _ITEMS}, files=files, partial=self.options.partial
        )
        return tuple(items)

    def _released(self) -> list[Item]:
        """The items of the release, whose pairs are consecutive rows."""
        path = locate(self.options.data, "Questions.csv", "MMVP/Questions.csv")
        rows = read_table(path, columns=("Question", "Options", "Correct Answer"))
        if not any(name in rows[0] for name in _INDEX if rows):
            raise DataError(f"{path} lacks the column Index.")
        items = []
        for row in rows:
            index = next(row[name] for name in _INDEX if name in row).strip()
            truth = row["Correct Answer"].strip().strip("()").upper()
            image = path.parent / "MMVP Images" / f"{index}.jpg"
            items.append(self._item(path, index, row["Question"], options_of(row["Options"]), truth, (image,)))
        return items

    def _tabled(self, path: Path) -> list[Item]:
        """The items of VLMEvalKit's table, whose pairs are consecutive in the order of their indices."""
        rows = read_kit_table(path, columns=("question", "A", "B", "answer"))
        if strange := [row.index for row in rows if not row.index.isdecimal()]:
            raise DataError(f"{path}: the index {strange[0][:20]!r} is not a whole number.")
        items = []
        for row in sorted(rows, key=lambda row: int(row.index)):
            options = {letter: row.cells[letter] for letter in "ABCD" if row.cells.get(letter)}
            truth = row.cells["answer"].strip()
            items.append(self._item(path, row.index, row.cells["question"], options, truth, row.images))
        return items

    def _item(
        self,
        path: Path,
        index: str,
        question: str,
        options: Mapping[str, str],
        truth: str,
        images: tuple[ItemImage, ...],
    ) -> Item:
        if truth not in options:
            raise DataError(f"{path}, index {index}: the answer {truth!r} is not one of the options.")
        return Item(
            index,
            "ask",
            f"{question}\n{option_lines(options)}\n{LETTER_SENTENCE}",
            images,
            ask_settings(_CAP, self.options.think),
            facts={"options": dict(options), "truth": truth},
            row={"question": question, **options, "answer": truth},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        parsed = letter_of(result.texts[0], item.facts["options"], fixed=True)
        detail = {"parsed": parsed, "truth": item.facts["truth"]}
        return Score(
            {"right": float(parsed == item.facts["truth"])}, detail, unparsable=parsed not in item.facts["options"]
        )

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        rights = {item.id: scores[item.id].values["right"] for item in self._items if item.id in scores}
        pairs = []
        for first, second in zip(self._items[::2], self._items[1::2], strict=False):
            if first.id in rights and second.id in rights:
                pairs.append(float(bool(rights[first.id] and rights[second.id])))
        rows = {"pairs": share_row(pairs), "questions": share_row(rights.values())}
        empty = [id for id, score in scores.items() if score.detail["parsed"] is None]
        return Summary(rows, ("pairs",), {"empty answers, at which the published script stops": empty})


def options_of(text: str) -> dict[str, str]:
    """The options by capital letters, from a text such as `(a) Open (b) Closed`."""
    parts = re.split(r"\(([a-z])\)", text)
    return {letter.upper(): option.strip() for letter, option in zip(parts[1::2], parts[2::2], strict=True)}

"""MME: questions in pairs about an image, answered by yes or no; ten tasks of perception and four of cognition.

Published and fixed differ in one thing: the published scorer cannot split a line whose answer holds a tab, so that the
question leaves the accuracy while its image still counts as not right in both; fixed takes the tab for a space. The
published script passes over a question whose image is missing; such a set is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import SHORT_SENTENCE, ask_settings
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    Item,
    ItemImage,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.data import locate, read_lines, require_complete
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.statistics import bootstrap
from bagel_mot.evaluation.vlmevalkit import kit_table, read_kit_table

PERCEPTION = {
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
}
"""The lines of each task of perception, in the published order."""
COGNITION = {"commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40}
"""The lines of each task of cognition."""
_TASKS = {**PERCEPTION, **COGNITION}
_ANSWERS = ("Yes", "No")
_CAP = 20
_CHINESE = re.compile("[\u4e00-\u9fff]")

Label = Literal["yes", "no", "other"]


class Mme(Benchmark):
    """MME in its release: `MME_Benchmark_release_version/TASK/` with the images, and one file of questions a task; or
    VLMEvalKit's `MME.tsv`.
    """

    info = BenchmarkInfo(
        name="mme",
        title="MME",
        ability="perception and cognition, by questions to answer with yes or no",
        items=sum(_TASKS.values()),
        needs="",
        source="on request from its authors; questions as one TSV file a task (questions/TASK.txt)",
        licence="for research only, images on request",
        paper="arXiv 2306.13394",
        published=(
            PublishedScore("perception", 1687, "BAGEL", "BAGEL paper, table 4"),
            PublishedScore("total", 2388, "BAGEL", "BAGEL paper, table 4", "printed as MME-S, the sum of both"),
            PublishedScore("perception", 1610, "BAGEL, 1.5B", "BAGEL paper, table 4"),
            PublishedScore("total", 2183, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        vlmevalkit={"": "MME"},
    )

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items, found = self._released() if table is None else self._tabled(table)
        files = (image for item in items for image in item.images if isinstance(image, Path))
        require_complete("MME", found, _TASKS, files=files, partial=self.options.partial)
        return tuple(items)

    def _released(self) -> tuple[list[Item], dict[str, int]]:
        """The items of the release, and how many each task has."""
        root = self.options.data
        images = locate(root, "MME_Benchmark_release_version", "mme/MME_Benchmark_release_version", ".")
        questions = locate(root, "questions", "Your_Results", "mme/questions", "mme/Your_Results", "../questions")
        items: list[Item] = []
        found = {}
        for task in _TASKS:
            path = questions / f"{task}.txt"
            lines = read_lines(path) if path.is_file() or not self.options.partial else []
            found[task] = len(lines)
            folder = images / task / "images" if (images / task / "images").is_dir() else images / task
            for number, line in enumerate(lines, 1):
                cells = line.split("\t")
                if len(cells) != 3 or cells[2] not in _ANSWERS:
                    raise DataError(f"{path}, line {number}: {line[:60]!r} is not an image, a question, and Yes or No.")
                image, question, answer = cells
                items.append(self._item(f"{task}/{number}", task, image, question, answer, (folder / image,)))
        return items, found

    def _tabled(self, path: Path) -> tuple[list[Item], dict[str, int]]:
        """The items of VLMEvalKit's table by task, and how many each task has."""
        items: list[Item] = []
        found = dict.fromkeys(_TASKS, 0)
        for row in read_kit_table(path, columns=("question", "answer", "category", "image_path")):
            task, image, question, answer = (row.cells[x] for x in ("category", "image_path", "question", "answer"))
            if task not in found or answer not in _ANSWERS:
                raise DataError(
                    f"{path}, index {row.index}: {answer[:20]!r} and {task[:40]!r} are not Yes or No and a task of MME."
                )
            found[task] += 1
            items.append(self._item(row.index, task, image, question, answer, row.images))
        return items, found

    def _item(self, id: str, task: str, image: str, question: str, answer: str, images: tuple[ItemImage, ...]) -> Item:
        return Item(
            id,
            "ask",
            f"{question} {SHORT_SENTENCE}",
            images,
            ask_settings(_CAP, self.options.think),
            facts={"task": task, "image": image, "answer": answer.lower()},
            group=f"{task}/{image}",
            row={"category": task, "image_path": image, "question": question, "answer": answer},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        answer = result.texts[0]
        fixed = self.options.protocol is Protocol.FIXED
        lost = "\t" in answer and not fixed
        cleaned = clean(answer.replace("\t", " ") if fixed else answer)
        label = None if lost else label_of(cleaned)
        right = None if lost else float(label == item.facts["answer"])
        return Score({"right": right}, {"cleaned": cleaned, "label": label}, unparsable=label in (None, "other"))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        tasks: dict[str, dict[str, list[float | None]]] = {task: {} for task in _TASKS}
        for item in self._items:
            if item.id in scores:
                pair = tasks[item.facts["task"]].setdefault(item.facts["image"], [])
                pair.append(scores[item.id].values["right"])
        rows = {task: _task_row(list(pairs.values())) for task, pairs in tasks.items() if pairs}
        groups = {"perception": PERCEPTION, "cognition": COGNITION, "total": _TASKS}
        rows.update({name: _sum([rows[task] for task in group if task in rows]) for name, group in groups.items()})
        missing = [task for task in _TASKS if task not in rows]
        return Summary(rows, ("perception", "cognition", "total"), {"tasks without items": missing} if missing else {})


def clean(answer: str) -> str:
    """An answer as the published scorer reads it: Chinese yes, no, true and false in English, anywhere in it; small
    letters; without line ends and Chinese characters. Blanks stay.
    """
    text = answer.replace("\n", "")
    for said, meant in (("不是", "No"), ("是", "Yes"), ("否", "No")):
        text = text.replace(said, meant)
    text = text.lower().replace("true", "yes").replace("false", "no")
    return _CHINESE.sub("", text)


def label_of(cleaned: str) -> Label:
    """The label of a cleaned answer, by its first four characters."""
    if "yes" in cleaned[:4]:
        return "yes"
    return "no" if "no" in cleaned[:4] else "other"


def _task_row(pairs: Sequence[Sequence[float | None]]) -> SummaryRow:
    """100 · accuracy + 100 · accuracy+ of a task: the share of right answers, and that of images with all right."""
    asked = [right for pair in pairs for right in pair if right is not None]
    both = [float(all(pair)) for pair in pairs]
    if not asked:
        return SummaryRow(0.0, 0)
    # An image counts for as many points as its questions and itself are worth, so that images can be resampled whole.
    worth = [
        100 * (sum(right or 0.0 for right in pair) * len(pairs) / len(asked) + own)
        for pair, own in zip(pairs, both, strict=True)
    ]
    value = 100 * sum(asked) / len(asked) + 100 * sum(both) / len(both)
    return SummaryRow(value, len(asked), bootstrap([worth]) if len(pairs) > 1 else None)


def _sum(rows: Sequence[SummaryRow]) -> SummaryRow:
    """The sum of tasks. The interval takes them as independent, and each task's own as normal."""
    if not rows:
        return SummaryRow(None, 0)
    value = sum(row.value or 0.0 for row in rows)
    count = sum(row.count for row in rows)
    if any(row.interval is None for row in rows):
        return SummaryRow(value, count)
    half = sum(((row.interval[1] - row.interval[0]) / 2) ** 2 for row in rows if row.interval) ** 0.5
    return SummaryRow(value, count, (value - half, value + half))

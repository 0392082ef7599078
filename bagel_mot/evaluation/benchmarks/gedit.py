"""GEdit-Bench: edits asked for in English and Chinese, judged by VIEScore on the edit and on the image.

Each item takes two calls: semantic consistency (SC) sees both images, perceptual quality (PQ) the edited one alone.
Each gives two numbers from 0 to 10, of which the smaller counts, and O is the square root of SC · PQ. When one of two
replies cannot be read, both are asked for again.

Published and fixed differ in that second try. The published scorer then draws a random integer for a reply without
braces, be it a plain list of numbers; a reply with braces that stays broken is asked for without end. Nothing is drawn
at random here: in the published protocol such an item is left out, and its `detail` says that a number would have been
drawn; a broken reply is asked for five times. Fixed reads a second reply like a first one, and leaves out what still
cannot be read.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bagel_mot.errors import SettingError, did_you_mean
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
from bagel_mot.evaluation.benchmarks.editing import chat_of, drawn, edit_settings, encoded, user_message
from bagel_mot.evaluation.data import files_like, locate, open_input, read_parquet, require_complete
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges, number_of
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.evaluation.rows import mean_row
from bagel_mot.evaluation.statistics import bootstrap
from bagel_mot.files import write_atomically

TASKS = {
    "background_change": 40,
    "color_alter": 40,
    "material_alter": 40,
    "motion_change": 40,
    "ps_human": 70,
    "style_change": 60,
    "subject-add": 60,
    "subject-remove": 57,
    "subject-replace": 60,
    "text_change": 99,
    "tone_transfer": 40,
}
"""The items of each task in one language."""
LANGUAGES = ("en", "cn")
MEASURES = ("SC", "PQ", "O")
_SEED = 42
_JUDGE = "gpt-4.1-2025-04-14"
_MAX_TOKENS = 1400
_THOUGHT_TOKENS = 10_239
_TRIES = {Protocol.PUBLISHED: 5, Protocol.FIXED: 2, Protocol.UPSTREAM: 5}
_MARK = "||V^=^V||"
_PAIR = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*\]")
_COLUMNS = (
    *("source_image", "edited_image", "instruction", "sementics_score", "quality_score"),  # their spelling
    *("intersection_exist", "instruction_language"),
)


class GEdit(Benchmark):
    """GEdit-Bench as the hub has it: Parquet files of the split `train`, with both languages."""

    info = BenchmarkInfo(
        name="gedit",
        title="GEdit-Bench",
        ability="edits of eleven kinds, in English and Chinese",
        items=len(LANGUAGES) * sum(TASKS.values()),
        needs="a judge",
        source="https://huggingface.co/datasets/stepfun-ai/GEdit-Bench",
        licence="Apache-2.0 (from memory; see the data set's card)",
        hub="stepfun-ai/GEdit-Bench",
        paper="https://arxiv.org/abs/2504.17761",
        published=tuple(
            PublishedScore(f"{language}/G_{measure}", value, "BAGEL", "paper, table 7", f"judge {_JUDGE}")
            for language, values in (("en", (7.36, 6.83, 6.52)), ("cn", (7.34, 6.85, 6.50)))
            for measure, value in zip(MEASURES, values, strict=True)
        ),
        variants=("all", *LANGUAGES),
    )

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the variant.

        Raises:
            SettingError: there is no such variant.
        """
        variant = self.options.variant or self.info.variants[0]
        if variant not in self.info.variants:
            raise SettingError(
                f"{self.info.name} has no variant {variant!r}: {did_you_mean(variant, self.info.variants)}"
            )
        return LANGUAGES if variant == "all" else (variant,)

    @cached_property
    def _items(self) -> list[Item]:
        folder = locate(self.options.data, "data/train-*.parquet", "train-*.parquet").parent
        columns = ("key", "task_type", "instruction", "instruction_language", "Intersection_exist")
        rows = read_parquet(files_like(folder, "train-*.parquet"), columns=columns, images=("input_image",))
        require_complete(
            self.info.title,
            Counter(f"{row['instruction_language']}/{row['task_type']}" for row in rows),
            {f"{language}/{task}": count for language in LANGUAGES for task, count in TASKS.items()},
            partial=self.options.partial,
        )
        settings = edit_settings(self.options.think, cfg_interval=(0.4, 1.0), thought_tokens=_THOUGHT_TOKENS)
        rows = [row for row in rows if row["instruction_language"] in self.languages]
        times = Counter(row["key"] for row in rows)  # both languages may name an image by one key
        return [
            Item(
                id=row["key"] if times[row["key"]] == 1 else f"{row['key']}-{row['instruction_language']}",
                kind="edit",
                prompt=row["instruction"],
                images=(row["input_image"],),
                settings=settings,
                seeds=(_SEED,),
                outputs=(f"fullset/{row['task_type']}/{row['instruction_language']}/{row['key']}.png",),
                facts={
                    "task": row["task_type"],
                    "language": row["instruction_language"],
                    "intersection": bool(row["Intersection_exist"]),
                },
            )
            for row in rows
        ]

    def items(self) -> Sequence[Item]:
        return self._items

    def requests(self, item: Item, original: ItemImage, edited: ItemImage, attempt: int = 0) -> dict[str, JudgeRequest]:
        """Both calls for an item, by "SC" and "PQ". The edited image is resized to the size of the original."""
        texts = shipped_texts(self.info.name)
        before = open_input(original).convert("RGB")
        after = open_input(edited).convert("RGB").resize(before.size)
        shown = [JudgeImage(encoded(image, "JPEG"), "image/jpeg") for image in (before, after)]
        contents: dict[str, tuple[str | JudgeImage, ...]] = {
            "SC": (texts["SC"].replace("<instruction>", item.prompt), *shown),
            "PQ": (texts["PQ"], shown[1]),
        }
        return {
            call: JudgeRequest(user_message(*content), _JUDGE, max_tokens=_MAX_TOKENS, attempt=attempt)
            for call, content in contents.items()
        }

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        judge, edited = chat_of(judges, self.info.title), drawn(result.images, item.id)
        fixed = self.options.protocol is Protocol.FIXED
        replies: dict[str, list[str | None]] = {"SC": [], "PQ": []}
        unread = 0
        would_draw = False
        for attempt in range(_TRIES[self.options.protocol]):
            found: dict[str, float | None] = {}
            for call, request in self.requests(item, item.images[0], edited, attempt).items():
                replies[call].append(reply := judge.complete(request))
                has_braces = reply is not None and ("{" in reply or "}" in reply)
                would_draw |= attempt > 0 and not fixed and not has_braces
                found[call] = None if reply is None or would_draw else lowest(read_reply(reply))
            unread += sum(value is None for value in found.values())
            sc, pq = found["SC"], found["PQ"]
            if sc is not None and pq is not None:
                return Score({"SC": sc, "PQ": pq, "O": math.sqrt(sc * pq)}, {"replies": replies}, unread)
            if would_draw:
                break
        return Score(dict.fromkeys(MEASURES), {"replies": replies, "would_draw_a_number": would_draw}, unread)

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        items = [item for item in self._items if item.id in scores]
        rows: dict[str, SummaryRow] = {}
        headline: list[str] = []
        for part in ("", " intersection"):
            for language in self.languages:
                own = [item for item in items if item.facts["language"] == language]
                own = [item for item in own if item.facts["intersection"] or not part]
                for measure in MEASURES:
                    values = {
                        task: [scores[item.id].values[measure] for item in own if item.facts["task"] == task]
                        for task in TASKS
                    }
                    tasks = {task: [value for value in found if value is not None] for task, found in values.items()}
                    rows[f"{language}{part}/G_{measure}"] = mean_of_tasks(tasks)
                    if not part:
                        rows |= {f"{language}/{task}/{measure}": mean_row(found) for task, found in tasks.items()}
                headline += [] if part else [f"{language}/G_{measure}" for measure in MEASURES]
        left_out = [item.id for item in items if scores[item.id].values["O"] is None]
        would_draw = [item.id for item in items if scores[item.id].detail.get("would_draw_a_number")]
        ordered = {name: rows[name] for name in (*headline, *(name for name in rows if name not in headline))}
        return Summary(ordered, tuple(headline), {"left_out": left_out, "would_draw_a_number": would_draw})

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes a table of scores for each task, and beside each edited image its original."""
        written = []
        for task in TASKS:
            lines: list[dict[str, Any]] = []
            for item in self._items:
                if item.facts["task"] != task or item.id not in scores or item.id not in results:
                    continue
                edited = drawn(results[item.id].images, item.id)
                source = edited.with_name(f"{edited.stem}_SRCIMG.png")
                write_atomically(source, open_input(item.images[0]).convert("RGB").save)
                values = scores[item.id].values
                cells = (source, edited, item.prompt, values["SC"], values["PQ"])
                lines.append(
                    dict(zip(_COLUMNS, (*cells, item.facts["intersection"], item.facts["language"]), strict=True))
                )
            if lines:
                path = folder / f"{self.options.variant or self.info.variants[0]}_{task}_gpt_score.csv"
                write_atomically(path, lambda temporary, lines=lines: _write_csv(temporary, lines))  # type: ignore[misc]
                written.append(path)
        return written


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def mean_of_tasks(tasks: Mapping[str, Sequence[float]]) -> SummaryRow:
    """The mean of the means of tasks, those without an item left out, with its bootstrap interval."""
    there = [values for values in tasks.values() if values]
    if not there:
        return SummaryRow(None, 0)
    means = [sum(values) / len(values) for values in there]
    return SummaryRow(sum(means) / len(means), sum(map(len, there)), bootstrap(there))


def read_reply(reply: str) -> list[Any] | None:
    """The scores in a first reply; None if it cannot be read.

    It is a JSON object with "score", between two marks or with text around it; without braces a lone integer from 0 to
    10, or text with exactly one list of two such integers. A number in place of the list is a list of one.
    """
    inner = reply.split(_MARK)[1] if reply.count(_MARK) == 2 else reply
    start, end = inner.find("{"), inner.rfind("}")
    if start < 0 or end < start:
        text = inner.strip()
        if text.isdecimal() and _is_score(number_of(text)):
            return [int(text)]
        pairs = [[number_of(number) for number in pair] for pair in _PAIR.findall(text)]
        return pairs[0] if len(pairs) == 1 and all(map(_is_score, pairs[0])) else None
    try:
        found = json.loads(inner[start : end + 1])
    except (ValueError, RecursionError):
        return None
    scores = found.get("score") if isinstance(found, dict) else None
    if isinstance(scores, list):
        return scores or None
    return None if scores is None else [scores]


def _is_score(number: int | None) -> bool:
    return number is not None and number <= 10


def lowest(scores: Sequence[Any] | None) -> float | None:
    """The smallest of the scores in a reply; None if one of them is not numeric, or is below 0."""
    try:
        values = [float(score) for score in scores or ()]
    except (TypeError, ValueError, OverflowError):
        return None
    return min(values) if values and all(math.isfinite(value) and value >= 0 for value in values) else None

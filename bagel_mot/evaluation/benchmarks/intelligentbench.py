"""IntelligentBench, the released set of 360 questions that are answered by an edited image.

The judge sees the question with its image, a reference image and the model's, and says 0, 1 or 2. Its replies are
sampled at temperature 1, so numbers vary from run to run.

Published and fixed differ in odd scores. The published total takes the whole part of anything, 3 and "2" and 1.5 alike,
while its classes take numbers from 0 to 2 alone, with their fraction; fixed takes 0, 1 and 2, as number or digit, in
both, and leaves out the rest. The settings by which the published images were made are not known: these are the
defaults of edits, and the published row is of thinking.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from bagel_mot.errors import DataError
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
)
from bagel_mot.evaluation.benchmarks.editing import as_jpeg, chat_of, drawn, edit_settings, user_message
from bagel_mot.evaluation.data import files_like, locate, read_parquet, require_complete
from bagel_mot.evaluation.judges.base import MOST_DIGITS, JudgeMessage, JudgeRequest, Judges, number_of
from bagel_mot.evaluation.judges.texts import TextSource
from bagel_mot.evaluation.rows import mean_row

CLASSES = {"w": "world knowledge", "r": "reasoning", "d": "design"}
"""The classes by the letter of the data, with the names of their rows."""
_COUNTS = {"w": 171, "r": 101, "d": 88}
_MOST = 2  # the best score
_JUDGE = "gpt-4o-2024-11-20"
_TRIES = 3
_SEED = 42
_SYSTEM = "system"
TEXTS = TextSource(
    {_SYSTEM: "001e7bf7d13403f97da4ed7d705e192aad1f1c4d5c98b7530b1f5cbeca085740"},
    "eval/intelligent/benchmark_intelligentBench.py of the repository chenhuigou/VQ-VA-World",
)


class IntelligentBench(Benchmark):
    """IntelligentBench as the hub has it: Parquet files of the split `test` of the config `original`."""

    info = BenchmarkInfo(
        name="intelligentbench",
        title="IntelligentBench",
        ability="edits that answer a question",
        items=sum(_COUNTS.values()),
        needs="a judge",
        source="https://huggingface.co/datasets/VQVA/IntelligentBench (config original)",
        licence="derived from OmniCorpus-CC, CC-BY-4.0",
        hub="VQVA/IntelligentBench",
        paper="https://arxiv.org/abs/2505.14683",
        published=(
            PublishedScore("total", 60.42, "BAGEL, thinking", "project page of VQ-VA World", "360 items"),
            PublishedScore("world knowledge", 61.99, "BAGEL, thinking", "project page of VQ-VA World", "360 items"),
            PublishedScore("design", 55.11, "BAGEL, thinking", "project page of VQ-VA World", "360 items"),
            PublishedScore("reasoning", 62.38, "BAGEL, thinking", "project page of VQ-VA World", "360 items"),
            PublishedScore("total", 44.9, "BAGEL", "paper, table 8", "another set of 350 items, never released"),
            PublishedScore("total", 55.3, "BAGEL, thinking", "paper, table 8", "another set of 350 items"),
        ),
    )

    @cached_property
    def _items(self) -> list[Item]:
        names = ("original/test*.parquet", "data/test*.parquet", "test*.parquet")
        folder = locate(self.options.data, *names).parent
        files = files_like(folder, "test*.parquet")
        rows = read_parquet(files, columns=("caption", "class"), images=("images",))
        for index, row in enumerate(rows):
            if not isinstance(row["caption"], dict) or not isinstance(row["caption"].get("q"), str):
                raise DataError(f"{folder}, row {index}: caption is {row['caption']!r:.60}; it must hold a question q.")
        require_complete(self.info.title, Counter(row["class"] for row in rows), _COUNTS, partial=self.options.partial)
        settings = edit_settings(self.options.think, cfg_image_scale=2.0)
        return [
            Item(
                id=str(index),
                kind="edit",
                prompt=row["caption"]["q"],
                images=(replace(row["images"], index=0),),
                settings=settings,
                seeds=(_SEED + index,),
                outputs=(f"{index}.png",),
                facts={"class": row["class"]},
            )
            for index, row in enumerate(rows)
        ]

    def items(self) -> Sequence[Item]:
        return self._items

    def check_judging(self) -> None:
        _ = self.judge_texts

    @cached_property
    def judge_texts(self) -> Mapping[str, str]:
        """The criteria that the judge is given, from the user's copy of the benchmark's code."""
        return TEXTS.find(self.options)

    def request(self, item: Item, edited: ItemImage, attempt: int = 0) -> JudgeRequest:
        """One call for an item."""
        question, reference = item.images[0], replace(item.images[0], index=1)  # type: ignore[type-var]
        content = (
            *(" question is: ", item.prompt),
            *(" Question image", as_jpeg(question, "low")),
            *(" GT answer image", as_jpeg(reference, "low")),
            *("model-generated (AS) answer image", as_jpeg(edited, "low")),
        )
        messages = (JudgeMessage("system", (self.judge_texts[_SYSTEM],)), *user_message(*content))
        return JudgeRequest(messages, _JUDGE, temperature=1.0, max_tokens=500, n=1, attempt=attempt)

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        judge, edited = chat_of(judges, self.info.title), drawn(result.images, item.id)
        replies: list[str | None] = []
        found = None
        while found is None and len(replies) < _TRIES:
            replies.append(reply := judge.complete(self.request(item, edited, len(replies))))
            found = None if reply is None else read_reply(reply)
        total, in_class = self._counted(found)
        unread = len(replies) - (found is not None) + (found is not None and total is None)
        detail = {"score": found, "calls": len(replies), "replies": replies}
        return Score({"score": total, "score_of_class": in_class}, detail, unread)

    def _counted(self, found: Any) -> tuple[float | None, float | None]:
        """The numbers that a score adds to the total, and to its class."""
        try:
            total = None if found is None else int(found)
        except (ValueError, OverflowError):
            total = None
        if total is None or abs(total) >= 10**MOST_DIGITS:
            return None, None
        if self.options.protocol is Protocol.FIXED:
            value = float(found) if is_number(found) or (isinstance(found, str) and found.isdecimal()) else None
            known = value if value in range(_MOST + 1) else None
            return known, known
        return total, float(found) if is_number(found) and 0 <= found <= _MOST else None

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        items = [item for item in self._items if item.id in scores]
        scale = 100 / _MOST
        rows = {"total": mean_row((scores[item.id].values["score"] for item in items), scale)}
        for letter, name in CLASSES.items():
            own = [item.id for item in items if item.facts["class"] == letter]
            rows[name] = mean_row((scores[key].values["score_of_class"] for key in own), scale)
        left_out = [item.id for item in items if scores[item.id].values["score"] is None]
        return Summary(rows, ("total",), {"left_out": left_out})


def is_number(value: Any) -> bool:
    """Whether it is a number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_reply(reply: str) -> Any:
    """The score in a reply, a number or text; None if there is none.

    It is that of a JSON object, which may be fenced as code; else the first whole number after "score" in quotes.
    """
    text = re.sub(r"^```\w*\s*|\s*```$", "", reply.strip())
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        match = re.search(r"\"score\"\s*:\s*(\d+)", text)
        return number_of(match[1]) if match else None
    value = found.get("score") if isinstance(found, dict) else None
    return value if is_number(value) or isinstance(value, str) else None

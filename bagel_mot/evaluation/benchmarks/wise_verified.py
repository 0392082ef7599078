"""WISE_Verified: the revised set of WISE, judged right or wrong by an open model, and so the one that can be repeated.

About 200 of its 1 000 prompts differ from those of the older set. The published summary refuses to run when three
replies in a row leave an item without a score; so do `published` and `upstream`, which are the same here. `fixed`
leaves such items out and counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from bagel_mot.evaluation.base import BenchmarkInfo, Item, ItemResult, Protocol, PublishedScore, Score
from bagel_mot.evaluation.benchmarks.editing import chat_of, drawn
from bagel_mot.evaluation.benchmarks.wise import CATEGORIES, WiseBase
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges

_TRIES = 3
_SCORE = re.compile(r"score\**\s*[:：]?\s*([01])(?![0-9])", re.IGNORECASE)
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


def _published(model: str, values: Sequence[float]) -> Iterator[PublishedScore]:
    for row, value in zip((*CATEGORIES, "Overall"), values, strict=True):
        yield PublishedScore(row, value, model, "leaderboard of WISE, 2026-04", "judge Qwen3.5-35B-A3B")


class WiseVerified(WiseBase):
    """The revised set; see the module. The detail of a score holds the judge's replies and the number of calls."""

    info = BenchmarkInfo(
        name="wise_verified",
        title="WISE_Verified",
        ability="drawing what takes knowledge of culture, time, space and nature",
        items=1000,
        needs="a judge",
        source="https://github.com/PKU-YuanGroup/WISE, folder data_verified",
        licence="none stated",
        paper="arXiv 2503.07265",
        published=(
            *_published("BAGEL", (0.4125, 0.35, 0.3083, 0.2, 0.4417, 0.2583, 0.352)),
            *_published("BAGEL, thinking", (0.78, 0.6333, 0.5667, 0.375, 0.55, 0.5083, 0.628)),
        ),
    )
    whole_file = "merge.json"
    parts = tuple(
        f"{name}_verified.json" for name in ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    )
    complete: ClassVar[Mapping[str, int]] = {"Cultural": 400, **dict.fromkeys(CATEGORIES[1:], 120)}
    weights: ClassVar[Mapping[str, float]] = {"Cultural": 0.4, **dict.fromkeys(CATEGORIES[1:], 0.12)}
    text_hashes: ClassVar[Mapping[str, str]] = {
        "system": "c9b9e5e189408801a05c600dfc385addc37bb1ebe9b933c74202ea72eb415f8c",
        "user": "d65bdedaf2db02f4f2cdb023e70b2bb6c51cbe43954a1547f99c50a17be3324b",
    }
    text_place = "vllm_eval.py of https://github.com/PKU-YuanGroup/WISE"

    def category(self, row: Mapping[str, Any]) -> str:
        number = row["prompt_id"]
        return "Cultural" if number <= 400 else CATEGORIES[1 + (number - 401) // 120]

    def judge_request(self, item: Item, image: bytes, attempt: int = 0) -> JudgeRequest:
        """One try of the question about an item's image, the bytes of a PNG file."""
        return JudgeRequest(
            self.messages(item, image),
            model="Qwen3.5-35B-A3B",
            temperature=0.0,
            max_tokens=500,
            extra={"chat_template_kwargs": {"enable_thinking": False}},
            attempt=attempt,
        )

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        judge, image = chat_of(judges, self.info.title), drawn(result.images, item.id).read_bytes()
        replies: list[str | None] = []
        value = None
        while value is None and len(replies) < _TRIES:
            replies.append(judge.complete(self.judge_request(item, image, len(replies))))
            value = score_of_reply(replies[-1])
        detail = {"replies": replies, "calls": len(replies)}
        return Score({"score": value}, detail, unparsable=int(value is None))

    @property
    def refuses_unparsable(self) -> bool:
        return self.options.protocol is not Protocol.FIXED

    def failure(self, unparsable: Sequence[str]) -> dict[str, Any]:
        return {"fails": "missing ids", "unparsable": sorted(unparsable)}


def score_of_reply(reply: str | None) -> float | None:
    """0 or 1 as a reply has it, or None: the first "Score: 0" or "Score: 1" after its thought, or a lone digit."""
    text = _THOUGHT.sub("", reply or "").strip()
    if text in ("0", "1"):
        return float(text)
    found = _SCORE.search(text)
    return float(found[1]) if found else None

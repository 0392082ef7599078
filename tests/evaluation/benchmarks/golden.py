"""The recorded scores of the published evaluation, and comparisons that all understanding benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.evaluation.base import Benchmark, BenchmarkOptions, Item, ItemResult, Protocol, Score, Summary
from bagel_mot.evaluation.data import open_input
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges
from bagel_mot.images import ImageTransform

ROOT = Path(__file__).parents[2] / "golden-eval"
MODES = (Protocol.PUBLISHED, Protocol.FIXED)


def load(benchmark: str, name: str) -> Any:
    """A JSON file of a benchmark's folder."""
    return json.loads((ROOT / benchmark / f"{name}.json").read_text(encoding="utf-8"))


def options(benchmark: str, **more: Any) -> BenchmarkOptions:
    """The options that read a benchmark's small set."""
    return BenchmarkOptions(ROOT / benchmark / "data", **{"partial": True, **more})


class ScriptedJudge:
    """A judge that gives the recorded replies in turn, and keeps what it was asked."""

    def __init__(self, replies: Sequence[str | None]) -> None:
        self.replies, self.requests = list(replies), list[JudgeRequest]()

    def complete(self, request: JudgeRequest) -> str | None:
        self.requests.append(request)
        return self.replies[len(self.requests) - 1]


def scored(
    benchmark: Benchmark, answers: Mapping[str, str], replies: Mapping[str, Sequence[str | None]] | None = None
) -> tuple[dict[str, Score], dict[str, list[JudgeRequest]], Summary]:
    """The scores of all items, what the judge was asked for each, and the summary."""
    scores, asked = {}, {}
    for item in benchmark.items():
        judge = ScriptedJudge((replies or {}).get(item.id, ()))
        scores[item.id] = benchmark.score(item, ItemResult((answers[item.id],)), Judges(chat=judge))
        asked[item.id] = judge.requests
        assert len(judge.requests) == len(judge.replies), f"{item.id}: the judge was asked fewer times than recorded"
    json.dumps([(dict(score.values), dict(score.detail)) for score in scores.values()])  # it can be stored
    return scores, asked, benchmark.aggregate(scores)


def check_prompts(items: Sequence[Item], recorded: Mapping[str, Any]) -> None:
    """Prompts, images, sizes and limits of all items are as recorded."""
    assert sorted(item.id for item in items) == sorted(recorded)
    transform = ImageTransform(980, 378, 14)
    for item in items:
        wanted = recorded[item.id]
        images = [open_input(image) for image in item.images]
        assert item.kind == "ask"
        assert item.prompt == wanted["prompt"]
        assert [list(image.size) for image in images] == wanted["picture_sizes"]
        assert [list(transform.size(*image.size)) for image in images] == wanted["vit_sizes"]
        assert item.settings == {
            "do_sample": False,
            "max_new_tokens": wanted["max_length"] - 1,
            "vit_min_size": 378,
        }


def check_rows(summary: Summary, wanted: Mapping[str, float]) -> None:
    """The rows of these names have these values, and an interval around them where there is one."""
    for name, value in wanted.items():
        row = summary.rows[name]
        assert row.value == pytest.approx(value, rel=1e-6), name
        if row.interval is not None:
            assert row.interval[0] - 1e-9 <= row.value <= row.interval[1] + 1e-9, name
    assert set(summary.headline) <= set(summary.rows)

"""The recorded edits of the published evaluation, and comparisons that all benchmarks of edits share."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.evaluation.base import Benchmark, BenchmarkOptions, Item, ItemResult, Protocol, Score, Summary
from bagel_mot.evaluation.data import open_input
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform

ROOT = Path(__file__).parents[2] / "golden-eval"
PUBLISHED, FIXED, UPSTREAM = Protocol.PUBLISHED, Protocol.FIXED, Protocol.UPSTREAM
_SHORT = 60  # characters of a text that a record holds in full


def load(benchmark: str, name: str) -> Any:
    return json.loads((ROOT / benchmark / f"{name}.json").read_text(encoding="utf-8"))


def options(benchmark: str, **more: Any) -> BenchmarkOptions:
    return BenchmarkOptions(ROOT / benchmark / "data", **{"partial": True, **more})


class Scripted:
    """A judge that gives replies in turn, and keeps what it was asked."""

    def __init__(self, replies: Sequence[str | None]) -> None:
        self.replies, self.requests = list(replies), list[JudgeRequest]()

    def complete(self, request: JudgeRequest) -> str | None:
        self.requests.append(request)
        return self.replies[len(self.requests) - 1]


def scored(
    benchmark: Benchmark,
    replies: Callable[[Item], Sequence[str | None]],
    edited: Callable[[Item], Path],
) -> tuple[dict[str, Score], dict[str, list[JudgeRequest]], Summary]:
    """The scores of all items, what the judge was asked for each, and the summary."""
    scores, asked = {}, {}
    for item in benchmark.items():
        judge = Scripted(replies(item))
        scores[item.id] = benchmark.score(item, ItemResult(images=(edited(item),)), Judges(chat=judge))
        asked[item.id] = judge.requests
    json.dumps([(dict(score.values), dict(score.detail)) for score in scores.values()])  # it can be stored
    summary = benchmark.aggregate(scores)
    assert set(summary.headline) <= set(summary.rows)
    for name, row in summary.rows.items():
        if row.value is not None and row.interval is not None:
            assert row.interval[0] - 1e-9 <= row.value <= row.interval[1] + 1e-9, name
    half = dict(list(scores.items())[: len(scores) // 2])
    assert benchmark.aggregate(half).rows.keys() == summary.rows.keys()
    return scores, asked, summary


def check_items(items: Sequence[Item], recorded: Mapping[str, Any], names: Callable[[Item], list[str]]) -> None:
    """Prompts, images, and the sizes for drawing, autoencoder and ViT of all items are as recorded."""
    assert [item.id for item in items] == list(recorded)
    for item in items:
        wanted = recorded[item.id]
        sizes = [open_input(image).size for image in item.images]
        vit = ImageTransform(VIT_TRANSFORM.max_size, item.settings["vit_min_size"], VIT_TRANSFORM.stride)
        assert item.kind == "edit"
        assert item.prompt == wanted["prompt"]
        assert names(item) == wanted["pictures"]
        assert [list(VAE_TRANSFORM.size(*size)) for size in sizes] == wanted["vae_sizes"]
        assert [list(vit.size(*size)) for size in sizes] == wanted["vit_sizes"]
        # An edit is as large as its last image, unless a size is set.
        assert list(item.settings.get("size", VAE_TRANSFORM.size(*sizes[-1]))) == wanted["output_size"]


def check_settings(plain: Item, thinking: Item, recorded: Mapping[str, Any]) -> None:
    """The settings are as recorded, and those of thinking where there are any."""
    for name, value in recorded["settings"].items():
        if name not in ("size", "seed"):
            assert plain.settings[name] == pytest.approx(value), name
    assert not plain.settings["think"]
    assert thinking.settings["think"]
    if think := recorded.get("think"):
        assert thinking.settings["temperature"] == think["temperature"]
        assert thinking.settings["do_sample"] is think["do_sample"]
        assert thinking.settings["max_think_tokens"] == think["max_length"] - 1


def structure(request: JudgeRequest) -> list[dict[str, Any]]:
    """The messages of a request as a record has them."""
    return [
        {"role": message.role, "content": [_part(part) for part in message.content]} for message in request.messages
    ]


def _part(part: str | JudgeImage) -> dict[str, Any]:
    if isinstance(part, str):
        if len(part) < _SHORT:
            return {"text": part}
        return {"text_sha256": hashlib.sha256(part.encode()).hexdigest(), "chars": len(part)}
    with Image.open(io.BytesIO(part.data)) as image:
        facts = {"mime": part.mime, "format": image.format, "size": list(image.size), "detail": part.detail}
    return {"picture": facts}


def check_settings_of_request(request: JudgeRequest, recorded: Mapping[str, Any]) -> None:
    for name in ("model", "temperature", "max_tokens", "n"):
        assert getattr(request, name) == recorded.get(name), name


def check_rows(summary: Summary, wanted: Mapping[str, float | None], digits: int | None = None) -> None:
    for name, value in wanted.items():
        found = summary.rows[name].value
        if value is None or found is None:
            assert found == value, name
        elif digits is not None:
            assert abs(found - value) <= 0.5 * 10**-digits * (1 + 1e-9), name
        else:
            assert found == pytest.approx(value, rel=1e-6), name

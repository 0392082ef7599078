"""A published configuration of data trains, by the published packing loop, and goes on with other workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bagel_mot.data.packer import PublishedPackConfig
from bagel_mot.data.sources import read_source_config
from bagel_mot.training import checkpoints
from bagel_mot.training.loop import train
from bagel_mot.training.metrics import METRICS_FILE
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask

GOLDEN = Path(__file__).parents[2] / "golden-data"
PACK = PublishedPackConfig(
    expected_num_tokens=300,
    max_num_tokens=330,
    max_num_tokens_per_sample=260,
    prefer_buffer_before=200,
    max_buffer_size=3,
)


class Quiet(BagelTask):
    """Without sample sheets: they are not what is tested, and take longest."""

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        pass


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def test_a_published_configuration_trains_and_goes_on(
    recipe: Callable[..., BagelRecipe], golden: Any, tmp_path: Path
) -> None:
    section = {
        "kind": "published",
        "config": str(GOLDEN / "data" / "small.yaml"),
        "dataset_info": str(GOLDEN / "data" / "dataset_info.json"),
        "root": str(GOLDEN),
    }

    def run(name: str, workers: int = 0, **more: Any) -> BagelRecipe:
        start = recipe(model=None, autoencoder=None, init=str(golden.checkpoint), steps=3, packs_per_step=2)
        data = read_source_config({**section, "workers": workers, **more})
        return replace(start, output=tmp_path / name, data=data, pack=PACK, log_every=1, save_every=100)

    train(run("whole"), Quiet)
    train(run("parts"), Quiet, stop_after=1)
    train(run("parts", workers=1), Quiet)
    whole, parts = (checkpoints.load_latest(tmp_path / name) for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert whole.keys() == parts.keys()
    for key in whole.keys() - {"recipe"}:
        assert _same(whole[key], parts[key]), key
    json.dumps(whole["data"])
    reports = [json.loads(line) for line in (tmp_path / "parts" / METRICS_FILE).read_text().splitlines()]
    assert [report["step"] for report in reports] == [1, 2, 3]
    assert all(report["ce"] > 0 and report["mse"] > 0 for report in reports)
    assert reports[-1]["skipped"] > 0
    lists = [(tmp_path / name / "skipped" / "stream-0.jsonl").read_text() for name in ("whole", "parts")]
    assert lists[0] == lists[1]
    skipped = [json.loads(line) for line in lists[0].splitlines()]
    assert all(item["place"] and item["reason"] and item["sentence"] for item in skipped)
    assert len(skipped) == whole["data"][0]["listed"]
    train(run("order", sharding="published", rank_workers=1), Quiet, stop_after=1)

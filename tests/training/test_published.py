"""A configuration of the published scripts trains as it is, by one command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from bagel_mot.cli import app
from bagel_mot.data.documents import FramesPart, ImagePart, ImageRules, TextPart
from bagel_mot.data.layout import lay_out
from bagel_mot.images import ImageTransform
from bagel_mot.training.objective import add_noise
from bagel_mot.training.profiles import load_recipe
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks import bagel as unified
from bagel_mot.training.tasks.bagel import BagelTask

pytest.importorskip("pyarrow")
TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden-data"


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        content = {
            "kind": "bagel",
            "output": str(tmp_path / "run"),
            "init": str(TESTS / "golden" / "checkpoint"),
            "steps": 20,
            "precision": "float32",
            "device": "cpu",
            "log_every": 5,
            "sample_every": 1000,
            "pack": {"rows": 1, "und": 300, "gen": 96},
            "data": {
                "kind": "published",
                "config": str(GOLDEN / "data" / "small.yaml"),
                "dataset_info": str(GOLDEN / "data" / "dataset_info.json"),
                "root": str(GOLDEN),
            },
            "optimizer": {"lr": 1e-3},
        }
        for key, value in changes.items():
            content["data"][key] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def run(path: Path) -> Result:
    return CliRunner().invoke(app, ["train", str(path)])


def test_a_published_configuration_trains_twenty_steps(written: Any, tmp_path: Path) -> None:
    result = run(written())
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    reports = [line for line in lines if "ce" in line]
    assert reports[-1]["step"] == 20
    assert reports[-1]["ce"] < reports[0]["ce"]
    skipped = [
        json.loads(line)
        for file in (tmp_path / "run" / "skipped").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert {"no text with loss", "an image cannot be read", "a line is no JSON"} <= {item["reason"] for item in skipped}
    assert all(item["sentence"] and item["place"] for item in skipped)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"config": str(GOLDEN / "data" / "official.yaml")},
            "so the limit must be 128",
        ),
        ({"root": "elsewhere"}, "but there is no folder"),
        ({"config": "none.yaml"}, "none.yaml could not be read as YAML"),
        ({"images": "sideways"}, "'upright' or 'published'"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(
    written: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    result = run(written(**changes))
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert not list((tmp_path / "run").glob("step-*"))


def test_frames_of_a_clip_train_at_one_timestep(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of two frames, the first one clean before the second, and an image of its own."""
    recipe = load_recipe(written())
    assert isinstance(recipe, BagelRecipe)
    task = BagelTask(recipe)
    frames = [Image.new("RGB", (32, 32), (60 * number, 0, 0)) for number in range(4)]
    document = [
        TextPart("it reddens"),
        FramesPart((frames[0], frames[1]), (0, 3), target=True, vae=True, following=5),
        FramesPart((frames[2], frames[3]), (5, 6), target=True),
        ImagePart(frames[3], target=True),
    ]
    rules = ImageRules(vae=ImageTransform(32, 32, 16))
    sample = task.builder(0, document, random.Random(0), rules)
    batch = task.to_device(lay_out([[sample]], task.spec, sample.und_len, sample.gen_len))
    seen: list[Tensor] = []

    def watched(layout: Any, values: Any, timesteps: Tensor, noise: Tensor) -> Any:
        seen.append(timesteps)
        return add_noise(layout, values, timesteps, noise)

    monkeypatch.setattr(unified, "add_noise", watched)
    losses = task.losses(batch, torch.Generator().manual_seed(0))
    (times,) = seen
    assert batch.layout.noised.tolist() == [True, True, False, False, True, True, True]
    assert times[0] == times[1]
    assert times[4] == times[5]
    assert len({float(times[index]) for index in (0, 4, 6)}) == 3
    assert torch.isfinite(losses["mse"]).all()
    task.close()

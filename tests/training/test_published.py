"""A configuration of the published scripts trains as it is, by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from bagel_mot.cli import app

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

"""Several processes read a checkpoint each its part: together they have what one process loads, and none has more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.checkpoint.official import load_checkpoint, open_parts
from bagel_mot.inference.loading import MINI_FOLDER
from tests.parallel.processes import run

RECIPE = {
    "kind": "bagel",
    "init": "mini",
    "steps": 1,
    "packs_per_step": 4,
    "precision": "float32",
    "device": "cpu",
    "data": {"kind": "mini"},
    "pack": {"rows": 1, "und": 160, "gen": 64, "buffer": 8},
}
QUICK: dict[int, dict[str, Any]] = {2: {"sharded": {}}}
WHOLE: dict[int, dict[str, Any]] = {
    2: {
        "frozen": {"trainable": ["gen"]},
        "offloaded": {"parallel": {"enable_cpu_offload": True}},
        "tensor": {"parallel": {"tensor_parallel_degree": 2}},
    },
    4: {
        "replicated": {"parallel": {"data_parallel_replicate_degree": 2}},
        "sharded tensor": {"parallel": {"tensor_parallel_degree": 2}},
    },
}


def _check(cases: dict[int, dict[str, Any]], folder: Path) -> None:
    expected = load_checkpoint(MINI_FOLDER, precision=torch.float32).model.state_dict()
    size = sum(tensor.nbytes for tensor in expected.values())
    for count, named in cases.items():
        script = str(Path(__file__).with_name("loading.py"))
        said = run(count, script, json.dumps(RECIPE), json.dumps(named), str(folder))
        told = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in said]
        for number, name in enumerate(named):
            weights = torch.load(folder / f"{name}.pt")
            assert weights.keys() == expected.keys()
            for key, tensor in expected.items():
                same, rounded = torch.equal(weights[key], tensor), tensor.bfloat16().float()
                assert same or (name == "frozen" and torch.equal(weights[key], rounded)), f"{name}: {key}"
            shares = 2 if name in ("replicated", "tensor", "frozen", "sharded", "offloaded") else 4
            for process in told:
                assert process[number]["read"] == process[number]["kept"] < 1.1 * size / shares + size / 50
                assert process[number]["on meta"] > 0.9 * size


def test_two_processes_read_their_halves(tmp_path: Path) -> None:
    _check(QUICK, tmp_path)


@pytest.mark.slow
def test_processes_read_their_parts_however_they_are_divided(tmp_path: Path) -> None:
    _check(WHOLE, tmp_path)


def test_parts_are_those_of_the_whole() -> None:
    loaded = load_checkpoint(MINI_FOLDER, precision=torch.float32)
    begun, parts = open_parts(MINI_FOLDER)
    assert begun.config == loaded.config
    for name, tensor in loaded.model.state_dict().items():
        assert begun.model.state_dict()[name].is_meta
        offsets, sizes = [side // 3 for side in tensor.shape], [side - side // 3 for side in tensor.shape]
        expected = tensor[tuple(slice(offset, None) for offset in offsets)]
        assert torch.equal(parts.read(name, offsets, sizes), expected)
    parts.close()

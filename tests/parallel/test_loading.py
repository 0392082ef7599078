"""Several processes read a checkpoint, or make a new model, each its part: together they have what one process has, and
none has more.
"""

from __future__ import annotations

import json
import re
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


@pytest.mark.slow
def test_two_processes_read_their_halves(tmp_path: Path) -> None:
    _check(QUICK, tmp_path)


@pytest.mark.slow
def test_processes_read_their_parts_however_they_are_divided(tmp_path: Path) -> None:
    _check(WHOLE, tmp_path)


ADAPTERS: dict[str, Any] = {
    "lora": {"trainable": "lora", "lora": {"rank": 4}},
    "dora": {"trainable": "lora", "lora": {"rank": 4, "use_dora": True}},
    "bfloat16": {"trainable": "lora", "lora": {"rank": 4}, "precision": "bfloat16"},
}
BY_HEADS = re.compile(
    r"\.(und|gen)\.("
    r"(q|k|v|gate|up)\.((base_layer\.)?(weight|bias)|row_squares|lora_B\..*|lora_magnitude_vector\..*)|"
    r"(o|down)\.((base_layer\.)?weight|lora_A\..*))$"
)
TENSOR = {"parallel": {"tensor_parallel_degree": 2}}


def _share(tensors: dict[str, torch.Tensor], count: int, heads: int) -> float:
    """The bytes of one process's share of tensors, with `count` processes of which so many divide the heads: they share
    the matrices of heads and MLPs with their adapters, and nothing else; the rest of the division is of everything.
    """
    by_heads = sum(tensor.nbytes for name, tensor in tensors.items() if BY_HEADS.search(name))
    return (sum(tensor.nbytes for tensor in tensors.values()) - by_heads + by_heads / heads) / (count / heads)


def _against_one(recipe: dict[str, Any], cases: dict[str, Any], divided: dict[int, list[str]], folder: Path) -> None:
    """Compares what several processes have with what one has; no process may have more than its share and 5 percent."""
    script = str(Path(__file__).with_name("loading.py"))
    (folder / "1").mkdir()
    (said,) = run(1, script, json.dumps(recipe), json.dumps(cases), str(folder / "1"))
    sizes = dict(zip(cases, (json.loads(line)["kept"] for line in said.splitlines() if line[0] == "{"), strict=True))
    for count, names in divided.items():
        (folder / str(count)).mkdir()
        named = {name: {**cases[name.split()[0]], **(TENSOR if "tensor" in name else {})} for name in names}
        told = run(count, script, json.dumps(recipe), json.dumps(named), str(folder / str(count)))
        for number, name in enumerate(names):
            reference = name.split()[0]
            weights, expected = (
                torch.load(folder / f"{n}" / f"{which}.pt") for n, which in ((count, name), (1, reference))
            )
            assert weights.keys() == expected.keys()
            for key, tensor in expected.items():
                assert weights[key].dtype == tensor.dtype
                assert torch.equal(weights[key], tensor), f"{name}: {key}"
            share = _share(expected, count, 2 if "tensor" in name else 1)
            for text in told:
                process = [json.loads(line) for line in text.splitlines() if line.startswith("{")][number]
                assert process["kept"] < 1.05 * share
                assert process["on meta"] > 0.85 * sizes[reference]


@pytest.mark.slow
def test_the_base_of_adapters_is_read_in_parts(tmp_path: Path) -> None:
    divided = {2: ["lora", "dora", "bfloat16", "lora tensor", "dora tensor"], 4: ["dora tensor"]}
    _against_one(RECIPE, ADAPTERS, divided, tmp_path)


@pytest.mark.slow
def test_a_new_model_is_made_in_parts(tiny: dict[str, Any], tmp_path: Path) -> None:
    _against_one(tiny, {"new": {}}, {2: ["new", "new tensor"]}, tmp_path)


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

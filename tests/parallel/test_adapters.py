"""LoRA and QLoRA over FSDP2, and LoRA with divided heads: several processes take the steps that one takes, keep float32
adapters in parts, and write the same files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from bagel_mot.checkpoint.adapters import WEIGHTS_FILE
from bagel_mot.checkpoint.official import load_autoencoder, save_checkpoint
from bagel_mot.checkpoint.side_files import ADAPTER_FILE, DEFAULTS_FILE
from bagel_mot.config import load_config
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.bagel import BagelModel
from bagel_mot.tokenizer import Tokenizer
from tests.parallel.processes import finish, run, start

pytestmark = pytest.mark.slow
LORA = {"rank": 4, "alpha": 8, "gen": {"rank": 2}}
DORA = {"rank": 2, "use_dora": True, "use_rslora": True, "dropout": 0.1}
DISTIL = {"data": {"kind": "mini", "mix": {"draw": 1.0}}, "distil": True}
TENSOR = {"parallel": {"tensor_parallel_degree": 2}}
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "lora": {"lora": LORA, "steps": 10},
        "dora": {"lora": DORA},
        "wide": {"lora": DORA, "wide": True},
        "qlora": {"lora": {**DORA, "base": "nf4"}},
        "distil": {"lora": LORA, "replay": DISTIL},
        # A bfloat16 base and float32 adapters in one unit.
        "bfloat16": {"lora": {**DORA, "dropout": 0.0}, "precision": "bfloat16"},
    },
    2: {
        "lora": {"lora": LORA, "steps": 10},
        "dora": {"lora": DORA},
        "qlora": {"lora": {**DORA, "base": "nf4"}},
        "distil": {"lora": LORA, "replay": DISTIL},
        "distil tensor": {"lora": LORA, "replay": DISTIL, **TENSOR},
        "bfloat16": {"lora": {**DORA, "dropout": 0.0}, "precision": "bfloat16"},
        "lora tensor": {"lora": LORA, "steps": 10, **TENSOR},
        "dora tensor": {"lora": DORA, **TENSOR},
        "wide tensor": {"lora": DORA, "wide": True, **TENSOR},
        "bfloat16 tensor": {"lora": {**DORA, "dropout": 0.0}, "precision": "bfloat16", **TENSOR},
    },
    4: {"lora tensor": {"lora": LORA, "steps": 10, **TENSOR}, "dora tensor": {"lora": DORA, **TENSOR}},
}


@pytest.fixture(scope="module")
def base(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained checkpoint of mini's world, with matrices that NF4 takes."""
    folder = tmp_path_factory.mktemp("base")
    config = load_config(MINI_FOLDER)
    decoder = replace(config.decoder, hidden_size=64, num_layers=2, intermediate_size=128, head_dim=16)
    vit = replace(config.vit, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48)
    autoencoder = load_autoencoder(tiny["autoencoder"])
    made = replace(config, decoder=decoder, vit=vit, vae=autoencoder.config)
    torch.manual_seed(0)
    save_checkpoint(
        folder,
        made,
        model=BagelModel(made).state_dict(),
        autoencoder=autoencoder.state_dict(),
        tokenizer=Tokenizer.from_folder(MINI_FOLDER),
    )
    shutil.copy(MINI_FOLDER / DEFAULTS_FILE, folder)
    return folder


@pytest.fixture(scope="module")
def results(tiny: dict[str, Any], base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of results by the number of processes."""
    recipe = {**tiny, "init": str(base), "trainable": "lora", "packs_per_step": 2}
    del recipe["model"], recipe["autoencoder"]
    script, folders = str(Path(__file__).with_name("equal.py")), {}
    for count, cases in CASES.items():
        folders[count] = tmp_path_factory.mktemp(f"results-{count}")
        run(count, script, json.dumps(recipe), json.dumps(cases), str(folders[count]))
    return folders


DIVIDED = [(count, name) for count in (2, 4) for name in CASES[count]]


def _results(folder: Path, name: str) -> dict[str, Any]:
    return cast(dict[str, Any], torch.load(folder / f"{name}.pt", weights_only=False))


def _relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The differences of all numbers, in parts of the largest number of their tensor."""
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in expected.items()}
    return {
        key: (found[key].double() - other.double()) / other.double().abs().max().clamp_min(1e-9)
        for key, other in expected.items()
    }


@pytest.mark.parametrize(("count", "name"), DIVIDED)
def test_several_processes_do_what_one_does(results: dict[int, Path], count: int, name: str) -> None:
    """The limits are those of float32. A sum that is divided in another way is rounded in another way, which Adam makes
    more of where a gradient is small: two steps of DoRA with divided heads differ by up to 3e-6. In float64 ("wide")
    they are those of one process, and the next test compares them with these.
    """
    reference = name.removesuffix(" tensor")
    ours, theirs = _results(results[count], name), _results(results[1], reference)
    exact = reference != "bfloat16"
    assert len(ours["steps"]) == len(theirs["steps"]) == (10 if reference == "lora" else 2)
    for found, expected in zip(ours["steps"], theirs["steps"], strict=True):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            # The norm of all gradients is summed in float32, in another order.
            limit = (1e-5 if key == "grad_norm" else 1e-6) if exact else 0.02
            assert value == pytest.approx(expected[key], rel=limit), key
    assert all("lora_" in key for key in ours["tensors"] if not key.endswith("step"))
    master = torch.float64 if reference == "wide" else torch.float32
    assert {weight.dtype for weight in ours["weights"].values()} == {master}
    moved = 0
    for key, error in _relative(ours["tensors"], theirs["tensors"]).items():
        tensor = ours["tensors"][key]
        if key.startswith("module."):
            assert tensor.dtype == master
            moved += bool(key.endswith("lora_B.default.weight") and tensor.abs().max() > 0)
        if reference == "wide":
            assert error.abs().max() < 1e-12, key
        elif exact:
            limit = 1e-5 if key.startswith("optimizer.") or name == "dora tensor" else 1e-6
            assert error.abs().max() < limit, key
    assert moved > 0


@pytest.mark.parametrize("count", [2, 4])
def test_divided_heads_are_as_near_to_float64_as_whole_ones(results: dict[int, Path], count: int) -> None:
    expected = _results(results[1], "wide")["tensors"]
    errors = [
        torch.cat([error.flatten() for key, error in _relative(found, expected).items() if not key.endswith("step")])
        for found in (
            _results(results[count], "dora tensor")["tensors"],
            _results(results[1], "dora")["tensors"],
        )
    ]
    divided, whole = (error.square().mean().sqrt() for error in errors)
    assert 1e-9 < divided < 1.2 * whole
    assert errors[0].abs().max() < 2 * errors[1].abs().max() < 2e-5


@pytest.mark.parametrize(("count", "name"), DIVIDED)
def test_their_files_are_laid_out_as_those_of_one(results: dict[int, Path], count: int, name: str) -> None:
    folders = results[count] / f"{name} files", results[1] / f"{name.removesuffix(' tensor')} files"
    ours, theirs = ({file.name for file in folder.iterdir()} for folder in folders)
    assert ours == theirs >= {ADAPTER_FILE, WEIGHTS_FILE}
    assert (folders[0] / ADAPTER_FILE).read_text() == (folders[1] / ADAPTER_FILE).read_text()
    found, expected = (load_file(folder / WEIGHTS_FILE) for folder in folders)
    assert {key: (t.shape, t.dtype) for key, t in found.items()} == {
        key: (t.shape, t.dtype) for key, t in expected.items()
    }


def test_a_quantised_base_and_divided_heads_are_refused(tiny: dict[str, Any], base: Path, tmp_path: Path) -> None:
    changes = {"lora": {**DORA, "base": "nf4"}, **TENSOR}
    recipe = {**tiny, "init": str(base), "trainable": "lora", "packs_per_step": 2}
    del recipe["model"], recipe["autoencoder"]
    script = str(Path(__file__).with_name("equal.py"))
    ended = finish(start(2, script, json.dumps(recipe), json.dumps({"refused": changes}), str(tmp_path)))
    assert all(status for status, _, _ in ended)
    assert any("but q is a QuantisedLinear, which every process has whole" in said for _, _, said in ended)

"""Adapters on disk: what is written the package peft reads and the other way round; what does not fit is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bagel_mot.checkpoint.adapters import WEIGHTS_FILE, linear_shapes, read_adapter, write_adapter
from bagel_mot.checkpoint.names import official_module
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.side_files import ADAPTER_FILE
from bagel_mot.config import BagelConfig, load_config
from bagel_mot.errors import CheckpointError
from bagel_mot.model.adapters import Adapter
from tests.adapters import random_adapter

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "gen": {"experts": ["gen"], "matrices": ["gate", "up", "down"]},
    "two ranks": {"gen_rank": 7},
    "rslora": {"rslora": True, "experts": ["und"]},
    "dora": {"dora": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def config(golden: Any) -> BagelConfig:
    return load_config(golden.checkpoint)


def official_tree(config: BagelConfig) -> nn.Module:
    """Plain linear maps under the official names, as another program has them."""
    root = nn.Module()
    torch.manual_seed(5)
    for place, (out, inner) in linear_shapes(config).items():
        node = root
        *parents, leaf = official_module(place).split(".")
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, nn.Module())
            node = node.get_submodule(parent)
        node.add_module(leaf, nn.Linear(inner, out, bias=False))
    return root


def assert_same(got: Adapter, expected: Adapter) -> None:
    assert got.rslora == expected.rslora
    assert got.matrices.keys() == expected.matrices.keys()
    for place, matrix in expected.matrices.items():
        other = got.matrices[place]
        assert (other.alpha, other.magnitude is None) == (matrix.alpha, matrix.magnitude is None)
        for a, b in ((other.down, matrix.down), (other.up, matrix.up), (other.magnitude, matrix.magnitude)):
            assert (a is b is None) or torch.equal(a, b)  # type: ignore[arg-type]


@kinds
def test_a_written_adapter_is_read_again(config: BagelConfig, tmp_path: Path, kind: str) -> None:
    adapter = random_adapter(config, **KINDS[kind])
    write_adapter(tmp_path, adapter, "mini")
    assert_same(read_adapter(tmp_path, config), adapter)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert {tensor.dtype for name, tensor in stored.items() if "magnitude" not in name} == {torch.bfloat16}
    assert {tensor.dtype for name, tensor in stored.items() if "magnitude" in name} <= {torch.float32}
    assert all(name.startswith("base_model.model.language_model.model.layers.") for name in stored)


@kinds
def test_peft_reads_what_is_written(config: BagelConfig, tmp_path: Path, kind: str) -> None:
    adapter = random_adapter(config, **KINDS[kind])
    write_adapter(tmp_path, adapter, "mini", dropout=0.1)
    tree = official_tree(config)
    before = {name: p.detach().clone() for name, p in tree.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of tensors that it misses
        model = peft.PeftModel.from_pretrained(tree, str(tmp_path))
    adapted = {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert adapted == {f"base_model.model.{official_module(place)}" for place in adapter.matrices}
    merged = dict(model.merge_and_unload().named_parameters())
    for place, matrix in adapter.matrices.items():
        name = f"{official_module(place)}.weight"
        change = matrix.change(before[name], adapter.rslora)
        assert torch.allclose(merged[name], before[name] + change, atol=1e-5), name


@kinds
def test_what_peft_writes_is_read(config: BagelConfig, tmp_path: Path, kind: str) -> None:
    asked = KINDS[kind]
    adapter = random_adapter(config, **asked)
    first = next(iter(adapter.matrices.values()))
    lora = peft.LoraConfig(
        r=first.rank,
        lora_alpha=int(first.alpha),
        target_modules=[official_module(place) for place in adapter.matrices],
        rank_pattern={".*_moe_gen.*": asked["gen_rank"]} if "gen_rank" in asked else {},
        alpha_pattern={".*_moe_gen.*": 2 * asked["gen_rank"]} if "gen_rank" in asked else {},
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
    )
    model = peft.get_peft_model(official_tree(config), lora)
    for place, matrix in adapter.matrices.items():
        layer = model.base_model.model.get_submodule(official_module(place))
        layer.lora_A["default"].weight.data.copy_(matrix.down)
        layer.lora_B["default"].weight.data.copy_(matrix.up)
        if matrix.magnitude is not None:
            layer.lora_magnitude_vector["default"].weight.data.copy_(matrix.magnitude)
    model.save_pretrained(str(tmp_path))
    assert_same(read_adapter(tmp_path, config), adapter)


@pytest.mark.parametrize("removed", ["base_model.model.", "language_model.", "language_model.model.", "all of it"])
def test_names_of_other_trainers_are_read(config: BagelConfig, tmp_path: Path, removed: str) -> None:
    adapter = random_adapter(config)
    write_adapter(tmp_path, adapter)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    beginning = "base_model.model.language_model.model." if removed == "all of it" else removed
    renamed = {name.replace(beginning, "", 1).replace("lora_A.", "lora_A.default."): t for name, t in stored.items()}
    save_file(renamed, tmp_path / WEIGHTS_FILE)
    assert_same(read_adapter(tmp_path, config), adapter)


def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, torch.Tensor], content: dict[str, Any]) -> None:
        (name,) = (name for name in tensors if name.endswith(old))
        value = tensors.pop(name)
        if new:
            tensors[name.removesuffix(old) + new] = value

    return change


def _set(**values: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    return lambda tensors, content: content.update(values)


def _widen(tensors: dict[str, torch.Tensor], content: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith("0.self_attn.q_proj.lora_A.weight"))
    tensors[name] = torch.zeros(4, 65)


def _spoil(tensors: dict[str, torch.Tensor], content: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename("layers.0.mlp.up_proj.lora_A.weight", "layers.9.mlp.up_proj.lora_A.weight"),
         r"layers.9.mlp.up_proj.lora_A.weight belongs to no matrix of this model"),
        (_rename("0.mlp.up_proj.lora_A.weight", "0.mlp.up_proj.scale"), r"0.mlp.up_proj.scale belongs to no"),
        (_rename("0.mlp.up_proj.lora_A.weight", "0.mlp.modules_to_save.weight"), r"modules_to_save.weight belongs to"),
        (_rename("layers.0.mlp.up_proj.lora_A.weight", ""), r"up_proj.lora_B.weight, but not the lora_A of the same"),
        (_rename("0.mlp.up_proj.lora_B.weight", "0.mlp.up_proj.lora_magnitude_vector"), r"not the lora_B of the same"),
        (_widen, r"q_proj.lora_A.weight is \[4, 65\]; a matrix of 64×64 and rank 4 take \[4, 64\]: the adapter is of"),
        (_set(r=8), r"lora_A.weight is \[4, 160\]; a matrix of 64×160 and rank 8 take \[8, 160\]"),
        (_set(use_dora=True), r"but not the lora_magnitude_vector of the same matrix"),
        (_spoil, r"holds infinite values or values that are not numbers"),
        (_set(peft_type="LOHA"), r"peft_type is 'LOHA'; LORA is read here"),
        (_set(bias="all"), r"bias is 'all', which is not read here; it must be 'none'"),
        (_set(modules_to_save=["connector"]), r"modules_to_save is \['connector'\], which is not read"),
        (_set(init_lora_weights="pissa"), r"init_lora_weights is 'pissa', which changes the base's weights"),
        (_set(r=0), r"r is 0; it must be a number above 0"),
        (_set(rank_pattern=[1]), r"rank_pattern is \[1\]; it must be an object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name(
    config: BagelConfig, tmp_path: Path, change: Any, message: str
) -> None:
    write_adapter(tmp_path, random_adapter(config))
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    content = json.loads((tmp_path / ADAPTER_FILE).read_text())
    change(tensors, content)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    (tmp_path / ADAPTER_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_adapter(tmp_path, config)
    assert str(tmp_path) in str(caught.value)


def test_an_adapter_of_a_larger_model_is_refused(config: BagelConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    larger = replace(config, decoder=replace(config.decoder, hidden_size=128, head_dim=32))
    write_adapter(tmp_path, random_adapter(larger))
    with pytest.raises(CheckpointError, match=r"is \[4, 128\]; a matrix of 64×64 and rank 4 take \[4, 64\]"):
        read_adapter(tmp_path, config)


def test_missing_files_are_named(config: BagelConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json"):
        read_adapter(tmp_path, config)
    write_adapter(tmp_path, random_adapter(config))
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors; adapter_model.bin may run code"):
        read_adapter(tmp_path, config)


def test_an_adapter_is_no_checkpoint(config: BagelConfig, tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(config))
    with pytest.raises(CheckpointError, match=r"is an adapter, which goes with a checkpoint"):
        open_checkpoint(tmp_path)

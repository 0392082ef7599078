"""`bagel verify` passes on what the published code recorded, and on other shapes; and it fails where it must."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bagel_mot.errors import BagelError, DataError
from bagel_mot.verify import VerifyReport, verify

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file are in no package
from recording import record
from reference_parts import Shape

GOLDEN = Path(__file__).parent / "golden"

# No two agree in anything that could be mixed up: head counts, depths, channels, strides, patches, tables, shifts.
SHAPES = {
    "plain": Shape(),
    "one KV head, interpolated": Shape(
        heads=6, kv_heads=1, layers=3, z=3, ch_mult=(1, 2, 2), interpolate=True, timestep_shift=4.0, latent_side=7,
        vit_patch=7, vit_layers=1, vit_heads=4, eos_gain=3.0,
    ),
    "no grouping, one level": Shape(
        hidden=40, heads=5, kv_heads=5, layers=1, mlp=72, z=8, ch_mult=(1,), res_blocks=2, latent_side=9,
        timestep_shift=0.5, rope_theta=1e4, vit_hidden=24, vit_heads=3, vit_side=8, scale=0.7, shift=-0.3,
    ),
    "deep": Shape(
        hidden=32, heads=2, kv_heads=1, layers=5, z=16, ch_mult=(2, 1, 3), latent_side=6, timestep_shift=1.7,
        vit_hidden=48, vit_layers=4, vit_heads=6, vit_patch=10,
    ),
    "interpolated, wide": Shape(
        hidden=96, heads=8, kv_heads=4, layers=2, z=5, ch_mult=(1, 1), interpolate=True, latent_side=11, vit_side=12,
        timestep_shift=3.0, res_blocks=2,
    ),
}  # fmt: skip


# One case of each kind: enough to be damaged.
KEPT = (
    "tokenize", "size_vae_1024", "transform_gray", "vit_square", "vae_wide", "understand_image", "t2i_default", "train",
    "train_flex_layout",
)  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of part of the recorded folder."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    change_cases(folder, lambda cases: cases.__setitem__(slice(None), [c for c in cases if c["name"] in KEPT]))
    tensors = load_file(folder / "expected.safetensors")
    save_file({n: t for n, t in tensors.items() if n.split("/")[0] in KEPT}, folder / "expected.safetensors")
    return folder


def failed(report: VerifyReport) -> set[tuple[str, str]]:
    return {(row.case, row.quantity) for row in report.failed}


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_cases(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = folder / "cases.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document["cases"])
    path.write_text(json.dumps(document), encoding="utf-8")


def test_the_recorded_folder_passes() -> None:
    report = verify(GOLDEN)
    assert report.passed, report.failed
    assert {row.case for row in report.rows} == {
        case["name"] for case in json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]
    }
    tensors = load_file(GOLDEN / "expected.safetensors")
    assert tensors.keys() <= {f"{row.case}/{row.quantity}" for row in report.rows}
    compared = [row for row in report.rows if row.error is not None]
    assert len(compared) > 300
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


@pytest.mark.parametrize(
    "name", [next(iter(SHAPES)), *(pytest.param(n, marks=pytest.mark.slow) for n in [*SHAPES][1:])]
)
def test_other_shapes_pass(name: str, tmp_path: Path) -> None:
    report = verify(record(tmp_path / "recorded", SHAPES[name], seed=len(name)))
    assert report.passed, report.failed
    assert len(report.rows) > 150


@pytest.mark.parametrize(
    ("tensor", "case"),
    [
        ("language_model.model.layers.1.self_attn.q_proj.weight", "understand_image"),
        ("language_model.model.layers.1.mlp_moe_gen.up_proj.weight", "t2i_default"),
        ("language_model.model.norm_moe_gen.weight", "t2i_default"),
        ("vit_model.vision_model.encoder.layers.0.layer_norm2.bias", "vit_square"),
        ("time_embedder.mlp.2.bias", "train"),
    ],
)
def test_one_changed_weight_fails(copy: Path, tensor: str, case: str) -> None:
    change_tensors(copy / "checkpoint" / "ema.safetensors", lambda t: t[tensor].view(-1)[3].add_(0.5))
    assert case in {row.case for row in verify(copy).failed}


def test_a_changed_autoencoder_fails(copy: Path) -> None:
    change_tensors(copy / "checkpoint" / "ae.safetensors", lambda t: t["decoder.conv_out.bias"][0].add_(0.5))
    assert {("vae_wide", "decoded"), ("t2i_default", "image")} <= failed(verify(copy))


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("t2i_default/latent", 1e-3),
        ("understand_image/tokens", 1),
        ("t2i_default/image", 9),
        ("train/packed_position_ids", 1),
        ("train/grad_norm/llm2vae.weight", 1e-3),
        ("train/grad_norm/vit_model.vision_model.encoder.layers.0.self_attn.k_proj.bias", 1e-2),
        ("train/grad/connector.fc1.weight", 1e-2),
        ("train/padded_latent", 1e-2),
        ("vit_square/position_ids", 1),
    ],
)
def test_one_changed_number_fails(copy: Path, quantity: str, amount: float) -> None:
    change_tensors(copy / "expected.safetensors", lambda t: t[quantity].view(-1)[0].add_(amount))
    assert tuple(quantity.split("/", 1)) in failed(verify(copy))


def test_a_changed_mask_and_layout_fail(copy: Path) -> None:
    change_tensors(copy / "expected.safetensors", lambda t: t["train/mask_2"][0, -1].logical_not_())

    def swap(cases: list[dict[str, Any]]) -> None:
        layout = next(case for case in cases if case["kind"] == "pack")
        layout["attn_modes"][2], layout["attn_modes"][3] = layout["attn_modes"][3], layout["attn_modes"][2]

    change_cases(copy, swap)
    found = failed(verify(copy))
    assert {("train", "mask_2"), ("train_flex_layout", "attn_modes"), ("train_flex_layout", "mask")} <= found


def test_changed_texts_and_sizes_fail(copy: Path) -> None:
    def change(cases: list[dict[str, Any]]) -> None:
        by_name = {case["name"]: case for case in cases}
        by_name["understand_image"]["text"] += "!"
        by_name["size_vae_1024"]["cases"][0]["expect"] = [688, 528]
        by_name["tokenize"]["ids"][0] = [1]

    change_cases(copy, change)
    found = failed(verify(copy))
    assert {("understand_image", "text"), ("size_vae_1024", "640×480, 1 sharing"), ("tokenize", "ids")} == found


def test_an_unknown_kind_is_a_failing_row_and_the_rest_still_runs(copy: Path) -> None:
    change_cases(copy, lambda cases: cases.append({"name": "odd", "kind": "dance"}))
    report = verify(copy)
    assert failed(report) == {("odd", "kind")}
    assert "dance" in report.failed[0].note
    assert {row.case for row in report.rows} == {*KEPT, "odd"}


def test_a_case_that_compares_nothing_fails(copy: Path) -> None:
    change_cases(copy, lambda cases: next(c for c in cases if c["kind"] == "resize").update(cases=[]))
    report = verify(copy)
    assert [(row.case, row.quantity, row.note) for row in report.failed] == [
        ("size_vae_1024", "case", "nothing was compared")
    ]


def test_an_unknown_setting_fails_its_case_alone(copy: Path) -> None:
    change_cases(copy, lambda cases: next(c for c in cases if c["name"] == "t2i_default")["settings"].update(magic=1))
    report = verify(copy)
    assert {row.case for row in report.failed} == {"t2i_default"}


@pytest.mark.parametrize("quantity", ["t2i_default/latent", "train/ce", "vae_wide/decoded", "train/mask_1"])
def test_a_missing_expected_tensor_fails(copy: Path, quantity: str) -> None:
    change_tensors(copy / "expected.safetensors", lambda t: t.pop(quantity))
    assert failed(verify(copy)) == {tuple(quantity.split("/", 1))}


def test_a_missing_input_fails_its_case_alone(copy: Path) -> None:
    change_tensors(copy / "expected.safetensors", lambda t: t.pop("t2i_default/noise"))
    report = verify(copy)
    assert {row.case for row in report.failed} == {"t2i_default"}
    assert any("noise" in row.note for row in report.failed)


@pytest.mark.parametrize("name", ["t2i_default/velocity", "other/thing", "train/grad/no.such.weight"])
def test_an_extra_expected_tensor_fails(copy: Path, name: str) -> None:
    change_tensors(copy / "expected.safetensors", lambda t: t.update({name: torch.zeros(3)}))
    assert failed(verify(copy)) == {tuple(name.split("/", 1))}


@pytest.mark.parametrize(
    "path",
    [
        "cases.json",
        "expected.safetensors",
        "checkpoint/ae.safetensors",
        "checkpoint/ema.safetensors",
        "images/wide.png",
    ],
)
def test_a_missing_file_is_an_error(copy: Path, path: str) -> None:
    (copy / path).unlink()
    with pytest.raises(BagelError, match=Path(path).stem.split(".")[0]):
        verify(copy)


def test_a_damaged_file_is_an_error(copy: Path) -> None:
    (copy / "expected.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="expected"):
        verify(copy)
    (copy / "cases.json").write_text("[1]")
    with pytest.raises(DataError, match="cases"):
        verify(copy)


@pytest.mark.parametrize(
    "inputs", [None, 5, ["a"], [{"type": "image"}], [{"type": "image", "value": ["square"]}]], ids=str
)
def test_inputs_of_another_shape_are_an_error(copy: Path, inputs: Any) -> None:
    change_cases(copy, lambda cases: cases[0].update(inputs=inputs))
    with pytest.raises(DataError, match=r"cases.json: inputs of case '.*' are not a list"):
        verify(copy)


@pytest.mark.slow
def test_a_looser_tolerance_lets_bfloat16_parts_pass(copy: Path) -> None:
    report = verify(copy, dtype=torch.bfloat16)
    assert not report.passed
    loose = verify(copy, dtype=torch.bfloat16, tolerance=0.05)
    assert {("vit_square", "features"), ("vae_wide", "latent")} <= failed(report) - failed(loose)


def test_samples_without_any_image_need_no_image_tensors(copy: Path) -> None:
    """What a recording of text alone would hold: nothing of pictures. The layout and the losses are still compared."""
    kept: dict[str, Any] = {}

    def text_only(cases: list[dict[str, Any]]) -> None:
        train = next(case for case in cases if case["kind"] == "train")
        plans = [plan for plan in train["samples"]["vlm"] if plan["type"] == "text"]
        lengths = [len(plan["ids"]) + 2 for plan in plans]
        kept.update(name="train", kind="train", samples={"vlm": plans}, sample_lens=[sum(lengths)], lengths=lengths)
        cases[:] = [dict(kept)]

    change_cases(copy, text_only)
    total, target = sum(kept["lengths"]), kept["lengths"][-1]

    def layout(tensors: dict[str, Tensor]) -> None:
        tensors.clear()
        tensors["train/packed_text_indexes"] = torch.arange(total)
        tensors["train/packed_position_ids"] = torch.arange(total)
        tensors["train/mask_0"] = torch.ones(total, total, dtype=torch.bool).tril()
        tensors["train/ce_loss_indexes"] = torch.arange(total - target, total - 1)

    change_tensors(copy / "expected.safetensors", layout)
    report = verify(copy)
    assert {row.quantity for row in report.rows if row.passed} >= {
        "packed_text_indexes", "packed_position_ids", "mask_0", "ce_loss_indexes", "sample_lens",
    }  # fmt: skip
    missing = {row.quantity for row in report.failed if not row.quantity.startswith("grad_norm/")}
    assert missing == {"packed_text_ids", "packed_label_ids", "ce_loss_weights", "ce", "loss"}

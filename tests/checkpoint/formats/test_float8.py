"""FP8 files as vLLM, ComfyUI and DeepSeek write them, against the product in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.opening import open_source
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import Fp8Matrix

Save = Callable[[dict[str, Tensor]], Path]
NAME = "language_model.model.layers.0.mlp.up_proj"
OUT, INNER = 160, 192


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("suffix", "shape", "words"),
    [
        ("", (), "without scales"),
        ("weight_scale", (), "with a scale for each tensor"),
        ("weight_scale", (1,), "with a scale for each tensor"),
        ("weight_scale", (OUT,), "with per-row scales"),
        ("weight_scale", (OUT, 1), "with per-row scales"),
        ("scale_weight", (), "with a scale for each tensor"),
        ("weight_scale_inv", (OUT, 1), "with per-row scales"),
    ],
)
def test_matrices(save: Save, dtype: torch.dtype, suffix: str, shape: tuple[int, ...], words: str) -> None:
    values = torch.randn(OUT, INNER).to(dtype)
    tensors = {f"{NAME}.weight": values, f"{NAME}.bias": torch.randn(OUT)}
    scale = torch.rand(shape) + 0.5 if suffix else torch.ones(())
    if suffix:
        tensors[f"{NAME}.{suffix}"] = scale
    source = open_source(save(tensors))
    kind = "e4m3" if dtype == torch.float8_e4m3fn else "e5m2"
    assert source.kind == f"FP8 ({kind}) {words}"
    assert set(source.names()) == {f"{NAME}.weight", f"{NAME}.bias"}
    assert source.shape(f"{NAME}.weight") == (OUT, INNER)
    assert source.stored_bytes(f"{NAME}.weight") == OUT * INNER + (scale.nbytes if suffix else 0)
    found = source.read(f"{NAME}.weight")
    assert isinstance(found, Fp8Matrix)
    assert found.tensors["values"].dtype == dtype
    assert found.tensors["scale"].shape == (OUT,)
    assert found.tensors["scale"].dtype == torch.float32
    expected = values.float() * (scale if scale.numel() == 1 else scale.view(OUT, 1))
    assert torch.equal(found.dequantise(torch.float32), expected)
    x = torch.randn(3, INNER)
    assert torch.allclose(found.multiply_many(x), x @ expected.T, rtol=1e-4, atol=1e-4)


def test_scales_of_blocks(save: Save) -> None:
    values, scale = torch.randn(OUT, INNER).to(torch.float8_e4m3fn), torch.rand(2, 2) + 0.5
    source = open_source(save({f"{NAME}.weight": values, f"{NAME}.weight_scale_inv": scale}))
    expected = torch.empty(OUT, INNER, dtype=torch.bfloat16)
    for row in range(OUT):
        for column in range(INNER):
            expected[row, column] = values[row, column].float() * scale[row // 128, column // 128]
    found = source.read(f"{NAME}.weight")
    assert isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert source.kind == "FP8 (e4m3) with scales of 128×128 blocks"


def test_what_is_no_matrix_of_a_linear_map_is_plain(save: Save) -> None:
    """Norms, biases and embeddings; scales, where there are some, are in them."""
    embedding, norm, bias = (torch.randn(*s).to(torch.float8_e4m3fn) for s in ((8, 32), (32,), (32,)))
    start = "language_model.model."
    tensors = {
        f"{start}embed_tokens.weight": embedding,
        f"{start}embed_tokens.scale_weight": torch.tensor(0.3),
        f"{start}norm.weight": norm,
        f"{start}layers.0.self_attn.q_proj.bias": bias,
    }
    source = open_source(save(tensors))
    found = {name: source.read(name) for name in source.names()}
    assert found.keys() == tensors.keys() - {f"{start}embed_tokens.scale_weight"}
    assert torch.equal(found[f"{start}embed_tokens.weight"], (embedding.float() * 0.3).bfloat16())
    assert torch.equal(found[f"{start}norm.weight"], norm.to(torch.bfloat16))
    assert torch.equal(found[f"{start}layers.0.self_attn.q_proj.bias"], bias.to(torch.bfloat16))


def test_markers_and_scales_of_activations_are_left_out(save: Save) -> None:
    tensors = {
        "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
        f"{NAME}.weight": torch.randn(OUT, INNER).to(torch.float8_e4m3fn),
        f"{NAME}.scale_weight": torch.tensor(0.5),
        f"{NAME}.scale_input": torch.tensor(2.0),
        f"{NAME}.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    source = open_source(save(tensors))
    assert list(source.names()) == [f"{NAME}.weight"]
    assert torch.equal(source.read(f"{NAME}.weight").tensors["scale"], torch.full((OUT,), 0.5))  # type: ignore[union-attr]


def test_scales_that_do_not_fit(save: Save) -> None:
    values = torch.randn(OUT, INNER).to(torch.float8_e4m3fn)
    path = save({f"{NAME}.weight": values, f"{NAME}.weight_scale": torch.ones(7)})
    with pytest.raises(CheckpointError, match=r"weight_scale \(F32 \[7\]\) does not fit .*one for each of 160 rows"):
        open_source(path)
    path = save(
        {f"{NAME}.weight": values, f"{NAME}.weight_scale": torch.ones(1), f"{NAME}.scale_weight": torch.ones(1)}
    )
    with pytest.raises(CheckpointError, match="with 2 scales"):
        open_source(path)
    with pytest.raises(CheckpointError, match="its scale is I64"):
        open_source(save({f"{NAME}.weight": values, f"{NAME}.weight_scale": torch.ones(1, dtype=torch.int64)}))
    single = {f"{NAME}.weight": values[0, 0].clone(), f"{NAME}.weight_scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match="a single number needs no scale"):
        open_source(save(single))


def test_a_scale_that_is_missing(save: Save) -> None:
    values, other = torch.randn(OUT, INNER).to(torch.float8_e4m3fn), NAME.replace("up", "gate")
    tensors = {f"{NAME}.weight": values, f"{other}.weight": values.clone(), f"{other}.weight_scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"up_proj.weight has no scale beside it, but the file has .*gate_proj"):
        open_source(save(tensors))


@pytest.mark.parametrize(("dtype", "code"), [(torch.float8_e4m3fn, 127), (torch.float8_e5m2, 124)])
def test_values_that_are_no_numbers(save: Save, dtype: torch.dtype, code: int) -> None:
    for bits in (code, code + 128):
        values = torch.randn(OUT, INNER).to(dtype)
        values.view(torch.uint8)[5, 7] = code - 1
        open_source(save({f"{NAME}.weight": values})).read(f"{NAME}.weight")
        values.view(torch.uint8)[5, 7] = bits
        with pytest.raises(CheckpointError, match="holds infinite values or values that are not numbers"):
            open_source(save({f"{NAME}.weight": values})).read(f"{NAME}.weight")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers(save: Save, wrong: float) -> None:
    scale = torch.ones(OUT)
    scale[3] = wrong
    path = save({f"{NAME}.weight": torch.randn(OUT, INNER).to(torch.float8_e4m3fn), f"{NAME}.weight_scale": scale})
    with pytest.raises(CheckpointError, match="weight_scale holds infinite values or values that are not numbers"):
        open_source(path).read(f"{NAME}.weight")

"""Files of GGUF, written and brought back by the package gguf."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bagel_mot.checkpoint.formats import gguf_file
from bagel_mot.checkpoint.names import official_of_llama
from bagel_mot.checkpoint.opening import open_source
from bagel_mot.errors import CheckpointError

gguf = pytest.importorskip("gguf")
NAME = "language_model.model.layers.0.self_attn.q_proj.weight"


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], parts: int = 0) -> Path:
    """Tensors by name: values as they are stored, and the type."""
    writer = gguf.GGUFWriter(path, "bagel")
    if parts:
        writer.add_uint16("split.count", parts)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(kind: str, out: int, inner: int) -> np.ndarray:
    """A matrix as it is stored: quantised by the package where it can, else blocks of random bytes whose scales
    (float16, somewhere among them) are finite."""
    type_ = gguf.GGMLQuantizationType[kind]
    generator = np.random.default_rng(0)
    try:
        return gguf.quantize(generator.standard_normal((out, inner)).astype(np.float32), type_)
    except NotImplementedError:
        values, size = gguf.GGML_QUANT_SIZES[type_]
        blocks = generator.integers(0, 256, (out * inner // values, size), np.uint8)
        for scale in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]:
            numbers = generator.uniform(1e-3, 2e-2, len(blocks)).astype(np.float16)
            blocks[:, scale : scale + 2] = numbers.view(np.uint8).reshape(-1, 2)
        return blocks.reshape(out, -1)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q5_1", "TQ2_0"])
def test_quantised_types(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_PIECE", 3 * 256 * 7)  # several pieces, the last one shorter
    values = stored(kind, 20, 512)
    source = open_source(write(tmp_path / "model.gguf", {NAME: (values, kind), "a": (np.ones(3, np.float32), "F32")}))
    expected = torch.from_numpy(gguf.dequantize(values, gguf.GGMLQuantizationType[kind]))
    assert expected.isfinite().all()
    assert expected.std() > 0
    assert source.kind == f"GGUF {kind}"
    assert source.shape(NAME) == (20, 512)
    assert source.stored_bytes(NAME) == values.nbytes
    found = source.read(NAME)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_plain_types_keep_theirs(tmp_path: Path) -> None:
    values = torch.randn(6, 32)
    half = values.to(torch.bfloat16)
    tensors = {
        "a": (values.numpy(), "F32"),
        "b": (values.half().numpy(), "F16"),
        "c": (half.view(torch.uint8).numpy(), "BF16"),
    }
    source = open_source(write(tmp_path / "model.gguf", tensors))
    for name, expected in {"a": values, "b": values.half(), "c": half}.items():
        found = source.read(name)
        assert source.shape(name) == (6, 32)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_names() -> None:
    layer = "language_model.model.layers.12"
    expected = {
        "token_embd.weight": "language_model.model.embed_tokens.weight",
        "output.weight": "language_model.lm_head.weight",
        "output_norm.weight": "language_model.model.norm.weight",
        "output_norm_moe_gen.weight": "language_model.model.norm_moe_gen.weight",
        "blk.12.attn_norm.weight": f"{layer}.input_layernorm.weight",
        "blk.12.attn_q.bias": f"{layer}.self_attn.q_proj.bias",
        "blk.12.attn_k.weight": f"{layer}.self_attn.k_proj.weight",
        "blk.12.attn_v_moe_gen.bias": f"{layer}.self_attn.v_proj_moe_gen.bias",
        "blk.12.attn_output_moe_gen.weight": f"{layer}.self_attn.o_proj_moe_gen.weight",
        "blk.12.attn_q_norm.weight": f"{layer}.self_attn.q_norm.weight",
        "blk.12.attn_k_norm_moe_gen.weight": f"{layer}.self_attn.k_norm_moe_gen.weight",
        "blk.12.ffn_norm_moe_gen.weight": f"{layer}.post_attention_layernorm_moe_gen.weight",
        "blk.12.ffn_gate.weight": f"{layer}.mlp.gate_proj.weight",
        "blk.12.ffn_up_moe_gen.weight": f"{layer}.mlp_moe_gen.up_proj.weight",
        "blk.12.ffn_down.weight": f"{layer}.mlp.down_proj.weight",
    }
    assert {name: official_of_llama(name) for name in expected} == expected
    for name in (*expected.values(), "vae2llm.weight", "connector.fc1.bias", "blk.0.ssm_in.weight"):
        assert official_of_llama(name) == name


def test_names_of_llama_in_a_file(tmp_path: Path) -> None:
    values = np.ones((2, 32), np.float32)
    path = write(tmp_path / "a.gguf", {"blk.0.attn_q.weight": (values, "F32"), "llm2vae.weight": (values, "F32")})
    assert set(open_source(path).names()) == {NAME, "llm2vae.weight"}
    path = write(tmp_path / "b.gguf", {"blk.0.attn_q.weight": (values, "F32"), NAME: (values, "F32")})
    with pytest.raises(CheckpointError, match=r"q_proj.weight is in it twice"):
        open_source(path)


def test_broken_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "model.gguf", {NAME: (np.ones((64, 32), np.float32), "F32")}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for content in (whole[:-1000], whole[:40], b"no such thing"):
        cut.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cut.gguf could not be read as GGUF"):
            open_source(cut)
    with pytest.raises(CheckpointError, match=r"none.gguf could not be read as GGUF"):
        open_source(tmp_path / "none.gguf")
    path = write(tmp_path / "part.gguf", {NAME: (np.ones((2, 32), np.float32), "F32")}, parts=3)
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        open_source(path)
    path = write(tmp_path / "whole.gguf", {NAME: (np.ones((2, 32), np.int32), "I32")})
    with pytest.raises(CheckpointError, match=r"q_proj.weight \(I32 \[2, 32\]\) is of a type that is not read"):
        open_source(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"run pip install .*\[gguf\]\""):
        open_source(tmp_path / "model.gguf")

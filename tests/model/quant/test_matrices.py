"""Weights in few bits: how near they are, how they are multiplied, and whose layout they have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.errors import CheckpointError
from bagel_mot.model.kernels import join_nibbles, split_nibbles
from bagel_mot.model.quant import FORMATS, Fp8Matrix, Int4Matrix, Int8Matrix, Nf4Matrix, QuantisedMatrix, base
from bagel_mot.model.quant.compiling import prepare_compiling
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.model.quant.nf4 import LEVELS, dynamic_levels, nearest_level

KINDS = sorted(FORMATS)


def weight(out: int = 192, inner: int = 384, seed: int = 0) -> Tensor:
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(seed)) * 0.05


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.009), ("fp8", 0.03), ("int4", 0.11), ("nf4", 0.10)])
def test_how_near_it_is(kind: str, error: float) -> None:
    w = weight()
    found = relative(FORMATS[kind].quantise(w).dequantise(torch.float32), w)
    assert error / 3 < found < error


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_foretold(kind: str) -> None:
    for shape in ((192, 384), (64, 64), (128, 1024)):
        assert FORMATS[kind].quantise(weight(*shape)).nbytes == FORMATS[kind].stored_bytes(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_part_are_those_of_the_whole(kind: str) -> None:
    matrix = FORMATS[kind].quantise(weight())
    whole = matrix.dequantise(torch.bfloat16)
    for start, stop in ((0, 192), (64, 128), (10, 75), (191, 192)):
        assert torch.equal(matrix.dequantise(torch.bfloat16, start, stop), whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str, rows: int, dtype: torch.dtype) -> None:
    matrix = FORMATS[kind].quantise(weight())
    x = 10 * torch.randn(rows, 384, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.randn(192, generator=torch.Generator().manual_seed(2)).to(dtype)
    wanted = F.linear(x.double(), matrix.dequantise(torch.float32).double(), bias.double())
    with torch.inference_mode():
        got = QuantisedLinear(matrix, bias, dtype)(x)
    assert got.dtype == dtype
    assert relative(got, wanted) < (1e-5 if dtype == torch.float32 else 6e-3)


def test_every_piece_of_a_large_matrix_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.model.quant.base._BLOCK", 64 * 384)
    for kind in KINDS:
        matrix = FORMATS[kind].quantise(weight(200 - 8, 384))
        x = torch.randn(60, 384)
        assert relative(matrix.multiply_many(x), F.linear(x, matrix.dequantise(torch.float32))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inner", [33, 40, 200, 250])
def test_rows_of_any_width(inner: int, dtype: torch.dtype) -> None:
    matrix = Int8Matrix.quantise(weight(17, inner))
    for rows in (1, 3, 20):
        x = torch.randn(rows, inner).to(dtype)
        wanted = F.linear(x.float(), matrix.dequantise(torch.float32))
        assert relative(QuantisedLinear(matrix, None, dtype)(x), wanted) < 1e-2


@pytest.mark.parametrize("value", [0.01, -0.3, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_value(kind: str, value: float) -> None:
    found = FORMATS[kind].quantise(torch.full((64, 128), value)).dequantise(torch.float32)
    assert torch.allclose(found, torch.full((64, 128), value), rtol=0.01, atol=0)


def test_dynamic_activations() -> None:
    matrix = Int8Matrix.quantise(weight())
    x = torch.randn(20, 384)
    x[0] *= 1000  # a loud row does not drown the others
    wanted = F.linear(x, weight())
    got = QuantisedLinear(matrix, None, torch.float32, dynamic=True)(x)
    assert 0.002 < relative(got[1:], wanted[1:]) < 0.02
    assert torch.equal(QuantisedLinear(matrix, None, torch.float32, dynamic=True)(x[3:4]), got[3:4])


def test_zeros_and_constants_survive() -> None:
    for kind in KINDS:
        for value in (0.0, 0.5):
            got = FORMATS[kind].quantise(torch.full((64, 128), value)).dequantise(torch.float32)
            assert torch.allclose(got, torch.tensor(value), rtol=0.03), kind


def test_whole_numbers_of_int4_are_joined_and_split() -> None:
    q = torch.randint(0, 16, (128, 96), dtype=torch.uint8)
    joined = join_nibbles(q)
    assert joined.shape == (2, 96, 32)
    assert torch.equal(split_nibbles(joined), q)
    assert torch.equal(split_nibbles(joined[1:]), q[64:])


def test_int4_takes_four_bits_and_a_half_a_weight() -> None:
    assert 8 * Int4Matrix.quantise(weight(64, 512)).nbytes == 4.5 * 64 * 512


def test_groups_keep_their_sum_in_int4() -> None:
    """Else errors add up where neighbouring activations have something in common, however small their squares are."""
    w = weight(128, 384) + 0.1 * torch.randn(128, 384).abs()
    error = Int4Matrix.quantise(w).dequantise(torch.float32) - w
    step = (w.view(128, -1, 64).amax(-1) - w.view(128, -1, 64).amin(-1)) / 15
    assert (error.view(128, -1, 64).mean(-1).abs() < 8 * step / 2**8).all()  # what bfloat16 rounds away of the middle
    assert (error.abs().view(128, -1, 64).amax(-1) < 1.03 * step).all()


def test_small_weights_beside_a_large_one_become_0_in_int4() -> None:
    """They would stand between two levels, and all be moved by half a step."""
    generator = torch.Generator().manual_seed(3)
    w = 0.001 * torch.randn(64, 128, generator=generator)
    large = torch.rand(64, generator=generator)
    w[:, 5], w[:, 70], w[:, 127] = 1 + large, -1 - large, 1 - large  # both signs, and one above all others
    found = Int4Matrix.quantise(w).dequantise(torch.float32)
    step = ((w.view(64, 2, 64).amax(-1) - w.view(64, 2, 64).amin(-1)) / 15).repeat_interleave(64, 1)
    small = w.abs() < 0.01
    assert (found[small].abs() < step[small] / 20).all()  # errors of the large ones, and what bfloat16 rounds away
    assert ((found - w).abs()[~small] < 1.03 * step[~small]).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign_use_all_levels_of_int4(sign: int) -> None:
    w = sign * (5 + torch.rand(64, 64, generator=torch.Generator().manual_seed(4)))
    matrix = Int4Matrix.quantise(w)
    assert split_nibbles(matrix.tensors["values"]).unique().tolist() == list(range(16))
    assert ((matrix.dequantise(torch.float32) - w).abs() < 0.05).all()


def test_int4_is_in_the_order_of_the_kernel() -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("the kernel's order is another one on this processor")
    q = torch.randint(0, 16, (128, 256), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    assert torch.equal(join_nibbles(q.to(torch.uint8)).flatten(), packed.view(torch.uint8).flatten())


def test_float8_is_widened_bit_by_bit() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    every = every[~every.view(torch.float8_e4m3fn).float().isnan()].view(torch.float8_e4m3fn)
    assert torch.equal(Fp8Matrix._widened(every, torch.bfloat16), every.to(torch.bfloat16))


def test_levels_of_nf4_are_the_nearest() -> None:
    w = weight(8, 64)
    matrix = Nf4Matrix.quantise(w)
    relative_w = w / w.abs().amax(1, keepdim=True)
    nearest = (relative_w[..., None] - torch.tensor(LEVELS)).abs().argmin(-1).to(torch.uint8)
    packed = matrix.tensors["values"].view(8, 32)
    assert torch.equal(torch.stack([packed >> 4, packed & 15], -1).flatten(1), nearest)


def test_levels_of_nf4_are_the_nearest_at_their_very_borders() -> None:
    levels = torch.tensor(LEVELS)
    borders = (levels[1:] + levels[:-1]) / 2
    above = torch.nextafter(borders, torch.tensor(2.0))
    below = torch.nextafter(borders, torch.tensor(-2.0))
    ends = torch.tensor([-1.0, 1.0, 0.0, -0.0])
    x = torch.cat([below, borders, above, ends, torch.linspace(-1, 1, 100_001)])
    assert torch.equal(nearest_level(x), sum((x > border).to(torch.uint8) for border in borders))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_none(kind: str) -> None:
    w = weight(64, 128)
    w[3, 5] = float("nan")
    assert FORMATS[kind].quantise(w).dequantise(torch.float32)[3, 5].isnan()


def test_dynamic_levels() -> None:
    levels = dynamic_levels()
    assert levels.shape == (256,)
    assert torch.equal(levels, levels.sort().values)
    assert (levels == 0).sum() == 1
    assert levels[-1] == 1
    assert levels[0] == pytest.approx(-0.99297, abs=1e-4)


@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_what_does_not_fit_is_said(kind: str) -> None:
    assert not FORMATS[kind].fits((64, 80))
    with pytest.raises(CheckpointError, match="64×80"):
        FORMATS[kind].quantise(torch.zeros(64, 80))


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_that_of_a_linear_map(kind: str) -> None:
    matrix: QuantisedMatrix = FORMATS[kind].quantise(weight())
    module = nn.Sequential(QuantisedLinear(matrix, torch.ones(192), torch.bfloat16))
    state = module.state_dict()
    assert state.keys() == {"0.weight", "0.bias"}
    assert torch.equal(state["0.weight"], matrix.dequantise(torch.bfloat16))
    moved = module.to("meta")[0]
    assert {t.device.type for t in moved.buffers()} == {"meta"}
    with pytest.raises(RuntimeError, match="cannot be cast"):
        module.to(torch.float16)


@pytest.mark.parametrize("kind", KINDS)
def test_multiplying_many_rows_is_one_graph(kind: str) -> None:
    """What compiling has to leave and enter again costs more than it gains."""
    matrix = FORMATS[kind].quantise(weight(128, 256))
    x = torch.randn(60, 256, dtype=torch.bfloat16)
    prepare_compiling()
    compiled = torch.compile(matrix.multiply_many, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), matrix.multiply_many(x))


def test_the_kernels_of_the_cpu_are_left_out_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_compiling()
    traced: list[bool] = []
    multiply = QuantisedLinear._products

    def watched(self: QuantisedLinear, x: torch.Tensor) -> torch.Tensor:
        traced.append(torch.compiler.is_compiling())
        return multiply(self, x)

    monkeypatch.setattr(QuantisedLinear, "_products", watched)
    linear = QuantisedLinear(FORMATS["int8"].quantise(weight(128, 64)), None, torch.float32)
    x = torch.randn(3, 64)
    assert torch.equal(torch.compile(linear, backend="eager")(x), linear(x))
    assert traced == [False, False]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [1, 70], ids=["few rows", "many rows"])
def test_gradients_pass_through_to_adapters_on_both_sides(kind: str, tokens: int) -> None:
    """As QLoRA wants it: the matrix is frozen, small matrices before and beside it are trained."""
    torch.manual_seed(0)
    linear = QuantisedLinear(FORMATS[kind].quantise(weight(128, 64)), torch.randn(128), torch.float32)
    plain = linear.matrix.dequantise(torch.float32)
    x, down, up = torch.randn(tokens, 64), torch.randn(4, 64), torch.randn(128, 4)
    before = torch.randn(64, 64)
    found = []
    for frozen in (linear, lambda h: F.linear(h, plain, linear.bias)):
        leaves = [t.clone().requires_grad_() for t in (before, down, up)]
        h = F.linear(x, leaves[0])
        (frozen(h) + F.linear(F.linear(h, leaves[1]), leaves[2])).square().mean().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()  # kernels for few rows round activations
    assert not any(parameter.requires_grad for parameter in linear.parameters())


def test_the_gradient_of_a_large_matrix_is_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BLOCK", 64 * 64)
    linear = QuantisedLinear(FORMATS["int8"].quantise(weight(320, 64)), None, torch.float32)
    assert len(linear.matrix.blocks()) == 5
    x = torch.randn(40, 64, requires_grad=True)
    g = torch.randn(40, 320)
    linear(x).backward(g)
    assert torch.allclose(x.grad, g @ linear.matrix.dequantise(torch.float32), atol=1e-4)

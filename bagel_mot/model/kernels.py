"""PyTorch's private operations, each behind a probe.

They are not part of PyTorch's public interface and may change with any version, so each is tried on a small example
before it is trusted. Nothing else in the package calls a private operation.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

INT4_ROWS = 64  # rows of an INT4 matrix that are stored together


def _works(run: Callable[[], Tensor], expected: Tensor, atol: float) -> bool:
    """Whether an operation exists, accepts such tensors, and computes what it should."""
    try:
        found = run()
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    return torch.allclose(found.float(), expected.float(), rtol=0.02, atol=atol)


def _example(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def allow_shapes(most: int) -> None:
    """Lets `torch.compile` compile a function for up to so many shapes, beyond which it would be left as it is."""
    from torch._dynamo import config  # the whole compiler, which only those load who compile

    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * most)


# ------------------------------------------------------------------------------------------------------- oneDNN weights


def prepack(weight: Tensor) -> Tensor:
    """A weight (out, in) in the order in which oneDNN multiplies it: opaque to all operations but a few."""
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return made


def prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, in) -> (T, out) by a weight of `prepack`."""
    products: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return products


def prepacked_linear_added(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """other (T, out) + (T, in) by a weight of `prepack` -> (T, out)."""
    sums: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
    return sums


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this processor and this PyTorch multiply prepacked weights of a precision, and do it right."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x, weight, bias = _example(4, 48).to(dtype), _example(80, 48).to(dtype), _example(80).to(dtype)
    with torch.no_grad():
        expected = F.linear(x, weight, bias)
        return _works(lambda: prepacked_linear(x, prepack(weight), bias), expected, 0.02) and _works(
            lambda: prepacked_linear_added(x, prepack(weight), bias, expected), 2 * expected, 0.04
        )


# -------------------------------------------------------------------------------------------------- oneDNN convolutions


def prepack_convolution(weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution's weight (out, in, k, k) in the order in which oneDNN multiplies it: opaque to all operations but a
    few.
    """
    made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, [padding] * 2, [stride] * 2, [1, 1], 1, None)
    return made


def prepacked_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
) -> Tensor:
    """(B, in, H, W) -> (B, out, H', W'), channels_last if x is, by a weight of `prepack_convolution`."""
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, [stride] * 2, [1, 1], 1, "none", [], ""
    )
    return found


def add_prepacked_convolution(
    total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
) -> None:
    """Adds a convolution of x (B, in, H, W) with stride 1 to `total` (B, out, H', W') in place, with one rounding."""
    torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, weight, bias, padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], ""
    )


@cache
def can_prepack_convolutions(dtype: torch.dtype) -> bool:
    """Whether this processor and this PyTorch compute prepacked convolutions in a precision, and do it right."""
    if not can_prepack(dtype):
        return False
    x, weight, bias = _example(1, 16, 5, 6).to(dtype), _example(32, 16, 3, 3).to(dtype) / 12, _example(32).to(dtype)
    x = x.to(memory_format=torch.channels_last)

    def added() -> Tensor:
        total = torch.ones(1, 32, 7, 6, dtype=dtype).to(memory_format=torch.channels_last)
        add_prepacked_convolution(total[:, :, 2:5], x, prepack_convolution(weight, 1, 1), bias, (0, 1))
        return total

    with torch.no_grad():
        expected = torch.ones(1, 32, 7, 6)
        expected[:, :, 2:5] += F.conv2d(x.float(), weight.float(), bias.float(), padding=(0, 1))
        plain = F.conv2d(x, weight, bias, stride=2, padding=1)
        return _works(added, expected, 0.05) and _works(
            lambda: prepacked_convolution(x, prepack_convolution(weight, 2, 1), bias, 2, (1, 1)), plain, 0.05
        )


_MOST_ADDED = 64  # pixels that are added up in float32, where their number can be halved so far


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (B, C, H, W) in channels_last, float64 (C,) each.

    PyTorch adds the pixels of a channel one after another in float32, which loses four digits on a large map. So each
    column of some pixels has statistics of its own, as if it were a channel, and they are put together in float64.
    """
    channels, rows = x.shape[1], x.shape[0] * x.shape[2]
    while rows > _MOST_ADDED and rows % 2 == 0:
        rows //= 2
    columns = x.permute(0, 2, 3, 1).reshape(rows, -1)  # (rows, B·H/rows·W·C)
    like = torch.zeros(columns.shape[1], device=x.device)
    found = torch.batch_norm_update_stats(columns, like, like.clone(), 0.0)
    means, variances = (each.view(-1, channels).double() for each in found)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def scale_channels(
    out: Tensor, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    """Writes (x − mean) / √(variance + ε) · weight + bias to `out` in one pass, all computed in float32.

    Args:
        out, x: (B, C, H, W) of one type.
        mean, variance, weight, bias: float32 (C,).
        eps: ε.
    """
    unused = torch.empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, weight, bias, mean, variance, False, 0.0, eps, out=out, save_mean=unused, save_invstd=unused.clone()
    )


@cache
def has_channel_kernels(device: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch computes `channel_statistics` and `scale_channels` on such a device, and does it right."""
    if device != "cpu":  # elsewhere they have not been tried
        return False
    x = (_example(1, 8, 6, 5) + 3).to(dtype).to(memory_format=torch.channels_last)
    mean, variance = x.float().mean((0, 2, 3)), x.float().var((0, 2, 3), unbiased=False)
    weight, bias = _example(8), _example(1, 8)[0]

    def scaled() -> Tensor:
        out = torch.zeros(1, 8, 8, 5, dtype=dtype).to(memory_format=torch.channels_last)
        scale_channels(out[:, :, 1:7], x, mean, variance, weight, bias, 1e-6)
        return out

    expected = F.pad(F.batch_norm(x.float(), mean, variance, weight, bias, eps=1e-6), (0, 0, 1, 1))
    return (
        _works(lambda: channel_statistics(x)[0], mean, 1e-3)
        and _works(lambda: channel_statistics(x)[1], variance, 1e-3)
        and _works(scaled, expected, 1e-2)
    )


# ----------------------------------------------------------------------------------------------------- integer matrices


def int8_weight_matmul(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """(T, in) by int8 `values` (out, in) with a `scale` (out,) in the precision of x -> (T, out)."""
    products: Tensor = torch.ops.aten._weight_int8pack_mm(x, values, scale)
    return products


@cache
def has_int8_kernel(device: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies INT8 weights as they are stored, on such a device and with such activations."""
    if device != "cpu" or dtype == torch.float16:  # in which the scales of small rows are rounded away
        return False
    values, scale = (40 * _example(96, 64)).to(torch.int8), (_example(96).abs() / 40).to(dtype)
    x = _example(3, 64).to(dtype)
    expected = F.linear(x.float(), values.float() * scale.float()[:, None])
    return _works(lambda: int8_weight_matmul(x, values, scale), expected, 0.1)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """int8 (T, in) and (in, out) -> int32 (T, out). CUDA's kernel wants more than 16 rows."""
    rows = x.shape[0]
    if x.device.type == "cuda" and rows <= 16:
        return torch._int_mm(F.pad(x, (0, 0, 0, 17 - rows)), weight)[:rows]
    return torch._int_mm(x, weight)


def float8_matmul(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float8 (T, in) and (in, out), scales (T, 1) and (1, out) float32 -> (T, out) in `dtype`.

    Sums are kept in the tensor cores' own narrower type, which doubles their rate on GPUs of compute capability 9:
    what is added up has four bits of mantissa itself. With scales of rows some kernels give bfloat16 alone.
    """
    out = torch._scaled_mm(
        x, weight, scale_a=x_scale, scale_b=weight_scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out.to(dtype)


@cache
def has_float8_matmul(device: torch.device) -> bool:
    """Whether a device multiplies in float8 as it is stored here (e4m3fn): NVIDIA's from compute capability 8.9 on, and
    some of AMD's; others of AMD's have another float8.
    """
    return device.type == "cuda" and torch.cuda.is_available() and multiplies_in_float8(device)


def multiplies_in_float8(device: torch.device) -> bool:
    """Whether a product in float8 comes out right on a device."""
    x, weight = _example(16, 32), _example(48, 32)

    def multiply() -> Tensor:
        left, right = (part.to(torch.float8_e4m3fn).to(device) for part in (x, weight))
        scales = torch.ones(16, 1).to(device), torch.ones(1, 48).to(device)
        return float8_matmul(left, right.t(), *scales, torch.bfloat16).cpu()

    return _works(multiply, x @ weight.t(), 1.0)


def join_nibbles(q: Tensor) -> Tensor:
    """Whole numbers 0..15, uint8 (out, in), as the INT4 kernel for AVX-512 reads them: (out/64, in, 32).

    Of 64 rows, byte r of a column holds row r in its low half and row r + 32 in its high half.
    """
    halves = q.view(-1, 2, INT4_ROWS // 2, q.shape[1])
    return (halves[:, 0] | halves[:, 1] << 4).transpose(1, 2).contiguous()


def split_nibbles(values: Tensor) -> Tensor:
    """The inverse of `join_nibbles`: (out/64, in, 32) -> (out, in)."""
    return torch.stack([values & 15, values >> 4], 1).permute(0, 1, 3, 2).reshape(-1, values.shape[1])


def int4_weight_matmul(x: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    """(T, in) by an INT4 matrix -> (T, out).

    Args:
        x: activations.
        values: whole numbers as `join_nibbles` orders them, (out/64, in, 32).
        numbers: bfloat16 (in/group, out, 2), the scale and the middle of each group of neighbours in a row.
    """
    blocks, inner, _ = values.shape
    rows = values.view(blocks * INT4_ROWS, inner // 2)
    products: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, rows, inner // numbers.shape[0], numbers)
    return products


@cache
def has_int4_kernel(device: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies INT4 weights in the order of `join_nibbles`, which depends on the processor."""
    if device != "cpu":
        return False
    q = torch.randint(0, 16, (128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = (0.2 * _example(2, 128, 2)).to(torch.bfloat16)
    scale, middle = (part.float().T.repeat_interleave(64, 1) for part in numbers.unbind(-1))
    x = _example(3, 128).to(dtype)
    expected = F.linear(x.float(), (q.float() - 8) * scale + middle)
    return _works(lambda: int4_weight_matmul(x, join_nibbles(q), numbers), expected, 0.5)


# ----------------------------------------------------------------------------------------------------- flash attention


def flash_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention (1, heads, n, head_dim) of queries over keys and values, and its log-sum-exp (1, heads, n) float32.

    Args:
        query, key, value: (1, heads, tokens, head_dim).
        bias: (1, 1, n, tokens), added to the scores; on the CPU alone.
    """
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    return out, lse


def cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (1, heads, n, head_dim) of queries over keys and values (1, heads, tokens, head_dim) by cuDNN."""
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False, 0.0, False)[0]
    return out


def has_flash_attention(query: Tensor, key: Tensor, value: Tensor, masked: bool) -> bool:
    """Whether `flash_attention` takes such tensors, (1, heads, tokens, head_dim) each.

    CUDA's kernel wants half precision, compute capability 8, heads of a size that it knows, and no mask. Heads whose
    size is no multiple of 8 it would take only padded.
    """
    if query.device.type == "cpu":
        return _flash_works_on_cpu(query.dtype)
    if query.device.type != "cuda" or masked or query.shape[-1] % 8:
        return False
    from torch.backends.cuda import SDPAParams, can_use_flash_attention

    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, False))


@cache
def _flash_works_on_cpu(dtype: torch.dtype) -> bool:
    query, key, value = (_example(1, 2, n, 16).to(dtype) for n in (3, 5, 5))
    bias = torch.zeros(1, 1, 3, 5, dtype=dtype)
    scores = (query.float() / 4) @ key.float().mT
    lse = scores.logsumexp(-1)
    return _works(lambda: flash_attention(query, key, value, bias)[0], scores.softmax(-1) @ value.float(), 0.05) and (
        _works(lambda: flash_attention(query, key, value, bias)[1], lse, 0.05)
    )

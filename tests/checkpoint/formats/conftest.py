"""Writers that share nothing with what they test."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Save = Callable[[dict[str, Tensor]], Path]
Encode = Callable[..., dict[str, Tensor]]
_END = -1


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes tensors as one safetensors file."""

    def write(tensors: dict[str, Tensor]) -> Path:
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
        return path

    return write


@pytest.fixture(scope="session")
def encode() -> Encode:
    """DFloat11 of matrices that share a code, code by code: the tensors of a file, without the module's name."""
    return _encode


def _encode(weights: list[Tensor], frequencies: Mapping[int, int] | None = None) -> dict[str, Tensor]:
    """
    Args:
        weights: bfloat16.
        frequencies: of exponents, to make codes of certain lengths; by default those of the weights.
    """
    together = torch.cat([weight.flatten() for weight in weights])
    words = together.view(torch.int16).numpy().view(np.uint16).astype(int)
    exponents = (words >> 7 & 255).tolist()
    codes = _codes(dict(frequencies or Counter(exponents)))
    pieces, gaps, positions, length = [], [], [], 0
    for index, exponent in enumerate(exponents):
        if length // 64 == len(gaps):
            gaps.append(length % 64)
        if length // (64 * 512) == len(positions):
            positions.append(index)
        pieces.append(codes[exponent])
        length += len(codes[exponent])
    bits = "".join([*pieces, codes[_END]])[: -(-length // 8) * 8]
    stream = np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0"))
    blocks = -(-len(stream) // (8 * 512))
    gaps += [0] * (512 * blocks - len(gaps))
    packed = np.packbits([int(bit) for gap in gaps for bit in f"{gap:05b}"])
    borders = np.cumsum([weight.numel() for weight in weights])[:-1]
    return {
        "encoded_exponent": torch.from_numpy(stream),
        "sign_mantissa": torch.from_numpy((words >> 8 & 128 | words & 127).astype(np.uint8)),
        "luts": torch.from_numpy(_tables(codes)),
        "gaps": torch.from_numpy(packed),
        "output_positions": torch.from_numpy(np.array([*positions, len(words)], np.uint32).view(np.uint8)),
        "split_positions": torch.from_numpy(borders.astype(np.int64)),
    }


def _codes(frequencies: dict[int, int]) -> dict[int, str]:
    """Huffman's code, with a symbol for the end as the package's has it."""
    heap = [(1, 0, {_END: ""})]
    heap += [(count, index, {symbol: ""}) for index, (symbol, count) in enumerate(sorted(frequencies.items()), 1)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (few, _, left), (many, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
        joined = {s: "0" + c for s, c in left.items()} | {s: "1" + c for s, c in right.items()}
        heapq.heappush(heap, (few + many, tie + 1000, joined))
    return heap[0][2]


def _tables(codes: dict[int, str]) -> np.ndarray:
    """Tables by the next byte, one for each prefix of whole bytes, and the lengths."""
    prefixes = {code[: 8 * n] for s, code in codes.items() if s != _END for n in range((len(code) - 1) // 8 + 1)}
    order = sorted(prefixes, key=len)
    tables = np.zeros((len(order) + 1, 256), np.uint8)
    for symbol, code in codes.items():
        if symbol == _END:
            continue
        tables[-1, symbol] = len(code)
        for n in range((len(code) - 1) // 8 + 1):
            row, rest = order.index(code[: 8 * n]), code[8 * n :]
            if len(rest) > 8:
                tables[row, int(rest[:8], 2)] = 256 - order.index(code[: 8 * n + 8])
            else:
                start = int(rest.ljust(8, "0"), 2)
                tables[row, start : start + (1 << 8 - len(rest))] = symbol
    return tables

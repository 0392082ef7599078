"""Exponents of bfloat16 in the Huffman code of DFloat11 (Zhang et al. 2025), decoded many at a time.

A stream of codes, the first bit of a byte being its highest, is cut into chunks of 64 bits. For each it is known at
which bit the first code starts that starts within (a gap of 0..31 bits), so that all chunks can be read at once. Not
known is how many codes start in a chunk, only how many in a block of chunks.

Here a step looks at the next 12 bits of every chunk and takes all codes that lie in them whole, from a table. Codes may
be up to 32 bits long; the few that are longer than 12 are read one at a time. All of it is PyTorch, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 8
_CHUNK = 8 * CHUNK_BYTES
_WINDOW = 12
_AT_ONCE = 8  # codes that a step can take: they fill an int64
_POINTER = 240  # of an entry in the tables of a file: from here on it names a further table


class DamagedCodes(ValueError):
    """Codes that cannot be, or are not as many as they should be."""


class CodeTable:
    """A Huffman code as a file has it.

    Its tables, uint8 (n, 256), are entered by the next byte: an entry is an exponent, or 256 less the number of the
    table for the byte after. The last row holds the lengths of codes, by exponent.
    """

    def __init__(self, tables: Tensor) -> None:
        self.device = tables.device
        self._entries = tables[:-1].reshape(-1).long()
        self._lengths = tables[-1].long()
        windows = torch.arange(1 << _WINDOW, device=self.device)
        position = torch.zeros_like(windows)
        symbols = torch.zeros_like(windows)
        counts = torch.zeros(_WINDOW + 1, 1 << _WINDOW, dtype=torch.long, device=self.device)
        room = torch.arange(_WINDOW + 1, device=self.device)[:, None]
        going = torch.ones_like(windows, dtype=torch.bool)
        for index in range(_AT_ONCE):
            symbol, length = self.first(((windows << position) << (32 - _WINDOW)) & 0xFFFFFFFF)
            going = going & (length > 0) & (position + length <= _WINDOW)
            symbols += torch.where(going, symbol << 8 * index, 0)
            counts += going & (position < room)
            position += torch.where(going, length, 0)
        # By the next bits: exponents, a byte each; bits they take; and by the bits left in the chunk, and the next
        # bits, how many of them start in it.
        self._symbols, self._bits, self._counts = symbols, position, counts.to(torch.uint8).flatten()

    def first(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The first code of each window of 32 bits (int64): exponent, and length in bits."""
        symbol = self._entries[window >> 24]
        for shift in (16, 8, 0):
            further = (256 - symbol) * 256 + (window >> shift & 255)
            symbol = torch.where(symbol >= _POINTER, self._entries[further.clamp(max=len(self._entries) - 1)], symbol)
        return symbol, self._lengths[symbol]

    def decode(self, encoded: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """All exponents whose codes start in some chunks.

        Args:
            encoded: uint8 (chunks + 1, 8); the last one is only looked into for the ends of codes.
            gaps: int64 (chunks,), where in each the first code starts.

        Returns:
            Exponents in order, uint8, and how many start in each chunk, (chunks,).

        Raises:
            DamagedCodes: there is something that is no code.
        """
        # 64 bits as one number, the first bit the highest. A shift by 64 is not defined: it is done in two.
        words = encoded.flip(1).contiguous().view(torch.int64).flatten()
        here, after = words[:-1], words[1:] >> 1 & 0x7FFFFFFFFFFFFFFF
        position = gaps.clone()
        steps: list[Tensor] = []
        taken: list[Tensor] = []
        last = _CHUNK - 1
        while int(position.min()) < _CHUNK:
            inside = position.clamp(max=last)
            bits = here << inside | after >> last - inside
            window = bits >> _CHUNK - _WINDOW & (1 << _WINDOW) - 1
            room = (_CHUNK - position).clamp_(0, _WINDOW)
            count = self._counts[(room << _WINDOW) + window]
            symbols = self._symbols[window]
            position += self._bits[window]
            alone = (count == 0) & (room > 0)
            if alone.any():
                which = alone.nonzero().flatten()
                symbol, length = self.first(bits[which] >> 32 & 0xFFFFFFFF)
                if not bool((length > 0).all()):
                    raise DamagedCodes("a code that is in no table")
                symbols[which], count[which] = symbol, 1
                position[which] += length
            steps.append(symbols)
            taken.append(count)
        every = torch.stack(steps, 1).view(torch.uint8).view(len(gaps), len(steps), _AT_ONCE)
        number = torch.stack(taken, 1)
        kept = torch.arange(_AT_ONCE, dtype=torch.uint8, device=self.device) < number[..., None]
        return every.masked_select(kept), number.sum(1)


def read_gaps(gaps: Tensor) -> Tensor:
    """uint8 of 5 bits each, the first bit of a byte being its highest: (5 n,) -> (8 n,) int64."""
    groups = gaps.view(-1, 5).long()
    word = (groups << torch.tensor([32, 24, 16, 8, 0], device=gaps.device)).sum(1, keepdim=True)
    return (word >> torch.arange(35, -1, -5, device=gaps.device) & 31).flatten()


def join(exponents: Tensor, signs_and_mantissas: Tensor) -> Tensor:
    """bfloat16 from its eight bits of exponent and its other eight, both uint8 (n,)."""
    result = torch.empty(len(exponents), 2, dtype=torch.uint8, device=exponents.device)
    result[:, 0] = exponents << 7 | signs_and_mantissas & 0x7F
    result[:, 1] = exponents >> 1 | signs_and_mantissas & 0x80
    return result.view(torch.bfloat16).flatten()

"""The next tokens of texts on the CPU, each over its own context where that lies, in one call of a compiled pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bagel_mot.model.decode_batch import DecodeRow
from bagel_mot.model.passes import Passes


class TokenAttention:
    """Attention of texts' next tokens, by `bagel_mot.model.passes.Passes.attend`: nothing that they see is copied, and
    no text depends on its neighbours.

    Args:
        rows: the texts, whose contexts lie on the CPU in all layers.
        passes: the compiled passes for their keys and values.
    """

    def __init__(self, rows: Sequence[DecodeRow], passes: Passes) -> None:
        self._passes = passes
        pieces = [row.reservation.parts(1) for row in rows]
        self._kept = [chunk for own in pieces for chunk, _ in own]  # their memory is known by its address alone
        self._rows = torch.tensor([(row.slot, len(own)) for row, own in zip(rows, pieces, strict=True)])
        self._pieces = torch.tensor(
            [(*chunk.slab.address(chunk.first), tokens) for own in pieces for chunk, tokens in own]
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Writes keys and values (S, kv_heads, head_dim) of the rows' und slots into the cache, and what their queries
        (S, heads, head_dim) attend to into `out`, which is contiguous.
        """
        self._passes.attend(query, key, value, out, self._rows, self._pieces, layer)

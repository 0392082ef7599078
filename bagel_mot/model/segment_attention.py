"""Attention of a training pack on the CPU, some segments at a time: few of the pairs that nobody sees are computed.

A mask over a whole row lets every token meet every other: with n samples in a row that is n times the work that counts.
Here the tokens of a segment meet the keys that it sees and no others. An image sees all of them, and a text at the
beginning of a sample is causal: neither needs a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.attention import Attend, Pair
from bagel_mot.sequence import CAUSAL, FULL, NOISED, SegmentSpan, TrainingLayout, may_attend

PAIRS_OF_A_CALL = 1 << 13
"""Pairs of a query and a key that take about as long as one more call of the kernel, with its backward pass."""

_Slots = tuple[int, int]  # first slot, end


@dataclass
class _Block:
    """A segment, or texts of one sample that follow one another.

    Attributes:
        causal: whether its tokens see one another causally; else fully.
        pieces: the numbers of the pieces of slots that hold its tokens.
        length: the number of its tokens.
        context: the numbers of the pieces of its sample that all its tokens see.
        context_length: the number of their tokens.
    """

    causal: bool
    pieces: list[int]
    length: int
    context: list[int]
    context_length: int

    @property
    def pairs(self) -> int:
        """Pairs that are computed for it alone."""
        if self.causal and not self.context:
            return self.length * (self.length + 1) // 2
        return self.length * (self.context_length + self.length)


@dataclass
class _Call:
    """Blocks that are computed in one call: their tokens see the context of the first, and one another.

    Attributes:
        queries, keys: the numbers of their pieces.
        causal: whether it is one text that nothing comes before.
        mask: (queries, keys) to be added to the scores; None where it is `causal` or everyone sees everything.
    """

    queries: list[int]
    keys: list[int]
    causal: bool
    mask: Tensor | None


class SegmentAttention:
    """`MaskedAttention` without most of the pairs that nobody sees.

    Padding sees nothing, which gives zeros; but where an expert has padding alone one slot sees itself, so that all its
    weights have gradients, which are zero, whatever a pack holds.

    Args:
        layout: the pack, on the CPU.
        dtype: the type of the queries.
    """

    def __init__(self, layout: TrainingLayout, dtype: torch.dtype = torch.float32) -> None:
        und_slots, gen_slots = layout.rows * layout.und_len, layout.rows * layout.gen_len
        samples = _with_all_experts(layout.spans, und_slots, gen_slots)
        und = _cut([span.und for sample in samples for span in sample], und_slots)
        gen = _cut([span.gen for sample in samples for span in sample], gen_slots)
        self._sizes = [[stop - start for start, stop in ranges] for ranges in (und, gen)]
        # Pieces are numbered through both experts: by the range of its und or of its gen slots each has one number.
        numbers = {("und", *r): i for i, r in enumerate(und)} | {("gen", *r): len(und) + i for i, r in enumerate(gen)}
        slots = torch.arange(layout.rows * (layout.und_len + layout.gen_len)).view(layout.rows, -1)
        places = [
            *slots[:, : layout.und_len].flatten().split(self._sizes[0]),
            *slots[:, layout.und_len :].flatten().split(self._sizes[1]),
        ]
        fields = [part.flatten() for part in layout.visibility]

        def mask(queries: Sequence[int], keys: Sequence[int]) -> Tensor:
            query, key = (torch.cat([places[i] for i in chosen]) for chosen in (queries, keys))
            seen = may_attend([part[query, None] for part in fields], [part[key] for part in fields])
            return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))

        self.calls = []
        for blocks in _joined(_blocks(samples, numbers)):
            queries = [piece for block in blocks for piece in block.pieces]
            keys = [*blocks[0].context, *queries]
            causal = len(blocks) == 1 and blocks[0].causal
            masked = len(blocks) > 1 or (causal and bool(blocks[0].context))
            self.calls.append(_Call(queries, keys, causal and not masked, mask(queries, keys) if masked else None))

    def for_layer(self, layer: int) -> Attend:
        return self

    @torch.compiler.disable  # else layers are compiled anew for the segments of each pack
    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair:
        queries, keys, values = (self._pieces(pair) for pair in (query, key, value))
        grouped = query[0].shape[1] > key[0].shape[1]
        attended: list[Tensor | None] = [None] * len(queries)
        for call in self.calls:
            out = F.scaled_dot_product_attention(
                _together(queries, call.queries),
                _together(keys, call.keys),
                _together(values, call.keys),
                attn_mask=call.mask,
                is_causal=call.causal,
                enable_gqa=grouped,
            )
            sizes = [queries[piece].shape[0] for piece in call.queries]
            for piece, part in zip(call.queries, out[0].transpose(0, 1).split(sizes), strict=True):
                attended[piece] = part
        whole = [torch.zeros_like(q) if part is None else part for q, part in zip(queries, attended, strict=True)]
        first = len(self._sizes[0])
        return _cat(whole[:first], query[0]), _cat(whole[first:], query[1])

    def _pieces(self, pair: Pair) -> list[Tensor]:
        return [piece for part, sizes in zip(pair, self._sizes, strict=True) if sizes for piece in part.split(sizes)]


def _together(pieces: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    """Some of the pieces (n, heads, head_dim) as (1, heads, tokens, head_dim)."""
    joined = pieces[chosen[0]] if len(chosen) == 1 else torch.cat([pieces[i] for i in chosen])
    return joined.transpose(0, 1)[None]


def _cat(pieces: Sequence[Tensor], empty: Tensor) -> Tensor:
    return torch.cat(tuple(pieces)) if pieces else empty


def _with_all_experts(spans: Sequence[Sequence[SegmentSpan]], und: int, gen: int) -> list[Sequence[SegmentSpan]]:
    """The segments of each sample and, for an expert with slots but no tokens, its first slot as one more sample."""
    samples = list(spans)
    if und and not any(span.und[0] < span.und[1] for sample in spans for span in sample):
        samples.append((SegmentSpan(FULL, (0, 1), (0, 0), 0),))
    if gen and not any(span.gen[0] < span.gen[1] for sample in spans for span in sample):
        samples.append((SegmentSpan(FULL, (0, 0), (0, 1), 0),))
    return samples


def _cut(ranges: Iterable[_Slots], total: int) -> list[_Slots]:
    """All slots, cut where segments begin and end: the ranges of segments that have slots, and padding between them."""
    cut: list[_Slots] = []
    before = 0
    for start, stop in [*sorted(r for r in ranges if r[1] > r[0]), (total, total)]:
        cut += [r for r in ((before, start), (start, stop)) if r[1] > r[0]]
        before = stop
    return cut


def _blocks(spans: Iterable[Iterable[SegmentSpan]], numbers: dict[tuple[str, int, int], int]) -> Iterator[_Block]:
    """The blocks of all samples, in order.

    Args:
        spans: the segments of each sample.
        numbers: the numbers of pieces.
    """
    for sample in spans:
        context: list[int] = []
        length = 0
        last: _Block | None = None
        for span in sample:
            places = ("und", *span.und), ("gen", *span.gen)
            pieces = [numbers[place] for place in places if place[2] > place[1]]
            if last is not None and last.causal and span.mode == CAUSAL:
                last.pieces += pieces
                last.length += span.length
            else:
                if last is not None:
                    yield last
                last = _Block(span.mode == CAUSAL, pieces, span.length, list(context), length)
            if span.mode != NOISED:
                context += pieces
                length += span.length
        if last is not None:
            yield last


def _joined(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Blocks in groups, each for one call, which computes no more pairs in vain than a call costs."""
    group: list[_Block] = []
    needed = tokens = keys = 0
    for block in blocks:
        needed, tokens, keys = needed + block.pairs, tokens + block.length, keys + block.length
        if group and tokens * keys - needed > PAIRS_OF_A_CALL:
            yield group
            group = []
        if not group:
            needed, tokens, keys = block.pairs, block.length, block.context_length + block.length
        group.append(block)
    if group:
        yield group

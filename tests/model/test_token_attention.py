"""The next tokens of texts by the compiled pass, against attention in float64, alone and together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bagel_mot.model.cache import CacheSpec, Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.passes import Passes, compiled
from bagel_mot.model.token_attention import TokenAttention
from bagel_mot.sequence import CAUSAL, SegmentSpan, TextSegment
from bagel_mot.threads import Threads

LIBRARY = compiled()
LAYERS, CPU = 3, torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiler, or another system than Linux")


class Texts:
    """Contexts of several texts, some of which share their beginning, and the keys and values of their next tokens.

    Attributes:
        seen: for each text and layer all keys and values, (2, kv_heads, tokens, dim), those of the next token last.
    """

    def __init__(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
        assert LIBRARY is not None
        self.draws = torch.Generator().manual_seed(0)
        spec = CacheSpec(kv_heads, dim, dtype, (CPU,) * LAYERS, passes=Passes(LIBRARY, dtype))
        first = Context(spec)
        contexts = [self._read(first, 70), self._read(Context(spec), 700), self._read(first.fork(), 300), Context(spec)]
        first.fork()  # its memory is taken: what follows has a chunk of its own
        self.rooms = [context.allocate(1, scratch=True) for context in contexts]
        count = len(contexts)
        self.query, self.key, self.value = (
            self.random(LAYERS, count, number, dim).to(dtype) for number in (heads, kv_heads, kv_heads)
        )
        self.seen = [
            [
                torch.cat(
                    [
                        torch.cat([torch.cat(piece) for piece in room.visible(0)[layer]], 2),
                        torch.stack([self.key[layer, text], self.value[layer, text]])[:, :, None],
                    ],
                    2,
                )
                for layer in range(LAYERS)
            ]
            for text, room in enumerate(self.rooms)
        ]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draws)

    def _read(self, context: Context, tokens: int) -> Context:
        room = context.allocate(tokens)
        for keys_and_values in room.room(0, tokens):
            for place in keys_and_values:
                place.copy_(self.random(*place.shape))
        context.commit(room, (TextSegment((5,) * tokens),))
        return context

    def attended(self, texts: list[int]) -> Tensor:
        """(texts, layers, heads, dim), by one attention over some of the texts, with a slot that nobody has between."""
        spans = [
            SegmentSpan(CAUSAL, (2 * n, 2 * n + 1), (0, 0), self.rooms[text].start) for n, text in enumerate(texts)
        ]
        attention = CachedAttention([CachedSample((s,), self.rooms[t]) for s, t in zip(spans, texts, strict=True)])
        assert isinstance(attention.batch, TokenAttention)
        found = []
        for layer in range(LAYERS):
            slots = [part[layer, texts].repeat_interleave(2, 0) for part in (self.query, self.key, self.value)]
            out, _ = attention.for_layer(layer)(*((part, part[:0]) for part in slots))
            assert not out[1::2].any()
            found.append(out[::2].clone())
        return torch.stack(found, 1)


def expected(query: Tensor, seen: Tensor) -> Tensor:
    """(heads, dim) over (2, kv_heads, tokens, dim), in float64."""
    keys, values = seen.double().repeat_interleave(query.shape[0] // seen.shape[1], 1)
    scores = (keys @ query.double()[:, :, None])[..., 0] / query.shape[-1] ** 0.5
    return (scores.softmax(-1)[:, None] @ values)[:, 0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(14, 2, 64), (4, 4, 20), (6, 1, 8)])
def test_each_text_attends_to_its_own_context(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    texts = Texts(dtype, heads, kv_heads, dim)
    assert max(len(room.visible(1)[0]) for room in texts.rooms) > 1  # pieces of memory
    found = texts.attended([0, 1, 2, 3])
    for text in range(4):
        for layer in range(LAYERS):
            wanted = expected(texts.query[layer, text], texts.seen[text][layer])
            assert (found[text, layer].double() - wanted).abs().max() <= TOLERANCE[dtype]
            # And the next token sees this one.
            pieces = texts.rooms[text].visible(1)[layer]
            assert torch.equal(pieces[-1][0][0, :, -1], texts.key[layer, text])
            assert torch.equal(pieces[-1][1][0, :, -1], texts.value[layer, text])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_neighbours_and_threads_change_no_bit(dtype: torch.dtype) -> None:
    texts = Texts(dtype, 14, 2, 64)
    together = texts.attended([0, 1, 2, 3])
    for threads in (1, 2, 3):
        with Threads(threads, asked=True).at_work():
            assert torch.equal(texts.attended([2, 0]), together[[2, 0]])
            assert torch.equal(texts.attended([1]), together[[1]])


def test_scores_that_are_far_apart() -> None:
    """A key that outweighs all others, beyond what exponentials can hold, in one stretch of several."""
    texts = Texts(torch.float32, 14, 2, 64)
    texts.query *= 60
    found = texts.attended([1])
    assert found.isfinite().all()
    wanted = expected(texts.query[0, 1], texts.seen[1][0])
    assert (found[0, 0].double() - wanted).abs().max() <= 1e-3

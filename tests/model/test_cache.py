"""The cache: forks, cuts and appends against plain lists of tokens; nothing alive is overwritten, nothing copied."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from bagel_mot.config import DecoderConfig
from bagel_mot.model.cache import CacheSpec, Chunk, Context, KVReservation
from bagel_mot.sequence import DroppedImage, Segment, TextSegment, VitSegment, segment_length

CONFIG = DecoderConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=8, vocab_size=9)


def new_context(reserve: int = 0) -> Context:
    return Context(CacheSpec(2, 4, torch.float32, (torch.device("cpu"),) * 2), reserve)


def text(tokens: int) -> TextSegment:
    return TextSegment(tuple(range(tokens)))


def fill(tail: KVReservation, values: Tensor) -> None:
    """Writes (n,) values as keys, and their negatives as values, with the layer added."""
    for layer in range(CONFIG.num_layers):
        keys = (values + layer)[:, None, None].expand(-1, CONFIG.num_kv_heads, CONFIG.head_dim)
        for place, new in zip(tail.room(0, len(values))[layer], (keys, -keys), strict=True):
            place.copy_(new)


def contents(context: Context) -> list[float]:
    """What stands in a context, checked to be the same in all layers, heads and channels."""
    if not context.length:
        return []
    probe = context.fork().allocate(1, scratch=True)
    found = []
    for layer in range(CONFIG.num_layers):
        parts = probe.visible(0)[layer]
        keys = torch.cat([k[0] for k, _ in parts], dim=1)
        assert torch.equal(keys, -torch.cat([v[0] for _, v in parts], dim=1))
        assert torch.equal(keys, keys[:1, :, :1].expand_as(keys))
        found.append(keys[0, :, 0] - layer)
    assert torch.equal(found[0], found[1])
    return found[0].tolist()


def append(context: Context, segments: tuple[Segment, ...], values: Tensor, record: bool = True) -> None:
    tail = context.allocate(sum(map(segment_length, segments)))
    fill(tail, values)
    context.commit(tail, segments, None if record else [None] * len(segments))


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_equal_plain_lists(seed: int) -> None:
    rng = random.Random(seed)
    values = iter(range(1, 10**9))
    contexts: list[tuple[Context, list[tuple[Segment, list[float]]]]] = [(new_context(rng.choice([0, 300])), [])]
    for _ in range(150):
        context, plain = rng.choice(contexts)
        act = rng.random()
        if act < 0.5:
            segments = tuple(text(rng.randint(1, 40)) for _ in range(rng.randint(1, 3)))
            new = [[float(next(values)) for _ in range(segment_length(s))] for s in segments]
            append(context, segments, torch.tensor([v for own in new for v in own]))
            plain.extend(zip(segments, new, strict=True))
        elif act < 0.7:
            kept = rng.randint(0, len(plain))
            contexts.append((context.fork(kept), plain[:kept]))
        elif act < 0.8:
            contexts.append((context.fork(), list(plain)))
        elif act < 0.9:  # scratch, written twice, then dropped
            tail = context.allocate(rng.randint(1, 60), scratch=True)
            for _ in range(2):
                fill(tail, torch.full((tail.stop - tail.start,), -7.0))
        elif len(contexts) > 1:
            contexts.remove((context, plain))
        for other, expected in contexts:
            assert contents(other) == [v for _, own in expected for v in own]
            assert other.segments == tuple(s for s, _ in expected)
            assert other.length == other.position == sum(len(own) for _, own in expected)


def test_appending_goes_on_in_place_and_a_second_branch_elsewhere() -> None:
    context = new_context(reserve=100)
    append(context, (text(10),), torch.arange(10.0))
    fork = context.fork()
    append(context, (text(5),), torch.arange(10.0, 15))
    assert context.nbytes == fork.nbytes  # the one chunk that both look at
    append(fork, (text(5),), torch.arange(50.0, 55))
    assert fork.nbytes > context.nbytes
    assert contents(context) == list(range(15))
    assert contents(fork) == [*range(10), *range(50, 55)]


def test_room_of_what_is_dropped_is_used_again() -> None:
    context = new_context(reserve=100)
    append(context, (text(10),), torch.arange(10.0))
    before = context.nbytes
    for _ in range(20):
        fork = context.fork()
        for token in range(30):
            append(fork, (text(1),), torch.tensor([float(token)]), record=False)
        assert fork.length == 40
        assert fork.nbytes == before
        del fork
    append(context, (text(60),), torch.arange(60.0))
    assert context.nbytes == before


def test_a_sibling_keeps_its_room() -> None:
    """Cutting one context back must not free what another one still looks at."""
    context = new_context(reserve=100)
    append(context, (text(4),), torch.arange(4.0))
    append(context, (text(4),), torch.arange(4.0, 8))
    sibling = context.fork()
    context = context.fork(1)
    append(context, (text(4),), torch.arange(90.0, 94))
    assert contents(sibling) == list(range(8))
    assert contents(context) == [0, 1, 2, 3, 90, 91, 92, 93]


def test_scratch_is_no_larger_than_asked() -> None:
    context = new_context()
    append(context, (text(500),), torch.arange(500.0))
    append(context.fork(), (text(1),), torch.zeros(1))
    taken = context.fork().allocate(context._views[-1].chunk.capacity, scratch=True)
    assert taken.chunk.capacity == context._views[-1].chunk.capacity
    assert taken.chunk is not context._views[-1].chunk
    small = context.fork().allocate(600, scratch=True)
    assert small.chunk.capacity == 600


def test_a_context_that_is_bound_takes_no_more_than_that() -> None:
    context = new_context()
    append(context, (text(100),), torch.arange(100.0))
    answer = context.fork()
    answer.bound(130)
    for number in range(30):
        append(answer, (text(1),), torch.tensor([float(number)]), record=False)
    assert sum(chunk.capacity for chunk in answer.chunks) == 130
    assert contents(answer) == [*range(100), *range(30)]
    append(answer, (text(1),), torch.zeros(1))  # more than was said: there is room for it all the same
    assert answer.length == 131


def test_positions_and_entries() -> None:
    context = new_context()
    vit = VitSegment(torch.zeros(6, 3), (2, 3))
    segments = (text(5), vit, DroppedImage(), text(2))
    append(context, segments, torch.arange(15.0))
    assert [entry.position for entry in context.entries] == [5, 6, 7, 9]
    assert [entry.length for entry in context.entries] == [5, 13, 13, 15]
    assert context.shared_entries(segments) == 4
    assert context.shared_entries((segments[0], vit, text(2))) == 2
    assert context.shared_entries((text(5),)) == 0  # equal is not the same
    cut = context.fork(2)
    assert (cut.length, cut.position, cut.segments) == (13, 6, segments[:2])


def test_commit_refuses_what_does_not_fit() -> None:
    context = new_context()
    tail = context.allocate(3)
    with pytest.raises(RuntimeError, match="holds 3 tokens, its segments 4"):
        context.commit(tail, (text(4),))
    assert context.length == 0
    context.commit(tail, (text(3),))
    with pytest.raises(RuntimeError, match="another state"):
        context.commit(tail, (text(3),))


def test_chunk_knows_its_living_views() -> None:
    context = new_context()
    tail = context.allocate(30)
    chunk: Chunk = tail.chunk
    assert chunk.used == 30
    del tail
    assert chunk.used == 0

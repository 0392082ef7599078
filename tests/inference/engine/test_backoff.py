"""Passes are smaller for a while after memory was short."""

from __future__ import annotations

from bagel_mot.inference.engine.backoff import BatchBackoff


def test_passes_are_smaller_for_a_while_after_memory_was_short() -> None:
    bound = BatchBackoff(1000)
    assert bound.of(5000) == 5000
    bound.shorten(8000, 100)
    assert bound.of(5000) == 4000
    bound.shorten(4000, 3000)  # one piece alone is no smaller
    assert bound.of(5000) == 3000
    bound.shorten(8, 1)  # nothing is gained below
    assert bound.of(5000) == 1000
    for _ in range(200):
        assert bound.of(5000) == 1000
        bound.passed()
    assert bound.of(5000) == 2000
    for _ in range(400):
        bound.passed()
    assert bound.of(5000) == 5000

"""Passes are smaller for a while after memory was short."""

from __future__ import annotations

from bagel_mot.inference.engine.backoff import BatchBackoff


def test_passes_are_smaller_for_a_while_after_memory_was_short() -> None:
    bound = BatchBackoff(5000, 1000)
    assert bound.current == 5000
    bound.reduce(8000, 100)
    assert bound.current == 4000
    bound.reduce(4000, 3000)  # one piece alone is no smaller
    assert bound.current == 3000
    bound.reduce(8, 1)  # nothing is gained below
    assert bound.current == 1000
    for _ in range(200):
        assert bound.current == 1000
        bound.succeeded()
    assert bound.current == 2000
    for _ in range(400):
        bound.succeeded()
    assert bound.current == 5000

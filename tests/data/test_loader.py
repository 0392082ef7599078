"""What is made ahead is neither lost nor counted as used; failures arrive where batches are taken."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from bagel_mot.data.loader import Prefetcher
from bagel_mot.errors import DataError


class Counting:
    """Gives 0, 1, 2, … and fails at `fails`."""

    def __init__(self, fails: int | None = None) -> None:
        self.next = 0
        self.fails = fails
        self.made_ahead = threading.Event()

    def next_batch(self) -> int:
        if self.next == self.fails:
            raise OSError("no more data")
        self.next += 1
        if self.next >= 4:
            self.made_ahead.set()
        return self.next - 1

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def test_the_state_is_that_of_the_batch_handed_out() -> None:
    stream = Counting()
    ahead = Prefetcher(stream, ahead=4)
    assert ahead.state_dict() == {"next": 0}
    assert ahead.next_batch() == 0
    assert stream.made_ahead.wait(30)
    assert ahead.state_dict() == {"next": 1}
    ahead.close()
    resumed = Prefetcher(Counting(), ahead=4)
    resumed.load_state_dict(ahead.state_dict())
    assert resumed.state_dict() == {"next": 1}
    assert [resumed.next_batch() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert resumed.state_dict() == {"next": 6}
    resumed.close()


def test_a_failure_is_raised_after_the_batches_before_it_and_again() -> None:
    ahead = Prefetcher(Counting(fails=2))
    assert [ahead.next_batch(), ahead.next_batch()] == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="no more data"):
            ahead.next_batch()
    assert ahead.state_dict() == {"next": 2}


def test_close_ends_the_thread_although_nobody_takes_its_batches() -> None:
    before = threading.active_count()
    ahead = Prefetcher(Counting(), ahead=1)
    ahead.next_batch()
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(DataError, match="closed"):
        ahead.next_batch()


def test_a_stream_that_has_begun_is_not_moved() -> None:
    ahead = Prefetcher(Counting())
    ahead.next_batch()
    with pytest.raises(DataError, match="before the first batch"):
        ahead.load_state_dict({"next": 7})
    ahead.close()

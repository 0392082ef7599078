"""The processes of an evaluation part from one another in order."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bagel_mot.evaluation import team
from bagel_mot.evaluation.team import Team


class Store:
    """A store that goes down with the process that has it."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()
        self.down = threading.Event()

    def add(self, key: str, count: int) -> int:
        if self.down.is_set():
            raise ConnectionError("the store is gone")
        with self.lock:
            self.counts[key] = self.counts.get(key, 0) + count
            return self.counts[key]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_process_with_the_store_goes_last(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """The others look again only after the first has gone, or after half a second."""
    store, lost, ended = Store(), [], []

    first = threading.Event()

    def sleep(seconds: float) -> None:
        if threading.current_thread().name == "0":
            first.wait(0.01)
        else:
            store.down.wait(0.5)

    monkeypatch.setattr(team.time, "sleep", sleep)

    def work(rank: int) -> None:
        launch: Any = SimpleNamespace(rank=rank, world=world, store=store)
        try:
            Team(launch, "sums").wait()
        except ConnectionError:
            lost.append(rank)
        ended.append(rank)
        if rank == 0:
            store.down.set()

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in reversed(range(world))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert sorted(ended) == list(range(world))

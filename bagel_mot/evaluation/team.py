"""The processes of a run: each takes its part of the items, and the first waits for the others to sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from bagel_mot.evaluation.base import Item
from bagel_mot.parallel.launch import Launch

_POLL = 0.2  # seconds


class Team:
    """This process among those of a run.

    Args:
        launch: the processes, as torchrun or `--workers` started them.
        name: the name of what they do, different for each run of one launch.
    """

    def __init__(self, launch: Launch | None = None, name: str = "") -> None:
        launch = launch or Launch()
        self.rank, self.world, self.store, self.name = launch.rank, launch.world, launch.store, name
        self._alone = 0

    def part(self, items: Sequence[Item]) -> list[Item]:
        """The items of this process: every `world`th one; items of one group stay together."""
        units = [list(unit) for _, unit in groupby(items, key=lambda item: item.group or f"\0{item.id}")]
        return [item for unit in units[self.rank :: self.world] for item in unit]

    def done(self, count: int) -> int:
        """Tells of `count` more items; returns those that all processes have done."""
        return self._add("items", count)

    def wait(self) -> None:
        """Waits until all processes have called this. The first one, which has the store, goes last: without it the
        others could not see that all are there.
        """
        self._gather("waiting")
        if self.rank == 0:
            self._gather("seen")
        else:
            self._add("seen", 1)

    def _gather(self, what: str) -> None:
        self._add(what, 1)
        while self.world > 1 and self._add(what, 0) < self.world:
            time.sleep(_POLL)

    def _add(self, what: str, count: int) -> int:
        store: Any = self.store
        if store is None:
            self._alone += count if what == "items" else 0
            return self._alone
        return int(store.add(f"bagel/evaluation/{self.name}/{what}", count))

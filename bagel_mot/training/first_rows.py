"""A look at the first rows of a run's data before anything large is loaded: data that can train nothing are refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bagel_mot.data.feed import GroupItem
from bagel_mot.data.rows import RowKey, SkipRow
from bagel_mot.data.supply import KeyedItem, RowSupply
from bagel_mot.training.data_check import RowChecker, nothing_usable
from bagel_mot.training.open_data import OpenData

_ROWS, _SECONDS = 1000, 30.0
"""The look goes on to the first row that can be used, and no further than this."""


def check_first_rows(data: OpenData, seed: int) -> None:
    """Checks that each group has a row that can be used, unless it has too many to look at all.

    Raises:
        DataError: all rows of a group have been looked at, and not one can be used; or a file cannot be read.
    """
    check = RowChecker.of(data, [group.supply for group in data.groups], seed)
    end = time.monotonic() + _SECONDS
    for number, group in enumerate(data.groups):
        if not isinstance(group.supply, RowSupply):
            continue
        rows, first = 0, None
        for rows, item in enumerate(_items(group.supply), 1):
            why = check(GroupItem(number, item))
            if not isinstance(why, SkipRow) or rows > _ROWS or time.monotonic() > end:
                break
            first = first or (group.supply.place_of(item.key), str(why))
        else:
            raise nothing_usable(group.name, rows, first)


def _items(supply: RowSupply) -> Iterator[KeyedItem]:
    for dataset, unit, _ in supply.units:
        for key, row in dataset.rows(unit):
            yield KeyedItem([0, *RowKey(*key)], row)

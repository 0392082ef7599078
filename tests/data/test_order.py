"""Every row is read exactly once an epoch, whatever the number of streams, and nothing is idle for ever."""

from __future__ import annotations

from collections import Counter

import pytest

from bagel_mot.data.order import OrderedUnit, PublishedOrder, ShuffledOrder, Stretch, permuted

KNOWN = [OrderedUnit(rows) for rows in (5, 1, 0, 12, 3, 7)]
LENGTHS = (5, 1, 0, 12, 3, 7)


def read(order: ShuffledOrder, epoch: int) -> list[tuple[int, int]]:
    """The rows of an epoch as (unit, row), as a cursor reads them."""
    rows = []
    for at in order.stretches(epoch):
        count = LENGTHS[at.unit]
        places = range(at.start, count if at.stop is None else at.stop, at.step)
        rows += [(at.unit, place if at.shuffle is None else permuted(place, count, at.shuffle)) for place in places]
    return rows


EVERYTHING = sorted((unit, row) for unit, rows in enumerate(LENGTHS) for row in range(rows))


@pytest.mark.parametrize("streams", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize(
    "units",
    [
        KNOWN,
        [OrderedUnit(rows, random_access=True) for rows in LENGTHS],
        [OrderedUnit(rows, random_access=rows > 4) for rows in LENGTHS],
        [OrderedUnit(None) for _ in LENGTHS],
        [OrderedUnit(rows if rows % 2 else None) for rows in LENGTHS],
    ],
)
def test_all_streams_together_read_every_row_once_an_epoch(units: list[OrderedUnit], streams: int) -> None:
    orders = [ShuffledOrder(units, "seed", stream, streams) for stream in range(streams)]
    for epoch in range(3):
        shares = [read(order, epoch) for order in orders]
        assert sorted(row for share in shares for row in share) == EVERYTHING
        if all(unit.rows is not None for unit in units):
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    units = [OrderedUnit(rows, random_access=True) for rows in LENGTHS]
    orders = [read(ShuffledOrder(units, seed), epoch) for seed in "ab" for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == read(ShuffledOrder(units, "a"), 0)


@pytest.mark.parametrize("streams", [2, 7])
def test_a_stream_has_rows_at_last_however_few_there_are(streams: int) -> None:
    orders = [ShuffledOrder([OrderedUnit(1)], "seed", stream, streams) for stream in range(streams)]
    shares = Counter(
        stream for epoch in range(streams) for stream, order in enumerate(orders) if order.stretches(epoch)
    )
    assert shares == dict.fromkeys(range(streams), 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 99, 1000])
def test_a_permutation_has_every_item_once(count: int) -> None:
    found = [permuted(place, count, "seed") for place in range(count)]
    assert sorted(found) == list(range(count))
    if count > 16:
        assert found != sorted(found)
        assert found != [permuted(place, count, "other") for place in range(count)]


def test_a_permutation_is_even() -> None:
    """Over many seeds, the item at a place is as often one as another."""
    found = Counter(permuted(3, 7, f"{seed}") for seed in range(7000))
    assert all(abs(count - 1000) < 150 for count in found.values())
    assert len(found) == 7


UNITS = [Stretch(unit, 0, 3) for unit in range(11)]


def test_the_published_order_leaves_out_what_does_not_divide() -> None:
    orders = [PublishedOrder(UNITS, 42, rank, 2, worker, 2) for rank in range(2) for worker in range(2)]
    read = [[at.unit for at in order.stretches(0)] for order in orders]
    assert [len(units) for units in read] == [2, 2, 2, 2]
    assert len({unit for units in read for unit in units}) == 8
    alone = [at.unit for at in PublishedOrder(UNITS, 42, 0, 2).stretches(0)]
    assert alone[:4] == [*read[0][::-1], *read[1][::-1]]
    assert [at.unit for at in PublishedOrder(UNITS, 42, 0, 2).stretches(5)] == alone

"""The published order of reading, and its positions: needed to go on from where a published run stopped.

A run of R ranks with W workers each has R·W readers. Every group's units are dealt out among them as `PublishedOrder`
says: Parquet files for text-to-image, row groups for edits, lines for conversations. The published program keeps, for
each rank, group and worker, the position of the sample that was packed last; what waited in its buffer is lost, and
its random state is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bagel_mot.data.order import PublishedOrder, ReadingOrder, Stretch
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.data.supply import Cursor, RowCursor, RowSupply
from bagel_mot.errors import DataError

DataStatus = Sequence[Mapping[str, Mapping[Any, Any]]]
"""The positions that a published run keeps: of each rank, by group and worker."""


@dataclass(frozen=True)
class PublishedSupply(RowSupply):
    """Rows in the published order: number r·W + w of the streams is worker w of rank r.

    Attributes:
        data_seed: the seed by which units are shuffled.
        workers: the workers of each rank; 0 where ranks read by themselves.
        status: the positions that a published run kept.
    """

    data_seed: int = 42
    workers: int = 0
    status: DataStatus = ()

    @cached_property
    def shared(self) -> list[Stretch]:
        """The units that are dealt out, sorted as the published code sorts them.

        Raises:
            DataError: a data set is of a kind that the published code does not read.
        """
        found: list[tuple[tuple[Any, int], Stretch]] = []
        for number, (dataset, unit, about) in enumerate(self.units):
            reader = dataset.reader
            if isinstance(reader, ParquetReader):
                by_file = reader.by == "file"
                key = (str(reader.files[unit]), 0) if by_file else (str(reader.groups[unit].file), unit)
                found.append((key, Stretch(number, 0, about.rows)))
            elif isinstance(reader, JsonlReader):
                lines = enumerate(reader.texts(unit))
                found += [((text, 0), Stretch(number, row, row + 1)) for row, text in lines]
            else:
                raise DataError(
                    f"sharding is 'published', and {dataset.name} is no Parquet or JSONL data set: leave it out"
                )
        return [stretch for _, stretch in sorted(found, key=lambda one: one[0])]

    def order(self, seed: int, stream: int, streams: int) -> ReadingOrder:
        each = max(self.workers, 1)
        rank, worker = divmod(stream, each)
        order = PublishedOrder(self.shared, self.data_seed, rank, streams // each, worker, self.workers)
        if not order.stretches(0):
            raise DataError(
                f"{self.group} has {len(self.shared)} units for {streams // each} ranks with {each} workers each, so "
                f"worker {worker} of rank {rank} has nothing to read: take fewer workers or ranks, or sharding: ours"
            )
        return order

    def cursor(self, seed: int, stream: int, streams: int) -> Cursor:
        order = self.order(seed, stream, streams)
        cursor = RowCursor(self, order, streams)
        rank, worker = divmod(stream, max(self.workers, 1))
        kept = self.status[rank].get(self.group, {}) if rank < len(self.status) else {}
        if worker in kept:  # else the worker had not packed a sample of the group yet
            stretch, done = self.behind(order.stretches(0), kept[worker])
            cursor.go_to({**cursor.place(), "stretch": stretch, "done": done})
        return cursor

    def behind(self, stretches: Sequence[Stretch], status: Any) -> tuple[int, int]:
        """The place behind a published position: a worker's stretch and the rows that are done of it.

        Raises:
            DataError: there is no such position.
        """
        try:
            if isinstance(status, int):  # a line
                stretch, done = status, 1
            else:
                stretch, done = status[0], status[-1] + 1
                if len(status) == 3:  # a file, its row group, and the row in that
                    dataset, unit, _ = self.units[stretches[stretch].unit]
                    assert isinstance(dataset.reader, ParquetReader)
                    done += dataset.reader.rows_before(unit, status[1])
            if not 0 <= stretch < len(stretches):
                raise IndexError
        except (IndexError, TypeError, AssertionError) as error:
            raise DataError(
                f"the position {status!r} of {self.group} is none of these data: give the data_status.pt of a run with "
                "the same data, ranks and workers"
            ) from error
        return stretch, done

    def status_of(self, stretches: Sequence[Stretch], stretch: int, row: int) -> Any:
        """The published position of a row of a worker's stretch."""
        dataset, unit, _ = self.units[stretches[stretch].unit]
        if not isinstance(dataset.reader, ParquetReader):
            return stretch
        at = dataset.reader.row_group(unit, row)
        if dataset.reader.by == "row group":
            return [stretch, at.row]
        return [stretch, at.number, at.row]


def read_data_status(path: Path) -> DataStatus:
    """The positions in a published `data_status.pt`.

    Raises:
        DataError: the file is missing or holds something else.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on damaged files
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise DataError(f"{path} could not be read as the data_status.pt of a published run: {reason}") from error
    if not isinstance(content, list) or not all(isinstance(rank, Mapping | None) for rank in content):
        raise DataError(f"{path} holds a {type(content).__name__}; a list with the positions of each rank is expected")
    return [rank or {} for rank in content]

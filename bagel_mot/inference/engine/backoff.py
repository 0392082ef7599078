"""Smaller batches for a while after memory ran out."""

from __future__ import annotations

_CALM = 200  # batches after which more is tried


class BatchBackoff:
    """The limit of a batch's size, lowered when memory runs out, so that not every step fails before it is split.

    Args:
        least: the size below which smaller batches gain nothing.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._bound: int | None = None
        self._calm = 0  # batches since the last shortage

    def bounded(self, limit: int) -> int:
        """The limit that holds now, in tokens or pixels."""
        return limit if self._bound is None else min(limit, self._bound)

    def reduce(self, failed: int, largest_op: int) -> None:
        """Halves the limit after a batch of size `failed` ran out of memory, but never below its largest single op,
        which cannot be split.
        """
        self._bound, self._calm = max(failed // 2, largest_op, self._least), 0

    def succeeded(self) -> None:
        """Notes a batch that ran. After many, twice as much is tried: others may have held the memory."""
        if self._bound is not None:
            self._calm += 1
            if self._calm == _CALM:
                self._bound, self._calm = 2 * self._bound, 0

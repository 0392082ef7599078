"""How large a pass of the engine may be, in tokens or pixels, after memory was short."""

from __future__ import annotations

_CALM = 200  # passes after which more is tried


class BatchBackoff:
    """How large passes may be after one for which memory was short, so that not every step fails before it is split."""

    def __init__(self, least: int) -> None:
        """
        Args:
            least: size below which smaller passes gain nothing.
        """
        self._least = least
        self._bound: int | None = None
        self._calm = 0  # passes since that went well

    def of(self, most: int) -> int:
        """The bound, where passes of `most` are allowed otherwise."""
        return most if self._bound is None else min(most, self._bound)

    def shorten(self, size: int, largest: int) -> None:
        """A pass of this size was too much; its largest piece alone is none to be split."""
        self._bound, self._calm = max(size // 2, largest, self._least), 0

    def passed(self) -> None:
        """A pass went well. After many, twice as much is tried: memory may have been short for another's sake."""
        if self._bound is not None:
            self._calm += 1
            if self._calm == _CALM:
                self._bound, self._calm = 2 * self._bound, 0

"""Sentences for when memory runs out: how much was needed, how much there was, and what would fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import OutOfMemoryError

from bagel_mot.allocator import return_freed_memory
from bagel_mot.errors import MemoryShortageError
from bagel_mot.files import size_text
from bagel_mot.placement.plan import Plan
from bagel_mot.placement.system_memory import free_memory, room_for_work

_SMALL = 64 << 20
"""Bytes from which it is worth the time to ask the system whether they are free."""
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class MemoryGuard:
    """Memory as an engine asks about it: the tokens that are held between requests, room for a batch, and explanations
    of errors.

    Attributes:
        holders: functions that tell the tokens of cache that are held between requests, such as by sessions.
    """

    def __init__(
        self, device: torch.device | None = None, plan: Plan | None = None, others: Sequence[Plan] = ()
    ) -> None:
        """Guards a model.

        Args:
            device: the device that computes; without one everything is taken to fit, and errors stay as they are.
            plan: the way in which the model runs, where that was chosen.
            others: the other ways of running it, the best first, for advice.
        """
        self.holders: list[Callable[[], int]] = []
        self._device, self._plan, self._others = device, plan, others

    @property
    def idle_tokens(self) -> int:
        """Tokens of cache that are held between requests."""
        return sum(tokens() for tokens in self.holders)

    def check(self, needed: int) -> None:
        """Refuses work that would not fit. On the CPU alone: there no operation fails for want of memory, but the
        system ends the whole process. Accelerators fail by themselves, and are not asked.

        Args:
            needed: bytes that the work takes at the least.

        Raises:
            MemoryShortageError: they are not there, even after the process has returned what it had kept.
        """
        device = self._device
        if device is None or device.type != "cpu" or needed < _SMALL:
            return
        room = room_for_work()
        if room is not None and room < needed:
            return_freed_memory()
            room = room_for_work()
        if room is None or room >= needed:
            return
        raise MemoryShortageError(
            f"memory would run out on {device}: a step of this takes {size_text(needed)} at the least, and "
            f"{size_text(room)} is free; {_advice(self._plan, self._others)}."
        )

    def explain(self, error: Exception) -> Exception:
        """An error while the model was loaded or at work with its explanation and advice, if memory ran out; any other
        one as it is.
        """
        if self._device is None or not is_out_of_memory(error) or isinstance(error, MemoryShortageError):
            return error
        # PyTorch mostly says how much it tried to allocate.
        match = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMG]iB)", str(error), re.IGNORECASE)
        amount = size_text(int(float(match[1]) * _UNITS[match[2]])) + " more" if match else "more memory"
        return MemoryShortageError(
            f"memory ran out on {self._device}: {amount} was needed than there was, and "
            f"{size_text(free_memory(self._device))} is free now; {_advice(self._plan, self._others)}."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of those by which PyTorch, Python and this package report that memory ran out."""
    if isinstance(error, MemoryError | OutOfMemoryError | MemoryShortageError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _advice(plan: Plan | None, others: Sequence[Plan]) -> str:
    """The best way that fits and takes less than the one that was chosen; a general remedy if there is none."""
    smaller = "ask for smaller pictures or fewer at once"
    fitting = None
    if plan is not None:
        taken = plan.peak_device or plan.peak_host
        fitting = next((p for p in others if p.fits and (p.peak_device or p.peak_host) < 0.95 * taken), None)
    if fitting is None:
        return f"{smaller}, or load it in fewer bits or with layers elsewhere (`bagel info --plan` shows what fits)"
    return f"{smaller}, or load it with {fitting.advice()}"

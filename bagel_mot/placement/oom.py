"""What to say when memory runs out: how much was needed, how much there was, and what would fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import OutOfMemoryError

from bagel_mot.errors import MemoryShortageError
from bagel_mot.files import size_text
from bagel_mot.placement.plan import Plan, thought_of
from bagel_mot.placement.system_memory import free_memory, room_for_work

_SMALL = 64 << 20
"""Bytes from which it is worth the time to ask the system whether they are there."""
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is one of the forms in which PyTorch, Python and this package say so."""
    if isinstance(error, MemoryError | OutOfMemoryError | MemoryShortageError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def explained(
    error: Exception, device: torch.device, plan: Plan | None, others: Callable[[], Sequence[Plan]] = tuple
) -> Exception:
    """The error with its explanation, if memory ran out; any other one as it is.

    Args:
        error: while the model was loaded or at work.
        device: that computes.
        plan: how the model runs, where that was chosen.
        others: gives further ways of running it, the best first.
    """
    if not is_out_of_memory(error) or isinstance(error, MemoryShortageError):
        return error
    needed = _needed(str(error))
    asked = "more memory was needed" if needed is None else f"{size_text(needed)} more was needed"
    return MemoryShortageError(
        f"memory ran out on {device}: {asked} than there was, and {size_text(free_memory(device))} is free now; "
        f"{_advice(plan, others)}."
    )


def check_memory(
    needed: int, device: torch.device, plan: Plan | None, others: Callable[[], Sequence[Plan]] = tuple
) -> None:
    """Refuses what would not fit. On the CPU alone: there no operation fails for want of memory, but the system ends
    the whole process. Accelerators fail by themselves, and are not asked.

    Args:
        needed: bytes that the work takes at the least.
        device, plan, others: as in `explained`.

    Raises:
        MemoryShortageError: they are not there.
    """
    if device.type != "cpu" or needed < _SMALL:
        return
    room = room_for_work()
    if room is None or needed <= room:
        return
    raise MemoryShortageError(
        f"memory would run out on {device}: a step of this takes {size_text(needed)} at the least, and "
        f"{size_text(room)} is free; {_advice(plan, others)}."
    )


def _advice(plan: Plan | None, others: Callable[[], Sequence[Plan]]) -> str:
    """What would fit: the best way that takes less than the one that was chosen."""
    smaller = "ask for smaller pictures or fewer at once"
    fitting = None
    if plan is not None:
        taken = plan.peak_device or plan.peak_host
        fitting = next(
            (p for p in thought_of(others) if p.fits and (p.peak_device or p.peak_host) < 0.95 * taken), None
        )
    if fitting is None:
        return f"{smaller}, or load it in fewer bits or with layers elsewhere (`bagel info --plan` shows what fits)"
    return f"{smaller}, or load it with {fitting.advice()}"


def _needed(text: str) -> int | None:
    """Bytes that PyTorch says it tried to allocate."""
    match = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMG]iB)", text, re.IGNORECASE)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])

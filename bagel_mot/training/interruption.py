"""Ending a run from outside, by SIGINT (Ctrl-C) or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first signal into an answer to "was I interrupted?", so that what is at hand ends and is saved.

    A second signal raises KeyboardInterrupt at once, wherever the program is. Outside the main thread, where Python
    hears no signals, the answer stays False.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for number, old in before.items():
            # None: installed by something other than Python, which cannot put it back
            signal.signal(number, signal.SIG_DFL if old is None else old)

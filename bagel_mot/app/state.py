"""What belongs to one browser tab: its runs, last seeds and conversations. Freed when the tab closes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from bagel_mot.app.conversation import Chats
from bagel_mot.app.messages import Messages
from bagel_mot.app.run import Run
from bagel_mot.model.cache import Chunk

_MOST_DESKS = 1000


class Desk:
    """Of one browser tab.

    Attributes:
        seeds: the last one of each part of the page.
        chats: its conversations.
        messages: how they are shown.
    """

    def __init__(self) -> None:
        self.seeds: dict[str, int] = {}
        self.chats = Chats()
        self.messages = Messages()
        self._runs: dict[str, Run] = {}

    @contextmanager
    def running(self, part: str, count: int = 1) -> Iterator[Run]:
        """A run of one part of the page, which `stop` ends."""
        run = Run(count)
        self._runs[part] = run
        try:
            yield run
        finally:
            if self._runs.get(part) is run:
                del self._runs[part]

    def busy(self, part: str) -> bool:
        """Whether a run of this part is at work."""
        return part in self._runs

    def stop(self, part: str) -> None:
        """Ends what this part of the page has set to work, if anything."""
        if part in self._runs:
            self._runs[part].stop()

    def close(self) -> None:
        """Ends everything, and lets go of the conversations."""
        for run in list(self._runs.values()):
            run.stop()
        self.chats = Chats()


class Desks:
    """Those of all tabs that are open. Safe to use from several threads."""

    def __init__(self) -> None:
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> Desk:
        """The desk of the tab that a request comes from. Of too many, the one unused for longest is closed."""
        key = request.session_hash
        if key is None:
            return Desk()
        with self._lock:
            desk = self._desks.setdefault(key, Desk())
            self._desks.move_to_end(key)
            oldest = self._desks.popitem(last=False)[1] if len(self._desks) > _MOST_DESKS else None
        if oldest is not None:
            oldest.close()
        return desk

    def close(self, request: gr.Request) -> None:
        """The tab is gone."""
        with self._lock:
            desk = self._desks.pop(request.session_hash or "", None)
        if desk is not None:
            desk.close()

    @property
    def tokens(self) -> int:
        """Of cache, for which all conversations hold memory."""
        with self._lock:
            chunks: set[Chunk] = set().union(*(desk.chats.chunks for desk in self._desks.values()))
        return sum(chunk.capacity for chunk in chunks)

    def __len__(self) -> int:
        return len(self._desks)

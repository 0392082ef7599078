"""The state of one browser tab: what it generates now, its last seeds and its conversations. Freed when it closes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import gradio as gr

from bagel_mot.app.chats import MAX_CONVERSATIONS, TabChat
from bagel_mot.app.generation import Generation
from bagel_mot.errors import PromptError
from bagel_mot.inference.history import Turn
from bagel_mot.model.cache import Chunk

_MAX_TABS = 1000


class TabState:
    """The state of one browser tab.

    Attributes:
        chat: the conversation that is shown.
        chats: all conversations of the tab.
        seeds: the last seed of each part of the page.
        files: the file that shows the image of a turn.
    """

    def __init__(self) -> None:
        self.seeds: dict[str, int] = {}
        self.files: WeakKeyDictionary[Turn, str] = WeakKeyDictionary()
        self._generations: dict[str, Generation] = {}
        self.chat = TabChat(1)
        self.chats = [self.chat]
        self._count = 1

    # --------------------------------------------------------------------------------------------------- conversations

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that the conversations keep."""
        return set().union(*(chat.chunks for chat in list(self.chats)))

    def take_back(self, chats: list[TabChat], number: int) -> None:
        """Takes up the conversations of an earlier visit, in place of none."""
        if chats and not any(chat.sessions for chat in self.chats):
            self.chats, self.chat = chats, chats[-1]
            self._count = max(chat.number for chat in chats)
            self.show_chat(number)

    def begin_chat(self) -> None:
        """Makes a new conversation the current one; while that is still empty, it is the new one."""
        if self.chat.sessions:
            self._add(TabChat(self._count + 1))

    def branch_chat(self) -> None:
        """Makes a branch of the current conversation the current one; nothing is computed or copied.

        Raises:
            PromptError: it is empty.
        """
        if not self.chat.sessions:
            raise PromptError("there is nothing to branch off from: the conversation is empty.")
        self._add(TabChat(self._count + 1, self.chat.number, list(self.chat.sessions)))

    def _add(self, chat: TabChat) -> None:
        if len(self.chats) >= MAX_CONVERSATIONS:
            raise PromptError(f"there are {MAX_CONVERSATIONS} conversations, as many as one page may have: close one.")
        self._count += 1
        self.chats.append(chat)
        self.chat = chat

    def show_chat(self, number: int) -> None:
        """Makes a conversation the current one; one that is gone changes nothing."""
        self.chat = next((chat for chat in self.chats if chat.number == number), self.chat)

    def close_chat(self) -> None:
        """Drops the current conversation; the one before it is shown, or a new one."""
        place = self.chats.index(self.chat)
        self.chats.remove(self.chat)
        if not self.chats:
            self._add(TabChat(self._count + 1))
        self.chat = self.chats[max(place - 1, 0)]

    # ----------------------------------------------------------------------------------------------------- generations

    @contextmanager
    def generating(self, part: str, count: int = 1) -> Iterator[Generation]:
        """A generation of one part of the page, which `stop` ends."""
        generation = Generation(count)
        self._generations[part] = generation
        try:
            yield generation
        finally:
            if self._generations.get(part) is generation:
                del self._generations[part]

    def busy(self, part: str) -> bool:
        """Whether this part of the page is generating."""
        return part in self._generations

    def stop(self, part: str) -> None:
        """Ends what this part of the page is generating, if anything."""
        generation = self._generations.get(part)  # read once: another thread may end it meanwhile
        if generation is not None:
            generation.stop()

    def close(self) -> None:
        """Ends everything, and drops the conversations."""
        for generation in list(self._generations.values()):
            generation.stop()
        self.chat = TabChat(1)
        self.chats = [self.chat]


class TabStates:
    """The states of all open tabs. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tabs: OrderedDict[str, TabState] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> TabState:
        """The state of the tab that a request comes from. Of too many, the one unused for longest is closed."""
        key = request.session_hash
        if key is None:
            return TabState()
        with self._lock:
            tab = self._tabs.setdefault(key, TabState())
            self._tabs.move_to_end(key)
            oldest = self._tabs.popitem(last=False)[1] if len(self._tabs) > _MAX_TABS else None
        if oldest is not None:
            oldest.close()
        return tab

    def close(self, request: gr.Request) -> None:
        """Closes the state of a tab that is gone."""
        with self._lock:
            tab = self._tabs.pop(request.session_hash or "", None)
        if tab is not None:
            tab.close()

    @property
    def tokens(self) -> int:
        """Cache tokens for which all conversations hold memory."""
        with self._lock:
            chunks: set[Chunk] = set().union(*(tab.chunks for tab in self._tabs.values()))
        return sum(chunk.capacity for chunk in chunks)

    def __len__(self) -> int:
        return len(self._tabs)

"""Beginnings that requests have in common: a system prompt, the same image, the whole prompt. Read once, then shared.

Sharing copies nothing: a request that begins alike goes on from a fork of the same cache. There are three ways to it:

- while one request **reads** a beginning, others that begin alike wait for it instead of reading it, too. If it fails
  or is cancelled, the next one reads;
- what a request has read is there for others as long as that request is **at work**;
- with a budget, beginnings are **kept** for requests to come: up to the last image or system prompt, since the texts
  after that are seldom alike, and short.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from bagel_mot.inference.history import History
from bagel_mot.inference.request import IMAGES, Keys
from bagel_mot.model.cache import Context


class PrefixCache:
    """The beginnings that requests have read.

    Attributes:
        max_tokens: tokens of cache that are kept for requests to come, at most. The least recently used beginning is
            forgotten first.
        hits: requests that found some of their beginning here.
        misses: requests that did not, and could have.
    """

    def __init__(self, max_tokens: int = 0) -> None:
        self.max_tokens = max_tokens
        self.hits = self.misses = 0
        self._kept: OrderedDict[Keys, History] = OrderedDict()
        self._at_work: WeakValueDictionary[Keys, History] = WeakValueDictionary()
        # Contexts without images, by the ids of their segments, which they keep alive.
        self.contexts: WeakValueDictionary[Keys, Context] = WeakValueDictionary()
        self.under_way: set[Keys] = set()  # beginnings, and contexts without images, that are being read

    @property
    def tokens(self) -> int:
        """The tokens of cache that are kept; those that two kept histories share count twice."""
        return sum(history.context.length for history in self._kept.values())

    def resize(self, max_tokens: int) -> None:
        """Sets a new budget of tokens, and forgets what is beyond it."""
        self.max_tokens = max_tokens
        self._forget()

    def clear(self) -> None:
        """Forgets all beginnings, such as after weights were changed. No request is at work then."""
        self._kept.clear()
        self._at_work.clear()
        self.contexts.clear()

    def pending(self, keys: Keys) -> Keys | None:
        """The read under way that has most in common with `keys`; None if waiting for it would gain nothing."""
        known = max((_common(own, keys) for own in (*self._kept, *self._at_work)), default=0)
        best = max(self.under_way, key=lambda own: _common(own, keys), default=())
        return best if _common(best, keys) > known else None

    def find(self, keys: Keys) -> History | None:
        """A copy of the longest history here that `keys` begin with; None without one."""
        known = {**self._kept, **dict(self._at_work.items())}
        best = max(known, key=lambda own: _common(own, keys), default=())
        shared = _common(best, keys)
        if not shared:
            self.misses += worth_keeping(keys) > 0
            return None
        self.hits += 1
        if best in self._kept:
            self._kept.move_to_end(best)
        return known[best].copy(shared)

    def lend(self, keys: Keys, history: History) -> History:
        """Shares what a request has read. Requests that have read the same hold one history between them.

        Returns: the history that is shared, for as long as the request holds it.
        """
        return self._at_work.setdefault(keys, history)

    def keep(self, keys: Keys, history: History) -> None:
        """Keeps what has been read so far for requests to come, unless it alone is beyond the budget."""
        if history.context.length > self.max_tokens:
            return
        # A history that the new one begins with is part of it.
        for known in [known for known in self._kept if known == keys[: len(known)]]:
            del self._kept[known]
        self._kept[keys] = history.copy()
        self._forget()

    @contextmanager
    def reading(self, keys: Keys) -> Iterator[None]:
        """Notes a read under way, which ends when this is left, however that happens."""
        self.under_way.add(keys)
        try:
            yield
        finally:
            self.under_way.discard(keys)

    def _forget(self) -> None:
        while self.tokens > self.max_tokens:
            self._kept.popitem(last=False)


def worth_keeping(keys: Keys) -> int:
    """The number of first inputs that are worth keeping: up to the last image or system prompt."""
    marks = [i for i, key in enumerate(keys) if key[0] in (*IMAGES, "system")]
    return marks[-1] + 1 if marks else 0


def _common(known: Keys, keys: Keys) -> int:
    """The number of first inputs that are alike, as far as going on from them is worth it: a whole prompt, or up to an
    image or system prompt. A few words alone are read faster than they are waited for.
    """
    count = next((i for i, (a, b) in enumerate(zip(known, keys, strict=False)) if a != b), min(len(known), len(keys)))
    return count if count == len(keys) else worth_keeping(keys[:count])

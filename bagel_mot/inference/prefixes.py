"""Beginnings that requests have in common: a system prompt, the same image. Read once, then shared.

What is kept of a request is what it read up to and with its last image or system prompt; the texts after that are
seldom alike, and short. Sharing copies nothing: a request that begins alike goes on from a fork of the same cache.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from bagel_mot.inference.history import IMAGES, History

if TYPE_CHECKING:
    from bagel_mot.inference.requests import Item

Keys = tuple[Any, ...]


class PrefixCache:
    """Histories by what stands in them, the least recently used forgotten first.

    Attributes:
        max_tokens: most tokens of cache that it holds in all.
        hits, misses: requests that found something of their beginning here, and those that could have.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.hits = self.misses = 0
        self._kept: OrderedDict[Keys, History] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Tokens of cache held; what two histories share counts twice."""
        return sum(history.context.length for history in self._kept.values())

    def find(self, keys: Keys) -> History | None:
        """A copy of the longest history here that `keys` begin with, or None."""
        best, shared = None, 0
        for known in self._kept:
            count = _shared(known, keys)
            if count > shared:
                best, shared = known, count
        if best is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(best)
        return self._kept[best].copy(shared)

    def keep(self, keys: Keys, history: History) -> None:
        """Keeps what has been read so far, unless it alone is too much."""
        if history.context.length > self.max_tokens:
            return
        # What it begins with is part of it.
        for known in [known for known in self._kept if _shared(known, keys) == len(known)]:
            del self._kept[known]
        self._kept[keys] = history.copy()
        while self.tokens > self.max_tokens:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()


def shareable(items: Sequence[Item]) -> int:
    """How many of the first `items` are worth keeping: up to the last image or system prompt."""
    marks = [i for i, (kind, _) in enumerate(items) if kind in (*IMAGES, "system")]
    return marks[-1] + 1 if marks else 0


def keys_of(items: Sequence[Item], *, latents: bool) -> Keys:
    """What tells items apart: kind, and text or pixels; and whether images stand as VAE images, too."""
    return tuple((kind, _fingerprint(content, latents)) for kind, content in items)


def _fingerprint(content: str | Image.Image, latents: bool) -> Any:
    if isinstance(content, str):
        return content
    return content.size, content.mode, hashlib.sha256(content.tobytes()).digest(), latents


def _shared(known: Keys, keys: Keys) -> int:
    count = 0
    for a, b in zip(known, keys, strict=False):
        if a != b:
            break
        count += 1
    return count

"""A model that keeps what each item of `bagel eval mini` asks of it, as a hash, and draws and says nothing."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

from PIL import Image

from bagel_mot.images import ImageTransform
from bagel_mot.inference.result import Result

BLANK = Image.new("RGB", (64, 64))


class Asked:
    """Takes the place of a `Bagel`.

    Attributes:
        hashes: a hash of each request, in order: its kind, texts, images, seed where it draws, and settings.
    """

    def __init__(self) -> None:
        self.defaults = SimpleNamespace(of=lambda task: {"size": (64, 64)}, vit_transform=ImageTransform(980, 224, 14))
        self.hashes: list[str] = []

    def _keep(self, kind: str, texts: list[str], images: list[Image.Image], seed: int | None, settings: Any) -> None:
        pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        request = json.dumps([kind, texts, pixels, seed, settings], sort_keys=True)
        self.hashes.append(hashlib.sha256(request.encode()).hexdigest()[:12])

    def generate(self, prompts: list[str], *, seed: list[int], return_result: bool = False, **settings: Any) -> Any:
        for prompt, one in zip(prompts, seed, strict=True):
            self._keep("generate", [prompt], [], one, settings)
        return [Result(BLANK) if return_result else BLANK for _ in prompts]

    def edit(
        self, images: list[Any], prompts: list[str], *, seed: list[int], return_result: bool = False, **settings: Any
    ) -> Any:
        for given, prompt, one in zip(images, prompts, seed, strict=True):
            self._keep("edit", [prompt], given if isinstance(given, list) else [given], one, settings)
        return [Result(BLANK) if return_result else BLANK for _ in prompts]

    def ask(
        self, images: list[Any], prompts: list[str], *, seed: Any = None, return_result: bool = False, **settings: Any
    ) -> Any:
        settings.setdefault("think", False)
        for given, prompt in zip(images, prompts, strict=True):
            self._keep("ask", [prompt], given if isinstance(given, list) else [given], None, settings)
        return [Result(text="") if return_result else "" for _ in prompts]

    def session(self, think: bool = False) -> Any:
        assert not think
        parts: list[Any] = []
        return SimpleNamespace(add=parts.append, parts=parts, turns=0)

    def draw_together(self, sessions: list[Any], *, seed: list[int], **settings: Any) -> list[Image.Image]:
        """The next images of some sessions; a request is kept when its chain has ended."""
        for session, one in zip(sessions, seed, strict=True):
            session.turns += 1
            if session.turns == 3:
                image, *texts = session.parts
                self._keep("chain", texts, [image], one, settings)
        return [BLANK for _ in sessions]

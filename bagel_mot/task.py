"""The kinds of requests."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """The kind of request, whose default settings apply to it."""

    GENERATE = "generate"  # an image from texts
    EDIT = "edit"  # an image from images and texts
    ASK = "ask"  # a text from texts and images

    @property
    def draws(self) -> bool:
        """Whether the result is an image; images among the inputs then enter as VAE image and as ViT image."""
        return self is not Task.ASK

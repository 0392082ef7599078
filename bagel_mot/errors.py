"""Errors a user can cause: one type per kind of bad input, all of them `BagelError`.

Each message is one sentence that says what was wrong, the value found, and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BagelError(ValueError):
    """Base of every error that BAGEL raises for bad input; catch this one to catch them all."""


class ImageError(BagelError):
    """An image cannot be used: unreadable, truncated, of an unknown format, empty, or with too many pixels."""


class PromptError(BagelError):
    """A prompt or question cannot be used: empty, of the wrong type, or without the image it needs."""


class SizeError(BagelError):
    """A width, height or tensor shape does not fit: no multiple of the stride, or beyond the position table."""


class SettingError(BagelError):
    """A setting is unknown, of the wrong type, or out of its range; also an inconsistent model configuration."""


class ContextLengthError(BagelError):
    """A context (prompt, images and what is to be generated) is longer than the model allows."""


class CheckpointError(BagelError):
    """A checkpoint folder lacks a file, or a tensor in it is missing, superfluous, misshapen or damaged."""


class TokenizerError(CheckpointError):
    """The tokenizer files of a checkpoint are missing, unreadable, or lack a token that the model needs."""


class RecipeError(BagelError):
    """A training recipe cannot be read, has an unknown key, or asks for something impossible."""


class TrainingError(BagelError):
    """A run cannot go on: its gradients are not finite, its folder or a checkpoint cannot be written, or its folder is
    in use by another process.
    """


class DataError(BagelError):
    """Training or evaluation data is missing, unreadable, or not in the documented on-disk format."""


class EvaluationError(BagelError):
    """An evaluation cannot go on: a judge or a server refuses for good, or the run's folder holds another run."""


class NotFiniteError(BagelError):
    """Numbers became infinite or NaN at work: a weight is damaged, or they overflow in the precision."""


class DeviceError(BagelError):
    """A device or precision was asked for that this machine, or this build of PyTorch, does not offer."""


class MemoryShortageError(DeviceError):
    """Memory ran out while a model was loaded or at work."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one closest to it, else all of them."""
    names = list(known)
    # No known name is close to a much longer one, and comparing would take long.
    close = difflib.get_close_matches(name[:60], names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"

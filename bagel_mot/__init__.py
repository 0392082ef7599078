"""BAGEL: one model that reads and writes text and images in one sequence.

    from bagel_mot import Bagel
    bagel = Bagel.from_pretrained("mini")
    image = bagel.generate("a red car under a yellow sun", seed=0)

Everything here but the errors is imported on first use, so that `import bagel_mot` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bagel_mot.errors import (
    BagelError,
    CheckpointError,
    ContextLengthError,
    DataError,
    DeviceError,
    ImageError,
    MemoryShortageError,
    NotFiniteError,
    PromptError,
    RecipeError,
    SettingError,
    SizeError,
    TokenizerError,
    TrainingError,
)
from bagel_mot.version import __version__

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel
    from bagel_mot.inference.session import Session

_LAZY = {"Bagel": "bagel_mot.inference.api", "Session": "bagel_mot.inference.session"}

__all__ = [
    "Bagel",
    "BagelError",
    "CheckpointError",
    "ContextLengthError",
    "DataError",
    "DeviceError",
    "ImageError",
    "MemoryShortageError",
    "NotFiniteError",
    "PromptError",
    "RecipeError",
    "Session",
    "SettingError",
    "SizeError",
    "TokenizerError",
    "TrainingError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return __all__

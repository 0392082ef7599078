"""English and Chinese: components that are made with texts of both, and can be switched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import gradio as gr
import yaml

C = TypeVar("C")
Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}
_FILE = Path(__file__).with_name("page.yaml")
TEXTS: dict[str, dict[Language, str]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Spoken:
    """A property of a component in the reader's language."""

    say: Callable[[Language], Any]


def text(language: Language, key: str, **values: Any) -> str:
    """A text of the page, with its values filled in."""
    return TEXTS[key][language].format(**values)


def say(key: str, **values: Any) -> Spoken:
    """A text of the page as a property."""
    return Spoken(lambda language: text(language, key, **values))


class Labels:
    """Remembers which properties of which components are texts.

    Attributes:
        language: the language of newly made components.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self._spoken: list[tuple[Any, dict[str, Spoken]]] = []

    def make(self, kind: Callable[..., C], **properties: Any) -> C:
        """Makes a component; those of its properties that are `Spoken` follow the language."""
        spoken = {name: value for name, value in properties.items() if isinstance(value, Spoken)}
        component = kind(**{**properties, **{name: value.say(self.language) for name, value in spoken.items()}})
        self._spoken.append((component, spoken))
        return component

    @property
    def components(self) -> list[Any]:
        """All components with properties that follow the language."""
        return [component for component, spoken in self._spoken if spoken]

    def switch(self, language: Language) -> list[dict[str, Any]]:
        """Updates for `components`."""
        return [
            gr.update(**{name: value.say(language) for name, value in spoken.items()})
            for _, spoken in self._spoken
            if spoken
        ]

"""Error sentences of the library in the languages of the page: found by their pattern, with the same values in them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

from bagel_mot.app.texts.language import Language

_FILE = Path(__file__).with_name("errors.yaml")
_FIELD = re.compile(r"\{(\w+)\}")


def translate(sentence: str, language: Language) -> str | None:
    """A sentence in another language; None where there is no translation of it."""
    if language == "en":
        return sentence
    for pattern, texts in _patterns():
        if found := pattern.fullmatch(sentence):
            values = {name: translate(value, language) or value for name, value in found.groupdict().items()}
            return texts[language].format(**values)
    return None


@cache
def _patterns() -> list[tuple[re.Pattern[str], dict[str, str]]]:
    """English sentences, the fields of which are any text, and their translations."""
    entries = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [(_pattern(entry["en"]), entry) for entry in entries]


def _pattern(english: str) -> re.Pattern[str]:
    parts = _FIELD.split(english)  # texts and names of fields take turns
    found = [f"(?P<{part}>.+?)" if index % 2 else re.escape(part) for index, part in enumerate(parts)]
    return re.compile("".join(found), re.DOTALL)

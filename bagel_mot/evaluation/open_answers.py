"""Open answers as MMMU reads them: the parts of an answer that may be the result, and the numbers in them.

The rules are the benchmark's own (arXiv 2311.16502). A number is compared after rounding to two decimals; a text is
right if the true answer occurs anywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NO_RESULT = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Parsed = list[float | str]


def parse_open(answer: str) -> Parsed:
    """The numbers and texts that an answer may mean, without repetition: numbers first, then texts, sorted."""
    parts = key_parts(answer)
    numbers = [found for part in parts for pattern in _NUMBERS for found in pattern.findall(part)]
    values = {value for text in (*parts, *numbers) for value in normalise(text)}
    return [
        *sorted(value for value in values if isinstance(value, float)),
        *sorted(value for value in values if isinstance(value, str)),
    ]


def key_parts(answer: str) -> list[str]:
    """The parts behind words such as "is" or "therefore", the shortest of each line; the whole answer without any.

    In the last line what follows "=" is such a part, too.
    """
    answer = answer.strip().strip(".").lower()
    parts = []
    lines = answer.split("\n")
    for number, line in enumerate(lines, 1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        shortest = ""
        for key in keys:
            if key in line:
                part = line.split(key)[-1].strip()
                if not shortest or len(part) < len(shortest):
                    shortest = part
        if shortest and shortest not in _NO_RESULT:
            parts.append(shortest)
    return parts or [answer]


def normalise(text: str) -> Parsed:
    """A number, rounded to two decimals, or the text in small letters; a single character gets a blank before and one
    behind, so that it is found between words only.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def is_right(parsed: Parsed, truth: str | Sequence[str]) -> bool:
    """Whether one of the parsed values fits one of the true answers."""
    wanted = [value for one in ([truth] if isinstance(truth, str) else truth) for value in normalise(one)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in parsed)

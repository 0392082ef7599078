"""Questions and answers of the understanding benchmarks: the sentences and settings that they share, and the reading of
a letter in an answer.

All of them show the images first, to the ViT alone, then the prompt; the answer is the likeliest text. Source of the
sentences and numbers: the evaluation scripts of the published system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bagel_mot.errors import SettingError
from bagel_mot.evaluation.base import BenchmarkInfo, BenchmarkOptions

MIN_SIDE = 378  # pixels that the short side is enlarged to for the ViT; the published chat takes 224
THINKING = 1000  # tokens that thinking may take beside an answer's own

LETTER_SENTENCE = "Answer with the option's letter from the given choices directly."
LETTER_SENTENCE_CN = "请直接回答选项字母。"
SHORT_SENTENCE = "Answer the question using a single word or phrase."
STEP_BY_STEP = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready "
    'to answer, please use the format "Final answer: .."\n\nQuestion:\n\n'
)

_FINAL = re.compile(r"(?:final answer|answer):\s*(.*)", re.IGNORECASE)
_EMPTY_IS = "C"  # an empty answer, to the published scripts


def ask_settings(cap: int, think: bool = False) -> dict[str, Any]:
    """The settings of `Bagel.ask` for an item.

    Args:
        cap: the limit of tokens as published, which counts the start token.
        think: whether the model thinks in its own way first, which the published scripts never ask for.
    """
    settings = {"do_sample": False, "max_new_tokens": cap - 1, "vit_min_size": MIN_SIDE}
    return {**settings, "think": True, "max_new_tokens": cap - 1 + THINKING} if think else settings


def variant_of(info: BenchmarkInfo, options: BenchmarkOptions) -> str:
    """The variant that is asked for, or the first.

    Raises: SettingError for one that the benchmark lacks.
    """
    if options.variant is None:
        return info.variants[0]
    if options.variant not in info.variants:
        raise SettingError(
            f"{info.name} has no variant {options.variant!r}: there are {', '.join(info.variants) or 'none'}."
        )
    return options.variant


def option_lines(options: Mapping[str, str]) -> str:
    """The options of a question, one a line, such as `A. red`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def letter_of(answer: str, options: Mapping[str, str], *, fixed: bool) -> str | None:
    """The letter that the published scripts read in an answer.

    A single character is taken as it is, then a letter of an option at the very start, then the first option whose text
    occurs anywhere; otherwise the whole answer remains.

    Args:
        answer: the answer as the model wrote it.
        options: the texts of the options by their letters.
        fixed: whether an empty answer is None instead of C.
    """
    answer = answer.strip()
    if not answer:
        return None if fixed else _EMPTY_IS
    if len(answer) == 1:
        return answer
    if answer[0] in options:
        return answer[0]
    return next((letter for letter, text in options.items() if text in answer), answer)


def final_answer(text: str) -> str:
    """The text behind the first `Answer:` or `Final answer:`, to the end of that line; all of it without one."""
    found = _FINAL.search(text)
    return found[1] if found else text


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance of two texts: insertions, deletions and replacements of single characters."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        above, row = row, [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (one != other)))
    return row[-1]

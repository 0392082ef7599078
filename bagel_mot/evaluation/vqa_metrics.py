"""The four ways in which answers of the VQA family are compared with those of people.

Sources: VQA accuracy arXiv 1505.00468 with its evaluation's rules for texts; ANLS arXiv 1905.13648; relaxed accuracy
arXiv 2203.10244.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bagel_mot.evaluation.answers import edit_distance

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
_LONE_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
        strict=True,
    )
)
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = (
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't",
    "he'd", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'll", "let's", "ma'am", "might've", "mightn't",
    "must've", "mustn't", "needn't", "o'clock", "oughtn't", "shan't", "she's", "should've", "shouldn't",
    "somebody'd", "someone'd", "something'd", "that's", "there'd", "there're", "there's", "they'd", "they're",
    "they've", "'twas", "wasn't", "we've", "weren't", "what'll", "what're", "what's", "what've", "when's",
    "where'd", "where's", "where've", "who'd", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't",
    "would've", "wouldn't", "y'all", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
_SHORT = {word.replace("'", ""): word for word in _CONTRACTIONS}
_ENOUGH = 3  # people with the same answer, from which it counts in full
_ANLS_FROM = 0.5
_TOLERANCE = 0.05


def plain_text(text: str) -> str:
    """An answer as VQA's evaluation compares it: small letters, without punctuation and articles, numbers as digits,
    contractions with their apostrophe.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    found = text
    for mark in _PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text) is not None
        found = found.replace(mark, "" if alone else " ")
    words = (_NUMBERS.get(word, word) for word in _LONE_PERIOD.sub("", found).lower().split())
    return " ".join(_SHORT.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy, from 0 to 1: of each person's answer left out, a third for each of the others that agrees."""
    said, meant = plain_text(answer), [plain_text(truth) for truth in truths]
    shares = []
    for left_out in range(len(meant)):
        agreeing = sum(truth == said for n, truth in enumerate(meant) if n != left_out)
        shares.append(min(1.0, agreeing / _ENOUGH))
    return sum(shares) / len(shares)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity, from 0 to 1: that of the nearest answer; 0 from a distance of half the
    longer text on.
    """
    said = " ".join(answer.strip().lower().split())
    best = 0.0
    for truth in truths:
        meant = " ".join(truth.strip().lower().split())
        longest = max(len(said), len(meant))
        distance = edit_distance(said, meant) / longest if longest else 0.0
        best = max(best, 1 - distance if distance < _ANLS_FROM else 0.0)
    return best


def relaxed_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Whether an answer is right: within 5% of a true number other than 0, or the same text in small letters."""
    return float(any(_fits(answer.strip(), truth.strip()) for truth in truths))


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Whether an answer is one of the true texts, but for case, blanks around it and a final period."""

    def same(text: str) -> str:
        return text.strip().rstrip(".").strip().lower()

    return float(same(answer) in {same(truth) for truth in truths})


def _fits(said: str, meant: str) -> bool:
    first, second = _number(said), _number(meant)
    if first is not None and second is not None and second != 0:
        return abs(first - second) / abs(second) <= _TOLERANCE
    return said.lower() == meant.lower()


def _number(text: str) -> float | None:
    """The number that a text is; of a percentage a hundredth."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None

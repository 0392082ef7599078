"""Thinking and answer told apart: no tag, whole or cut, reaches anybody."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from bagel_mot import Bagel
from bagel_mot.inference.result import Result
from bagel_mot.inference.thinking import ThinkingStream, ThoughtStream, split_thinking

PART = re.compile("</?(t(h(i(n(k>?)?)?)?)?)?$|</?think>")
TEXTS = [
    "<think>one and one</think> two",
    " \n<think> \n a  b \n</think>\n\n c  d \n",
    "no tags at all ",
    "  no opening</think> answer",
    "<think>never ends ",
    "<think></think>",
    "<think>a</thi</think>b</think>c",
    "<think>a<think>b</think>c",
    "<thin",
    "<",
    "",
    "   ",
    "<think>",
    "< think>a</think>",
    "a<think>b</think>c",
    "<think>a</think>b < c <think>d</think> e",
]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>one, two</think> three", "one, two", "three"),
        ("<think> a\n</think>\nb", "a", "b"),
        ("no tags", "", "no tags"),
        ("<think>never ends", "never ends", ""),
        ("lost its start</think> b", "lost its start", "b"),
        ("<think></think>", "", ""),
        (" x < y ", "", " x < y "),
        ("<think>a</think>less is <", "a", "less is <"),
        ("<think>a<think>b</think>c</think>d", "ab", "cd"),
    ],
)
def test_split_thinking(text: str, thinking: str, answer: str) -> None:
    assert split_thinking(text) == (thinking, answer)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a</think", "a", ""),
        ("<think>a <", "a", ""),
        ("<thi", "", ""),
        ("<", "", ""),
        ("a</thin", "", "a"),
        ("<think>a</think>b </", "a", "b"),
        ("<think>a</think>b <c", "a", "b <c"),
    ],
)
def test_of_what_was_cut_no_part_of_a_tag_is_left(text: str, thinking: str, answer: str) -> None:
    assert split_thinking(text, complete=False) == (thinking, answer)


def cuts(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 6))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_what_the_whole_is_divided_into(text: str, complete: bool) -> None:
    rng = random.Random(0)
    for end in range(len(text) + 1):
        whole = text if complete else text[:end]
        thinking, answer = split_thinking(whole, complete)
        thought = f"{thinking} {answer}".strip()
        for _ in range(10):
            stream, thoughts = ThinkingStream(), ThoughtStream()
            parts = cuts(whole, rng)
            given = [stream.add(part) for part in parts]
            pieces = [*given, stream.finish(Result(thinking=thinking, text=answer))]
            assert ("".join(t for t, _ in pieces), "".join(a for _, a in pieces)) == (thinking, answer)
            told = [thoughts.add(part) for part in parts]
            assert "".join([*told, thoughts.finish(Result(thinking=thought))]) == thought


def test_thinking_is_given_as_it_comes() -> None:
    stream = ThinkingStream()
    assert [stream.add(piece) for piece in ("<think>", "one ", "two", "</think>", " three")] == [
        ("", ""),
        ("one", ""),
        (" two", ""),
        ("", ""),
        ("", "three"),
    ]


def test_no_limit_leaves_a_part_of_a_tag(bagel: Bagel, spoken: Callable[[str | list[int]], None]) -> None:
    """At every limit of tokens, in answers, in images, in edits and in what an image remembers."""
    words = "<think>one, two</think>three"
    tokens = len(bagel.tokenizer.encode(words))
    spoken(words)
    picture = bagel.generate("x", size=(32, 32), num_timesteps=2)
    few: dict[str, Any] = {"think": True, "num_timesteps": 2, "size": (32, 32), "return_result": True}
    for limit in range(1, tokens + 1):
        answer = bagel.ask(None, "What?", think=True, max_new_tokens=limit, return_result=True)
        drawn = bagel.generate("x", max_think_tokens=limit, **few)
        edited = bagel.edit(picture, "x", max_think_tokens=limit, **few)
        remembered = [one.image.info.get("thinking", "") for one in (drawn, edited)]
        for text in (answer.thinking, answer.text, drawn.thinking, edited.thinking, *remembered):
            assert not PART.search(text), (limit, text)
            assert text in "one, two three"
    assert (answer.thinking, answer.text, drawn.thinking) == ("one, two", "three", "one, two three")

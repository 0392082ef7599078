"""Thinking on the command line: shown without its tags, wherever a limit cuts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bagel_mot import Bagel
from bagel_mot.cli import app

CHECKPOINT = str(Path(__file__).parents[1] / "golden" / "checkpoint")
WORDS = "<think>one, two</think>three"


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """The tokens of the words, and the end token."""
    tokenizer = Bagel.from_pretrained(CHECKPOINT, device="cpu").tokenizer
    return [*tokenizer.encode(WORDS), tokenizer.special.eos]


@pytest.fixture(autouse=True)
def spoken(ids: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes the model say these words, whatever it reads; commands write into an empty folder."""
    monkeypatch.chdir(tmp_path)

    def choose(logits: Any, choices: Any) -> list[int]:
        return [ids[min(len(choice.tokens), len(ids) - 1)] for choice in choices]

    monkeypatch.setattr("bagel_mot.inference.engine.runner.choose_tokens", choose)


def run(*arguments: object, input: str | None = None) -> tuple[str, str]:
    result = CliRunner().invoke(app, [*map(str, arguments), "-c", CHECKPOINT], input=input)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_asking(ids: list[int]) -> None:
    for limit in (*range(1, 4), *range(len(ids) - 6, len(ids) + 1)):
        stdout, stderr = run("ask", "What?", "--think", "--max-new-tokens", limit)
        assert "<" not in stdout + stderr
        assert stdout.strip() in "three"
        assert "one, two".startswith(stderr.strip())
    assert (stdout.strip(), stderr.strip()) == ("three", "one, two")


def test_chatting() -> None:
    stdout, stderr = run("chat", "--think", input="What?\n/quit\n")
    assert "three" in stdout
    assert "one, two" in stderr
    assert "<" not in stdout + stderr


def test_drawing(ids: list[int]) -> None:
    for limit in (4, len(ids) - 4, len(ids) - 3):
        few = ("--size", "32x32", "--num-timesteps", 2, "--max-think-tokens", limit)
        stdout, stderr = run("generate", "x", "--think", *few)
        assert "<" not in stdout + stderr
        assert "one" in stderr or limit == 4

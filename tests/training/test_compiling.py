"""A machine without a compiler trains all the same, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bagel_mot.training import compiling
from bagel_mot.training.compiling import note_on_compiling


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    compiling._obstacle.cache_clear()
    yield
    compiling._obstacle.cache_clear()


def test_nothing_is_tried_where_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("it was tried"))
    assert note_on_compiling(False, torch.device("cpu")) is None


def test_a_missing_compiler_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_in_vain(*_: object, **__: object) -> object:
        raise RuntimeError("\n  No working C++ compiler found in CXX\nset TORCHDYNAMO_VERBOSE=1\n")

    monkeypatch.setattr(torch, "compile", compile_in_vain)
    note = note_on_compiling(True, torch.device("cpu"))
    assert note == (
        "compile is true, but torch.compile does not work here (No working C++ compiler found in CXX): "
        "this run goes on without it"
    )


def test_wrong_numbers_count_as_not_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: torch.exp)
    assert "its numbers are wrong" in (note_on_compiling(True, torch.device("cpu")) or "")


def test_what_works_needs_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert note_on_compiling(True, torch.device("cpu")) is None

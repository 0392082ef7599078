"""MMVP on the recorded answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
from bagel_mot.evaluation.benchmarks.mmvp import Mmvp, options_of
from tests.evaluation.benchmarks import golden

EXPECTED = golden.load("mmvp", "expected")["runs"]
ANSWERS = golden.load("mmvp", "answers")["runs"]


def test_prompts() -> None:
    golden.check_prompts(Mmvp(golden.options("mmvp")).items(), golden.load("mmvp", "prompts")["items"])


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize("run", ["main", "odd"])
def test_scores(run: str, mode: Protocol) -> None:
    scores, _, summary = golden.scored(Mmvp(golden.options("mmvp", protocol=mode)), ANSWERS[run])
    for id, wanted in EXPECTED["main"]["items"].items():
        parsed = EXPECTED[run]["fixed"].get("parsed", {}).get(id, wanted["parsed"])
        assert scores[id].detail == {"parsed": parsed, "truth": wanted["truth"]}
        assert scores[id].values["right"] == (parsed == wanted["truth"])
    golden.check_rows(summary, {name: EXPECTED[run]["fixed"][name] for name in ("pairs", "questions")})
    empty = list(EXPECTED[run]["fixed"].get("parsed", {}))
    assert summary.extra == {"empty answers, at which the published script stops": empty}


def test_either_heading_is_read(tmp_path: Path) -> None:
    shutil.copytree(golden.ROOT / "mmvp" / "data" / "MMVP", tmp_path / "MMVP")
    path = tmp_path / "MMVP" / "Questions.csv"
    path.write_text(path.read_text().replace("Index", "lndex", 1))
    again = Mmvp(BenchmarkOptions(tmp_path / "MMVP", partial=True)).items()
    first = Mmvp(golden.options("mmvp")).items()
    assert [(item.id, item.prompt) for item in again] == [(item.id, item.prompt) for item in first]
    path.write_text(path.read_text().replace("lndex", "Number", 1))
    with pytest.raises(DataError, match="lacks the column Index"):
        Mmvp(BenchmarkOptions(tmp_path / "MMVP", partial=True)).items()


def test_the_complete_set_has_300_questions() -> None:
    with pytest.raises(DataError, match="MMVP is not complete.*questions 20 of 300"):
        Mmvp(BenchmarkOptions(golden.ROOT / "mmvp" / "data")).items()


def test_options() -> None:
    assert options_of("(a) Open  (b) Closed") == {"A": "Open", "B": "Closed"}

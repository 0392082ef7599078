"""MME on the recorded answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
from bagel_mot.evaluation.benchmarks.mme import COGNITION, PERCEPTION, Mme
from tests.evaluation.benchmarks import golden

EXPECTED = golden.load("mme", "expected")["runs"]
ANSWERS = golden.load("mme", "answers")["runs"]


def test_prompts() -> None:
    golden.check_prompts(Mme(golden.options("mme")).items(), golden.load("mme", "prompts")["items"])


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize("run", ["main", "odd"])
def test_scores(run: str, mode: Protocol) -> None:
    scores, _, summary = golden.scored(Mme(golden.options("mme", protocol=mode)), ANSWERS[run])
    fixed = mode is Protocol.FIXED
    for id, wanted in EXPECTED["main"]["items"].items():
        told: dict[str, Any] = EXPECTED[run]["items"].get(id, wanted)
        label = told["label_fixed" if fixed else "label_as_published"] if "label_fixed" in told else told["label"]
        assert scores[id].detail["label"] == label, id
        if "right" in told:
            assert scores[id].values["right"] == told["right"], id
        if not fixed or "\t" not in told["cleaned"]:
            assert scores[id].detail["cleaned"] == told["cleaned"], id
    golden.check_rows(summary, EXPECTED[run]["fixed" if fixed else "as_published"])


def test_the_complete_set_has_2374_lines() -> None:
    assert sum(PERCEPTION.values()) + sum(COGNITION.values()) == Mme.info.items == 2374
    with pytest.raises(DataError, match="MME is not complete.*existence 6 of 60, count 6 of 60"):
        Mme(BenchmarkOptions(golden.ROOT / "mme" / "data")).items()


def test_a_missing_image_or_task_is_refused(tmp_path: Path) -> None:
    shutil.copytree(golden.ROOT / "mme" / "data", tmp_path / "data")
    gone = tmp_path / "data" / "MME_Benchmark_release_version" / "existence" / "0001.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=r"MME lacks 1 image: .*existence/0001\.jpg"):
        Mme(BenchmarkOptions(tmp_path / "data", partial=True)).items()
    (tmp_path / "data" / "questions" / "OCR.txt").write_text("0001.jpg\tIs it?\tMaybe\n")
    with pytest.raises(DataError, match=r"OCR\.txt, line 1: .* is not an image, a question, and Yes or No"):
        Mme(BenchmarkOptions(tmp_path / "data", partial=True)).items()
    with pytest.raises(DataError, match="lacks questions"):
        Mme(BenchmarkOptions(tmp_path / "data" / "MME_Benchmark_release_version" / "OCR")).items()


def test_a_part_of_the_items_has_a_summary() -> None:
    mme = Mme(golden.options("mme"))
    answers = {item.id: "Yes" for item in mme.items()}
    scores, _, _ = golden.scored(mme, answers)
    some = {id: score for id, score in scores.items() if id.startswith("count/")}
    summary = mme.aggregate(some)
    assert summary.rows["count"].value == 50.0
    assert summary.rows["perception"].count == 6
    assert "OCR" in summary.extra["tasks without items"]

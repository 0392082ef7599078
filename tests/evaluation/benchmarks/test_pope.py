"""POPE on the recorded answers, plain and step by step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import final_answer
from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
from bagel_mot.evaluation.benchmarks.pope import Pope, label_of
from tests.evaluation.benchmarks import golden

EXPECTED = golden.load("pope", "expected")["runs"]
ANSWERS = golden.load("pope", "answers")["runs"]


@pytest.mark.parametrize(("think", "name"), [(False, "plain"), (True, "cot")])
def test_prompts(think: bool, name: str) -> None:
    items = Pope(golden.options("pope", think=think)).items()
    golden.check_prompts(items, golden.load("pope", "prompts")[name]["items"])


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize("run", ["main", "cot"])
def test_scores(run: str, mode: Protocol) -> None:
    pope = Pope(golden.options("pope", protocol=mode, think=run == "cot"))
    scores, _, summary = golden.scored(pope, ANSWERS[run])
    for id, wanted in EXPECTED[run]["items"].items():
        assert scores[id].detail == {"extracted": wanted["extracted"], "label": wanted["label"]}, id
        assert scores[id].values["right"] == wanted["right"], id
    published = EXPECTED[run]["as_published"]
    golden.check_rows(summary, {"mean_f1": published["mean_f1"]})
    for category in ("adversarial", "popular", "random"):
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        golden.check_rows(summary, {f"{category}/{name}": published[category][name] for name in names})


def test_the_complete_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="POPE is not complete.*adversarial 8 of 3000"):
        Pope(BenchmarkOptions(golden.ROOT / "pope" / "data")).items()
    shutil.copytree(golden.ROOT / "pope" / "data" / "pope", tmp_path / "pope")
    labels = tmp_path / "pope" / "coco" / "coco_pope_random.json"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="holds 7 labels for 8 questions"):
        Pope(BenchmarkOptions(tmp_path, partial=True)).items()
    labels.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(DataError, match="its label in coco_pope_random.json is another question's"):
        Pope(BenchmarkOptions(tmp_path, partial=True)).items()


def test_what_counts_as_no() -> None:
    said = ["No", "No, it is", "It is not", "no. Yes", "", "NO", "Not", "I think. no"]
    assert [label_of(text) for text in said] == ["no", "no", "no", "no", "yes", "yes", "yes", "yes"]
    assert final_answer("so: final ANSWER:  no\nmore") == "no"

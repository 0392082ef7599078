"""The judges of a run, from what the benchmark needs and the command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.benchmarks.mathvista import MathVista
from bagel_mot.evaluation.benchmarks.mme import Mme
from bagel_mot.evaluation.benchmarks.mmvet import MMVet
from bagel_mot.evaluation.judging import open_judges
from bagel_mot.evaluation.runner import scores_name

pytest.importorskip("httpx2")
URL = "http://127.0.0.1:9/v1"


def test_a_judge_without_a_name_has_the_one_that_the_benchmark_names(tmp_path: Path) -> None:
    judges, facts = open_judges(MathVista.info, URL, None, tmp_path)
    assert judges.chat is not None
    assert (facts["model"], facts["address"]) == ("as the benchmark names it", URL)
    assert scores_name(facts) == "scores@as-the-benchmark-names-it"
    _, facts = open_judges(MathVista.info, URL, "owner/a judge", tmp_path)
    assert facts["model"] == "owner/a judge"
    assert not {"calls", "cached", "failed"} & facts.keys()  # of the head of scores, which stays the same


def test_a_judge_is_opened_where_one_is_needed_alone(tmp_path: Path) -> None:
    assert open_judges(Mme.info, URL, "judge", tmp_path)[0].chat is None
    assert MathVista.info.needs != "a judge"  # the quick variants need none
    assert open_judges(MathVista.info, None, None, tmp_path)[1] == {}
    with pytest.raises(EvaluationError, match="mmvet needs a judge: give --judge URL and --judge-model NAME"):
        open_judges(MMVet.info, None, None, tmp_path)

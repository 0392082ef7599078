"""MathVista on the recorded answers and replies of the judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol
from bagel_mot.evaluation.benchmarks.mathvista import MathVista
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.judges.texts import sha256_of
from tests.evaluation.benchmarks import golden

pytest.importorskip("pyarrow")

EXPECTED = golden.load("mathvista", "expected")["runs"]
ANSWERS = golden.load("mathvista", "answers")
REQUESTS = golden.load("mathvista", "requests")


@pytest.mark.parametrize(("think", "name"), [(False, "plain"), (True, "cot")])
def test_prompts(think: bool, name: str) -> None:
    items = MathVista(golden.options("mathvista", think=think)).items()
    golden.check_prompts(items, golden.load("mathvista", "prompts")[name]["items"])


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize("run", ["main", "quick"])
def test_scores(run: str, mode: Protocol) -> None:
    quick, fixed = run == "quick", mode is Protocol.FIXED
    variant = "testmini-quick" if quick else "testmini"
    bench = MathVista(golden.options("mathvista", protocol=mode, variant=variant))
    scores, asked, summary = golden.scored(bench, ANSWERS["runs"][run], {} if quick else ANSWERS["judge"]["main"])
    for id, wanted in EXPECTED[run]["items"].items():
        detail = scores[id].detail
        assert detail["extraction"] == wanted["extraction"], id
        assert scores[id].values["right"] == wanted["right_fixed" if fixed and not quick else "right"], id
        if not fixed or wanted["extraction"]:
            assert detail["prediction"] == wanted["prediction"], id
        assert detail["judge_calls"] == len(asked[id]) == wanted.get("judge_calls", 0), id
    rows = EXPECTED[run].get("fixed" if fixed else "as_published", EXPECTED[run]["as_published"])
    for group, table in rows.items():
        for name, triple in ({"": table} if group == "average" else table).items():
            row = summary.rows[f"{group}/{name}" if name else group]
            assert row.value is not None
            assert (round(row.value, 2), row.count) == (triple[0], triple[2]), (group, name)


def test_requests() -> None:
    bench = MathVista(golden.options("mathvista"))
    _, asked, _ = golden.scored(bench, ANSWERS["runs"]["main"], ANSWERS["judge"]["main"])
    assert {id for id, requests in asked.items() if requests} == set(REQUESTS["items"])
    for id, wanted in REQUESTS["items"].items():
        assert len(asked[id]) == wanted["calls"]
        for request in asked[id]:
            (message,) = request.messages
            (text,) = message.content
            assert isinstance(text, str)
            assert sha256_of(text) == wanted["text_sha256"], id
            assert (request.model, request.temperature, request.max_tokens, request.n, message.role) == tuple(
                REQUESTS["settings"][name] for name in ("model", "temperature", "max_tokens", "n", "role")
            )


def test_no_judge_and_an_incomplete_set(tmp_path: Path) -> None:
    bench = MathVista(golden.options("mathvista"))
    with pytest.raises(EvaluationError, match="MathVista needs a judge"):
        bench.score(bench.items()[1], ItemResult(("it is (B)",)), Judges())
    with pytest.raises(DataError, match=r"MathVista \(testmini\) is not complete.*questions 21 of 1000"):
        MathVista(BenchmarkOptions(golden.ROOT / "mathvista" / "data")).items()
    results = {id: ItemResult((answer,)) for id, answer in ANSWERS["runs"]["main"].items()}
    scores, _, _ = golden.scored(bench, ANSWERS["runs"]["main"], ANSWERS["judge"]["main"])
    (path,) = bench.write_submission(tmp_path, results, scores)
    assert json.loads(path.read_text())["2"] == {
        "response": "The correct answer is (B) green.",
        "extraction": "B",
        "prediction": "green",
    }

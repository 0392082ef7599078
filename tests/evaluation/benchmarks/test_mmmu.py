"""MMMU on the recorded answers, plain and thinking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol
from bagel_mot.evaluation.benchmarks.mmmu import DOMAINS, Mmmu, after_thought, last_letter
from tests.evaluation.benchmarks import golden

pytest.importorskip("pyarrow")

EXPECTED = golden.load("mmmu", "expected")["runs"]
ANSWERS = golden.load("mmmu", "answers")["runs"]


@pytest.mark.parametrize(("think", "name"), [(False, "plain"), (True, "cot")])
def test_prompts(think: bool, name: str) -> None:
    items = Mmmu(golden.options("mmmu", think=think)).items()
    golden.check_prompts(items, golden.load("mmmu", "prompts")[name]["items"])


@pytest.mark.parametrize("mode", golden.MODES)
def test_scores(mode: Protocol) -> None:
    scores, _, summary = golden.scored(Mmmu(golden.options("mmmu", protocol=mode)), ANSWERS["main"])
    fixed = mode is Protocol.FIXED
    for id, wanted in EXPECTED["main"]["items"].items():
        parsed = wanted["parsed_fixed"] if fixed and "parsed_fixed" in wanted else wanted["parsed"]
        assert scores[id].detail["parsed"] == parsed, id
        assert scores[id].values["right"] == wanted["right_fixed" if fixed else "right"], id
    for name, wanted in EXPECTED["main"]["fixed" if fixed else "as_published"].items():
        row = summary.rows[name]
        assert row.value is not None
        assert (row.count, round(row.value, 3)) == (wanted["n"], wanted["accuracy"]), name


@pytest.mark.parametrize("mode", golden.MODES)
def test_scores_of_thinking(mode: Protocol) -> None:
    scores, _, summary = golden.scored(Mmmu(golden.options("mmmu", protocol=mode, think=True)), ANSWERS["cot"])
    for id, wanted in EXPECTED["cot"]["items"].items():
        assert scores[id].detail == {"answer_part": wanted["answer_part"], "parsed": wanted["parsed"]}, id
        assert scores[id].values["right"] == wanted["right"], id
    for name, wanted in EXPECTED["cot"]["fixed"].items():
        row = summary.rows[name]
        assert row.value is not None
        assert (row.count, round(row.value, 3)) == (wanted["n"], wanted["accuracy"]), name


def test_the_complete_set() -> None:
    assert sum(map(len, DOMAINS.values())) == 30
    with pytest.raises(DataError, match=r"MMMU \(validation\) is not complete.*Accounting 2 of 30"):
        Mmmu(BenchmarkOptions(golden.ROOT / "mmmu" / "data")).items()
    with pytest.raises(DataError, match=r"lacks dev-\*\.parquet"):
        Mmmu(golden.options("mmmu", variant="dev")).items()


def test_a_subject_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree(golden.ROOT / "mmmu" / "data" / "MMMU", tmp_path / "MMMU")
    shutil.rmtree(tmp_path / "MMMU" / "Music")
    with pytest.raises(DataError, match=r"lacks MMMU/Music \(nor Music\)"):
        Mmmu(BenchmarkOptions(tmp_path, partial=True)).items()


def test_secret_answers_are_written_for_the_server(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(golden.ROOT / "mmmu" / "data" / "MMMU", tmp_path / "MMMU")
    for path in sorted((tmp_path / "MMMU").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.schema.get_field_index("answer")
        secret = table.set_column(at, "answer", [["?"] * table.num_rows])
        pq.write_table(secret, path.with_name(path.name.replace("validation", "test")))
    bench = Mmmu(BenchmarkOptions(tmp_path, partial=True, variant="test"))
    scores, _, summary = golden.scored(bench, ANSWERS["main"])
    assert summary.rows["Overall"].value is None
    assert summary.extra == {"scored by": "the server of MMMU alone"}
    results = {id: ItemResult((answer,)) for id, answer in ANSWERS["main"].items()}
    (path,) = bench.write_submission(tmp_path, results, scores)
    answers = json.loads(path.read_text())
    assert answers["validation_Agriculture_1"] == "A"
    assert answers["validation_Accounting_2"] == "The total is 4250."


def test_letters_and_thoughts() -> None:
    options = {"A": "red", "B": "blue"}
    assert last_letter("(B) or rather (A).", options) == "A"
    assert last_letter("it must be said that it is Blue", options) == "B"
    assert last_letter("it is blue", options) is None
    assert last_letter("", options) is None
    assert after_thought("<think>a</think> b </think> c ") == "c"
    assert after_thought("<think>a") == ""
    assert after_thought("c") == "c"

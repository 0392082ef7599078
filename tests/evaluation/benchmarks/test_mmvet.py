"""MM-Vet on the recorded answers and replies of the judge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol
from bagel_mot.evaluation.benchmarks import mmvet
from bagel_mot.evaluation.benchmarks.mmvet import ABILITIES, HEAD_SHA256, MMVet, rating
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.judges.texts import sha256_of
from tests.evaluation.benchmarks import golden

EXPECTED = golden.load("mmvet", "expected")["runs"]["main"]
ANSWERS = golden.load("mmvet", "answers")
REQUESTS = golden.load("mmvet", "requests")


def test_prompts() -> None:
    golden.check_prompts(MMVet(golden.options("mmvet")).items(), golden.load("mmvet", "prompts")["items"])


@pytest.mark.parametrize("mode", golden.MODES)
def test_scores_and_requests(mode: Protocol) -> None:
    bench = MMVet(golden.options("mmvet", protocol=mode), head="HEAD\n")
    scores, asked, summary = golden.scored(bench, ANSWERS["runs"]["main"], ANSWERS["judge"]["main"])
    for id, wanted in EXPECTED["items"].items():
        assert scores[id].values["score"] == wanted["score"], id
        assert [request.temperature for request in asked[id]] == wanted["temperatures"], id
        assert [request.attempt for request in asked[id]] == list(range(wanted["calls"])), id
        for request in asked[id]:
            (message,) = request.messages
            assert (message.role, request.max_tokens) == ("user", None)
            assert message.content == (f"HEAD\n{REQUESTS['items'][id][0]['last_row']}",)
    published = EXPECTED["fixed" if mode is Protocol.FIXED else "as_published"]
    for prefix, table in (("", published["by_ability"]), ("combination/", published["by_combination"])):
        for name, wanted in table.items():
            row = summary.rows[name if name in ("Overall", *ABILITIES) else prefix + name]
            assert (row.count, row.value) == (wanted["n"], pytest.approx(wanted["score"], rel=1e-6)), name


def test_the_word_nan_is_taken_as_published_alone() -> None:
    assert math.isnan(rating("nan", fixed=False) or 0)
    assert rating("nan", fixed=True) is None
    assert [rating(reply, fixed=True) for reply in ("1", " .5\n", "1.1", "x", None)] == [1, 0.5, None, None, None]
    answers, replies = ANSWERS["runs"]["main"], {id: ["nan"] for id in ANSWERS["runs"]["main"]}
    scores, _, summary = golden.scored(MMVet(golden.options("mmvet"), head="HEAD\n"), answers, replies)
    assert scores["0"].values["score"] is None
    assert math.isnan(summary.rows["Overall"].value or 0)


def test_what_the_judge_needs(tmp_path: Path) -> None:
    assert REQUESTS["head_sha256"] == HEAD_SHA256
    item = MMVet(golden.options("mmvet")).items()[0]
    with pytest.raises(EvaluationError, match="MM-Vet needs a judge"):
        MMVet(golden.options("mmvet")).score(item, ItemResult(("x",)), Judges())
    (tmp_path / "mmvet.py").write_text('prompt = """another text"""\n')
    bench = MMVet(golden.options("mmvet", judge_texts=tmp_path))
    with pytest.raises(DataError, match=r"may not be shipped: get vlmeval/dataset/utils/mmvet\.py of VLMEvalKit"):
        bench.score(item, ItemResult(("x",)), Judges(chat=golden.ScriptedJudge(["1"])))


def test_the_judges_text_is_found_in_vlmevalkits_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text stands there without the empty line that a call adds to it, and that its hash is recorded with."""
    text = "\nCompare the two.\n\nQuestion | Correctness\n--- | ---\n1 + 1? | 1.0\n"
    monkeypatch.setattr(mmvet, "HEAD_SHA256", sha256_of(f"{text}\n"))
    (tmp_path / "mmvet.py").write_text(f'def prompt_of(line):\n    prompt = """{text}"""\n    return prompt + "\\n"\n')
    bench = MMVet(golden.options("mmvet", judge_texts=tmp_path))
    judge = golden.ScriptedJudge(["1"])
    bench.score(bench.items()[0], ItemResult(("It shows seven.",)), Judges(chat=judge))
    [message] = judge.requests[0].messages
    assert message.content == (f"{text}\n{REQUESTS['items']['0'][0]['last_row']}",)


def test_the_file_for_its_service_and_the_complete_set(tmp_path: Path) -> None:
    bench = MMVet(golden.options("mmvet"), head="HEAD\n")
    results = {id: ItemResult((answer,)) for id, answer in ANSWERS["runs"]["main"].items()}
    (path,) = bench.write_submission(tmp_path, results, {})
    assert json.loads(path.read_text()) == EXPECTED["results_file"]
    with pytest.raises(DataError, match="MM-Vet is not complete.*questions 14 of 218"):
        MMVet(BenchmarkOptions(golden.ROOT / "mmvet" / "data")).items()

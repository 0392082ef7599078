"""IntelligentBench against the records."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, Item, ItemResult
from bagel_mot.evaluation.benchmarks.intelligentbench import CLASSES, TEXTS, IntelligentBench, read_reply
from bagel_mot.evaluation.data import ParquetImage
from bagel_mot.evaluation.judges.base import Judges
from tests.evaluation.benchmarks.edits import (
    FIXED,
    PUBLISHED,
    ROOT,
    Scripted,
    check_items,
    check_rows,
    check_settings_of_request,
    load,
    options,
    scored,
    structure,
)

PROMPTS, ANSWERS = load("intelligentbench", "prompts"), load("intelligentbench", "answers")["judge"]["main"]
EXPECTED, REQUESTS = load("intelligentbench", "expected")["runs"]["main"], load("intelligentbench", "requests")
DATA = ROOT / "intelligentbench" / "data"


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("edited")

    def path(item: Item) -> Path:
        first = item.images[0]
        assert isinstance(first, ParquetImage)
        file = folder / item.outputs[0]
        Image.open(io.BytesIO(replace(first, column="model_out_image", index=None).data())).save(file)
        return file

    return path


def test_items_are_as_recorded() -> None:
    items = IntelligentBench(options("intelligentbench")).items()
    check_items(items, PROMPTS["items"], lambda item: [f"images[{item.images[0].index}]"])  # type: ignore[union-attr]
    defaults = {"cfg_image_scale": 2.0, "cfg_text_scale": 4.0, "cfg_interval": (0.0, 1.0), "think": False}
    assert defaults.items() <= items[0].settings.items()
    assert IntelligentBench(options("intelligentbench", think=True)).items()[0].settings["think"]


@pytest.mark.parametrize("protocol", [PUBLISHED, FIXED])
def test_scores_are_as_recorded(protocol: str, edited: Any) -> None:
    benchmark = IntelligentBench(options("intelligentbench", protocol=protocol))
    scores, asked, summary = scored(benchmark, lambda item: ANSWERS[item.id], edited)
    for key, wanted in EXPECTED["items"].items():
        assert scores[key].detail["score"] == wanted["score"], key
        assert len(asked[key]) == wanted["calls"]
    mode = EXPECTED["as_published" if protocol == PUBLISHED else "fixed"]
    check_rows(summary, {"total": mode["percent"]})
    assert summary.rows["total"].count == mode["n"]
    for letter, wanted in mode["classes"].items():
        check_rows(summary, {CLASSES[letter]: wanted["percent"]})
        assert summary.rows[CLASSES[letter]].count == wanted["n"]
    if protocol == FIXED:
        assert summary.extra["left_out"] == mode["unparsable"]
    else:
        counted = [score.values["score"] for score in scores.values()]
        assert sum(value for value in counted if value is not None) == mode["total"]


def test_requests_are_as_recorded(edited: Any) -> None:
    """The system text is a stand-in here, for its licence is not known."""
    _, asked, _ = scored(IntelligentBench(options("intelligentbench")), lambda item: ANSWERS[item.id], edited)
    for key, requests in asked.items():
        check_settings_of_request(requests[0], REQUESTS["settings"])
        system, user = structure(requests[0])
        assert user == REQUESTS["requests"][key][1]
        assert (system["role"], len(system["content"])) == ("system", 1)
        assert [request.attempt for request in requests] == list(range(len(requests)))
    assert dict(TEXTS.hashes) == {"system": REQUESTS["system_text"]["sha256"]}


def test_the_users_copy_of_the_text_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: Any) -> None:
    text = "\nBe strict.\n"
    (tmp_path / "judge.py").write_text(f"SYSTEM = {text!r}")
    hashes = {"system": hashlib.sha256(text.encode()).hexdigest()}
    monkeypatch.setattr("bagel_mot.evaluation.benchmarks.intelligentbench.TEXTS", replace(TEXTS, hashes=hashes))
    benchmark = IntelligentBench(options("intelligentbench", judge_texts=tmp_path))
    item = benchmark.items()[0]
    assert benchmark.request(item, edited(item)).messages[0].content == (text,)


def test_without_the_text_a_complete_set_is_not_judged() -> None:
    with pytest.raises(DataError, match=r"lacks 1 of the 1 texts .*VQ-VA-World.*--judge-texts"):
        TEXTS.find(BenchmarkOptions(DATA))


@pytest.mark.parametrize("reply", ["", "[]", "{", '{"score": true}', '{"score": [1]}', "null"])
def test_replies_without_a_score(reply: str) -> None:
    assert read_reply(reply) is None


@pytest.mark.parametrize("protocol", [PUBLISHED, FIXED])
@pytest.mark.parametrize("form", ["{}", '"{}"'])
@pytest.mark.parametrize("digits", ["2" * 400, "2" * 5000], ids=len)
def test_a_judge_that_repeats_a_digit_for_ever_gives_no_score(
    digits: str, form: str, protocol: str, edited: Any
) -> None:
    benchmark = IntelligentBench(options("intelligentbench", protocol=protocol))
    item = benchmark.items()[0]
    replies = [f'{{"score": {form.format(digits)}}}'] * 3
    score = benchmark.score(item, ItemResult(images=(edited(item),)), Judges(chat=Scripted(replies)))
    assert dict(score.values) == {"score": None, "score_of_class": None}


def test_half_a_set_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"IntelligentBench is not complete.*w \d+ of 171"):
        IntelligentBench(BenchmarkOptions(DATA)).items()

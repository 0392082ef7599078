"""ImgEdit-Bench against the records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, Item, ItemResult
from bagel_mot.evaluation.benchmarks.imgedit import TYPES, ImgEdit, read_reply
from bagel_mot.evaluation.judges.base import Judges
from tests.evaluation.benchmarks.edits import (
    FIXED,
    PUBLISHED,
    ROOT,
    UPSTREAM,
    check_items,
    check_rows,
    check_settings,
    check_settings_of_request,
    load,
    options,
    scored,
    structure,
)

PROMPTS, ANSWERS = load("imgedit", "prompts"), load("imgedit", "answers")["judge"]["main"]
EXPECTED, REQUESTS = load("imgedit", "expected")["runs"]["main"], load("imgedit", "requests")
DATA = ROOT / "imgedit" / "data"


def edited(item: Item) -> Path:
    return DATA / "edited" / item.outputs[0]


def test_items_are_as_recorded() -> None:
    items = ImgEdit(options("imgedit")).items()
    check_items(items, PROMPTS["items"], lambda item: [f"{Path(*path.parts[-2:])}" for path in item.images])
    check_settings(items[0], ImgEdit(options("imgedit", think=True)).items()[0], PROMPTS)
    assert [item.outputs for item in items] == [(PROMPTS["output"].replace("<key>", item.id),) for item in items]
    assert len({item.seeds for item in items}) == len(items)


@pytest.mark.parametrize("protocol", [PUBLISHED, FIXED])
def test_scores_and_requests_are_as_recorded(protocol: str) -> None:
    benchmark = ImgEdit(options("imgedit", protocol=protocol))
    scores, asked, summary = scored(benchmark, lambda item: ANSWERS[item.id], edited)
    assert {key: score.values["score"] for key, score in scores.items()} == EXPECTED["items"]
    check_rows(summary, EXPECTED["as_published"], digits=2)
    assert summary.rows.keys() == {*TYPES, "overall"}
    assert summary.extra["left_out"] == [key for key, value in EXPECTED["items"].items() if value is None]
    assert {key: structure(requests[0]) for key, requests in asked.items()} == REQUESTS["requests"]
    for requests in asked.values():
        check_settings_of_request(requests[0], REQUESTS["settings"])


def test_upstream_names_its_own_judge() -> None:
    benchmark = ImgEdit(options("imgedit", protocol=UPSTREAM))
    item = benchmark.items()[0]
    assert benchmark.request(item, item.images[0], edited(item)).model == "gpt-4.1"


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("a: 5", 5.0),
        ("a: 5\nb: 4\nc: 4", 4.33),
        ("a: 4.", None),
        ("a: 4/5", None),
        ("", None),
        ("a: " + "9" * 5000, None),
    ],
)
def test_lines_of_a_reply(reply: str, value: float | None) -> None:
    assert read_reply(reply) == value


def test_a_judge_is_needed() -> None:
    benchmark = ImgEdit(options("imgedit"))
    item = benchmark.items()[0]
    with pytest.raises(EvaluationError, match="--judge"):
        benchmark.score(item, ItemResult(images=(edited(item),)), Judges())


def test_half_a_set_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ImgEdit-Bench is not complete.*background 2 of 94"):
        ImgEdit(BenchmarkOptions(DATA)).items()
    shutil.copytree(DATA / "singleturn", tmp_path / "singleturn")
    (tmp_path / "singleturn" / "human" / "000000001.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 image: .*human/000000001.jpg"):
        ImgEdit(BenchmarkOptions(tmp_path, partial=True)).items()
    with pytest.raises(DataError, match=r"singleturn\.json"):
        ImgEdit(BenchmarkOptions(tmp_path / "singleturn" / "human")).items()
    (tmp_path / "singleturn" / "singleturn.json").write_text('{"1": {"id": 7, "prompt": "p", "edit_type": "add"}}')
    with pytest.raises(DataError, match="each with texts as id, prompt and edit_type"):
        ImgEdit(BenchmarkOptions(tmp_path)).items()


def test_a_complete_set_is_taken_but_other_texts_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "singleturn"
    (folder / "animal").mkdir(parents=True)
    (folder / "animal" / "1.jpg").write_bytes(b"an image that is not opened here")
    types = [type_ for type_, count in TYPES.items() for _ in range(count)]
    rows = {str(i): {"id": "animal/1.jpg", "prompt": "p", "edit_type": type_} for i, type_ in enumerate(types)}
    (folder / "singleturn.json").write_text(json.dumps(rows))
    shutil.copy(DATA / "singleturn" / "judge_prompt.json", folder)
    benchmark = ImgEdit(BenchmarkOptions(tmp_path))
    assert len(benchmark.items()) == 737
    with pytest.raises(DataError, match="not the published one"):
        benchmark.check_judging()
    with pytest.raises(DataError, match="not the published one"):
        benchmark.request(benchmark.items()[0], b"", b"")

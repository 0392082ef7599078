"""KRIS-Bench against the records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, Item
from bagel_mot.evaluation.benchmarks.kris import GROUPS, METRICS, TYPES, Kris, read_dual, read_reply
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

PROMPTS, ANSWERS = load("kris", "prompts"), load("kris", "answers")["judge"]["main"]
EXPECTED, REQUESTS = load("kris", "expected")["runs"]["main"], load("kris", "requests")
DATA = ROOT / "kris" / "data"
CALLS = ("consistency", "dual", "instruction", "quality")


def edited(item: Item) -> Path:
    return DATA / "edited" / item.outputs[0]


def replies(item: Item) -> list[str | None]:
    return [reply for call in CALLS for reply in ANSWERS[item.id].get(call, [])]


def rows_of(recorded: dict[str, Any]) -> dict[str, float]:
    rows = {"overall": recorded["overall"]}
    for part in ("groups", "meta", "types"):
        for name, values in recorded[part].items():
            rows |= {f"{name}/{metric}": value for metric, value in values.items()}
    return rows


def test_items_are_as_recorded() -> None:
    items = Kris(options("kris")).items()
    check_items(items, PROMPTS["items"], lambda item: [Path(str(path)).name for path in item.images])
    check_settings(items[0], Kris(options("kris", think=True)).items()[0], PROMPTS)
    assert [item.outputs for item in items] == [(f"{item.id}.png",) for item in items]


def test_without_the_list_of_all_the_annotations_are_read(tmp_path: Path) -> None:
    shutil.copytree(DATA / "KRIS_Bench", tmp_path / "data")
    found = {item.id: item for item in Kris(BenchmarkOptions(tmp_path / "data", partial=True)).items()}
    known = {item.id: item for item in Kris(options("kris")).items()}
    assert found.keys() == known.keys()
    for key, item in found.items():
        assert (item.prompt, item.facts, item.settings) == (known[key].prompt, known[key].facts, known[key].settings)


@pytest.mark.parametrize("protocol", [PUBLISHED, FIXED])
def test_scores_and_requests_are_as_recorded(protocol: str) -> None:
    benchmark = Kris(options("kris", protocol=protocol))
    scores, asked, summary = scored(benchmark, replies, edited)
    for key, wanted in EXPECTED["items"].items():
        values = {name: value for name, value in wanted.items() if name != "kept"}
        assert scores[key].values == (values or dict.fromkeys(scores[key].values)), key
        assert (key not in summary.extra["incomplete"]) == wanted["kept"]
    check_rows(summary, rows_of(EXPECTED["as_published" if protocol == PUBLISHED else "fixed"]))
    assert summary.extra["left_out"] == (summary.extra["incomplete"] if protocol == PUBLISHED else [])
    found: dict[str, Any] = {}
    for item in benchmark.items():
        made = iter(asked[item.id])
        for call in CALLS:
            for attempt, _ in enumerate(ANSWERS[item.id].get(call, [])):
                if (request := next(made, None)) is not None:
                    assert request.attempt == attempt
                    check_settings_of_request(request, REQUESTS["settings"])
                    found[f"{item.id}/{call}"] = structure(request)
        assert next(made, None) is None
    assert found == REQUESTS["requests"]


def test_upstream_labels_the_quality_call_as_edited_and_keeps_single_scores() -> None:
    published, upstream = (Kris(options("kris", protocol=protocol)) for protocol in (PUBLISHED, UPSTREAM))
    for item in upstream.items():
        quality = upstream.requests(item, edited(item))["quality"](0).messages[0].content[1]
        before = published.requests(item, edited(item))["quality"](0).messages[0].content[1]
        plain = (*GROUPS["Attribute Perception"], "position_movement", "multi-instruction_execution")
        assert (quality != before) == (item.facts["type"] in plain)
        assert quality in ("This is the edited image:", "This is the image to evaluate:")
    _, _, summary = scored(upstream, replies, edited)
    check_rows(summary, rows_of(EXPECTED["fixed"]))


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"quality_score": 4}', 4),
        ('{"quality_score": 3.9}', 3),
        ('{"quality_score": null}', None),
        ("4 / 5", 4),
        ("it is 3 out of 5, not 2", 3),
        ("17 of 25", None),
        ("", None),
    ],
)
def test_a_reply_is_read_as_json_else_by_its_first_digit(reply: str, value: int | None) -> None:
    assert read_reply(reply, "quality") == value


@pytest.mark.parametrize("wrong", ['"good"', "[4]", "{}", "Infinity"])
def test_json_without_a_number_loses_the_item(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_reply(f'{{"quality_score": {wrong}}}', "quality")
    with pytest.raises(ValueError, match=r"."):
        read_dual(f'{{"instruction_score": {wrong}, "knowledge_score": 1}}')


@pytest.mark.parametrize("digits", ["9" * 400, '"' + "9" * 5000 + '"'], ids=len)
def test_a_judge_that_repeats_a_digit_for_ever_loses_the_item(digits: str) -> None:
    with pytest.raises(ValueError, match="digits"):
        read_reply(f'{{"quality_score": {digits}}}', "quality")


def test_the_parts_hold_all_types() -> None:
    assert sorted(type_ for types in GROUPS.values() for type_ in types) == sorted(TYPES)
    assert sum(TYPES.values()) == 1267
    assert set(METRICS) == {"VC", "VQ", "IF", "KP"}


def test_half_a_set_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"KRIS-Bench is not complete.*abstract_reasoning 2 of 75"):
        Kris(BenchmarkOptions(DATA)).items()
    shutil.copytree(DATA, tmp_path / "data")
    (tmp_path / "data" / "KRIS_Bench" / "viewpoint_change" / "1_gt.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 image: .*1_gt\.png"):
        Kris(BenchmarkOptions(tmp_path / "data", partial=True)).items()
    (tmp_path / "data" / "final_data.json").write_text(json.dumps([{"id": "1"}]))
    with pytest.raises(DataError, match="must hold items with id, ins_en, ori_img, type"):
        Kris(BenchmarkOptions(tmp_path / "data", partial=True)).items()

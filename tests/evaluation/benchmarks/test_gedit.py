"""GEdit-Bench against the records."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import DataError, SettingError
from bagel_mot.evaluation.base import BenchmarkOptions, Item, ItemResult
from bagel_mot.evaluation.benchmarks import gedit
from bagel_mot.evaluation.benchmarks.gedit import LANGUAGES, MEASURES, TASKS, GEdit, lowest, read_reply
from tests.evaluation.benchmarks.edits import (
    FIXED,
    PUBLISHED,
    ROOT,
    check_items,
    check_rows,
    check_settings,
    check_settings_of_request,
    load,
    options,
    scored,
    structure,
)

PROMPTS, ANSWERS = load("gedit", "prompts"), load("gedit", "answers")["judge"]
EXPECTED, REQUESTS = load("gedit", "expected"), load("gedit", "requests")
DATA = ROOT / "gedit" / "data"


def edited(item: Item) -> Path:
    return DATA / "edited" / f"{item.id}.png"


def replies(run: str) -> Any:
    """The replies of a run, both calls of a try one after the other; the last of a call is repeated."""

    def of(item: Item) -> list[str]:
        sc, pq = (ANSWERS[run][item.id][call] for call in ("SC", "PQ"))
        tries = range(max(len(sc), len(pq)))
        return [one for i in tries for one in (sc[min(i, len(sc) - 1)], pq[min(i, len(pq) - 1)])]

    return of


def rows_of(recorded: dict[str, Any]) -> dict[str, float]:
    rows = {f"{language}/G_{m}": recorded[language][f"G_{m}"] for language in LANGUAGES for m in MEASURES}
    for language in LANGUAGES:
        for task, values in recorded[language]["by_task"].items():
            rows |= {f"{language}/{task}/{m}": value for m, value in zip(MEASURES, values, strict=True)}
    return rows


def test_items_are_as_recorded() -> None:
    items = GEdit(options("gedit")).items()
    check_items(items, PROMPTS["items"], lambda item: ["input_image"])
    check_settings(items[0], GEdit(options("gedit", think=True)).items()[0], PROMPTS)
    for item in items:
        wanted = PROMPTS["items"][item.id]
        assert item.facts["task"] == wanted["task"]
        assert item.facts["language"] == wanted["language"]
        assert item.outputs == (f"fullset/{wanted['task']}/{wanted['language']}/{item.id}.png",)
        assert item.seeds == (42,)


def test_a_language_is_a_variant() -> None:
    items = GEdit(options("gedit", variant="cn")).items()
    assert {item.facts["language"] for item in items} == {"cn"}
    assert len(items) == 14
    with pytest.raises(SettingError, match="did you mean cn"):
        GEdit(options("gedit", variant="cnn")).items()


@pytest.mark.parametrize("reply", EXPECTED["reply_parsing"]["table"], ids=repr)
def test_replies_are_read_as_recorded(reply: str) -> None:
    assert read_reply(reply) == EXPECTED["reply_parsing"]["table"][reply]


@pytest.mark.parametrize(
    ("scores", "value"),
    [([7, 3.5], 3.5), (["7"], 7.0), (["x"], None), ([], None), (None, None), ([-1, 3], None), ([math.nan], None)],
)
def test_the_lowest_score_counts(scores: Any, value: float | None) -> None:
    assert lowest(scores) == value


@pytest.mark.parametrize("protocol", [PUBLISHED, FIXED])
def test_scores_and_requests_are_as_recorded(protocol: str) -> None:
    recorded = EXPECTED["runs"]["main"]
    scores, asked, summary = scored(GEdit(options("gedit", protocol=protocol)), replies("main"), edited)
    for key, wanted in recorded["items"].items():
        assert {name: scores[key].values[name] for name in MEASURES} == pytest.approx(
            {name: wanted[name] for name in MEASURES}, rel=1e-6
        )
        assert len(asked[key]) == wanted["calls"]
    check_rows(summary, rows_of(recorded["as_published" if protocol == PUBLISHED else "fixed"]))
    found = {
        f"{key}/{call}": request
        for key, two in asked.items()
        for call, request in zip(("SC", "PQ"), two[:2], strict=True)
    }
    assert {key: structure(request) for key, request in found.items()} == REQUESTS["requests"]
    for key, two in asked.items():
        check_settings_of_request(two[0], REQUESTS["settings"])
        assert [request.attempt for request in two] == [number // 2 for number in range(len(two))], key


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000], ids=len)
@pytest.mark.parametrize("form", ["{}", "[{}, 3]", '{{"score": [{}, 3]}}', '{{"score": "{}"}}'])
def test_a_judge_that_repeats_a_digit_for_ever_is_not_read(form: str, digits: str) -> None:
    assert lowest(read_reply(form.format(digits))) is None


def test_where_the_published_scorer_draws_a_number_the_item_is_left_out() -> None:
    recorded = EXPECTED["runs"]["odd"]
    scores, _, summary = scored(GEdit(options("gedit", protocol=PUBLISHED)), replies("odd"), edited)
    assert sorted(summary.extra["would_draw_a_number"]) == sorted(recorded["as_published"]["random"])
    assert summary.extra["left_out"] == summary.extra["would_draw_a_number"]
    assert all(scores[key].values["O"] is None for key in recorded["as_published"]["random"])


def test_fixed_reads_a_second_reply_like_a_first() -> None:
    recorded = EXPECTED["runs"]["odd"]
    scores, _, summary = scored(GEdit(options("gedit", protocol=FIXED)), replies("odd"), edited)
    check_rows(summary, rows_of(recorded["fixed"]))
    assert summary.extra["left_out"] == recorded["fixed"]["unparsable"]
    for key, wanted in recorded["fixed_items"].items():
        assert wanted.items() <= scores[key].values.items()


def test_a_reply_that_stays_broken_is_asked_for_five_times_at_most() -> None:
    broken = '{"score": [4, 6], "reasoning": "he said "no""}'
    benchmark = GEdit(options("gedit", protocol=PUBLISHED))
    scores, asked, _ = scored(benchmark, lambda item: [broken, "[5, 5]"] + [broken, '{"score": 5}'] * 4, edited)
    assert {len(requests) for requests in asked.values()} == {10}
    assert {score.unparsable for score in scores.values()} == {5}


def test_the_intersection_is_those_items_that_have_the_mark() -> None:
    benchmark = GEdit(options("gedit"))
    scores, _, summary = scored(benchmark, replies("main"), edited)
    marked = [item for item in benchmark.items() if item.facts["intersection"] and item.facts["language"] == "en"]
    assert 0 < len(marked) < 14
    assert summary.rows["en intersection/G_O"].count == len(marked)
    tasks = {item.facts["task"] for item in marked}
    means = [
        sum(values) / len(values)
        for values in ([scores[i.id].values["O"] for i in marked if i.facts["task"] == task] for task in tasks)
    ]
    assert summary.rows["en intersection/G_O"].value == pytest.approx(sum(means) / len(means))


def test_the_scorers_tables_are_written(tmp_path: Path) -> None:
    benchmark = GEdit(options("gedit"))
    scores, _, _ = scored(benchmark, replies("main"), edited)
    results = {}
    for item in benchmark.items():
        path = tmp_path / item.outputs[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(edited(item), path)
        results[item.id] = ItemResult(images=(path,))
    written = benchmark.write_submission(tmp_path / "csv", results, scores)
    assert {path.name for path in written} == {f"all_{task}_gpt_score.csv" for task in TASKS}
    lines = [line for path in written for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
    assert len(lines) == len(scores)
    for line in lines:
        key = Path(line["edited_image"]).stem
        assert float(line["sementics_score"]) == scores[key].values["SC"]
        assert float(line["quality_score"]) == scores[key].values["PQ"]
        assert Path(line["source_image"]).name == f"{key}_SRCIMG.png"
        assert Path(line["source_image"]).is_file()


def test_half_a_set_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"GEdit-Bench is not complete.*en/background_change 2 of 40"):
        GEdit(BenchmarkOptions(DATA)).items()


def test_both_languages_may_name_an_image_by_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gedit.read_parquet

    def with_shared_keys(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
        rows = plain(*arguments, **more)
        for language in LANGUAGES:
            for number, row in enumerate(row for row in rows if row["instruction_language"] == language):
                row["key"] = f"k{number}"
        return rows

    monkeypatch.setattr(gedit, "read_parquet", with_shared_keys)
    items = GEdit(options("gedit")).items()
    assert len({item.id for item in items}) == len(items)
    first = [item for item in items if item.outputs[0].endswith("/k0.png")]
    assert {item.id for item in first} == {"k0-en", "k0-cn"}
    alone = GEdit(options("gedit", variant="en")).items()
    assert alone[0].id == "k0"

"""RISEBench against the records."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, Item
from bagel_mot.evaluation.benchmarks.rise import TEXTS, Rise, read_reply
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

PROMPTS, ANSWERS = load("rise", "prompts"), load("rise", "answers")["judge"]
EXPECTED, REQUESTS = load("rise", "expected")["runs"], load("rise", "requests")
DATA = ROOT / "rise" / "data"
CALLS = ("consistency", "reasoning", "quality")


def edited(item: Item) -> Path:
    return DATA / "edited" / item.outputs[0]


def replies(run: str) -> Any:
    return lambda item: [reply for call in CALLS for reply in ANSWERS[run][item.id].get(call, [])]


def rows_of(recorded: dict[str, Any]) -> dict[str, float | None]:
    rows: dict[str, float | None] = {}
    for name, values in recorded.items():
        if isinstance(values, dict) and "percent" in values:
            rows |= {f"{name}/score": values["score"], f"{name}/percent": values["percent"]}
            if values["accuracy"] is not None:
                rows[f"{name}/accuracy"] = 100 * values["accuracy"]
    assert rows
    return rows


def test_items_are_as_recorded() -> None:
    items = Rise(options("rise")).items()
    check_items(items, PROMPTS["items"], lambda item: [f"{Path(*path.parts[-2:])}" for path in item.images])
    check_settings(items[0], Rise(options("rise", think=True)).items()[0], PROMPTS)
    for item in items:
        assert item.outputs == (f"{item.facts['category']}/{item.id}.png",)


@pytest.mark.parametrize("run", ["main", "odd"])
def test_scores_are_as_recorded(run: str) -> None:
    recorded = EXPECTED[run]
    for protocol, mode in ((PUBLISHED, "as_published"), (UPSTREAM, "as_published_risebench"), (FIXED, "fixed")):
        scores, _, summary = scored(Rise(options("rise", protocol=protocol)), replies(run), edited)
        check_rows(summary, rows_of(recorded[mode]))
        for key, wanted in recorded["items"].items():
            values = scores[key].values
            assert {call: values[call] for call in CALLS} == {call: wanted[call] for call in CALLS}
            if protocol == FIXED:
                wanted = recorded["fixed"]["items"][key] or {"score": None, "complete": None}
            elif protocol == UPSTREAM:
                complete = recorded[mode].get("items_complete", {}).get(key, values["complete"])
                wanted = {"score": wanted["score"], "complete": complete}
            assert values["score"] == pytest.approx(wanted["score"], rel=1e-6) if wanted["score"] else True
            assert (values["score"], values["complete"])[1] == wanted["complete"], key
            assert (values["score"] is None) == (wanted["score"] is None)
        if protocol == FIXED:
            assert summary.extra["left_out"] == recorded["fixed"].get("unparsable", [])


def test_requests_are_as_recorded() -> None:
    """The texts are stand-ins here. That the right one is taken shows in the recorded lengths: without what is filled
    in, all requests of one text are equally long, and those with nothing filled in have its hash.
    """
    benchmark = Rise(options("rise"))
    _, asked, _ = scored(benchmark, replies("main"), edited)
    lengths = defaultdict(set)
    made = set()
    for item in benchmark.items():
        calls = benchmark.calls(item)
        for (call, (name, _)), request in zip(calls.items(), asked[item.id], strict=True):
            key = f"{item.id}/{call}"
            made.add(key)
            check_settings_of_request(request, REQUESTS["settings"])
            (ours,) = structure(request)
            (recorded,) = REQUESTS["requests"][key]
            assert ours["role"] == recorded["role"]
            assert ours["content"][1:] == recorded["content"][1:], key
            stand_in = request.messages[0].content[0]
            assert isinstance(stand_in, str)
            text = benchmark.judge_texts[name]
            filled = 0
            if stand_in != text:
                assert stand_in.startswith(name)
                filled = len(item.prompt) * (name not in NO_QUESTION) + len(reference_of(item)) * (name in REFERENCES)
            else:
                assert recorded["content"][0]["text_sha256"] == TEXTS.hashes[name]
            lengths[name].add(recorded["content"][0]["chars"] - filled)
    assert made == set(REQUESTS["requests"])
    assert {name: len(found) for name, found in lengths.items()} == dict.fromkeys(lengths, 1)
    assert dict(TEXTS.hashes) == REQUESTS["published_text_sha256"]


NO_QUESTION = ("prompt_logical_txt",)
REFERENCES = (
    *("prompt_reasoning", "prompt_reasoning_w_input", "prompt_spatial_ref", "prompt_spatial_ref_w_input"),
    *("prompt_logical_cons_ans", "prompt_logical_txt"),
)


def reference_of(item: Item) -> str:
    return str(item.facts["reference_txt"] or item.facts["reference"] or "")


def test_fixed_asks_without_the_question_where_the_item_says_so() -> None:
    names = {
        item.id: Rise(options("rise", protocol=FIXED)).calls(item)["reasoning"][0]
        for item in Rise(options("rise")).items()
        if item.facts["category"] == "logical_reasoning" and item.facts["reference_img"]
    }
    without = [key for key, name in names.items() if name == "prompt_logical_img_wo_q"]
    assert without == ["logical_reasoning_5"]


def test_the_users_copy_of_the_texts_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: f"{name}: {{instruct}} and {{reference}} in {{{{braces}}}}" for name in TEXTS.hashes}
    (tmp_path / "utils.py").write_text("\n".join(f"{name} = {text!r}" for name, text in texts.items()))
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    monkeypatch.setattr("bagel_mot.evaluation.benchmarks.rise.TEXTS", replace(TEXTS, hashes=hashes))
    benchmark = Rise(options("rise", judge_texts=tmp_path))
    item = benchmark.items()[0]
    made = {call: request(0) for call, request in benchmark.requests(item, edited(item)).items()}
    text = made["reasoning"].messages[0].content[0]
    assert text == f"prompt_reasoning: {item.prompt} and {item.facts['reference']} in {{braces}}"
    assert made["quality"].messages[0].content[0] == texts["prompt_generation"]  # as it is


@pytest.mark.parametrize(
    ("reply", "logical", "value"),
    [
        ("Final Score: 4", False, 4.0),
        ("**Final Score:** **2**", False, 2.0),
        ("Final Score: none, 3", False, None),
        ("Final Score: 3, not 4", False, 3.0),
        ("4", False, None),
        ("Final Score: 0", True, 1.0),
        ("Final Score: 1/1", True, 5.0),
        ("Final Score: 4", True, None),
    ],
)
def test_a_reply_is_read_at_its_final_score(reply: str, logical: bool, value: float | None) -> None:
    assert read_reply(reply, logical) == value


def test_a_judge_that_repeats_a_digit_for_ever_is_not_read() -> None:
    assert read_reply("Final Score: " + "5" * 400, logical=False) is None


def test_half_a_set_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"RISEBench is not complete.*temporal_reasoning 8 of 85"):
        Rise(BenchmarkOptions(DATA)).items()
    with pytest.raises(DataError, match=r"lacks 14 of the 14 texts .*RISEBench.*--judge-texts"):
        TEXTS.find(BenchmarkOptions(DATA))

"""Both sets of WISE on the recorded ones: prompts, settings, requests, readings, scores and means in both protocols."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol, Score, Summary
from bagel_mot.evaluation.benchmarks import wise, wise_verified
from bagel_mot.evaluation.benchmarks.wise import CATEGORIES, EXPLANATION, PROMPT, Wise, WiseBase, forms_of
from bagel_mot.evaluation.benchmarks.wise_verified import WiseVerified
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges

GOLDEN = Path(__file__).parents[2] / "golden-eval"
KINDS: dict[str, type[WiseBase]] = {"wise": Wise, "wise_verified": WiseVerified}
both = pytest.mark.parametrize("name", KINDS)


def read(name: str, file: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / file).read_text(encoding="utf-8"))


def benchmark(name: str, protocol: Protocol = Protocol.FIXED, **options: Any) -> WiseBase:
    settings = {"data": GOLDEN / name / "data", "protocol": protocol, "partial": True} | options
    return KINDS[name](BenchmarkOptions(**settings))


class Scripted:
    """A judge with recorded replies in order; None is a failed call."""

    def __init__(self, replies: Sequence[str | None]) -> None:
        self.replies = list(replies)
        self.asked: list[JudgeRequest] = []

    def complete(self, request: JudgeRequest) -> str | None:
        self.asked.append(request)
        return self.replies.pop(0)


def scored(name: str, run: str, protocol: Protocol) -> tuple[dict[str, Score], Summary]:
    which = benchmark(name, protocol)
    replies = read(name, "answers.json")["judge"][run]
    images = GOLDEN / name / "data/images"
    scores = {}
    for item in which.items():
        judge = Scripted(replies[item.id])
        scores[item.id] = which.score(item, ItemResult(images=(images / item.outputs[0],)), Judges(chat=judge))
        assert judge.replies == []
    return scores, which.aggregate(scores)


def values(summary: Summary) -> dict[str, float | None]:
    return {name: row.value for name, row in summary.rows.items()}


@both
def test_prompts_settings_and_names_agree_with_the_record(name: str) -> None:
    wanted = read(name, "prompts.json")
    items = benchmark(name).items()
    found = {item.id: {"prompt": item.prompt, "output": item.outputs[0]} for item in items}
    assert found == wanted["items"]
    for item in items:
        assert (item.kind, len(item.outputs), len(item.seeds)) == ("generate", 1, 1)
        plain = json.loads(json.dumps(dict(item.settings)))
        assert plain.pop("think") is False
        assert plain == {key: wanted["settings"][key] for key in plain}
        assert len(plain) == 7
    assert len({item.seeds for item in items}) == len(items)


def test_a_thought_is_sampled_as_recorded() -> None:
    wanted = read("wise", "prompts.json")["think"]
    settings = benchmark("wise", think=True).items()[0].settings
    assert settings["think"] is True
    assert settings["do_sample"] is wanted["do_sample"]
    assert settings["temperature"] == wanted["temperature"]
    assert settings["max_think_tokens"] == wanted["max_length"] - 1


@both
def test_requests_agree_with_the_record(name: str) -> None:
    wanted = read(name, "requests.json")
    for protocol in (Protocol.PUBLISHED, Protocol.FIXED):
        which = benchmark(name, protocol)
        for item in which.items():
            data = (GOLDEN / name / "data/images" / item.outputs[0]).read_bytes()
            request = which.judge_request(item, data)
            settings = wanted["settings"]
            assert (request.model, request.temperature) == (settings["model"], settings["temperature"])
            assert (request.max_tokens, request.n) == (settings["max_tokens"], settings.get("n"))
            assert request.extra.get("chat_template_kwargs") == settings.get("chat_template_kwargs")
            system, user = request.messages
            assert [message.role for message in request.messages] == [m["role"] for m in wanted["messages"]]
            assert not system.plain
            assert len(system.content) == 1
            text, image = user.content
            assert isinstance(text, str)
            assert item.prompt in text
            assert item.facts["explanation"] in text
            assert isinstance(image, JudgeImage)
            assert (image.mime, image.detail, image.data) == ("image/png", None, data)
            if (recorded := wanted["items"][item.id].get("picture")) is not None:
                assert hashlib.sha256(image.data).hexdigest() == recorded["sha256"]
                assert list(Image.open(io.BytesIO(image.data)).size) == recorded["size"]


@pytest.mark.parametrize("run", ["main", "odd"])
@both
def test_scores_agree_with_the_record(name: str, run: str) -> None:
    scores, _ = scored(name, run, Protocol.FIXED)
    wanted = read(name, "expected.json")["runs"][run]["items"]
    assert scores.keys() == wanted.keys()
    for id, score in scores.items():
        found = {**score.values, **({"calls": score.detail["calls"]} if "calls" in wanted[id] else {})}
        assert found == {"score": None, **wanted[id]}, id
        assert score.unparsable == (score.values["score"] is None)


@both
def test_means_agree_with_the_record(name: str) -> None:
    wanted = read(name, "expected.json")["runs"]["main"]
    published = values(scored(name, "main", Protocol.PUBLISHED)[1])
    fixed = values(scored(name, "main", Protocol.FIXED)[1])
    upstream = values(scored(name, "main", Protocol.UPSTREAM)[1])
    if name == "wise":
        assert published == pytest.approx(wanted["as_published"], rel=1e-6)
        assert fixed == pytest.approx(wanted["fixed"], rel=1e-6)
        assert {key: round(value, 2) for key, value in upstream.items()} == wanted["as_published_wise_repository"]
    else:
        assert published == fixed == upstream == pytest.approx(wanted["exact"], rel=1e-6)
        assert {key: round(value, 2) for key, value in fixed.items()} == wanted["as_published"]


@both
def test_what_cannot_be_read_fails_as_published_and_is_counted_when_fixed(name: str) -> None:
    wanted = read(name, "expected.json")["runs"]["odd"]
    _, published = scored(name, "odd", Protocol.PUBLISHED)
    assert set(values(published).values()) == {None}
    assert {key: published.extra[key] for key in wanted["as_published"]} == wanted["as_published"]
    _, fixed = scored(name, "odd", Protocol.FIXED)
    unparsable = wanted["fixed"].pop("unparsable")
    assert values(fixed) == pytest.approx(wanted["fixed"], rel=1e-6)
    assert fixed.extra == {"unparsable": unparsable}
    row = fixed.rows["Overall"]
    assert row.count == len(read(name, "prompts.json")["items"]) - len(unparsable)
    assert row.interval is not None
    assert row.interval[0] <= row.value <= row.interval[1]


def test_only_the_files_with_unreadable_replies_are_skipped() -> None:
    which = benchmark("wise", Protocol.PUBLISHED)
    scores = {item.id: Score({"score": None if item.id == "500" else 0.5}) for item in which.items()}
    assert which.aggregate(scores).extra["files_skipped"] == ["spatio-temporal_reasoning"]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Consistency: 2, Realism: 2, Aesthetic Quality: 2", 1.0),
        ("consistency 0 realism 0 AESTHETIC QUALITY: 2", 0.1),
        ("Realism: 2\nAesthetic Quality: 2", None),
        ("", None),
        (None, None),
    ],
)
def test_readings_of_three_scales(reply: str | None, score: float | None) -> None:
    assert wise.score_of_reply(reply)["score"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("Score: 1", 1.0), ("<think>Score: 1</think>0", 0.0), ("Score: 12", None), ("10", None), ("", None), (None, None)],
)
def test_readings_of_right_or_wrong(reply: str | None, score: float | None) -> None:
    assert wise_verified.score_of_reply(reply) == score


def test_another_try_is_another_request() -> None:
    which = benchmark("wise_verified")
    item = which.items()[0]
    judge = Scripted([None, "perhaps", "Score: 1"])
    path = GOLDEN / "wise_verified/data/images" / item.outputs[0]
    assert which.score(item, ItemResult(images=(path,)), Judges(chat=judge)).values == {"score": 1.0}
    assert [request.attempt for request in judge.asked] == [0, 1, 2]


@both
def test_texts_are_found_in_the_user_s_copy_by_their_hash(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, user = "You judge.", f"\nPrompt: {PROMPT}\nExplanation: {EXPLANATION}\nBe strict."
    hashes = {"system": hashlib.sha256(system.encode()).hexdigest(), "user": hashlib.sha256(user.encode()).hexdigest()}
    monkeypatch.setattr(KINDS[name], "text_hashes", hashes)
    script = tmp_path / "copy/gpt_eval.py"
    script.parent.mkdir()
    written = user.replace(PROMPT, "{row['Prompt']}").replace(EXPLANATION, "{row['Explanation']}")
    script.write_text(f'SYSTEM = "{system}"\ndef ask(row):\n    return f"""{written}"""\n', encoding="utf-8")
    which = benchmark(name, judge_texts=tmp_path)
    assert which.judge_texts == {"system": system, "user": user}
    item = which.items()[0]
    (_, asked) = which.messages(item, b"")
    assert asked.content[0] == user.replace(PROMPT, item.prompt).replace(EXPLANATION, item.facts["explanation"])


def test_a_template_is_known_with_its_values_in_any_order() -> None:
    assert f"b {PROMPT} a {EXPLANATION}" in set(forms_of("b {x} a {y['k']}"))
    assert f"b {EXPLANATION} a {PROMPT}" in set(forms_of("  b {x} a {y} "))


@both
def test_a_complete_set_is_taken_and_asks_for_the_judge_s_texts(name: str, tmp_path: Path) -> None:
    rows = [
        {
            "Prompt": f"prompt {number}",
            "Explanation": "why",
            "Category": "",
            "Subcategory": "Longitudinal time" if 400 < number <= 567 else "Geographical location",
            "prompt_id": number,
        }
        for number in range(1, 1001)
    ]
    kind = KINDS[name]
    (tmp_path / kind.whole_file).write_text(json.dumps(rows), encoding="utf-8")
    which = benchmark(name, data=tmp_path, partial=False)
    assert len(which.items()) == kind.info.items == 1000
    with pytest.raises(EvaluationError, match=r"lacks 2 of the 2 texts.*PKU-YuanGroup/WISE.*--judge-texts"):
        which.judge_texts  # noqa: B018


@both
def test_three_files_are_the_whole(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    source = next((GOLDEN / name / "data").rglob(kind.whole_file)).parent
    for part in kind.parts:
        (tmp_path / part).write_bytes((source / part).read_bytes())
    whole = {item.id: item for item in benchmark(name).items()}
    assert {item.id: item for item in benchmark(name, data=tmp_path).items()} == whole
    (tmp_path / kind.parts[1]).unlink()
    with pytest.raises(DataError, match=kind.parts[1]):
        benchmark(name, data=tmp_path)


@both
def test_an_incomplete_set_is_refused_with_what_is_missing(name: str) -> None:
    cultural = sum(int(id) <= 400 for id in read(name, "prompts.json")["items"])
    with pytest.raises(DataError, match=rf"{KINDS[name].info.title} is not complete.*Cultural {cultural} of 400"):
        benchmark(name, partial=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"Prompt": "a", "prompt_id": 1}], "item 1: Prompt and Explanation"),
        ([{"Prompt": "a", "Explanation": "b", "prompt_id": 1001}], "prompt_id from 1 to 1000"),
        (2 * [{"Prompt": "a", "Explanation": "b", "prompt_id": 7}], "prompt_id 7 more than once"),
        ({}, "holds a dict; a list of items is expected"),
    ],
)
def test_items_that_cannot_be_used_are_named(rows: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "final_data.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        benchmark("wise", data=tmp_path)


@both
def test_a_judge_is_asked_for(name: str) -> None:
    which = benchmark(name)
    with pytest.raises(EvaluationError, match="is scored by a judge"):
        which.score(which.items()[0], ItemResult(images=(GOLDEN / name / "data/images/1000.png",)), Judges())


def test_the_published_overall_is_the_plain_mean_of_the_published_six() -> None:
    for model, overall in (("BAGEL", 0.52), ("BAGEL, thinking", 0.70)):
        rows = {one.row: one.value for one in Wise.info.published if one.model == model}
        assert round(sum(rows[name] for name in CATEGORIES) / 6, 2) == overall == rows["Overall"]

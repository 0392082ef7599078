"""GenEval 2 on a small set in its layout, with a judge whose probabilities are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Score
from bagel_mot.evaluation.benchmarks.geneval2 import GenEval2, answers_of, geometric_mean, judge_request
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges

LINES = [
    {
        "prompt": "four white boats beside a wooden bench",
        "atom_count": 6,
        "vqa_list": [["How many boats are in the image?", "four"], ["Are the boats white?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {
        "prompt": "a plastic kite above two dogs",
        "atom_count": 5,
        "vqa_list": [["Is the kite above the dogs?", "Yes"], ["How many dogs are in the image?", "two"]],
        "skills": ["position", "count"],
    },
]
TOKENS: dict[str, Mapping[str, float] | None] = {
    "How many boats are in the image?": {"Four": 0.5, " four": 0.125, "4": 0.125, "five": 0.2},
    "Are the boats white?": {"Yes": 0.25, "yes": 0.25, "No": 0.5},
    "Is the kite above the dogs?": {"No": 0.99, "no": 0.01},
    "How many dogs are in the image?": {"Two": 0.64, "twenty": 0.3},
}


class Likelihoods:
    """A judge that knows the first tokens of each question's reply."""

    def __init__(self, tokens: Mapping[str, Mapping[str, float] | None] = TOKENS) -> None:
        self.tokens = tokens
        self.asked: list[JudgeRequest] = []

    def complete(self, request: JudgeRequest) -> str | None:
        raise AssertionError("only tokens are asked for")

    def first_token(self, request: JudgeRequest) -> Mapping[str, float] | None:
        self.asked.append(request)
        return self.tokens[str(request.messages[0].content[1]).removesuffix(" Answer in one word.")]


def made(folder: Path, lines: list[dict[str, Any]] = LINES, partial: bool = True) -> GenEval2:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "geneval2_data.jsonl").write_text(text, encoding="utf-8")
    return GenEval2(BenchmarkOptions(folder, partial=partial))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def scored(which: GenEval2, image: Path, judge: Likelihoods) -> dict[str, Score]:
    return {item.id: which.score(item, ItemResult(images=(image,)), Judges(chat=judge)) for item in which.items()}


def test_each_question_is_asked_as_the_benchmark_asks_it(tmp_path: Path, image: Path) -> None:
    judge = Likelihoods()
    scored(made(tmp_path), image, judge)
    assert len(judge.asked) == 4
    request = judge.asked[0]
    assert request == judge_request("How many boats are in the image?", image.read_bytes())
    assert (request.temperature, request.max_tokens) == (0.0, 1)
    assert request.extra == {"logprobs": True, "top_logprobs": 20}
    assert request.messages[0].content[1] == "How many boats are in the image? Answer in one word."


def test_scores_are_means_of_the_answers_probabilities(tmp_path: Path, image: Path) -> None:
    first, second = scored(made(tmp_path), image, Likelihoods()).values()
    assert first.detail["probabilities"] == [0.75, 0.5]
    assert first.values["am"] == pytest.approx(0.625)
    assert first.values["gm"] == first.values["gm_most"] == pytest.approx(math.sqrt(0.375))
    assert second.detail["probabilities"] == [0.0, 0.64]
    assert second.values == pytest.approx({"am": 0.32, "gm": 0.0, "gm_most": math.sqrt(0.01 * 0.64)})


def test_the_summary_has_skills_by_am_and_parts_by_gm_in_per_cent(tmp_path: Path, image: Path) -> None:
    which = made(tmp_path)
    summary = which.aggregate(scored(which, image, Likelihoods()))
    found = {name: row.value for name, row in summary.rows.items()}
    gm = 100 * math.sqrt(0.375)
    wanted = {
        "Soft-TIFA AM": 47.25, "Soft-TIFA GM": gm / 2, "attribute": 50.0, "count": 69.5, "position": 0.0,
        "5 parts": 0.0, "6 parts": gm,
    }  # fmt: skip
    assert {name: value for name, value in found.items() if value is not None} == pytest.approx(wanted)
    assert found["verb"] is found["object"] is None
    assert summary.extra["GM at most"] == pytest.approx(gm / 2 + 4)
    assert summary.rows["count"].count == 2


def test_a_failed_call_leaves_the_item_out(tmp_path: Path, image: Path) -> None:
    which = made(tmp_path)
    scores = scored(which, image, Likelihoods({**TOKENS, "Are the boats white?": None}))
    assert set(scores["00000"].values.values()) == {None}
    assert scores["00000"].unparsable == 1
    assert which.aggregate(scores).rows["Soft-TIFA AM"].count == 1


@pytest.mark.parametrize(
    ("question", "answer", "tokens"),
    [
        ("Are they red?", "Yes", {"Yes", "yes", " Yes", " yes"}),
        ("How many dogs are there?", "ten", {"ten", "Ten", " ten", " Ten", "10", " 10"}),
        ("How many dogs are there?", "many", {"many", "Many", " many", " Many"}),
    ],
)
def test_the_tokens_of_an_answer(question: str, answer: str, tokens: set[str]) -> None:
    assert answers_of(question, answer) == tokens


def test_a_geometric_mean_is_never_above_the_arithmetic_one() -> None:
    assert geometric_mean([0.9, 0.1, 0.5]) == pytest.approx((0.9 * 0.1 * 0.5) ** (1 / 3))
    assert geometric_mean([0.9, 0.0]) == 0.0
    assert geometric_mean([0.9, None]) is None
    assert geometric_mean([]) is None


def test_a_judge_without_probabilities_is_refused(tmp_path: Path, image: Path) -> None:
    class Plain:
        def complete(self, request: JudgeRequest) -> str | None:
            return "Yes"

    which = made(tmp_path)
    for judge in (None, Plain()):
        with pytest.raises(EvaluationError, match="needs a judge that gives probabilities of tokens.*logprobs"):
            which.score(which.items()[0], ItemResult(images=(image,)), Judges(chat=judge))


def test_an_image_of_another_format_is_sent_as_png(tmp_path: Path, image: Path) -> None:
    jpeg = tmp_path / "image.jpg"
    Image.open(image).save(jpeg)
    judge = Likelihoods()
    scored(made(tmp_path), jpeg, judge)
    assert judge.asked[0].messages[0].content[0].data.startswith(b"\x89PNG")


def test_an_incomplete_set_is_refused_and_a_complete_one_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="GenEval 2 is not complete.*prompts 2 of 800"):
        made(tmp_path, partial=False)
    assert len(made(tmp_path, 400 * LINES, partial=False).items()) == 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vqa_list": [["Why?"]]}, "line 1: .*pairs of question and answer"),
        ({"vqa_list": []}, "pairs of question and answer"),
        ({"skills": ["count"]}, "skills must name one of object"),
        ({"skills": ["count", "smell"]}, "skills must name one of object"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        made(tmp_path, [LINES[0] | change])


def test_the_file_for_the_official_scorer_names_images_by_prompt(tmp_path: Path, image: Path) -> None:
    which = made(tmp_path)
    results = {item.id: ItemResult(images=(image,)) for item in which.items()}
    (path,) = which.write_submission(tmp_path / "files", results, {})
    assert json.loads(path.read_text(encoding="utf-8")) == {str(line["prompt"]): str(image) for line in LINES}

"""The VQA family on small sets in its layout, and its metrics against values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult
from bagel_mot.evaluation.benchmarks import vqa
from bagel_mot.evaluation.vqa_metrics import anls, exact_match, plain_text, relaxed_accuracy, vqa_accuracy
from tests.evaluation.benchmarks import golden

CLASSES = [
    *(vqa.VqaV2, vqa.OkVqa, vqa.TextVqa, vqa.VizWiz, vqa.DocVqa),
    *(vqa.InfoVqa, vqa.ChartQa, vqa.Gqa, vqa.OcrVqa, vqa.Ai2d),
]
SENTENCE = "Answer the question using a single word or phrase."


def write(root: Path, kind: type[vqa.VqaBenchmark]) -> None:
    """Two questions in each part: the first is answered "red", the second "12"."""
    for part in kind.parts:
        folder = root / part.folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(folder / "images" / "1.png")
        rows: list[dict[str, Any]] = []
        for id, answer in ((1, "red"), (2, "12")):
            image = f"data/{part.folder}/images/1.png"
            rows.append({"image": image, "question": f"What is {id}?", "question_id": id, "answer": answer})
        (folder / part.questions[0]).write_text("\n".join(map(json.dumps, rows)))
        if part.annotations:
            path = folder / part.annotations[0]
            path.parent.mkdir(exist_ok=True)
            if kind.__base__ is vqa.VqaV2.__base__:
                said = {1: ["red"] * 9 + ["blue"], 2: ["12"] * 2 + ["13"] * 8}
                content = [{"question_id": id, "answers": [{"answer": a} for a in all]} for id, all in said.items()]
                path.write_text(json.dumps({"annotations": content}))
            else:
                content = [{"questionId": 1, "answers": ["red", "scarlet"]}, {"questionId": 2, "answers": ["12"]}]
                path.write_text(json.dumps({"data": content}))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.info.name)
def test_a_set_in_its_layout(tmp_path: Path, kind: type[vqa.VqaBenchmark]) -> None:
    write(tmp_path / "data", kind)
    bench = kind(BenchmarkOptions(tmp_path / "data", partial=True))
    items = bench.items()
    before = "When the provided information is insufficient, respond with 'Unanswerable'. "
    middle = before if kind is vqa.VizWiz else ""
    assert [item.prompt for item in items[:2]] == [f"What is {n}? {middle}{SENTENCE}" for n in (1, 2)]
    cap = 100 if kind.info.name in ("docvqa", "infovqa", "chartqa", "ocrvqa") else 10
    assert items[0].settings == {"do_sample": False, "max_new_tokens": cap - 1, "vit_min_size": 378}
    answers = {item.id: "red" if n % 2 == 0 else "13.0" for n, item in enumerate(items)}
    scores, _, summary = golden.scored(bench, answers)
    assert scores[items[0].id].values["score"] == 1
    assert summary.rows["score"].value == 0.5
    results = {id: ItemResult((answer,)) for id, answer in answers.items()}
    (path,) = bench.write_submission(tmp_path, results, scores)
    assert [row["answer"] for row in json.loads(path.read_text())] == list(answers.values())
    if kind is not vqa.OcrVqa:
        with pytest.raises(DataError, match=f"not complete.* 2 of {kind.parts[0].items}"):
            kind(BenchmarkOptions(tmp_path / "data")).items()
        assert kind.info.items == sum(part.items or 0 for part in kind.parts)
    for part in kind.parts:
        (tmp_path / "data" / part.folder / "images" / "1.png").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"lacks 1 image: .*images/1\.png"):
        kind(BenchmarkOptions(tmp_path / "data", partial=True)).items()


def test_chartqa_has_two_parts(tmp_path: Path) -> None:
    write(tmp_path, vqa.ChartQa)
    bench = vqa.ChartQa(BenchmarkOptions(tmp_path, partial=True))
    answers = {"human/1": "red", "human/2": "12.5", "augmented/1": "blue", "augmented/2": "13"}
    _, _, summary = golden.scored(bench, answers)
    rows = {name: row.value for name, row in summary.rows.items()}
    assert rows == {"score": 0.5, "human": 1.0, "augmented": 0.0}


def test_an_answer_is_needed(tmp_path: Path) -> None:
    write(tmp_path, vqa.VqaV2)
    (tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match="question 1: there is no answer to compare with"):
        vqa.VqaV2(BenchmarkOptions(tmp_path, partial=True)).items()
    (tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json").write_text("{}")
    with pytest.raises(DataError, match="has neither 'annotations' nor 'data'"):
        vqa.VqaV2(BenchmarkOptions(tmp_path, partial=True)).items()
    (tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": [{"question_id": 1}]}')
    with pytest.raises(DataError, match="an entry without a list of answers"):
        vqa.VqaV2(BenchmarkOptions(tmp_path, partial=True)).items()


def test_texts_are_compared_as_vqa_does() -> None:
    assert plain_text("The Dog's, house.") == "dog's house"
    assert plain_text("two cats") == "2 cats"
    assert plain_text("1,000") == "1000"
    assert plain_text("don't / dont") == "don't don't"
    assert plain_text("black-white") == "black white"
    assert plain_text("3.5 feet.") == "3.5 feet"


def test_vqa_accuracy() -> None:
    assert vqa_accuracy("a red car", ["red car"] * 10) == 1
    # Of ten people three agree: leaving one of the three out leaves 2/3, leaving another out leaves 1.
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_accuracy("red", ["red"] + ["blue"] * 9) == pytest.approx(9 * (1 / 3) / 10)
    assert vqa_accuracy("green", ["red"] * 10) == 0


def test_other_metrics() -> None:
    assert anls("Hello  World", ["hello world"]) == 1
    assert anls("abcd", ["abce", "x"]) == 0.75
    assert anls("ab", ["ax"]) == 0  # half of it differs
    assert anls("", ["x"]) == 0
    assert relaxed_accuracy("104.9", ["100"]) == 1
    assert relaxed_accuracy("105.1", ["100"]) == 0
    assert relaxed_accuracy("50%", ["0.5"]) == 1
    assert relaxed_accuracy("0", ["0"]) == 1
    assert relaxed_accuracy("Blue ", ["blue"]) == 1
    assert exact_match(" Yes. ", ["yes"]) == 1
    assert exact_match("yes it is", ["yes"]) == 0

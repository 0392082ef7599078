"""VLMEvalKit's tables: its data sets are read as the official layouts are, and predictions go there and back."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import DataError, ImageError, SettingError
from bagel_mot.evaluation.base import Benchmark, BenchmarkOptions, Item, ItemImage, ItemResult
from bagel_mot.evaluation.benchmarks import vqa
from bagel_mot.evaluation.benchmarks.geneval import GenEval
from bagel_mot.evaluation.benchmarks.mathvista import MathVista
from bagel_mot.evaluation.benchmarks.mmbench import MMBench
from bagel_mot.evaluation.benchmarks.mme import Mme
from bagel_mot.evaluation.benchmarks.mmmu import Mmmu
from bagel_mot.evaluation.benchmarks.mmvet import MMVet
from bagel_mot.evaluation.benchmarks.mmvp import Mmvp
from bagel_mot.evaluation.benchmarks.pope import Pope
from bagel_mot.evaluation.data import open_input, read_parquet, read_xlsx, write_xlsx
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.respondents.base import content
from bagel_mot.evaluation.respondents.predictions import PredictionsRespondent
from bagel_mot.evaluation.vlmevalkit import (
    kit_name,
    python_list,
    read_kit_table,
    read_predictions,
    write_predictions,
)
from tests.evaluation.benchmarks import golden
from tests.evaluation.benchmarks.test_vqa import write as write_vqa

pytest.importorskip("openpyxl")
pytest.importorskip("pyarrow")

BLUE, RED = Image.new("RGB", (9, 7), "blue"), Image.new("RGB", (5, 4), "red")


def encoded(image: Image.Image) -> str:
    return base64.b64encode(content(lambda: image)).decode()


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_kit(path: Path, items: Sequence[Item], **more: Any) -> Path:
    """A data set of VLMEvalKit with the items of a benchmark: an image that was there before is named by its row."""
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, item in enumerate(items):
        text = encoded(open_input(item.images[0]))
        index = int(item.id) if item.id.isdecimal() else number
        rows.append({"index": index, "image": seen.get(text, text), **item.row, **more})
        seen.setdefault(text, index)
    assert len(seen) < len(rows)
    return table(path, rows)


# ------------------------------------------------------------------------------------------------------ the data sets


def test_an_image_is_text_another_row_or_a_list(tmp_path: Path) -> None:
    both = str([encoded(RED), encoded(BLUE)])
    path = table(
        tmp_path / "set.tsv",
        [
            {"index": 7, "question": 'What is\n"this"?', "image": encoded(BLUE)},
            {"index": 8, "question": "And?", "image": "7"},
            {"index": 9, "question": "Two?", "image": both},
            {"index": 10, "question": "The same two?", "image": "9"},
        ],
    )
    rows = read_kit_table(path, columns=("question",))
    assert [row.index for row in rows] == ["7", "8", "9", "10"]
    assert rows[0].cells == {"question": 'What is\n"this"?'}
    sizes = [[open_input(image).size for image in row.images] for row in rows]
    assert sizes == [[(9, 7)], [(9, 7)], [(5, 4), (9, 7)], [(5, 4), (9, 7)]]


@pytest.mark.parametrize("folder", ["images/Some_SET", "images/Some", "."])
def test_images_may_be_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    BLUE.save(tmp_path / folder / "1.png")
    rows = [{"index": 1, "image_path": "1.png"}, {"index": 2, "image_path": "['1.png', '2.png']"}]
    first, second = read_kit_table(table(tmp_path / "Some_SET_local.tsv", rows))
    assert first.images == (tmp_path / folder / "1.png",)
    assert second.images == (tmp_path / folder / "1.png", tmp_path / "images" / "Some_SET" / "2.png")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"index": 1, "question": "?"}], "has neither 'image' nor 'image_path'; there are index, question"),
        ([{"image": "x"}], "lacks 'index'"),
        ([{"index": 1, "image": "x"}, {"index": 1, "image": "x"}], "1 of its rows repeat an index"),
        ([{"index": 1, "image": "2"}], "index 1: its image is that of index 2, which has none"),
        ([{"index": 1, "image": "2"}, {"index": 2, "image": "1"}], "its image is that of index 1, which has none"),
        ([{"index": 1, "image": ""}], "index 1: the row has no image"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_kit_table(table(tmp_path / "set.tsv", rows))


def test_an_image_that_cannot_be_decoded_is_the_items_error(tmp_path: Path) -> None:
    [row] = read_kit_table(table(tmp_path / "set.tsv", [{"index": 1, "image": "bm90IGFuIGltYWdl"}]))
    with pytest.raises(ImageError):
        open_input(row.images[0])


def test_lists_as_python_writes_them() -> None:
    assert python_list("['a', \"it's\", 3]") == ["a", "it's", "3"]
    assert python_list("red") == ["red"]
    assert python_list("[0, 1") == ["[0, 1"]
    assert python_list("[a]") == ["[a]"]
    assert python_list("[" * 5000 + "]") == ["[" * 5000 + "]"]


def same_but_for_ids(theirs: Sequence[Item], ours: Sequence[Item]) -> None:
    for there, here in zip(theirs, ours, strict=True):
        assert (there.prompt, there.settings, dict(there.facts)) == (here.prompt, here.settings, dict(here.facts))
        assert open_input(there.images[0]).size == open_input(here.images[0]).size


def rescored(
    theirs: Benchmark, ours: Benchmark, answers: dict[str, str], replies: dict[str, list[str | None]] | None = None
) -> None:
    """The same answers, and replies of the judge, have the same summary in both layouts."""
    names = {there.id: here.id for there, here in zip(theirs.items(), ours.items(), strict=True)}
    told = {id: (replies or {}).get(name, []) for id, name in names.items()}
    renamed = {id: answers[name] for id, name in names.items()}
    assert golden.scored(theirs, renamed, told)[2] == golden.scored(ours, answers, replies)[2]


def test_mme(tmp_path: Path) -> None:
    ours = Mme(golden.options("mme"))
    path = as_kit(tmp_path / "MME.tsv", ours.items())
    theirs = Mme(BenchmarkOptions(tmp_path, partial=True))
    assert [item.id for item in theirs.items()] == [str(n) for n in range(len(ours.items()))]
    same_but_for_ids(theirs.items(), ours.items())
    for run in ("main", "odd"):
        answers = golden.load("mme", "answers")["runs"]
        rescored(theirs, ours, answers["main"] | answers[run])
    with pytest.raises(DataError, match="MME is not complete.*existence 6 of 60"):
        Mme(BenchmarkOptions(tmp_path)).items()
    path.write_text(path.read_text().replace("\texistence\t", "\tbeing\t", 1))
    with pytest.raises(DataError, match="index 0: 'Yes' and 'being' are not Yes or No and a task of MME"):
        Mme(BenchmarkOptions(tmp_path, partial=True)).items()


def test_mmbench(tmp_path: Path) -> None:
    ours = MMBench(golden.options("mmbench"))
    as_kit(tmp_path / "MMBench_DEV_EN.tsv", ours.items(), split="dev")
    theirs = MMBench(BenchmarkOptions(tmp_path, partial=True))
    same_but_for_ids(theirs.items(), ours.items())
    answers = golden.load("mmbench", "answers")["runs"]["mmbench_dev_20230712"]
    rescored(theirs, ours, answers)
    with pytest.raises(DataError, match=r"MMBench \(MMBench_DEV_EN.tsv\) is not complete.*7 of 1164"):
        MMBench(BenchmarkOptions(tmp_path)).items()
    assert kit_name(MMBench.info, None) == "MMBench_DEV_EN"
    assert kit_name(MMBench.info, "dev-en-20231003") is None


def test_mmvp(tmp_path: Path) -> None:
    ours = Mmvp(golden.options("mmvp"))
    rows = [
        {"index": item.id, "image": encoded(open_input(item.images[0])), **item.row} for item in reversed(ours.items())
    ]
    table(tmp_path / "MMVP.tsv", rows)
    theirs = Mmvp(BenchmarkOptions(tmp_path, partial=True))
    assert [item.id for item in theirs.items()] == [item.id for item in ours.items()]  # in the order of indices
    same_but_for_ids(theirs.items(), ours.items())
    answers = {item.id: "AB"[n % 2] for n, item in enumerate(ours.items())}
    rescored(theirs, ours, answers)
    rows[0]["answer"] = "E"
    table(tmp_path / "MMVP.tsv", rows)
    with pytest.raises(DataError, match="the answer 'E' is not one of the options"):
        Mmvp(BenchmarkOptions(tmp_path, partial=True)).items()


def in_table(images: Sequence[ItemImage]) -> str:
    texts = [encoded(open_input(image)) for image in images]
    return texts[0] if len(texts) == 1 else str(texts)


MMMU_GAP = "validation_Computer_Science_1"


def mmmu_rows() -> list[dict[str, Any]]:
    """The recorded questions of MMMU as VLMEvalKit has them, after one of another split."""
    rows = []
    for row in read_parquet(
        sorted((golden.ROOT / "mmmu" / "data" / "MMMU").glob("*/validation-*.parquet")),
        columns=("id", "question", "options", "answer", "question_type"),
        images=[f"image_{n}" for n in range(1, 8)],
    ):
        images = [row[f"image_{n}"] for n in range(1, 8) if row[f"image_{n}"] is not None]
        options = dict.fromkeys("ABCDEFGHI", "")
        if row["question_type"] == "multiple-choice":
            options.update(zip("ABCDEFGHI", python_list(row["options"]), strict=False))
        told = {"id": row["id"], "question": row["question"], **options, "answer": row["answer"]}
        rows.append({"index": len(rows) + 2, "image": in_table(images), **told, "split": "validation"})
    dev = {**rows[0], "index": 1, "id": "dev_Music_3", "split": "dev"}
    return [dev, *rows]


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("mode", golden.MODES)
def test_mmmu(tmp_path: Path, mode: Any, think: bool) -> None:
    more = {"protocol": mode, "think": think}
    rows = mmmu_rows()
    table(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    ours = Mmmu(golden.options("mmmu", **more))
    theirs = Mmmu(BenchmarkOptions(tmp_path, partial=True, **more))
    assert any(len(item.images) > 1 for item in theirs.items())
    assert any(not item.facts["options"] for item in theirs.items())
    # The release lets one question begin with the second image, which is not doubled; a table has no such gap.
    pairs = [pair for pair in zip(theirs.items(), ours.items(), strict=True) if pair[1].id != MMMU_GAP]
    assert len(pairs) == len(ours.items()) - 1
    same_but_for_ids([there for there, _ in pairs], [here for _, here in pairs])
    assert [item.id for item in theirs.items()] == [str(n) for n in range(2, 2 + len(ours.items()))]
    rescored(theirs, ours, golden.load("mmmu", "answers")["runs"]["cot" if think else "main"])
    [dev] = Mmmu(BenchmarkOptions(tmp_path, partial=True, variant="dev")).items()
    assert (dev.id, dev.facts["subject"]) == ("1", "Music")


def test_mmmu_that_is_not_whole_or_not_as_it_was(tmp_path: Path) -> None:
    rows = mmmu_rows()
    path = table(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    with pytest.raises(DataError, match=r"MMMU \(validation\) is not complete.*Accounting 2 of 30"):
        Mmmu(BenchmarkOptions(tmp_path)).items()
    chosen = next(row for row in rows[1:] if row["A"])
    # A program that takes the text "None" for a missing cell spoils the options of one question.
    lost = {**chosen, "answer": "D", "D": "", "E": ""}
    for cells, sentence in (
        (lost, f"index {chosen['index']}: the options A, B, C have a gap, or lack the answer 'D'"),
        ({**chosen, "B": ""}, f"index {chosen['index']}: the options A, C, D have a gap"),
        ({**chosen, "id": "validation_Astrology_1"}, "the id 'validation_Astrology_1' does not name a split and a sub"),
        ({**chosen, "id": "train_Art_1"}, "the id 'train_Art_1' does not name a split"),
    ):
        table(path, [cells])
        with pytest.raises(DataError, match=sentence):
            Mmmu(BenchmarkOptions(tmp_path, partial=True)).items()
    table(path, [{**chosen, "D": "None", "answer": "D"}])  # a text like any other
    [item] = Mmmu(BenchmarkOptions(tmp_path, partial=True)).items()
    assert item.facts["options"]["D"] == "None"


def test_mmmu_is_submitted_under_its_own_ids(tmp_path: Path) -> None:
    table(tmp_path / "MMMU_DEV_VAL.tsv", mmmu_rows())
    bench = Mmmu(BenchmarkOptions(tmp_path, partial=True))
    answers = {item.id: "B" for item in bench.items()}
    scores, _, _ = golden.scored(bench, answers)
    [path] = bench.write_submission(tmp_path, {id: ItemResult((text,)) for id, text in answers.items()}, scores)
    assert set(json.loads(path.read_text())) == {item.id for item in Mmmu(golden.options("mmmu")).items()}


@pytest.mark.parametrize("mode", golden.MODES)
def test_mmvet(tmp_path: Path, mode: Any) -> None:
    ours = MMVet(golden.options("mmvet", protocol=mode), head="The head.\n")
    rows = [
        {
            "index": 100 + n,
            "image": in_table(item.images),
            **item.row,
            "category": ",".join(item.facts["abilities"]),
        }
        for n, item in enumerate(ours.items())
    ]
    path = table(tmp_path / "MMVet.tsv", rows)
    theirs = MMVet(BenchmarkOptions(tmp_path, partial=True, protocol=mode), head="The head.\n")
    same_but_for_ids(theirs.items(), ours.items())
    recorded = golden.load("mmvet", "answers")
    rescored(theirs, ours, recorded["runs"]["main"], recorded["judge"]["main"])
    assert theirs.write_submission(tmp_path, {}, {}) == []  # the table does not tell the ids of the service
    with pytest.raises(DataError, match=f"MM-Vet is not complete.*questions {len(rows)} of 218"):
        MMVet(BenchmarkOptions(tmp_path)).items()
    table(path, [{**rows[0], "category": "rec,smell"}])
    with pytest.raises(DataError, match="index 100: 'smell' is no ability of MM-Vet, which has rec, ocr, know"):
        MMVet(BenchmarkOptions(tmp_path, partial=True)).items()


def mathvista_rows(*names: str) -> list[dict[str, Any]]:
    """The recorded questions of MathVista as VLMEvalKit has them; beside its columns those facts that are named."""
    rows = []
    for n, item in enumerate(MathVista(golden.options("mathvista")).items()):
        facts = item.facts
        choices = facts["choices"] or []
        chosen = facts["question_type"] == "multi_choice"
        told = {name: facts[name] for name in ("answer", "question_type", "answer_type")}
        rows.append(
            {
                "index": 100 + n,
                "image": in_table(item.images),
                "question": facts["query"],
                "choices": str(choices),
                "answer_option": "ABCDEFGH"[choices.index(facts["answer"])] if chosen else "",
                "task": facts["metadata"]["task"],
                "skills": str(facts["metadata"]["skills"]),
                **told,
                **{name: facts.get(name, facts["metadata"].get(name)) for name in names},
            }
        )
    return rows


@pytest.mark.parametrize("mode", golden.MODES)
@pytest.mark.parametrize("run", ["main", "quick"])
def test_mathvista(tmp_path: Path, mode: Any, run: str) -> None:
    variant = "testmini-quick" if run == "quick" else "testmini"
    ours = MathVista(golden.options("mathvista", protocol=mode, variant=variant))
    options = BenchmarkOptions(tmp_path, partial=True, protocol=mode, variant=variant)
    recorded = golden.load("mathvista", "answers")
    replies = {} if run == "quick" else recorded["judge"]["main"]
    path = table(
        tmp_path / "MathVista_MINI.tsv", mathvista_rows("pid", "language", "source", "category", "context", "grade")
    )
    theirs = MathVista(options)
    for there, here in zip(theirs.items(), ours.items(), strict=True):
        assert (there.prompt, there.settings) == (here.prompt, here.settings)
        facts = {name: value for name, value in here.facts.items() if name != "metadata"}
        assert {name: there.facts[name] for name in facts} == facts
        assert open_input(there.images[0]).size == open_input(here.images[0]).size
    rescored(theirs, ours, recorded["runs"][run], replies)
    # With no more than the columns that VLMEvalKit itself reads the numbers are the same, and some rows are missing.
    table(path, mathvista_rows())
    fewer = MathVista(options)
    answers = dict(zip((item.id for item in fewer.items()), recorded["runs"][run].values(), strict=True))
    renamed = dict(zip(recorded["runs"][run], answers, strict=True))
    found = golden.scored(fewer, answers, {renamed[id]: said for id, said in replies.items()})[2]
    whole = golden.scored(ours, recorded["runs"][run], replies)[2]
    assert found.rows == {name: row for name, row in whole.rows.items() if name in found.rows}
    assert {name.partition("/")[0] for name in found.rows} == {
        *("average", "question_type", "answer_type", "task", "skills"),
    }
    assert fewer.write_submission(tmp_path, {}, {}) == []


def test_mathvista_that_is_not_whole_or_not_as_it_was(tmp_path: Path) -> None:
    rows = mathvista_rows()
    path = table(tmp_path / "MathVista_MINI.tsv", rows)
    with pytest.raises(DataError, match=rf"MathVista \(testmini\) is not complete.*questions {len(rows)} of 1000"):
        MathVista(BenchmarkOptions(tmp_path)).items()
    with pytest.raises(DataError, match=r"lacks MathVista/data|lacks test-"):  # the table has no test split
        MathVista(BenchmarkOptions(tmp_path, variant="test")).items()
    for cells, sentence in (
        ({"choices": "['red' 'green']", "answer_option": "B"}, "index 100: the answer 'green' is not one of the choi"),
        ({"question": "What is shown?"}, "index 100: the question is no query of MathVista"),
    ):
        table(path, [{**rows[0], **cells}])
        with pytest.raises(DataError, match=sentence):
            MathVista(BenchmarkOptions(tmp_path, partial=True)).items()


def test_pope_has_a_question_of_several_categories_once(tmp_path: Path) -> None:
    ask = "Is there a dog in the image? Please answer yes or no."
    image = encoded(BLUE)
    rows = [
        {"index": 0, "question": ask, "answer": "Yes", "category": "adversarial,popular,random", "image": image},
        {"index": 1, "question": ask.replace("dog", "cat"), "answer": "No", "category": "random", "image": "0"},
    ]
    table(tmp_path / "POPE.tsv", rows)
    pope = Pope(BenchmarkOptions(tmp_path))
    assert pope.items()[0].prompt == (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    assert pope.items()[0].row["question"] == ask
    _, _, summary = golden.scored(pope, {"0": "Yes", "1": "Yes"})
    assert [summary.rows[f"{name}/accuracy"].value for name in ("adversarial", "popular", "random")] == [1, 1, 0.5]
    rows[0]["category"] = "popular,rare"
    table(tmp_path / "POPE.tsv", rows)
    with pytest.raises(DataError, match="'Yes' and 'popular,rare' are not Yes or No and some of adversarial"):
        Pope(BenchmarkOptions(tmp_path)).items()


@pytest.mark.parametrize("kind", [vqa.TextVqa, vqa.DocVqa, vqa.InfoVqa, vqa.ChartQa, vqa.Gqa])
def test_the_vqa_family(tmp_path: Path, kind: type[vqa.VqaBenchmark]) -> None:
    write_vqa(tmp_path / "data", kind)
    ours = kind(BenchmarkOptions(tmp_path / "data", partial=True))
    rows: list[dict[str, Any]] = []
    for n, item in enumerate(ours.items()):
        split = {"split": f"test_{item.facts['part']}"} if kind is vqa.ChartQa else {}
        rows.append({"index": n, "image": "0" if n else encoded(BLUE), **item.row, **split})
    path = table(tmp_path / f"{kit_name(kind.info, None)}.tsv", rows)
    theirs = kind(BenchmarkOptions(tmp_path, partial=True))
    assert [item.prompt for item in theirs.items()] == [item.prompt for item in ours.items()]
    answers = {item.id: "red" if n % 2 == 0 else "13" for n, item in enumerate(ours.items())}
    rescored(theirs, ours, answers)
    wrong = [({"answer": ""}, "there is no answer to compare with")]
    if kind is vqa.ChartQa:
        wrong.append(({"split": "val"}, "its split is 'val'"))
    for cells, sentence in wrong:
        table(path, [{**rows[0], **cells}, *rows[1:]])
        with pytest.raises(DataError, match=f"index 0: {sentence}"):
            kind(BenchmarkOptions(tmp_path, partial=True)).items()


# -------------------------------------------------------------------------------------------------------- predictions


def there_and_back(benchmark: Benchmark, answers: dict[str, str], folder: Path) -> None:
    """The scores of answers are those of the same answers from xlsx and TSV."""
    ours = golden.scored(benchmark, answers)
    for path in write_predictions(folder, "a_model_SET", benchmark.items(), answers):
        respondent = PredictionsRespondent(path, benchmark)
        results = respondent.answer(benchmark.items(), folder)
        scores = {
            item.id: benchmark.score(item, result, Judges())
            for item, result in zip(benchmark.items(), results, strict=True)
            if isinstance(result, ItemResult)
        }
        assert {id: score.values for id, score in scores.items()} == {id: s.values for id, s in ours[0].items()}, path
        assert benchmark.aggregate(scores) == ours[2], path


@pytest.mark.parametrize("mode", golden.MODES)
def test_predictions_of_mme_there_and_back(tmp_path: Path, mode: Any) -> None:
    recorded = golden.load("mme", "answers")["runs"]
    there_and_back(Mme(golden.options("mme", protocol=mode)), recorded["main"] | recorded["odd"], tmp_path)


@pytest.mark.parametrize("mode", golden.MODES)
def test_predictions_of_mmbench_there_and_back(tmp_path: Path, mode: Any) -> None:
    bench = MMBench(golden.options("mmbench", protocol=mode))
    answers = golden.load("mmbench", "answers")["runs"]["mmbench_dev_20230712"]
    there_and_back(bench, answers, tmp_path)
    there_and_back(bench, answers | {bench.items()[0].id: ""}, tmp_path)
    rows = read_xlsx(tmp_path / "a_model_SET.xlsx")
    assert next(iter(rows[0])) == "index"
    assert list(rows[0])[-1] == "prediction"
    assert {"question", "A", "B", "answer", "category", "l2-category"} <= set(rows[0])
    assert "image" not in rows[0]
    assert [row["index"] for row in rows] == [int(item.id) for item in bench.items()]
    assert [row["A"] for row in rows] == [item.facts["options"].get("A") for item in bench.items()]


@pytest.mark.parametrize("kind", [vqa.VqaV2, vqa.DocVqa, vqa.ChartQa])
def test_predictions_of_vqa_there_and_back(tmp_path: Path, kind: type[vqa.VqaBenchmark]) -> None:
    write_vqa(tmp_path / "data", kind)
    bench = kind(BenchmarkOptions(tmp_path / "data", partial=True))
    said = ("red", "=12", "a\ttab", "two\nlines")
    answers = {item.id: said[n % len(said)] for n, item in enumerate(bench.items())}
    there_and_back(bench, answers, tmp_path)
    [xlsx, tsv] = write_predictions(tmp_path, "SET", bench.items(), answers)
    assert read_predictions(xlsx) == read_predictions(tsv) == answers
    pandas = pytest.importorskip("pandas")  # as VLMEvalKit reads both
    for frame in (pandas.read_excel(xlsx), pandas.read_csv(tsv, sep="\t")):
        assert [str(index) for index in frame["index"]] == list(answers)
        assert list(frame["prediction"]) == list(answers.values())
        assert list(frame["question"])[:2] == ["What is 1?", "What is 2?"]


def test_a_long_answer_is_whole_in_tsv_alone(tmp_path: Path) -> None:
    item = Item("1", "ask", "Why?")
    xlsx, tsv = write_predictions(tmp_path, "SET", [item, Item("2", "ask", "How?")], {"1": "because " * 9000})
    assert read_predictions(tsv) == {"1": "because " * 9000}
    assert len(read_predictions(xlsx)["1"]) == 32767


def test_cells_that_are_numbers_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "m_MME.xlsx"
    write_xlsx(path, ["index", "prediction"], [[0, 3], [1.0, 2.0], ["2", 2.5], [None, None]])
    assert read_predictions(path) == {"0": "3", "1": "2", "2": "2.5"}


@pytest.mark.parametrize(
    ("heading", "rows", "sentence"),
    [
        (["index", "answer"], [[0, "Yes"]], "lacks 'prediction'; there are index, answer"),
        (["id", "prediction"], [[0, "Yes"]], "lacks 'index'; there are id, prediction"),
        (["index", "prediction"], [], "holds no prediction"),
        (["index", "prediction"], [[3, "Yes"], [3, "No"]], "has several rows of index 3: each may have one"),
        (["index", "prediction"], [[3, None], [4, "No"]], "lacks the prediction of index 3: make it"),
        (["index", "prediction"], [[3, "Failed to obtain answer via API."]], "did not answer index 3: have it asked"),
    ],
)
@pytest.mark.parametrize("ending", ["xlsx", "tsv"])
def test_tables_that_hold_no_predictions(
    tmp_path: Path, heading: list[str], rows: list[list[Any]], sentence: str, ending: str
) -> None:
    path = tmp_path / f"m_MME.{ending}"
    if ending == "xlsx":
        write_xlsx(path, heading, rows)
    else:
        lines = ["\t".join("" if cell is None else str(cell) for cell in row) for row in [heading, *rows]]
        path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=sentence):
        read_predictions(path)


def test_predictions_of_all_splits_of_a_table_are_taken(tmp_path: Path) -> None:
    rows = mmmu_rows()
    table(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    both = [{"index": row["index"], "prediction": "A"} for row in rows]
    path = table(tmp_path / "model_MMMU_DEV_VAL.tsv", both)
    for variant, asked in (("dev", 1), ("val", len(rows) - 1)):
        mmmu = Mmmu(BenchmarkOptions(tmp_path, partial=True, variant=variant))
        results = PredictionsRespondent(path, mmmu).answer(mmmu.items(), tmp_path)
        assert [result.texts for result in results if isinstance(result, ItemResult)] == [("A",)] * asked
    table(path, [*both, {"index": 999, "prediction": "A"}])
    with pytest.raises(DataError, match=r"holds 1 rows that are not in MMMU \(index 999\)"):
        PredictionsRespondent(path, Mmmu(BenchmarkOptions(tmp_path, partial=True)))


def test_predictions_of_another_set_are_refused(tmp_path: Path) -> None:
    mme = Mme(golden.options("mme"))
    answers = {item.id: "Yes" for item in mme.items()}
    [path, _] = write_predictions(tmp_path, "model_MME", mme.items(), answers)
    assert PredictionsRespondent(path, mme).facts["model"] == "model"
    first = mme.items()[0].id
    write_predictions(tmp_path, "model_MME", mme.items(), {id: text for id, text in answers.items() if id != first})
    with pytest.raises(DataError, match=f"lacks 1 of {len(answers)} items of MME \\(index {first}\\)"):
        PredictionsRespondent(path, mme)
    write_predictions(tmp_path, "model_MME", mme.items()[:4], answers)
    PredictionsRespondent(path, mme, limit=4)
    write_predictions(tmp_path, "model_MME", [*mme.items(), Item("99", "ask", "?")], {**answers, "99": "Yes"})
    with pytest.raises(DataError, match=r"holds 1 rows that are not in MME \(index 99\)"):
        PredictionsRespondent(path, mme)
    with pytest.raises(SettingError, match=r"it must end in \.xlsx, \.tsv or \.csv"):
        PredictionsRespondent(tmp_path / "model_MME.json", mme)
    with pytest.raises(SettingError, match="--predictions is for benchmarks of questions: geneval has images drawn"):
        PredictionsRespondent(path, GenEval(golden.options("geneval")))

"""The VQA family: short answers about photos, documents, charts and diagrams.

The published code has scripts for these sets and no scores: numbers from here are not reproductions. Prompts and limits
are those of the scripts, as InternVL2's documentation prepares the data: one JSON object a line with `image`,
`question`, `question_id` and `answer`, and, where several people answered, an annotation file beside it. Published and
fixed agree. Where VLMEvalKit has the same set, its table is read too, by the same prompts. The names and numbers of
questions are those of the sets' own descriptions; no complete set was at hand when this was written.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import SHORT_SENTENCE, ask_settings
from bagel_mot.evaluation.base import Benchmark, BenchmarkInfo, Item, ItemImage, ItemResult, Score, Summary
from bagel_mot.evaluation.data import locate, read_json_file, read_json_lines, require_complete
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.rows import mean_row
from bagel_mot.evaluation.vlmevalkit import kit_table, python_list, read_kit_table
from bagel_mot.evaluation.vqa_metrics import anls, exact_match, relaxed_accuracy, vqa_accuracy
from bagel_mot.files import write_text

_NO_ANSWER = "When the provided information is insufficient, respond with 'Unanswerable'. "


@dataclass(frozen=True)
class VqaPart:
    """A file of questions.

    Attributes:
        name: the row of its score.
        folder: the folder in the official layout.
        questions: the file's names there, the official one first.
        items: its questions; None where the number is not known for certain.
        annotations: the names of the file with all people's answers; none where the questions have theirs.
    """

    name: str
    folder: str
    questions: tuple[str, ...]
    items: int | None
    annotations: tuple[str, ...] = ()


class VqaBenchmark(Benchmark):
    """A set of the family.

    Attributes:
        parts: its files of questions.
        metric: compares an answer with those of people.
        cap: the limit of tokens, which counts the start token.
        before: a sentence between the question and the one that asks for a short answer.
    """

    parts: ClassVar[tuple[VqaPart, ...]]
    cap: ClassVar[int] = 10
    before: ClassVar[str] = ""

    @property
    @abstractmethod
    def metric(self) -> Callable[[str, Sequence[str]], float]:
        """Compares an answer with those of people; from 0 to 1."""

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items = self._released() if table is None else self._tabled(table)
        found = {part.name: sum(item.facts["part"] == part.name for item in items) for part in self.parts}
        expected = {part.name: found[part.name] if part.items is None else part.items for part in self.parts}
        files = (image for item in items for image in item.images if isinstance(image, Path))
        require_complete(self.info.title, found, expected, files=files, partial=self.options.partial)
        return tuple(items)

    def _released(self) -> list[Item]:
        """The items of the files of questions."""
        items: list[Item] = []
        for part in self.parts:
            path = self._locate(part.folder, part.questions)
            truths = self._truths(part, path.parent)
            images = _ImageFiles(self.options.data, path.parent)
            for number, row in enumerate(read_json_lines(path, columns=("image", "question"))):
                id = str(row.get("question_id", number))
                given = row.get("answer") if truths is None else truths.get(id)
                answers = [] if given is None else [str(one) for one in (given if isinstance(given, list) else [given])]
                if not answers:
                    raise DataError(f"{path}, question {id}: there is no answer to compare with.")
                id = id if len(self.parts) == 1 else f"{part.name}/{id}"
                items.append(self._item(part, id, row["question"], answers, (images.path(row["image"]),), row["image"]))
        return items

    def _tabled(self, path: Path) -> list[Item]:
        """The items of VLMEvalKit's table. The column `split` names the part, where there are several."""
        several = len(self.parts) > 1
        items = []
        for row in read_kit_table(path, columns=("question", "answer", *(("split",) if several else ()))):
            split = row.cells.get("split", "")
            part = next((part for part in self.parts if not several or part.name in split), None)
            if part is None or not row.cells["answer"]:
                what = f"its split is {split!r}" if part is None else "there is no answer to compare with"
                raise DataError(f"{path}, index {row.index}: {what}.")
            answers = python_list(row.cells["answer"])
            items.append(self._item(part, row.index, row.cells["question"], answers, row.images, None))
        return items

    def _locate(self, folder: str, names: Sequence[str]) -> Path:
        return locate(self.options.data, *(f"{folder}/{name}" for name in names), *names)

    def _truths(self, part: VqaPart, folder: Path) -> dict[str, list[str]] | None:
        """All people's answers by the question's id, or None where the questions have them."""
        if not part.annotations:
            return None
        path = locate(folder, *part.annotations)
        content = read_json_file(path)
        rows = content.get("annotations", content.get("data")) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path} has neither 'annotations' nor 'data': take the benchmark's own file.")
        truths = {}
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("answers"), list):
                raise DataError(f"{path} has an entry without a list of answers: take the benchmark's own file.")
            id = row.get("question_id", row.get("questionId"))
            truths[str(id)] = [one["answer"] if isinstance(one, dict) else str(one) for one in row["answers"]]
        return truths

    def _item(
        self,
        part: VqaPart,
        id: str,
        question: str,
        answers: list[str],
        images: tuple[ItemImage, ...],
        group: Any,
    ) -> Item:
        return Item(
            id,
            "ask",
            f"{question} {self.before}{SHORT_SENTENCE}",
            images,
            ask_settings(self.cap, self.options.think),
            facts={"part": part.name, "answers": answers},
            group=None if group is None else str(group),
            row={
                "question": question,
                "answer": answers if len(answers) > 1 else answers[0],
                **({"split": part.name} if len(self.parts) > 1 else {}),
            },
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        answer = result.texts[0]
        return Score({"score": self.metric(answer, item.facts["answers"])}, {"answer": answer})

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        scored = [item for item in self._items if item.id in scores]
        rows = {"score": mean_row(scores[item.id].values["score"] for item in scored)}
        if len(self.parts) > 1:
            for part in self.parts:
                own = [item for item in scored if item.facts["part"] == part.name]
                rows[part.name] = mean_row(scores[item.id].values["score"] for item in own)
        return Summary(rows, ("score",))

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `results.json`, a list of {"question_id", "answer"}."""
        rows = [
            {"question_id": item.id, "answer": results[item.id].texts[0]} for item in self._items if item.id in results
        ]
        write_text(folder / "results.json", json.dumps(rows, ensure_ascii=False))
        return [folder / "results.json"]


class _ImageFiles:
    """Finds the images, whose paths begin at a folder above the data."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._roots = (data.parent, data, folder, folder.parent, data.parent.parent)

    def path(self, name: str) -> Path:
        """The first file of this name, or the place where it should be."""
        names = (name, name.removeprefix("data/"))
        for root in self._roots:
            for one in names:
                if (root / one).is_file():
                    return root / one
        return self._roots[1] / names[1]


def _info(
    name: str,
    title: str,
    ability: str,
    items: int,
    source: str,
    licence: str,
    paper: str,
    vlmevalkit: str | None = None,
) -> BenchmarkInfo:
    sets = {} if vlmevalkit is None else {"": vlmevalkit}
    return BenchmarkInfo(
        name, title, ability, items, "", source, f"{licence} (not certain)", paper=paper, scale=100, vlmevalkit=sets
    )


class _ByPeople(VqaBenchmark):
    """A set whose questions ten people answered."""

    @property
    def metric(self) -> Callable[[str, Sequence[str]], float]:
        return vqa_accuracy


class _ByDistance(VqaBenchmark):
    """A set whose answers are read from a document, a letter of which may be misread."""

    cap = 100

    @property
    def metric(self) -> Callable[[str, Sequence[str]], float]:
        return anls


class _ByEquality(VqaBenchmark):
    """A set with one right answer."""

    @property
    def metric(self) -> Callable[[str, Sequence[str]], float]:
        return exact_match


class VqaV2(_ByPeople):
    """VQAv2, the validation part."""

    info = _info("vqav2", "VQAv2 (val)", "questions about photos", 214_354, "https://visualqa.org", "CC-BY-4.0",
                 "arXiv 1612.00837")  # fmt: skip
    parts = (VqaPart("val", "vqav2", ("vqav2_val.jsonl",), 214_354, ("v2_mscoco_val2014_annotations.json",)),)


class OkVqa(_ByPeople):
    """OK-VQA, the validation part."""

    info = _info("okvqa", "OK-VQA (val)", "questions that take outside knowledge", 5046, "https://okvqa.allenai.org",
                 "CC-BY-4.0", "arXiv 1906.00067")  # fmt: skip
    parts = (VqaPart("val", "okvqa", ("okvqa_val.jsonl",), 5046, ("mscoco_val2014_annotations.json",)),)


class TextVqa(_ByPeople):
    """TextVQA, the validation part."""

    info = _info("textvqa", "TextVQA (val)", "reading text in photos", 5000, "https://textvqa.org", "CC-BY-4.0",
                 "arXiv 1904.08920", "TextVQA_VAL")  # fmt: skip
    parts = (VqaPart("val", "textvqa", ("textvqa_val.jsonl",), 5000, ("textvqa_val_annotations.json",)),)


class VizWiz(_ByPeople):
    """VizWiz, the validation part, where some questions cannot be answered."""

    info = _info("vizwiz", "VizWiz (val)", "questions that blind people asked", 4319, "https://vizwiz.org",
                 "CC-BY-4.0", "arXiv 1802.08218")  # fmt: skip
    parts = (VqaPart("val", "vizwiz", ("vizwiz_val.jsonl",), 4319, ("vizwiz_val_annotations.json",)),)
    before = _NO_ANSWER


class DocVqa(_ByDistance):
    """DocVQA, the validation part."""

    info = _info("docvqa", "DocVQA (val)", "reading documents", 5349, "https://www.docvqa.org", "by its own terms",
                 "arXiv 2007.00398", "DocVQA_VAL")  # fmt: skip
    parts = (VqaPart("val", "docvqa", ("val.jsonl", "docvqa_val.jsonl"), 5349, ("val/val_v1.0.json", "val_v1.0.json")),)


class InfoVqa(_ByDistance):
    """InfographicVQA, the validation part."""

    info = _info("infovqa", "InfographicVQA (val)", "reading infographics", 2801, "https://www.docvqa.org",
                 "by its own terms", "arXiv 2104.12756", "InfoVQA_VAL")  # fmt: skip
    parts = (
        VqaPart("val", "infographicsvqa", ("val.jsonl", "infographicsvqa_val.jsonl"), 2801,
                ("infographicsVQA_val_v1.0_withQT.json",)),
    )  # fmt: skip


class ChartQa(VqaBenchmark):
    """ChartQA, the test part: questions that people wrote, and questions made from captions."""

    info = _info("chartqa", "ChartQA (test)", "reading charts", 2500, "https://github.com/vis-nlp/ChartQA", "GPL-3.0",
                 "arXiv 2203.10244", "ChartQA_TEST")  # fmt: skip
    parts = (
        VqaPart("human", "chartqa", ("test_human.jsonl",), 1250),
        VqaPart("augmented", "chartqa", ("test_augmented.jsonl",), 1250),
    )
    cap = 100

    @property
    def metric(self) -> Callable[[str, Sequence[str]], float]:
        return relaxed_accuracy


class Gqa(_ByEquality):
    """GQA, the balanced test-dev part."""

    info = _info("gqa", "GQA (testdev balanced)", "reasoning about scenes", 12_578,
                 "https://cs.stanford.edu/people/dorarad/gqa", "CC-BY-4.0", "arXiv 1902.09506",
                 "GQA_TestDev_Balanced")  # fmt: skip
    parts = (VqaPart("testdev", "gqa", ("test_balanced.jsonl", "testdev_balanced.jsonl"), 12_578),)


class OcrVqa(_ByEquality):
    """OCR-VQA, the validation part."""

    info = _info("ocrvqa", "OCR-VQA (val)", "reading book covers", 0, "https://ocr-vqa.github.io", "unknown",
                 "ICDAR 2019, doi 10.1109/ICDAR.2019.00156")  # fmt: skip
    parts = (VqaPart("val", "ocrvqa", ("ocrvqa_val.jsonl",), None),)
    cap = 100


class Ai2d(_ByEquality):
    """AI2D, the test part."""

    info = _info("ai2d", "AI2D (test)", "diagrams of science", 3088, "https://prior.allenai.org/projects/diagram-"
                 "understanding", "unknown", "arXiv 1603.07396")  # fmt: skip
    parts = (VqaPart("test", "ai2diagram", ("test.jsonl", "test_vlmevalkit.jsonl"), 3088),)

"""MathVista: mathematics in images, with options or open, whose answers a judge shortens before they are compared.

Published and fixed differ in one thing: an empty extraction becomes, as published, the option nearest by edit distance,
that is the shortest; fixed counts it as wrong. The variants with `quick` take what follows "Answer:" in place of a
judge. With thinking the query is put into the published wrapper that asks for steps and a final answer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.answers import STEP_BY_STEP, ask_settings, edit_distance, final_answer, variant_of
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemImage,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
)
from bagel_mot.evaluation.data import MISSING_TEXTS, files_like, locate, read_parquet, require_complete
from bagel_mot.evaluation.judges.base import Judge, JudgeMessage, JudgeRequest, Judges
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.evaluation.rows import share_row
from bagel_mot.evaluation.vlmevalkit import kit_table, python_list, read_kit_table
from bagel_mot.files import write_text

_COUNTS = {"testmini": 1000, "test": 5141}
_CAP = 4096
_TRIES = 5
_JUDGE = "gpt-4o-2024-11-20"
_COLUMNS = ("pid", "query", "choices", "precision", "answer", "question_type", "answer_type", "metadata")
_SHOWN = ("question_type", "answer_type", "choices", "answer")
_GROUPS = ("language", "source", "category", "task", "context", "grade", "skills")
_KIT_COLUMNS = ("question", "answer", "question_type", "answer_type", "choices")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
_DECIMALS = re.compile(rf"with ({'|'.join(_NUMBERS)}) decimal place")
_LETTER = re.compile(r"\(([a-zA-Z])\)")


class MathVista(Benchmark):
    """MathVista as its Parquet files; or VLMEvalKit's `MathVista_MINI.tsv`, whose questions are the queries.

    What the table does not hold, such as the grades, makes no rows of its own.
    """

    info = BenchmarkInfo(
        name="mathvista",
        title="MathVista",
        ability="mathematics in images",
        items=_COUNTS["testmini"],
        needs="a judge, or none with the variant testmini-quick",
        source="https://huggingface.co/datasets/AI4Math/MathVista",
        licence="CC-BY-SA-4.0",
        hub="AI4Math/MathVista",
        paper="arXiv 2310.02255",
        published=(
            PublishedScore("average", 73.1, "BAGEL", "BAGEL paper, table 4", "testmini, judge GPT-4o"),
            PublishedScore("average", 63.4, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        variants=("testmini", "testmini-quick", "test", "test-quick"),
        vlmevalkit={"testmini": "MathVista_MINI", "testmini-quick": "MathVista_MINI"},
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        self._split, _, quick = variant_of(self.info, options).partition("-")
        self._quick = bool(quick)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items = self._released() if table is None else self._tabled(table)
        count = _COUNTS[self._split]
        require_complete(
            f"MathVista ({self._split})", {"questions": len(items)}, {"questions": count}, partial=self.options.partial
        )
        return tuple(items)

    def _released(self) -> list[Item]:
        """The items of the Parquet files."""
        folder = locate(self.options.data, "MathVista/data", "data", ".")
        rows = read_parquet(files_like(folder, f"{self._split}-*.parquet"), columns=_COLUMNS, images=("decoded_image",))
        return [self._item(str(row["pid"]), row, row["decoded_image"]) for row in rows]

    def _tabled(self, path: Path) -> list[Item]:
        """The items of VLMEvalKit's table."""
        items = []
        for row in read_kit_table(path, columns=_KIT_COLUMNS):
            place, cells = f"{path}, index {row.index}", row.cells
            choices = [] if cells["choices"] in MISSING_TEXTS else python_list(cells["choices"])
            answer = cells["answer"]
            if cells["question_type"] == "multi_choice":
                answer = dict(zip(_LETTERS, choices, strict=False)).get(cells.get("answer_option") or "", answer)
                if answer not in choices:
                    raise DataError(f"{place}: the answer {answer[:40]!r} is not one of the choices.")
            if "Question:" not in cells["question"]:
                raise DataError(f"{place}: the question is no query of MathVista, which has a 'Question:' in it.")
            metadata: dict[str, Any] = {name: cells[name] for name in _GROUPS if cells.get(name)}
            if "skills" in metadata:
                metadata["skills"] = python_list(metadata["skills"])
            facts = {
                "pid": cells.get("pid"),
                "query": cells["question"],
                "choices": choices or None,
                "precision": _places(cells["question"], answer) if cells["answer_type"] == "float" else None,
                "answer": answer,
                "question_type": cells["question_type"],
                "answer_type": cells["answer_type"],
                "metadata": metadata,
            }
            items.append(self._item(row.index, facts, row.images[0]))
        return items

    def _item(self, id: str, row: Mapping[str, Any], image: ItemImage) -> Item:
        facts = {name: row[name] for name in _COLUMNS if name != "query"}
        return Item(
            id,
            "ask",
            STEP_BY_STEP + row["query"] if self.options.think else row["query"],
            (image,),
            ask_settings(_CAP),
            facts={**facts, "query": row["query"], "answer": row["answer"] or None},
            row={"question": row["query"], **{name: row[name] for name in _SHOWN}},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        response, facts = result.texts[0], item.facts
        extraction, replies = plain_extraction(response, facts), list[str | None]()
        if extraction is None and self._quick:
            extraction = final_answer(response)
        elif extraction is None:
            if judges.chat is None:
                raise EvaluationError("MathVista needs a judge: name one with --judge, or take a variant with quick.")
            extraction, replies = _extracted(judges.chat, facts["query"], response)
        fixed = self.options.protocol is Protocol.FIXED
        prediction = None if fixed and not extraction.strip() else normalised(extraction, facts)
        right = None if facts["answer"] is None else float(prediction == facts["answer"])
        detail = {"extraction": extraction, "prediction": prediction, "judge_calls": len(replies), "replies": replies}
        return Score({"right": right}, detail, unparsable=int(not extraction.strip() or prediction is None))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        groups: dict[str, list[float | None]] = defaultdict(list)
        for item in self._items:
            if item.id in scores:
                right = scores[item.id].values["right"]
                for name in _groups_of(item.facts):
                    groups[name].append(right)
        rows = {"average": share_row(groups.pop("average", ()), 100)}
        rows.update({name: share_row(rights, 100) for name, rights in sorted(groups.items())})
        return Summary(rows, ("average",), {"scored by": "its authors alone"} if rows["average"].value is None else {})

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `results.json`: for each question its response, extraction and prediction; nothing where VLMEvalKit's
        table does not tell the benchmark's own ids.
        """
        if any(item.facts["pid"] is None for item in self._items):
            return []
        answers = {
            item.facts["pid"]: {
                "response": results[item.id].texts[0],
                "extraction": scores[item.id].detail["extraction"],
                "prediction": scores[item.id].detail["prediction"],
            }
            for item in self._items
            if item.id in scores
        }
        write_text(folder / "results.json", json.dumps(answers, ensure_ascii=False, indent=1))
        return [folder / "results.json"]


def judge_request(query: str, response: str, attempt: int) -> JudgeRequest:
    """The request that shortens a response to its answer: five examples, the query, the response."""
    head = shipped_texts("mathvista")["head"]
    message = JudgeMessage("user", (f"{head}\n\n{query}\n\n{response}\n\nExtracted answer: ",), plain=True)
    return JudgeRequest((message,), _JUDGE, temperature=0, max_tokens=256, n=1, attempt=attempt)


def plain_extraction(response: str, facts: Mapping[str, Any]) -> str | None:
    """The answer where a response is nothing else: empty, one of the choices, or the wanted number; else None."""
    if not response:
        return ""
    if facts["question_type"] == "multi_choice" and response in (facts["choices"] or ()):
        return response
    kinds: dict[str, type[int] | type[float]] = {"integer": int, "float": float}
    if (kind := kinds.get(facts["answer_type"])) is not None:
        try:
            return str(kind(response))
        except ValueError:
            return None
    return None


def normalised(extraction: str, facts: Mapping[str, Any]) -> str | None:
    """The form of an extraction that is compared with the answer; None for a number that cannot be read.

    Of options a letter, in brackets or alone, is the option's text; everything else the option nearest to it.
    """
    kind, choices = facts["answer_type"], facts["choices"]
    if facts["question_type"] == "multi_choice":
        text = extraction.strip()
        letters = _LETTER.findall(text)
        text = letters[0].upper() if letters else text
        by_letter = {chr(ord("A") + n): choice for n, choice in enumerate(choices)}
        return by_letter.get(text) or min(choices, key=lambda choice: edit_distance(text, choice))
    try:
        if kind == "integer":
            return str(int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), int(facts["precision"])))
    except (ValueError, OverflowError):
        return None
    return extraction


def _extracted(judge: Judge, query: str, response: str) -> tuple[str, list[str | None]]:
    """The judge's extraction, and all of its replies: it is asked again while they are empty or fail."""
    replies: list[str | None] = []
    while len(replies) < _TRIES and not (replies and replies[-1]):
        replies.append(judge.complete(judge_request(query, response, len(replies))))
    return replies[-1] or "", replies


def _places(query: str, answer: str) -> float:
    """The decimal places that a query asks for; those of the answer if it does not say."""
    found = _DECIMALS.search(query)
    return float(_NUMBERS[found[1]] if found else len(answer.partition(".")[2]))


def _groups_of(facts: Mapping[str, Any]) -> list[str]:
    """The names of the rows that an item counts in."""
    names = ["average", f"question_type/{facts['question_type']}", f"answer_type/{facts['answer_type']}"]
    for group in _GROUPS:
        if (value := facts["metadata"].get(group)) is None:
            continue
        names += [f"{group}/{one}" for one in (value if isinstance(value, list) else [value])]
    return names

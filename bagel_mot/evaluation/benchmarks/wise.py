"""WISE, the older set of 1 000 prompts that ask for knowledge of the world, judged by GPT-4o on three scales.

The judge gives 0 to 2 for consistency, realism and aesthetic quality; an item's score is their sum weighted 0.7, 0.2
and 0.1, halved. `published` does what the snapshot of 2025-10 of the published scripts does: the overall number is the
plain mean of six categories, which gives the published .52 and .70, and one reply that cannot be read loses its file
and the whole summary. `fixed` and `upstream` weight the categories as the benchmark's authors do, and leave out items
whose reply cannot be read, and count them; `upstream` names the authors' judge.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.benchmarks.drawing import drawing_settings, seeds_of
from bagel_mot.evaluation.benchmarks.editing import chat_of, drawn
from bagel_mot.evaluation.data import locate, read_json_file, require_complete
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeMessage, JudgeRequest, Judges
from bagel_mot.evaluation.judges.texts import find_texts
from bagel_mot.evaluation.rows import mean_row
from bagel_mot.evaluation.statistics import bootstrap

CATEGORIES = ("Cultural", "Time", "Space", "Biology", "Physics", "Chemistry")
WEIGHTS = {"Cultural": 0.4, "Time": 0.167, "Space": 0.133, "Biology": 0.1, "Physics": 0.1, "Chemistry": 0.1}
PROMPT, EXPLANATION = "<<PROMPT>>", "<<EXPLANATION>>"
SCALES = ("consistency", "realism", "aesthetic_quality")
_SCALE_WEIGHTS = (0.7, 0.2, 0.1)
# A digit after the name, whose bold marks may be around it but not around the colon.
_READ = {
    scale: re.compile(rf"{scale.replace('_', ' ')}\**\s*[:：]?\s*([0-9])", re.IGNORECASE) for scale in SCALES
}  # fmt: skip
_TIME = ("Longitudinal time", "Horizontal time")
_FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
# The texts that a miniature is judged with, which has no copy of the published ones.
_OWN_TEXTS = {
    "system": "You compare an image with its prompt.",
    "user": f"Prompt: {PROMPT}\nWhat is meant: {EXPLANATION}\nScore the image.",
}


class WiseBase(Benchmark):
    """The part that both sets of WISE share: items of six categories, one image each, and a judge of prompt and image.

    A subclass names its files, its categories, and the hashes of the judge's two texts, which no licence lets us ship.
    """

    whole_file: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    complete: ClassVar[Mapping[str, int]]
    weights: ClassVar[Mapping[str, float]]
    text_hashes: ClassVar[Mapping[str, str]]
    text_place: ClassVar[str]

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        rows = [row for path in self._paths() for row in _rows_of(path)]
        numbers = [row["prompt_id"] for row in rows]
        if doubled := [number for number, count in Counter(numbers).items() if count > 1]:
            raise DataError(f"{self.info.title} has prompt_id {doubled[0]} more than once.")
        self._categories = {str(row["prompt_id"]): self.category(row) for row in rows}
        require_complete(self.info.title, Counter(self._categories.values()), self.complete, partial=options.partial)
        self._items = tuple(map(self._item, rows))

    def category(self, row: Mapping[str, Any]) -> str:
        """The category that an item counts for."""
        raise NotImplementedError

    def _paths(self) -> list[Any]:
        """The file with all items, or those with a part each."""
        data, folders = self.options.data, ("", "data/", "data_verified/", "WISE_legacy/data/", "eval/gen/wise/")
        whole = [path for folder in folders if (path := data / f"{folder}{self.whole_file}").is_file()]
        if whole:
            return whole[:1]
        first = locate(data, *(f"{folder}{self.parts[0]}" for folder in folders))
        return [first.with_name(name) for name in self.parts]

    def _item(self, row: Mapping[str, Any]) -> Item:
        number = row["prompt_id"]
        return Item(
            id=str(number),
            kind="generate",
            prompt=row["Prompt"],
            settings=drawing_settings((0.4, 1.0), self.options.think),
            seeds=seeds_of(number),
            outputs=(f"{number}.png",),
            facts={"explanation": row["Explanation"], "category": self._categories[str(number)]},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def check_judging(self) -> None:
        _ = self.judge_texts

    @cached_property
    def judge_texts(self) -> Mapping[str, str]:
        """The judge's texts, "system" and "user", from the user's copy; a miniature without one has plain texts.

        Raises: EvaluationError naming where they are had.
        """
        folder = self.options.judge_texts or self.options.data
        try:
            return find_texts(folder, self.text_hashes, self.text_place, forms_of)
        except DataError as error:
            if self.options.partial:
                return _OWN_TEXTS
            raise EvaluationError(str(error)) from error

    def messages(self, item: Item, image: bytes) -> tuple[JudgeMessage, ...]:
        """The judge's messages about one image, the bytes of a PNG file."""
        text = self.judge_texts["user"].replace(PROMPT, item.prompt).replace(EXPLANATION, item.facts["explanation"])
        return (
            JudgeMessage("system", (self.judge_texts["system"],)),
            JudgeMessage("user", (text, JudgeImage(image, "image/png"))),
        )

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        values: dict[str, list[float]] = {category: [] for category in CATEGORIES}
        unparsable = []
        for name, score in scores.items():
            if (value := score.values["score"]) is None:
                unparsable.append(name)
            else:
                values[self._categories[name]].append(value)
        if unparsable and self.refuses_unparsable:
            rows = {name: SummaryRow(None, len(values.get(name, ()))) for name in (*CATEGORIES, "Overall")}
            return Summary(rows, ("Overall",), self.failure(unparsable))
        means = {name: sum(found) / len(found) for name, found in values.items() if found}
        rows = {name: mean_row(found) for name, found in values.items()}
        weights = self.overall_weights
        groups = list(values.values())
        rows["Overall"] = SummaryRow(
            sum(weights[name] * means[name] for name in CATEGORIES) if len(means) == len(CATEGORIES) else None,
            sum(map(len, groups)),
            bootstrap(groups, [weights[name] for name in CATEGORIES]),
        )
        return Summary(rows, ("Overall",), {"unparsable": sorted(unparsable)} if unparsable else {})

    @property
    def overall_weights(self) -> Mapping[str, float]:
        """The weight of each category in the overall number."""
        return self.weights

    @property
    def refuses_unparsable(self) -> bool:
        """Whether a reply that cannot be read ends the published summary with an error."""
        return self.options.protocol is Protocol.PUBLISHED

    def failure(self, unparsable: Sequence[str]) -> dict[str, Any]:
        """The end of the published summary in that case, for the report."""
        raise NotImplementedError


def _published(model: str, values: Sequence[float]) -> Iterator[PublishedScore]:
    for row, value in zip((*CATEGORIES, "Overall"), values, strict=True):
        note = "the plain mean of the six" if row == "Overall" else ""
        yield PublishedScore(row, value, model, "arXiv 2505.14683, table 6", note)


class Wise(WiseBase):
    """The older set; see the module. The detail of a score holds the judge's reply."""

    info = BenchmarkInfo(
        name="wise",
        title="WISE",
        ability="drawing what takes knowledge of culture, time, space and nature",
        items=1000,
        needs="a judge",
        source="https://github.com/PKU-YuanGroup/WISE, folder WISE_legacy/data",
        licence="none stated",
        paper="arXiv 2503.07265",
        published=(
            *_published("BAGEL", (0.44, 0.55, 0.68, 0.44, 0.60, 0.39, 0.52)),
            *_published("BAGEL, thinking", (0.76, 0.69, 0.75, 0.65, 0.75, 0.58, 0.70)),
        ),
    )
    whole_file = "final_data.json"
    parts = tuple(f"{name}.json" for name in _FILES)
    complete: ClassVar[Mapping[str, int]] = {
        "Cultural": 400,
        "Time": 167,
        "Space": 133,
        "Biology": 100,
        "Physics": 100,
        "Chemistry": 100,
    }
    weights = WEIGHTS
    text_hashes: ClassVar[Mapping[str, str]] = {
        "system": "1034e394de55d899eb78e5ad09835de551cefa5bfeb0ba4bf452c83f6285ffc0",
        "user": "72faa4637e3a2da9cd1b41ac8280329ace4ece2eab9b8888b6a4db0489a61684",
    }
    text_place = "WISE_legacy/gpt_eval.py of https://github.com/PKU-YuanGroup/WISE"

    def category(self, row: Mapping[str, Any]) -> str:
        number = row["prompt_id"]
        if 400 < number <= 700:
            return "Time" if row.get("Subcategory") in _TIME else "Space"
        return "Cultural" if number <= 400 else CATEGORIES[3 + (number - 701) // 100]

    def judge_request(self, item: Item, image: bytes) -> JudgeRequest:
        """The one question about an item's image, the bytes of a PNG file."""
        upstream = self.options.protocol is Protocol.UPSTREAM
        return JudgeRequest(
            self.messages(item, image),
            model="gpt-4o-2024-05-13" if upstream else "gpt-4o-2024-11-20",
            temperature=0.0,
            max_tokens=2000,
            n=1,
        )

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        image = drawn(result.images, item.id).read_bytes()
        reply = chat_of(judges, self.info.title).complete(self.judge_request(item, image))
        values = score_of_reply(reply)
        return Score(values, {"reply": reply}, unparsable=int(values["score"] is None))

    @property
    def overall_weights(self) -> Mapping[str, float]:
        plain = self.options.protocol is Protocol.PUBLISHED
        return dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES)) if plain else self.weights

    def failure(self, unparsable: Sequence[str]) -> dict[str, Any]:
        lost = {0 if int(name) <= 400 else 1 if int(name) <= 700 else 2 for name in unparsable}
        return {
            "fails": True,
            "files_skipped": [_FILES[number] for number in sorted(lost)],
            "unparsable": sorted(unparsable),
        }


def score_of_reply(reply: str | None) -> dict[str, float | None]:
    """The values of a judge's reply on the three scales, and the score made of them, 0 to 1.

    Of several values of a scale the last counts. None is what could not be read, and a score that lacks one of them.
    """
    found = {scale: _READ[scale].findall(reply or "") for scale in SCALES}
    values: dict[str, float | None] = {scale: float(digits[-1]) if digits else None for scale, digits in found.items()}
    read = [value for value in values.values() if value is not None]
    whole = len(read) == len(SCALES)
    weighted = sum(weight * value for weight, value in zip(_SCALE_WEIGHTS, read, strict=False)) / 2
    return {"score": weighted if whole else None, **values}


def forms_of(text: str) -> Iterator[str]:
    """The texts that a string of the benchmark's script may be, with its two values replaced by placeholders."""
    for form in (text, text.strip()):
        yield form
        values = list(dict.fromkeys(re.findall(r"\{[^{}]*\}", form)))
        for prompt, explanation in itertools.permutations(values[:4], 2):
            yield form.replace(prompt, PROMPT).replace(explanation, EXPLANATION)


def _rows_of(path: Any) -> list[Mapping[str, Any]]:
    """The items in a file.

    Raises: DataError naming the item that lacks a field.
    """
    rows = read_json_file(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; a list of items is expected.")
    for place, row in enumerate(rows, 1):
        is_item = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("Prompt", "Explanation"))
        if not is_item or not isinstance(row.get("prompt_id"), int) or not 1 <= row["prompt_id"] <= 1000:
            raise DataError(
                f"{path}, item {place}: Prompt and Explanation, which are texts, and a prompt_id from 1 to 1000 are "
                "expected."
            )
    return rows

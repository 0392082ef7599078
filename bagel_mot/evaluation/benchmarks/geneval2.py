"""GenEval 2: 800 prompts, each with questions about its parts, judged by how sure an open model is of their answers.

Soft-TIFA gives each question the probability of the right answer as the first token of the reply. A prompt's AM is the
arithmetic mean over its questions, its GM the geometric one. Skills are told by AM over all questions, the number of a
prompt's parts by GM. The published system has no score here; all protocols are the same.

A server names only the likeliest tokens. An answer that is not among them counts as 0, which lowers GM: the report also
says how high GM can be at most, with the least named probability in its place.

The sentence that follows a question, "Answer in one word.", and the forms of words that count as the answer are those
of a public port of the benchmark's script, the `geneval2` environment of gym_v.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemResult,
    Score,
    Summary,
)
from bagel_mot.evaluation.benchmarks.drawing import drawing_settings, seeds_of
from bagel_mot.evaluation.benchmarks.editing import drawn, encoded
from bagel_mot.evaluation.data import locate, read_json_lines, require_complete
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeMessage, JudgeRequest, Judges, TokenJudge
from bagel_mot.evaluation.rows import mean_row
from bagel_mot.files import write_text
from bagel_mot.images.opening import open_image

SKILLS = ("object", "attribute", "count", "position", "verb")
_ITEMS = 800
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NAMED_TOKENS = 20  # the most that chat completions name
_AM, _GM = "Soft-TIFA AM", "Soft-TIFA GM"


class GenEval2(Benchmark):
    """The benchmark of `geneval2_data.jsonl`; see the module.

    An item is a prompt with one image, its id the line's number with five digits. The detail of a score holds the
    probability of each question's answer. Numbers of the summary are per cent.
    """

    info = BenchmarkInfo(
        name="geneval2",
        title="GenEval 2",
        ability="drawing prompts of three to ten parts",
        items=_ITEMS,
        needs="a judge",
        source="https://github.com/facebookresearch/GenEval2",
        licence="CC-BY-NC-4.0",
        paper="arXiv 2512.16853",
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        path = locate(options.data, "geneval2_data.jsonl", "GenEval2/geneval2_data.jsonl")
        rows = read_json_lines(path, columns=("prompt", "atom_count", "vqa_list", "skills"))
        for number, row in enumerate(rows, 1):
            _check(row, f"{path}, line {number}")
        require_complete(self.info.title, {"prompts": len(rows)}, {"prompts": _ITEMS}, partial=options.partial)
        self._items = tuple(self._item(index, row) for index, row in enumerate(rows))
        self._by_id = {item.id: item for item in self._items}

    def _item(self, index: int, row: Mapping[str, Any]) -> Item:
        return Item(
            id=f"{index:05d}",
            kind="generate",
            prompt=row["prompt"],
            settings=drawing_settings((0.4, 1.0), self.options.think),
            seeds=seeds_of(index),
            outputs=(f"{index:05d}.png",),
            facts={name: row[name] for name in ("atom_count", "vqa_list", "skills")},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        if not isinstance(judges.chat, TokenJudge):
            raise EvaluationError(
                "GenEval 2 needs a judge that gives probabilities of tokens: name a server with --judge whose chat "
                "completions have logprobs, such as vLLM."
            )
        image = _png(drawn(result.images, item.id))
        found, most = [], []
        for question, answer in item.facts["vqa_list"]:
            tokens = judges.chat.first_token(judge_request(question, image))
            found.append(None if tokens is None else probability_of(tokens, answers_of(question, answer)))
            most.append(None if tokens is None else found[-1] or min(tokens.values(), default=0.0))
        values = {"am": arithmetic_mean(found), "gm": geometric_mean(found), "gm_most": geometric_mean(most)}
        return Score(values, {"probabilities": found}, unparsable=sum(one is None for one in found))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        means: dict[str, list[float]] = {_AM: [], _GM: []}
        skills: dict[str, list[float]] = {skill: [] for skill in SKILLS}
        parts: dict[int, list[float]] = {}
        most = []
        for name, score in scores.items():
            am, gm, gm_most = (score.values[key] for key in ("am", "gm", "gm_most"))
            if am is None or gm is None or gm_most is None:
                continue
            means[_AM].append(am)
            means[_GM].append(gm)
            most.append(gm_most)
            facts = self._by_id[name].facts
            parts.setdefault(facts["atom_count"], []).append(gm)
            for skill, value in zip(facts["skills"], score.detail["probabilities"], strict=True):
                skills[skill].append(value)
        groups = {**means, **skills, **{f"{count} parts": parts[count] for count in sorted(parts)}}
        rows = {name: mean_row(values, 100.0) for name, values in groups.items()}
        extra = {"GM at most": 100 * sum(most) / len(most)} if most else {}
        return Summary(rows, (_GM, _AM), extra)

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes the file of images by prompt that the benchmark's own scorer reads."""
        images = {self._by_id[name].prompt: str(result.images[0].resolve()) for name, result in results.items()}
        if not images:
            return []
        path = folder / "image_paths.json"
        write_text(path, json.dumps(images, indent=1, ensure_ascii=False) + "\n")
        return [path]


def judge_request(question: str, image: bytes) -> JudgeRequest:
    """One question about an image, the bytes of a PNG file."""
    return JudgeRequest(
        (JudgeMessage("user", (JudgeImage(image, "image/png"), f"{question} Answer in one word.")),),
        model="Qwen/Qwen3-VL-8B-Instruct",
        temperature=0.0,
        max_tokens=1,
        extra={"logprobs": True, "top_logprobs": _NAMED_TOKENS},
    )


def answers_of(question: str, answer: str) -> frozenset[str]:
    """The tokens that count as the right answer: the word in both cases, a number also as digits, each also after a
    space.
    """
    words = {answer, answer.lower(), answer.capitalize()}
    if question.startswith("How many") and answer.lower() in _NUMBERS:
        words.add(str(_NUMBERS.index(answer.lower()) + 1))
    return frozenset(words | {f" {word}" for word in words})


def probability_of(tokens: Mapping[str, float], answers: frozenset[str]) -> float:
    """The probability that the reply begins with one of the answers, as far as its tokens are named."""
    return min(1.0, sum(tokens.get(answer, 0.0) for answer in sorted(answers)))


def arithmetic_mean(values: Sequence[float | None]) -> float | None:
    """The mean of all values; None if one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The root of the product of all values, 0 if one is 0; None if one is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.exp(sum(map(math.log, known)) / len(known)) if all(known) else 0.0


def _png(path: Path) -> bytes:
    """The bytes of an image as a PNG file: as they are if it is one."""
    data = path.read_bytes()
    if data.startswith(b"\x89PNG"):
        return data
    return encoded(open_image(data), "PNG")


def _check(row: Mapping[str, Any], where: str) -> None:
    """Checks that a line's questions can be asked.

    Raises: DataError naming the line and the field.
    """
    questions, skills = row["vqa_list"], row["skills"]
    pairs = isinstance(questions, list) and questions and all(_is_pair(pair) for pair in questions)
    if not pairs or not isinstance(row["prompt"], str) or not isinstance(row["atom_count"], int):
        raise DataError(
            f"{where}: a prompt, a number atom_count and pairs of question and answer in vqa_list are expected."
        )
    if not isinstance(skills, list) or len(skills) != len(questions) or not set(skills) <= set(SKILLS):
        raise DataError(f"{where}: skills must name one of {', '.join(SKILLS)} for each question.")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)

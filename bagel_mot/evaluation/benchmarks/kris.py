"""KRIS-Bench: edits that need knowledge, of twenty types, judged on up to four points from 1 to 5.

Each item is judged for visual consistency (VC), visual quality (VQ) and instruction following (IF). For ten types one
call gives instruction and knowledge (KP) together; three types have texts of their own. A reply is read as JSON, else
by "n/5", "n out of 5" or the first lone digit from 1 to 5, so that reasoning in numbered steps before JSON that cannot
be read counts as 1. That is so in all protocols, as is a score outside 1 to 5 in valid JSON, which is taken as it is;
and an item whose JSON holds no number where one must be is lost whole.

Published and fixed differ in items that lack a score: the published scorer leaves them out whole, fixed and upstream
count the scores that there are. Two oddities stay in published and fixed: anomaly correction is judged by the plain
text for instructions, and the quality call of the seven plain types shows the edited image under the label of the
original, which upstream mends.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    Item,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.benchmarks.editing import (
    as_jpeg,
    chat_of,
    drawn,
    edit_settings,
    file_bytes,
    size_of_first,
    tried,
    user_message,
)
from bagel_mot.evaluation.data import locate, read_json_file, require_complete
from bagel_mot.evaluation.judges.base import MOST_DIGITS, JudgeImage, JudgeRequest, Judges
from bagel_mot.evaluation.judges.texts import shipped_texts
from bagel_mot.evaluation.rows import mean_row

TYPES = {
    "abstract_reasoning": 75,
    "anomaly_correction": 75,
    "biology": 68,
    "chemistry": 75,
    "color_change": 50,
    "count_change": 50,
    "geography": 75,
    "humanities": 75,
    "mathematics": 50,
    "medicine": 50,
    "multi-element_composition": 75,
    "multi-instruction_execution": 75,
    "part_completion": 50,
    "physics": 75,
    "position_movement": 50,
    "practical_knowledge": 50,
    "rule-based_reasoning": 75,
    "size_adjustment": 50,
    "temporal_prediction": 74,
    "viewpoint_change": 50,
}
"""The items of each type."""
GROUPS = {
    "Attribute Perception": (
        "count_change",
        "color_change",
        "size_adjustment",
        "part_completion",
        "anomaly_correction",
    ),
    "Spatial Perception": ("viewpoint_change", "position_movement"),
    "Temporal Prediction": ("temporal_prediction",),
    "Social Science": ("humanities", "practical_knowledge"),
    "Natural Science": ("biology", "chemistry", "geography", "medicine", "mathematics", "physics"),
    "Logical Reasoning": ("abstract_reasoning", "rule-based_reasoning"),
    "Instruction Decomposition": ("multi-element_composition", "multi-instruction_execution"),
}
META = {
    "Factual Knowledge": ("Attribute Perception", "Spatial Perception", "Temporal Prediction"),
    "Conceptual Knowledge": ("Social Science", "Natural Science"),
    "Procedural Knowledge": ("Logical Reasoning", "Instruction Decomposition"),
}
KNOWLEDGE_TYPES = tuple(
    type_ for group in ("Social Science", "Natural Science", "Logical Reasoning") for type_ in GROUPS[group]
)
"""The types that are judged on knowledge, too."""
METRICS = {"VC": "consistency", "VQ": "quality", "IF": "instruction", "KP": "knowledge"}
"""The metrics of a score by the names of their rows."""
_VIEW, _TEMPORAL, _MULTI = "viewpoint_change", "temporal_prediction", "multi-element_composition"
_JUDGE = "gpt-4o-2024-11-20"
_MAX_TOKENS = 1000
_TRIES = 3
_FRAMES = 4
_FIRST_SEED = 42


def _published(model: str, table: Mapping[str, Sequence[float]], overall: float) -> list[PublishedScore]:
    source = "paper, table 10, and EVAL.md of the BAGEL repository"
    rows = {"overall": overall}
    for name, values in table.items():
        metrics = ("AVG",) if len(values) == 1 else (*list(METRICS)[: len(values) - 1], "AVG")
        rows |= {f"{name}/{metric}": value for metric, value in zip(metrics, values, strict=True)}
    return [PublishedScore(row, value, model, source, f"judge {_JUDGE}") for row, value in rows.items()]


class Kris(Benchmark):
    """KRIS-Bench: a folder for each type with images and `annotation.json`; `final_data.json` gives the order."""

    info = BenchmarkInfo(
        name="kris",
        title="KRIS-Bench",
        ability="edits that need knowledge",
        items=sum(TYPES.values()),
        needs="a judge",
        source="https://huggingface.co/datasets/Liang0223/KRIS_Bench",
        licence="Apache-2.0",
        hub="Liang0223/KRIS_Bench",
        paper="https://arxiv.org/abs/2505.16707",
        published=(
            *_published(
                "BAGEL",
                {
                    "Attribute Perception": (76.64, 74.45, 41.73, 64.27),
                    "Spatial Perception": (70.25, 80.00, 37.00, 62.42),
                    "Temporal Prediction": (36.49, 61.82, 29.05, 42.45),
                    "Social Science": (76.20, 78.80, 37.00, 29.60, 55.40),
                    "Natural Science": (69.59, 84.03, 40.27, 30.15, 56.01),
                    "Logical Reasoning": (80.17, 85.67, 26.33, 18.00, 52.54),
                    "Instruction Decomposition": (40.17, 69.50, 42.00, 50.56),
                    "Factual Knowledge": (60.26,),
                    "Conceptual Knowledge": (55.86,),
                    "Procedural Knowledge": (51.69,),
                },
                56.21,
            ),
            *_published(
                "BAGEL, thinking",
                {
                    "Attribute Perception": (75.09, 74.00, 53.18, 67.42),
                    "Spatial Perception": (78.75, 87.25, 39.00, 68.33),
                    "Temporal Prediction": (48.31, 81.08, 46.62, 58.67),
                    "Social Science": (80.40, 79.40, 51.60, 42.80, 63.55),
                    "Natural Science": (67.68, 82.95, 52.10, 42.88, 61.40),
                    "Logical Reasoning": (62.83, 79.67, 28.33, 21.67, 48.12),
                    "Instruction Decomposition": (47.83, 66.83, 36.00, 50.22),
                    "Factual Knowledge": (66.18,),
                    "Conceptual Knowledge": (61.92,),
                    "Procedural Knowledge": (49.02,),
                },
                60.18,
            ),
        ),
    )

    @cached_property
    def _items(self) -> list[Item]:
        root = self.options.data
        folder = root / "KRIS_Bench" if (root / "KRIS_Bench").is_dir() else root
        rows = _rows(root, folder)
        images = [[folder / row["type"] / name for name in _names(row["ori_img"])] for row in rows]
        truths = [folder / row["type"] / row["gt_img"] for row in rows if row["type"] == _VIEW and row.get("gt_img")]
        require_complete(
            self.info.title,
            Counter(row["type"] for row in rows),
            TYPES,
            files=[*(path for paths in images for path in paths), *truths],
            partial=self.options.partial,
        )
        return [
            Item(
                id=f"{row['type']}/{row['id']}",
                kind="edit",
                prompt=row["ins_en"],
                images=tuple(paths),
                settings={**edit_settings(self.options.think), **size_of_first(paths)},
                seeds=(_FIRST_SEED + index,),
                outputs=(f"{row['type']}/{row['id']}.png",),
                facts={
                    "type": row["type"],
                    "explanation": row.get("explain_en") or "",
                    "truth": row.get("gt_img") or "",
                },
            )
            for index, (row, paths) in enumerate(zip(rows, images, strict=True))
        ]

    def items(self) -> Sequence[Item]:
        return self._items

    def requests(self, item: Item, edited: Path) -> dict[str, Callable[[int], JudgeRequest]]:
        """The calls for an item, by name in the order in which they are made; each is a function of the try."""
        texts, type_ = shipped_texts(self.info.name), item.facts["type"]
        values = {"instruct": item.prompt, "explanation": item.facts["explanation"]}
        before_and_after = (
            *("This is the original image:", _as_it_is(item.images[0])),
            *("This is the edited image:", _as_it_is(edited)),
        )
        quality = ("This is the edited image:", _as_it_is(edited))
        shown: tuple[str | JudgeImage, ...] = before_and_after
        more: tuple[str | JudgeImage, ...] = ()
        name, suffix = "prompt_instruction_following", ""
        if type_ == _TEMPORAL:
            shown, suffix = _frames(item, edited), "_temporal"
            quality = ("This is the image to evaluate:", _frame(edited))
        elif type_ == _MULTI:
            labels = [f"Reference Image {number}:" for number in range(1, len(item.images) + 1)]
            given = zip(labels, map(_as_it_is, item.images), strict=True)
            shown, suffix = (
                (*(part for pair in given for part in pair), "Predicted Image:", _as_it_is(edited)),
                "_multi",
            )
            quality = ("This is the image to evaluate:", _as_it_is(edited))
        elif type_ == _VIEW:
            name = "prompt_view_instruction_following"
            if item.facts["truth"]:
                more = ("This is the ground truth image:", _as_it_is(_beside(item, item.facts["truth"])))
        elif type_ not in KNOWLEDGE_TYPES and self.options.protocol is not Protocol.UPSTREAM:
            quality = ("This is the original image:", _as_it_is(edited))
        if suffix:
            name = f"prompt_instruction{suffix}"
        follows = "dual" if type_ in KNOWLEDGE_TYPES else "instruction"
        if follows == "dual":
            name = "prompt_dual_evaluation"
        contents = {
            "consistency": (texts[f"prompt_consist{suffix}"].format(**values), *shown),
            follows: (texts[name].format(**values), *shown, *more),
            "quality": (texts["prompt_quality"], *quality),
        }
        return {call: _request(content) for call, content in contents.items()}

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        judge, edited = chat_of(judges, self.info.title), drawn(result.images, item.id)
        metrics = [metric for metric in METRICS.values() if metric != "knowledge" or self._knows(item)]
        values: dict[str, float | None] = dict.fromkeys(metrics)
        replies: dict[str, str | None] = {}
        for call, request in self.requests(item, edited).items():
            replies[call] = reply = tried(judge, request, _TRIES)
            if reply is None:
                continue
            try:
                values |= read_dual(reply) if call == "dual" else {call: read_reply(reply, call)}
            except ValueError:
                return Score(dict.fromkeys(metrics), {"replies": replies, "lost": True}, unparsable=1)
        unread = sum(value is None for value in values.values())
        return Score(values, {"replies": replies, "lost": False}, unread)

    def _knows(self, item: Item) -> bool:
        return item.facts["type"] in KNOWLEDGE_TYPES

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        found: dict[str, dict[str, list[float]]] = {type_: {metric: [] for metric in METRICS} for type_ in TYPES}
        left_out, incomplete = [], []
        for item in self._items:
            if item.id not in scores:
                continue
            values = scores[item.id].values
            known = {metric: values.get(name) for metric, name in METRICS.items() if name in values}
            if None in known.values():
                incomplete.append(item.id)
                if self.options.protocol is Protocol.PUBLISHED:
                    left_out.append(item.id)
                    continue
            for metric, value in known.items():
                if value is not None:
                    found[item.facts["type"]][metric].append((value - 1) * 25)
        rows: dict[str, SummaryRow] = {"overall": mean_row(_all(found, TYPES))}
        for group, types in GROUPS.items():
            for metric in METRICS if types[0] in KNOWLEDGE_TYPES else list(METRICS)[:3]:
                rows[f"{group}/{metric}"] = mean_row(value for type_ in types for value in found[type_][metric])
            rows[f"{group}/AVG"] = mean_row(_all(found, types))
        for name, groups in META.items():
            rows[f"{name}/AVG"] = mean_row(_all(found, [type_ for group in groups for type_ in GROUPS[group]]))
        for type_ in (type_ for types in GROUPS.values() for type_ in types):
            for metric in METRICS if type_ in KNOWLEDGE_TYPES else list(METRICS)[:3]:
                rows[f"{type_}/{metric}"] = mean_row(found[type_][metric])
        return Summary(rows, ("overall",), {"left_out": left_out, "incomplete": incomplete})


def _all(found: Mapping[str, Mapping[str, Sequence[float]]], types: Sequence[str] | Mapping[str, int]) -> list[float]:
    return [value for type_ in types for values in found[type_].values() for value in values]


def _rows(root: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows of `final_data.json`, else those of all annotations, with their type and id."""
    if (root / "final_data.json").is_file():
        place, rows = root / "final_data.json", read_json_file(root / "final_data.json")
    else:
        place, rows = folder, []
        for type_ in TYPES:
            if not (folder / type_).is_dir():
                continue
            annotations = read_json_file(locate(folder, f"{type_}/annotation.json"))
            if not isinstance(annotations, dict):
                raise DataError(f"{folder / type_ / 'annotation.json'} must hold an object of items by id.")
            rows += [{"id": key, "type": type_, **row} for key, row in annotations.items()]
    wanted = {"id", "type", "ori_img", "ins_en"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and wanted <= row.keys() for row in rows):
        raise DataError(f"{place} must hold items with {', '.join(sorted(wanted))}.")
    return rows


def _names(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _beside(item: Item, name: str) -> Path:
    first = item.images[0]
    assert isinstance(first, Path)
    return first.with_name(name)


def _as_it_is(image: Any) -> JudgeImage:
    """The bytes of a file, which are said to be JPEG whatever they are."""
    return JudgeImage(file_bytes(image), "image/jpeg")


def _frame(image: Any) -> JudgeImage:
    return as_jpeg(image, quality=85)


def _frames(item: Item, edited: Path) -> tuple[str | JudgeImage, ...]:
    """The four frames in their order. The number of the one that was made is in the name of the right one."""
    match = re.search(r"-(\d+)\.", item.facts["truth"])
    made = int(match[1]) if match else _FRAMES
    given = iter(item.images)
    parts: list[str | JudgeImage] = []
    for number in range(1, len(item.images) + 2):
        kind, image = ("Generated", edited) if number == made else ("Reference", next(given, edited))
        parts += [f"Frame {number} ({kind}):", _frame(image)]
    return tuple(parts)


def _request(content: Sequence[str | JudgeImage]) -> Callable[[int], JudgeRequest]:
    def request(attempt: int) -> JudgeRequest:
        return JudgeRequest(user_message(*content), _JUDGE, max_tokens=_MAX_TOKENS, attempt=attempt)

    return request


def _json_in(reply: str) -> dict[str, Any] | None:
    """The object from the first brace to the last one."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _whole(value: Any) -> int | None:
    """A score as a whole number; None for null.

    Raises:
        ValueError: it is not numeric, or has more digits than any score.
    """
    if value is None:
        return None
    try:
        found = int(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if abs(found) >= 10**MOST_DIGITS:
        raise ValueError("a score has fewer digits")
    return found


def read_reply(reply: str, metric: str) -> int | None:
    """The score of a metric in a reply; None if there is none.

    Raises:
        ValueError: it is in JSON, but no number.
    """
    found = _json_in(reply)
    if found is not None and f"{metric}_score" in found:
        return _whole(found[f"{metric}_score"])
    for pattern in (r"\b([1-5])\s*/\s*5", r"\b([1-5])\s+out\s+of\s+5", r"\b([1-5])\b"):
        if match := re.search(pattern, reply, re.IGNORECASE):
            return int(match[1])
    return None


def read_dual(reply: str) -> dict[str, float | None]:
    """The scores of instruction and knowledge in one reply; None for one that is missing.

    Raises:
        ValueError: one is in JSON, but no number.
    """
    found = _json_in(reply)
    values: dict[str, float | None] = {}
    for metric in ("instruction", "knowledge"):
        if found is not None:
            values[metric] = _whole(found.get(f"{metric}_score"))
        else:
            match = re.search(rf"{metric}[_ ]score\W*([1-5])\b", reply, re.IGNORECASE)
            values[metric] = int(match[1]) if match else None
    return values

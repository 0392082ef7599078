"""RISEBench: edits that need temporal, causal, spatial or logical reasoning, judged on up to three points.

Items are judged for consistency, reasoning and, but for logical ones, quality, from 1 to 5; replies of 0 or 1 about
logical items mean 1 and 5. One that cannot be read takes the whole item's scores away.

The published rules have four faults, which fixed mends:

- the formula without consistency is used for all items but logical ones, once any item is free of it: fixed uses it for
  items that are free of it;
- accuracy asks for 5 in consistency even where that is not judged: fixed and upstream ask in what is judged alone;
- an item that cannot be read leaves the mean score, but counts as wrong in accuracy: fixed leaves it out of both;
- the text without the question is used for all logical items with a reference image, once any item asks for it: fixed
  uses it for those that ask.

Upstream is the rule of RISEBench since 2026-04-23, which mends the second alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

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
from bagel_mot.evaluation.benchmarks.editing import chat_of, drawn, edit_settings, encoded, tried, user_message
from bagel_mot.evaluation.data import locate, open_input, read_json_file, require_complete
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges, number_of
from bagel_mot.evaluation.judges.texts import TextSource
from bagel_mot.evaluation.rows import mean_row, share_row

CATEGORIES = {"temporal_reasoning": 85, "causal_reasoning": 90, "spatial_reasoning": 100, "logical_reasoning": 85}
"""The items of each category."""
_LOGICAL, _SPATIAL = "logical_reasoning", "spatial_reasoning"
_TITLES = {category: category.removesuffix("_reasoning").capitalize() for category in CATEGORIES}
_SHORT = {"Temporal": "Temp", "Causal": "Causal", "Spatial": "Spa", "Logical": "Logic"}
_CALLS = {"consistency": "Consistency", "reasoning": "Reasoning", "quality": "Quality"}
_OVERALL = {
    "reasoning": "Overall_Reasoning",
    "consistency": "Overall_ApprConsistency",
    "quality": "Overall_VisualPlausibility_total",
}
_BEST = 5
_SIDE = 768  # pixels of an image that the judge is shown, at most
_JUDGE = "gpt-4.1-2025-04-14"
_TRIES = 5
_FIRST_SEED = 42
_FINAL = re.compile(r"final\s+scores?\W*(\d+)", re.IGNORECASE)
TEXTS = TextSource(
    {
        "prompt_consist": "84b272d821670cd2466866e27d80bed659dc677964a62a2c1459ad673c4eaf70",
        "prompt_reasoning": "2a1a3394442065a25958b03047158bf670dbb0c771c5d9a7d299cdc02eb0c25b",
        "prompt_reasoning_w_input": "b781425c015b41a646eae87dea188b871f89a4749a8911281e1e3ac52f050cd0",
        "prompt_generation": "2d607960deffa2e1b5178bfbf9f06c865654ddbe35b249caa9e59c616ff6c916",
        "prompt_spatial_ref": "df84b77e28183eddb0e822170970bec0a85302844ffae3c4a0effde7ada5279b",
        "prompt_spatial_ref_img": "4e043b8e696d40a4be73538134b4182dc5a87a354e5878983c943a536e22e25d",
        "prompt_spatial_ref_w_input": "444d3a201c30fb2fe2a88e48aca355c4f075f655c2edc4ae50a6e1fb263c668d",
        "prompt_spatial_qual": "3bead46a4b0bcf295700caec5c116809dd72d4a03a750f7bb9da3e2563123c80",
        "prompt_spatial_cons": "b20ca629d36da9cf2fa591ef3c1dd5909177b4d245172479345d6fa137c4c55e",
        "prompt_logical_cons_ans": "28a6dd5a2e714acf681455acbf8dc01491559ecdcc54523e50a382d1c4689aaf",
        "prompt_logical_cons": "49b6870dfb1b4cb64e303d27845794e403d48ef877b85178fea9c48a425475c1",
        "prompt_logical_txt": "6719763c72ab8ef9e015ed4efe3ef96c4cd01c0c2cda8457cad1a91ac69eb956",
        "prompt_logical_img": "ce89313d6047592decded49f4324000ced3c91f87153ca458dc1f55634e08cd6",
        "prompt_logical_img_wo_q": "8cd49d5335cd303c810affa011b21dcd1416fcbb76df00f175ee3af949dcaa8d",
    },
    "utils.py of the repository PhoenixZ810/RISEBench, or eval/gen/rise/utils.py of the BAGEL repository",
    ("instruct", "reference"),
)
_UNFORMATTED = ("prompt_generation", "prompt_spatial_qual", "prompt_logical_img_wo_q")


def _published(model: str, source: str, note: str, *accuracies: float) -> list[PublishedScore]:
    rows = ("Overall", *_TITLES.values())
    return [
        PublishedScore(f"{row}/accuracy", value, model, source, note)
        for row, value in zip(rows, accuracies, strict=True)
    ]


class Rise(Benchmark):
    """RISEBench as the hub has it: `datav2_total_w_subtask.json` and a folder of images for each category."""

    info = BenchmarkInfo(
        name="rise",
        title="RISEBench",
        ability="edits that need reasoning",
        items=sum(CATEGORIES.values()),
        needs="a judge",
        source="https://huggingface.co/datasets/PhoenixZ/RISEBench",
        licence="none stated in the repository",
        hub="PhoenixZ/RISEBench",
        paper="https://arxiv.org/abs/2504.02826",
        published=(
            *_published("BAGEL", "RISEBench repository", "upstream rule, 2026-04", 5.8, 3.5, 4.4, 14.0, 0.0),
            *_published(
                "BAGEL, thinking", "RISEBench repository", "upstream rule, 2026-04", 15.8, 11.8, 27.8, 21.0, 1.2
            ),
            *_published("BAGEL", "paper, table 9", "cfg_image_scale 1.5", 6.1, 2.4, 5.6, 14.0, 1.2),
            *_published("BAGEL, thinking", "paper, table 9", "", 11.9, 5.9, 17.8, 21.0, 1.2),
        ),
    )

    @cached_property
    def _items(self) -> list[Item]:
        path = locate(self.options.data, "datav2_total_w_subtask.json")
        rows = read_json_file(path)
        wanted = {"index", "category", "instruction", "image"}
        if not isinstance(rows, list) or not all(isinstance(row, dict) and wanted <= row.keys() for row in rows):
            raise DataError(f"{path} must hold a list of items with {', '.join(sorted(wanted))}.")
        names = [name for row in rows for name in (row["image"], row.get("reference_img")) if isinstance(name, str)]
        require_complete(
            self.info.title,
            Counter(row["category"] for row in rows),
            CATEGORIES,
            files=[path.parent / name for name in names],
            partial=self.options.partial,
        )
        settings = edit_settings(self.options.think, cfg_image_scale=2.0)
        facts = ("category", "subtask", "reference", "reference_txt", "reference_img")
        flags = ("reasoning_img", "consistency_free", "reasoning_wo_ins")
        return [
            Item(
                id=row["index"],
                kind="edit",
                prompt=row["instruction"],
                images=(path.parent / row["image"],),
                settings=settings,
                seeds=(_FIRST_SEED + index,),
                outputs=(f"{row['category']}/{row['index']}.png",),
                facts={**{name: row.get(name) for name in facts}, **{name: row.get(name) is True for name in flags}},
            )
            for index, row in enumerate(rows)
        ]

    def items(self) -> Sequence[Item]:
        return self._items

    def check_judging(self) -> None:
        _ = self.judge_texts

    @cached_property
    def judge_texts(self) -> Mapping[str, str]:
        """The texts that the judge is given, from the user's copy of the benchmark's code."""
        return TEXTS.find(self.options)

    @cached_property
    def _any(self) -> Mapping[str, bool]:
        """The marks that some item has, in whatever part of the set is run."""
        return {
            name: any(item.facts[name] for item in self._items) for name in ("consistency_free", "reasoning_wo_ins")
        }

    # ------------------------------------------------------------------------------------------------------- the judge

    def calls(self, item: Item) -> dict[str, tuple[str, bool]]:
        """The calls for an item in order: the text's name, and whether another image comes before the edited one."""
        facts, category = item.facts, item.facts["category"]
        if category == _LOGICAL:
            if facts["reference_txt"]:
                return {"consistency": ("prompt_logical_cons_ans", True), "reasoning": ("prompt_logical_txt", False)}
            fixed = self.options.protocol is Protocol.FIXED
            without = facts["reasoning_wo_ins"] if fixed else self._any["reasoning_wo_ins"]
            name = "prompt_logical_img_wo_q" if without else "prompt_logical_img"
            return {"consistency": ("prompt_logical_cons", True), "reasoning": (name, True)}
        base = "prompt_spatial_ref" if category == _SPATIAL else "prompt_reasoning"
        reasoning = (f"{base}_w_input", True) if facts["reasoning_img"] else (base, False)
        if category == _SPATIAL and facts["reference_img"]:
            reasoning = ("prompt_spatial_ref_img", True)
        cons, qual = (
            ("prompt_spatial_cons", "prompt_spatial_qual")
            if category == _SPATIAL
            else ("prompt_consist", "prompt_generation")
        )
        consistency = {} if facts["consistency_free"] else {"consistency": (cons, True)}
        return {**consistency, "reasoning": reasoning, "quality": (qual, False)}

    def requests(self, item: Item, edited: Path) -> dict[str, Callable[[int], JudgeRequest]]:
        """The calls for an item by name, in the order in which they are made; each is a function of the try."""
        facts = item.facts
        before = item.images[0]
        if facts["category"] in (_SPATIAL, _LOGICAL) and facts["reference_img"]:
            assert isinstance(before, Path)
            before = before.parent.parent / facts["reference_img"]
        reference = facts["reference_txt"] if facts["category"] == _LOGICAL else facts["reference"]
        found = {}
        for call, (name, has_other) in self.calls(item).items():
            text = self.judge_texts[name]
            if name not in _UNFORMATTED:
                text = text.format(instruct=item.prompt, reference=reference or "")
            shown = [_thumbnail(image) for image in ([before] if has_other else []) + [edited]]
            found[call] = _request((text, *shown))
        return found

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        judge, edited = chat_of(judges, self.info.title), drawn(result.images, item.id)
        values: dict[str, float | None] = dict.fromkeys(_CALLS)
        replies: dict[str, str | None] = {}
        unread = 0
        for call, request in self.requests(item, edited).items():
            replies[call] = reply = tried(judge, request, _TRIES)
            values[call] = None if reply is None else read_reply(reply, item.facts["category"] == _LOGICAL)
            unread += values[call] is None
        if unread:
            values = dict.fromkeys(_CALLS)
        score, complete = self._judged(item, values, bool(unread))
        return Score({**values, "score": score, "complete": complete}, {"replies": replies}, unread)

    # -------------------------------------------------------------------------------------------------------- the rule

    def _judged(
        self, item: Item, values: Mapping[str, float | None], unread: bool
    ) -> tuple[float | None, float | None]:
        """The score of an item, 1 to 5, and whether it has 5 in all that counts, from its values by call."""
        protocol = self.options.protocol
        if unread:
            return None, None if protocol is Protocol.FIXED else 0.0
        c, r, v = (values[call] for call in _CALLS)
        needed = {name: value for name, value in values.items() if name != "quality" or not _is_logical(item)}
        if item.facts["consistency_free"] and protocol is not Protocol.PUBLISHED and not _is_logical(item):
            del needed["consistency"]
        complete = float(all(value == _BEST for value in needed.values()))
        if r is None:
            return None, complete
        if _is_logical(item):
            score = None if c is None else 0.3 * c + 0.7 * r
        else:
            fixed = protocol is Protocol.FIXED
            without = item.facts["consistency_free"] if fixed else self._any["consistency_free"]
            if v is None or (c is None and not without):
                score = None
            else:
                score = 0.8 * r + 0.2 * v if without or c is None else 0.3 * c + 0.5 * r + 0.2 * v
        if score is not None and r == 1:
            score = max(score / 2, 1.0)
        return score, complete

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        items = [item for item in self._items if item.id in scores]
        rows: dict[str, SummaryRow] = {}
        parts: dict[str, list[Item]] = {"Overall": items}
        parts |= {title: [item for item in items if item.facts["category"] == name] for name, title in _TITLES.items()}
        for title, own in parts.items():
            rows |= _rows(title, [scores[item.id].values for item in own])
        for call, name in _OVERALL.items():
            rows |= _means(name, [scores[item.id].values[call] for item in items])
        for title, own in list(parts.items())[1:]:
            for call, name in _CALLS.items():
                if title != "Logical" or call != "quality":
                    rows |= _means(f"{title}_{name}", [scores[item.id].values[call] for item in own])
            category = next(name for name, known in _TITLES.items() if known == title)
            of_category = [item for item in self._items if item.facts["category"] == category]
            for subtask in dict.fromkeys(str(item.facts["subtask"]) for item in of_category):
                values = [scores[item.id].values for item in own if str(item.facts["subtask"]) == subtask]
                rows |= _rows(f"{_SHORT[title]}-{subtask}", values)
        left_out = [item.id for item in items if scores[item.id].values["score"] is None]
        return Summary(rows, ("Overall/accuracy", "Overall/percent"), {"left_out": left_out})


def _is_logical(item: Item) -> bool:
    return bool(item.facts["category"] == _LOGICAL)


def _rows(name: str, values: Sequence[Mapping[str, float | None]]) -> dict[str, SummaryRow]:
    """Score, percentage and accuracy (in percent) of items."""
    accuracy = share_row((value["complete"] for value in values), 100)
    return {**_means(name, [value["score"] for value in values]), f"{name}/accuracy": accuracy}


def _means(name: str, values: Sequence[float | None]) -> dict[str, SummaryRow]:
    percents = [None if value is None else (value - 1) * 25 for value in values]
    return {f"{name}/score": mean_row(values), f"{name}/percent": mean_row(percents)}


def _thumbnail(image: Any) -> JudgeImage:
    small: Image.Image = open_input(image).convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return JudgeImage(encoded(small, "JPEG"), "image/jpeg", "high")


def _request(content: Sequence[str | JudgeImage]) -> Callable[[int], JudgeRequest]:
    def request(attempt: int) -> JudgeRequest:
        messages = user_message(*content)
        return JudgeRequest(messages, _JUDGE, temperature=0, max_tokens=4096, n=1, attempt=attempt)

    return request


def read_reply(reply: str, logical: bool) -> float | None:
    """The number after "Final Score" in a reply; of a logical item 1 for 0 and 5 for 1. None if there is none."""
    if (match := _FINAL.search(reply)) is None or (value := number_of(match[1])) is None:
        return None
    return {0: 1.0, 1: float(_BEST)}.get(value) if logical else float(value)

"""ImgEdit-Bench, basic edits of one turn: nine types of edits, each judged on points from 1 to 5.

A reply counts by every line of the form `name: digits`, be it one or four, and items without such a line are left out:
there is nothing that fixed mends. Upstream names another judge, GPT-4.1, with which its current leaderboard is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    Item,
    ItemImage,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
)
from bagel_mot.evaluation.benchmarks.editing import chat_of, drawn, edit_settings, file_bytes, user_message
from bagel_mot.evaluation.data import locate, read_json_file, require_complete
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges, number_of
from bagel_mot.evaluation.judges.texts import sha256_of
from bagel_mot.evaluation.rows import mean_row

TYPES = {
    "background": 94,
    "adjust": 94,
    "style": 100,
    "extract": 117,
    "remove": 86,
    "add": 95,
    "replace": 92,
    "compose": 23,
    "action": 36,
}
"""The items of each type of edit."""
_TEXTS = {
    "replace": "113cba9c7b7ef0b6aec3db2ab1c5172e69b624dc6ab33417c95dce41e8ed374d",
    "add": "8a653823ed9563864fc4f733b7049eb53fcdad8f1616111f77b3c8d4aceefcbf",
    "adjust": "34c3ca70a7a6bd4e729d5b6ca3f6bab552eb723eef58bac6607555659b7f7fe7",
    "remove": "ce82586c25f5e8cbe81ef5d2088b14c07ae9a672e2fc6a8ad7bf33692fcd73bf",
    "style": "0b84dfc09fc4a7233efcbec61b4d8b23039068dfffee531bb3fb47b6004629c3",
    "action": "2dfb82168c6e86c9996bcd43076ec0dbc74eb1113e43a0d2cc273dec62cd674b",
    "extract": "38bdeafbac4ea4f9b53f42d1b4709c4b714d5771025e3716271dcf29b9f126ff",
    "background": "9bfce039169b23d6eadce6314201a9a8c6fa82c12f6162da5554929907e7192d",
    "compose": "16f4f72a0d8db2e554a4c8db88d859b31e0d90d6ed594292622baefe408aa7cf",
}
_JUDGE = "gpt-4o-2024-11-20"
_UPSTREAM_JUDGE = "gpt-4.1"
_FIRST_SEED = 42


def _published(model: str, source: str, note: str, overall: float, **types: float) -> tuple[PublishedScore, ...]:
    rows = {"overall": overall, **types}
    return tuple(PublishedScore(row, value, model, source, note) for row, value in rows.items())


class ImgEdit(Benchmark):
    """ImgEdit-Bench as its archive unpacks: `singleturn/` with `singleturn.json`, `judge_prompt.json` and images."""

    info = BenchmarkInfo(
        name="imgedit",
        title="ImgEdit-Bench",
        ability="edits of nine types",
        items=sum(TYPES.values()),
        needs="a judge",
        source="https://huggingface.co/datasets/sysuyy/ImgEdit (Benchmark.tar)",
        licence="Apache-2.0 by the card of the data set; the repository has no licence file",
        hub="sysuyy/ImgEdit",
        paper="https://arxiv.org/abs/2505.20275",
        published=(
            *_published(
                "BAGEL",
                "EVAL.md of the BAGEL repository",
                "judge gpt-4o-2024-11-20",
                3.28,
                background=3.28,
                adjust=3.23,
                style=4.26,
                extract=1.48,
                remove=2.99,
                add=3.45,
                replace=3.76,
                compose=3.18,
                action=4.38,
            ),
            *_published(
                "BAGEL",
                "leaderboard of the ImgEdit repository",
                "judge GPT-4.1",
                3.42,
                background=3.39,
                adjust=3.59,
                style=4.51,
                extract=1.58,
                remove=3.16,
                add=3.81,
                replace=3.85,
                compose=2.67,
                action=4.25,
            ),
        ),
    )

    @cached_property
    def _items(self) -> list[Item]:
        path = locate(self.options.data, "singleturn/singleturn.json", "singleturn.json")
        rows = read_json_file(path)
        if not isinstance(rows, dict) or not all(
            isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("id", "prompt", "edit_type"))
            for row in rows.values()
        ):
            raise DataError(f"{path} must hold an object of items, each with texts as id, prompt and edit_type.")
        require_complete(
            self.info.title,
            Counter(row["edit_type"] for row in rows.values()),
            TYPES,
            files=[path.parent / row["id"] for row in rows.values()],
            partial=self.options.partial,
        )
        return [
            Item(
                id=key,
                kind="edit",
                prompt=row["prompt"],
                images=(path.parent / row["id"],),
                settings=edit_settings(self.options.think),
                seeds=(_FIRST_SEED + index,),
                outputs=(f"{key}.png",),
                facts={"type": row["edit_type"]},
            )
            for index, (key, row) in enumerate(rows.items())
        ]

    def items(self) -> Sequence[Item]:
        return self._items

    def check_judging(self) -> None:
        _ = self.judge_texts

    @cached_property
    def judge_texts(self) -> Mapping[str, str]:
        """The text that the judge is given for each type of edit, from the data or the folder of texts.

        Raises:
            DataError: it is missing, or is not the published one.
        """
        names = ("singleturn/judge_prompt.json", "judge_prompt.json", "prompts.json")
        path = locate(self.options.judge_texts or self.options.data, *names)
        texts = read_json_file(path)
        for type_, digest in _TEXTS.items():
            text = texts.get(type_) if isinstance(texts, dict) else None
            if not isinstance(text, str):
                raise DataError(f"{path} lacks the text for {type_!r}: take the file of the published archive.")
            if sha256_of(text) != digest and not self.options.partial:
                raise DataError(
                    f"{path}: the text for {type_!r} is not the published one, so scores would not be comparable: "
                    "take the file of the published archive."
                )
        return dict(texts)

    def request(self, item: Item, original: ItemImage, edited: ItemImage) -> JudgeRequest:
        """The one call for an item. Both files are sent as they are, and both are said to be PNG."""
        text = self.judge_texts[item.facts["type"]].replace("<edit_prompt>", item.prompt)
        messages = user_message(text, JudgeImage(file_bytes(original)), JudgeImage(file_bytes(edited)))
        return JudgeRequest(messages, _UPSTREAM_JUDGE if self.options.protocol is Protocol.UPSTREAM else _JUDGE)

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        request = self.request(item, item.images[0], drawn(result.images, item.id))
        reply = chat_of(judges, self.info.title).complete(request)
        value = None if reply is None else read_reply(reply)
        return Score({"score": value}, {"reply": reply}, unparsable=int(value is None))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        found = {item.id: (item.facts["type"], scores[item.id].values["score"]) for item in self._items_of(scores)}
        rows = {type_: mean_row(value for own, value in found.values() if own == type_) for type_ in TYPES}
        rows["overall"] = mean_row(value for _, value in found.values())
        return Summary(rows, ("overall",), {"left_out": [key for key, (_, value) in found.items() if value is None]})

    def _items_of(self, scores: Mapping[str, Score]) -> list[Item]:
        return [item for item in self._items if item.id in scores]


def read_reply(reply: str) -> float | None:
    """The mean, to two decimals, of the lines with exactly one `: ` and nothing but digits after it; None without one.

    The names before it do not matter. A point, a fraction or bold type after the digits makes a line count for nothing.
    """
    parts = [line.strip().split(": ") for line in reply.splitlines()]
    read = [number_of(part[1]) for part in parts if len(part) == 2 and part[1].isdecimal()]
    values = [value for value in read if value is not None]
    return round(sum(values) / len(values), 2) if values else None

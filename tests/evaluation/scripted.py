"""A benchmark of sums in words, and a respondent that knows some answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemResult,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.judges.base import JudgeMessage, JudgeRequest, Judges
from bagel_mot.evaluation.respondents.base import Answered, drawn_paths
from bagel_mot.evaluation.statistics import wilson


class Sums(Benchmark):
    """Twelve sums, of which every third draws an image; in the variant "judged" a judge says what is right."""

    info = BenchmarkInfo(
        "sums", "Sums", "adding", 12, "", "made here", "CC0", variants=("plain", "judged"),
        published=(PublishedScore("all", 0.5, "BAGEL", "a <table>"),),
    )  # fmt: skip

    def items(self) -> list[Item]:
        return [
            Item(
                f"{n}+1",
                "generate" if n % 3 == 2 else "ask",
                f"{n} + 1 = ?",
                facts={"answer": str(n + 1)},
                group=f"group {n // 2}",
                outputs=(f"drawn/{n}.png",) if n % 3 == 2 else (),
            )
            for n in range(12)
        ]

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        if self.options.variant == "judged":
            assert judges.chat is not None
            said = judges.chat.complete(JudgeRequest((JudgeMessage("user", (item.prompt, *result.texts)),), "a judge"))
            if said is None:
                return Score({"right": None}, {"reply": None}, unparsable=1)
            return Score({"right": float(said)}, {"reply": said})
        if result.images:
            return Score({"right": float(Image.open(result.images[0]).size == (8, 8))})
        return Score({"right": float(result.texts[0] == item.facts["answer"])}, {"said": result.texts[0]})

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        values = [value for score in scores.values() if (value := score.values["right"]) is not None]
        share = sum(values) / len(values) if values else None
        return Summary({"all": SummaryRow(share, len(values), wilson(round(sum(values)), len(values)))}, ("all",))


def sums(variant: str | None = None) -> Sums:
    return Sums(BenchmarkOptions(Path(), variant=variant))


class Knowing:
    """Answers right but for some items; counts who was asked, and is interrupted at one."""

    def __init__(self, wrong: Sequence[str] = (), broken: Sequence[str] = (), stop_at: str = "") -> None:
        self.wrong, self.broken, self.stop_at = wrong, broken, stop_at
        self.asked: list[str] = []
        self.facts: dict[str, Any] = {"model": "knowing"}

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        outcomes: list[Answered] = []
        for item in items:
            if item.id == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(item.id)
            if item.id in self.broken:
                outcomes.append(ImageError(f"the image of {item.id} cannot be read."))
            elif item.kind == "generate":
                path = folder / drawn_paths(item)[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 4) if item.id in self.wrong else (8, 8), "red").save(path)
                outcomes.append(ItemResult(texts=("",), images=(path,), truncated=(False,)))
            else:
                answer = "?" if item.id in self.wrong else item.facts["answer"]
                outcomes.append(ItemResult(texts=(answer,), truncated=(item.id == "0+1",)))
        return outcomes

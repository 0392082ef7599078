"""The contract of a benchmark: items, the request of an item, the score of its result, and the summary of all scores.

The runner gives an item's request to a model or a server, stores the result, and has it scored. Nothing here runs a
model, so the same scores serve as rewards.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from bagel_mot.errors import SettingError
from bagel_mot.evaluation.judges.base import Judges

# "reconstruct" sends the image through the model's autoencoder, which bounds every image that the model draws.
ItemKind = Literal["ask", "generate", "edit", "reconstruct"]
# An image that is opened when its item runs: a file, the bytes of one, or a function that makes it.
ItemImage = Path | bytes | Callable[[], Image.Image]


class Protocol(StrEnum):
    """The ways in which prompts, settings and scores are made.

    PUBLISHED does what the evaluation scripts of the published system do, faults included. FIXED mends those faults
    that docs/evaluation.md lists. UPSTREAM does what the benchmark's own repository does, where that differs.
    """

    PUBLISHED = "published"
    FIXED = "fixed"
    UPSTREAM = "upstream"


@dataclass(frozen=True)
class Item:
    """One question, prompt or edit of a benchmark, with all that a model is given.

    Attributes:
        id: the item's name, unique within its benchmark and the same in every run.
        kind: the method of `Bagel` that answers it.
        prompt: the text to the letter.
        images: the inputs in order.
        settings: keyword arguments of `Bagel.ask`, `generate` or `edit`, under the published names; for "reconstruct"
            {"passes": n}, how often the image goes through the autoencoder.
        seeds: one result is made for each.
        outputs: the path of each drawn image below the folder of images, in the benchmark's own layout.
        facts: the parts of the row that scoring needs, such as the right answer, as JSON.
        group: items of one group have equal inputs, which are read once.
        turns: further instructions, one after the other in the same conversation; the last result counts. For edits.
        row: the columns of the item's row in a table of predictions, such as the question, the options by letter and
            the answer. Neither a model nor a score sees them.
    """

    id: str
    kind: ItemKind
    prompt: str
    images: tuple[ItemImage, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    outputs: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    turns: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemResult:
    """The results that a model made of an item, one for each of its seeds.

    Attributes:
        texts: the answers; for drawn images the thoughts, "" without thinking.
        images: the files of drawn images; empty for answers.
        truncated: whether each text ended by its token limit.
    """

    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    truncated: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Score:
    """The score of one item.

    Attributes:
        values: numbers by name, such as {"right": 1.0}. None is a number that could not be had: a judge's reply that
            cannot be read, a call that failed.
        detail: the way it came about, as JSON: the parsed answer, the judge's replies, the reasons.
        unparsable: answers or replies that could not be read.
    """

    values: Mapping[str, float | None]
    detail: Mapping[str, Any] = field(default_factory=dict)
    unparsable: int = 0


@dataclass(frozen=True)
class SummaryRow:
    """One number of a report.

    Attributes:
        value: the number; None where no item gave one.
        count: the items behind it.
        interval: its 95% interval, where one can be given.
    """

    value: float | None
    count: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Summary:
    """The numbers of a whole run.

    Attributes:
        rows: numbers by name, in the order of the published table.
        headline: the names of those that the benchmark is known by.
        extra: further facts for the report, as JSON.
    """

    rows: Mapping[str, SummaryRow]
    headline: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedScore:
    """A number that others have published.

    Attributes:
        row: the name of the row that it belongs to.
        value: the number, on the scale of that row.
        model: the model that has it, such as "BAGEL" or "BAGEL, thinking".
        source: the table or page that it is read from.
        note: the known facts of the protocol behind it.
    """

    row: str
    value: float
    model: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class BenchmarkInfo:
    """The facts that `bagel eval --list` tells about a benchmark.

    Attributes:
        name: the name on the command line, such as "mme".
        title: the name as its authors write it.
        ability: the thing that is measured, in a few words.
        items: the number of items in the complete set; 0 where it is not known.
        needs: the helper that scoring needs beside the model: "", "a judge", "a detector".
        source: the place where the data are had.
        licence: the licence of the data; marked where it is not certain.
        hub: the id of a Hugging Face data set that may be fetched, or None.
        paper: the publication of the benchmark.
        published: scores of the published system and of those who tried to reproduce them.
        variants: names of splits or languages that `--variant` takes, the default first.
        scale: the factor by which pages and tables show the rows of a summary, and the published numbers, so that they
            read as the published table does: 100 where rows are shares and that table has per cent.
        vlmevalkit: the names of VLMEvalKit's data sets with the same items, by variant; by "" where there are none.
    """

    name: str
    title: str
    ability: str
    items: int
    needs: str
    source: str
    licence: str
    hub: str | None = None
    paper: str = ""
    published: tuple[PublishedScore, ...] = ()
    variants: tuple[str, ...] = ()
    scale: float = 1.0
    vlmevalkit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options that a benchmark is run with.

    Attributes:
        data: the folder of the data in the official layout.
        protocol: the way in which prompts, settings and scores are made.
        think: whether the model thinks first.
        variant: one of the benchmark's variants; None is the first.
        judge_texts: the folder of the user's copy of texts that cannot be shipped; None looks in the data.
        partial: whether an incomplete set is accepted: for miniatures in tests alone.
    """

    data: Path
    protocol: Protocol = Protocol.PUBLISHED
    think: bool = False
    variant: str | None = None
    judge_texts: Path | None = None
    partial: bool = False


class Benchmark(ABC):
    """A set of items and how they are scored.

    Args:
        options: the data and the protocol.

    Raises: DataError if the data are not complete, with what is missing; SettingError for options that it lacks.
    """

    info: ClassVar[BenchmarkInfo]

    def __init__(self, options: BenchmarkOptions) -> None:
        self.options = options

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items in the official order."""

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over what the items ask: ids, prompts, settings, seeds, facts,
        and the bytes of their images, or the size of their files. Images that a function makes do not count.
        """
        digest = hashlib.sha256()
        for item in self.items():
            images: list[Any] = []
            for image in item.images:
                if isinstance(image, bytes):
                    images.append(hashlib.sha256(image).hexdigest())
                elif isinstance(image, Path):
                    images.append(image.stat().st_size if image.exists() else None)
            asked = [item.kind, item.prompt, item.turns, dict(item.settings), item.seeds, dict(item.facts)]
            digest.update(json.dumps([item.id, asked, images], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]

    def check_judging(self) -> None:
        """Reads the texts that a judge is asked with, where they come from the user's copy: before a model is loaded.

        Raises: DataError or EvaluationError naming where they are had.
        """
        return None

    @abstractmethod
    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        """The score of one item's result. Judges are asked here, for each item anew."""

    @abstractmethod
    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        """The numbers of the run from the scores by item id, which may be those of a part of the items."""

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes the files that the benchmark's own scorer or server reads and returns their paths; by default none."""
        return []

    def read_scores(self, path: Path) -> dict[str, Score]:
        """Scores by item id from the file that the benchmark's own scorer writes.

        Raises: DataError if it is not such a file; SettingError if no such file is read for this benchmark.
        """
        raise SettingError(f"{self.info.name} has no scorer of its own whose results are read; score the items here.")

"""Plans: the items of a sample as records write them down, and all outcomes of a row, each with its probability."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from PIL import Image

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import (
    AnyImage,
    Document,
    FramesPart,
    ImagePart,
    IndexedSample,
    SampleBuilder,
    TextPart,
    opened,
)
from bagel_mot.data.draws import Draws, all_outcomes
from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.clips import frame_files, frame_image
from bagel_mot.errors import DataError
from bagel_mot.sequence import TextSegment, VaeSegment, VitSegment
from bagel_mot.verify.data.recorded import PATCH, STRIDE, RecordedData
from bagel_mot.verify.records import Case

PlanItem = tuple[Any, ...]
SamplePlan = tuple[PlanItem, ...]


@dataclass(frozen=True)
class Outcome:
    """A way in which the draws of a row can fall.

    Attributes:
        plan: the items of the sample; None if the row is skipped.
        document: the document; None if the row is skipped.
        sample: the sample, of which nothing is dropped; None if the row is skipped.
        reason: the reason for which the row is skipped; empty if it is not.
        images: the row's images in order.
    """

    plan: SamplePlan | None
    document: Document | None = None
    sample: IndexedSample | None = None
    reason: str = ""
    images: tuple[AnyImage, ...] = ()


def outcomes_of(recorded: RecordedData, case: Case, opener: str) -> list[tuple[Fraction, Outcome]]:
    """Every outcome of the row of a case; equal plans are merged, in the order of their first draws."""
    key = case["group"], case["data_set"], case["file"], case.get("row_group"), case["row"], opener
    if key not in recorded.outcomes:
        row, dataset = recorded.row(case), recorded.dataset(case["group"], case["data_set"], opener=opener)
        builder = recorded.builder()
        merged: dict[SamplePlan | None, tuple[Fraction, Outcome]] = {}
        for probability, outcome in all_outcomes(lambda draws: _outcome(dataset, builder, row, draws)):
            before = merged.get(outcome.plan)
            merged[outcome.plan] = (probability + before[0], before[1]) if before else (probability, outcome)
        recorded.outcomes[key] = list(merged.values())
    found: list[tuple[Fraction, Outcome]] = recorded.outcomes[key]
    return found


def _outcome(dataset: Dataset, builder: SampleBuilder, row: Row, draws: Draws) -> Outcome:
    try:
        document = dataset.document(row, draws)
        sample = builder(0, document, random.Random(0), dataset.images)
    except SkipRow as skipped:
        return Outcome(None, reason=str(skipped))
    pictures = pictures_of(dataset, row)
    return Outcome(tuple(_items(document, sample, pictures)), document, sample, "", tuple(pictures))


def pictures_of(dataset: Dataset, row: Row) -> list[AnyImage]:
    """The images of a row in order: the states of a session, the files of a conversation, the frames of a clip."""
    if "image_list" in row:
        return list(row["image_list"])
    if "captions" in row:
        return [row["image"]]
    folder = dataset.mapper.folder  # type: ignore[attr-defined]
    if row.get("image") is not None:
        names = [row["image"]] if isinstance(row["image"], str) else row["image"]
        return [folder / name for name in names]
    if row.get("video") is not None:
        return list(map(frame_image, frame_files(folder / row["video"])))
    return []


def _items(document: Document, sample: IndexedSample, pictures: Sequence[AnyImage]) -> Iterable[PlanItem]:
    segments = iter(sample.segments)
    for part in document:
        assert not isinstance(part, FramesPart)
        if isinstance(part, TextPart):
            text = next(segments)
            assert isinstance(text, TextSegment)
            yield "text", part.text, text.ids[1:-1], bool(text.labels), part.droppable
            continue
        picture = next((n for n, image in enumerate(pictures) if image is part.image or image == part.image), None)
        for kind in ["noised"] * (part.copies if part.target else 0) + ["vae"] * part.vae + ["vit"] * part.vit:
            segment = next(segments)
            assert isinstance(segment, VaeSegment | VitSegment)
            side = PATCH if kind == "vit" else STRIDE
            rows, columns = segment.grid
            noised, stored = kind == "noised", "vit" if kind == "vit" else "vae"
            yield stored, picture, (columns * side, rows * side), rows * columns, noised, part.droppable and not noised


def recorded_plan(outcome: Mapping[str, Any]) -> SamplePlan | None:
    """The plan of a recorded outcome; items without an image are left out, as nothing can be packed."""
    if "skip" in outcome:
        return None
    return tuple(_recorded_item(item) for item in outcome["plan"] if item.get("picture", 0) is not None)


def _recorded_item(item: Mapping[str, Any]) -> PlanItem:
    loss, droppable = bool(item["loss"]), bool(item["droppable"])
    if item["type"] == "text":
        return "text", item["text"], tuple(item["ids"]), loss, droppable
    return item["type"], item.get("picture"), tuple(item["size"]), item["tokens"], loss, droppable


def without_pictures(plan: SamplePlan | None) -> SamplePlan | None:
    """A plan whose images are not told apart."""
    return plan and tuple((*item[:1], None, *item[2:]) if item[0] != "text" else item for item in plan)


def planned_length(document: Document, dataset: Dataset, builder: SampleBuilder) -> int:
    """The length of a document's sample by the sizes of its images alone: nothing is resized."""
    length = 0
    for part in document:
        if isinstance(part, TextPart):
            length += len(builder.tokenizer.encode(part.text)) + 2
        elif isinstance(part, ImagePart):
            length += _image_length(part, dataset, builder)
    return length


def _image_length(part: ImagePart, dataset: Dataset, builder: SampleBuilder) -> int:
    rules = dataset.images
    image: Image.Image = opened(part.image, rules.opener)
    length = 0
    copies = (part.copies if part.target else 0) + part.vae
    if copies:
        width, height = (rules.vae or builder.vae_transform).size(*image.size, part.share)
        length += copies * (width * height // STRIDE**2 + 2)
    if part.vit:
        width, height = (rules.vit or builder.vit_transform).size(*image.size, part.share)
        length += width * height // PATCH**2 + 2
    return length


def recorded_sample(
    recorded: RecordedData, row: str, number: int, dropout: Mapping[str, float] | None = None
) -> IndexedSample:
    """The sample of a recorded outcome, made here from the row's file, with images opened as published.

    Args:
        recorded: the set.
        row: the name of the case of the row.
        number: the number of the outcome there.
        dropout: the probability with which each kind of condition is left out, 0 or 1; by default all stay.

    Raises:
        DataError: no draws here lead to that outcome.
    """
    case = recorded.by_name(row)
    plan = recorded_plan(case["outcomes"][number])
    dataset = recorded.dataset(case["group"], case["data_set"], opener="published")
    for _, outcome in outcomes_of(recorded, case, "published"):
        if outcome.plan == plan and outcome.document is not None:
            return recorded.builder(dropout)(0, outcome.document, random.Random(0), dataset.images)
    raise DataError(f"no draws lead to outcome {number} of {row}")

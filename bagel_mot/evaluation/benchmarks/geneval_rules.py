"""GenEval's rules: whether the things that a detector found in an image are what the prompt asks for.

A line of the benchmark asks for things (`include`), each with a class, a count, and perhaps a color and a position
beside an earlier thing of the list, and may forbid a number of them (`exclude`). Everything here is pure: the boxes of
the detector come in, and the colors of boxes by a function. Thresholds are those of the published scorer: a confidence
must be greater, not equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from bagel_mot.evaluation.judges.base import Detection
from bagel_mot.evaluation.judges.coco import COCO_CLASSES

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST_OF_A_CLASS = 16
BACKGROUND = "#999"
_SLACK = 0.1  # the share of both sizes that an offset is shortened by
_CLEAR = 0.5  # the share of the distance from which on a thing is left, right, above or below

FailedCheck = Literal["missing", "too_many", "color", "position", "no_target"]
# The color of each box of a class.
ColorsOf = Callable[[str, Sequence[Detection]], Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """The rules' verdict on one image.

    Attributes:
        correct: whether nothing failed.
        why: the kinds of the failed checks, in the order of the checks.
        reasons: a sentence for each of them.
        counted: the number of things above the threshold by class, in COCO's order, of classes that were found.
    """

    correct: bool
    why: tuple[FailedCheck, ...]
    reasons: tuple[str, ...]
    counted: Mapping[str, int]


def threshold_of(tag: str) -> float:
    """The confidence that a thing must exceed: counting asks for more."""
    return COUNTING_THRESHOLD if tag == "counting" else THRESHOLD


def found_things(detections: Sequence[Detection], threshold: float) -> dict[str, list[Detection]]:
    """The things above a threshold by class, in COCO's order: of each class the 16 most confident, best first."""
    found: dict[str, list[Detection]] = {}
    for name in COCO_CLASSES:
        of_class = [thing for thing in detections if thing.label == name and thing.score > threshold]
        if of_class:
            found[name] = sorted(of_class, key=lambda thing: -thing.score)[:MOST_OF_A_CLASS]
    return found


def relations(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> frozenset[str]:
    """Where box `a` lies, seen from box `b`: up to two of `RELATIONS`.

    The offset of the centres is shortened on each axis by a tenth of both sizes, and then divided by the length of the
    offset as it was.
    """
    offset = [((a[i] + a[i + 2]) - (b[i] + b[i + 2])) / 2 for i in (0, 1)]
    length = math.hypot(*offset)
    if length == 0:
        return frozenset()
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    x, y = (math.copysign(max(abs(offset[i]) - _SLACK * sizes[i], 0), offset[i]) / length for i in (0, 1))
    held = {"left of": x < -_CLEAR, "right of": x > _CLEAR, "above": y < -_CLEAR, "below": y > _CLEAR}
    return frozenset(name for name, holds in held.items() if holds)


def judge(metadata: Mapping[str, Any], detections: Sequence[Detection], colors_of: ColorsOf) -> Verdict:
    """The verdict on one image.

    Args:
        metadata: the line of the benchmark, with tag, include and perhaps exclude.
        detections: all that the detector found, of any confidence.
        colors_of: the color of each of some boxes of a class; it is called with no more than the wanted count.
    """
    found = found_things(detections, threshold_of(metadata["tag"]))
    failed: list[tuple[FailedCheck, str]] = []
    groups: list[list[Detection] | None] = []  # the things of each entry of `include`; None if the entry failed
    for wanted in metadata.get("include", ()):
        things = found.get(wanted["class"], [])[: wanted["count"]]
        failure = _failure(wanted, things, groups, metadata["include"], colors_of)
        if failure is not None:
            failed.append(failure)
        groups.append(things if failure is None else None)
    for unwanted in metadata.get("exclude", ()):
        many = len(found.get(unwanted["class"], []))
        if many >= unwanted["count"]:
            failed.append(("too_many", f"{many} {unwanted['class']} found, fewer than {unwanted['count']} expected"))
    return Verdict(
        not failed,
        tuple(kind for kind, _ in failed),
        tuple(sentence for _, sentence in failed),
        {name: len(things) for name, things in found.items()},
    )


def _failure(
    wanted: Mapping[str, Any],
    things: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    include: Sequence[Mapping[str, Any]],
    colors_of: ColorsOf,
) -> tuple[FailedCheck, str] | None:
    """The first check that one entry of `include` fails; None if it passes all."""
    name, count = wanted["class"], wanted["count"]
    if len(things) < count:
        return "missing", f"{len(things)} {name} found, at least {count} expected"
    if (color := wanted.get("color")) is not None:
        colors = list(colors_of(name, things))
        if colors.count(color) < count:
            return "color", f"{name} is {', '.join(colors)}, {color} expected"
    if (position := wanted.get("position")) is None:
        return None
    relation, target = position
    if groups[target] is None:
        return "no_target", f"{name} should be {relation} a {include[target]['class']}, which failed itself"
    for thing in things:
        for other in groups[target] or ():
            seen = relations(thing.box, other.box)
            if relation not in seen:
                where = " and ".join(sorted(seen)) or "neither left, right, above nor below"
                return "position", f"{name} is {where} of {include[target]['class']}, {relation} expected"
    return None


def color_texts(name: str) -> list[tuple[str, ...]]:
    """Three texts for each of `COLORS`, by which the color of a thing is recognised; their features are averaged."""
    return [
        (f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}", f"a photo of a {color} object")
        for color in COLORS
    ]


def crop(image: Image.Image, thing: Detection) -> Image.Image:
    """The part of an image that the color is read from, at least one pixel: the box, rounded to whole pixels, and gray
    outside the mask.

    Args:
        image: RGB.
        thing: a box and its mask; without a mask nothing is painted over.
    """
    if thing.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), Image.fromarray(thing.mask))
    left, top, right, bottom = map(round, thing.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))

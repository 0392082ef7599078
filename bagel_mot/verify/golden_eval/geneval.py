"""The comparison of GenEval: prompts, what recorded boxes and colors are judged to be, and the geometry behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from bagel_mot.evaluation.base import ItemResult, Score, Summary
from bagel_mot.evaluation.benchmarks.geneval import TAGS, printed_row
from bagel_mot.evaluation.benchmarks.geneval_rules import (
    BACKGROUND,
    COLORS,
    MOST_OF_A_CLASS,
    color_texts,
    crop,
    found_things,
    relations,
    threshold_of,
)
from bagel_mot.evaluation.judges.base import Detection, Judges
from bagel_mot.verify.golden_eval.judge import MODES, Check, settings_agree

_SIDE = 1024  # pixels of an image whose pixels hold their own places


class RecordedBoxes:
    """The detector and the classifier of recorded boxes and colors, for images in the order of their names.

    A cut-out has no name, so its box is told by its first pixel.

    Args:
        boxes: the boxes of each image by its name and class, as (left, top, right, bottom, confidence).
        colors: the color of each box by image and class.
        names: the images in the order in which they are shown.
    """

    def __init__(self, boxes: Mapping[str, Any], colors: Mapping[str, Any], names: Sequence[str]) -> None:
        self._boxes, self._colors, self._names = boxes, colors, iter(names)
        self._name = ""

    def detect(self, image: Image.Image) -> list[Detection]:
        self._name = next(self._names)
        return [
            Detection(label, box[4], (box[0], box[1], box[2], box[3]))
            for label, boxes in self._boxes[self._name].items()
            for box in boxes
        ]

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> np.ndarray:
        [label] = [name for name in self._boxes[self._name] if list(map(tuple, texts)) == color_texts(name)]
        found = np.zeros((len(images), len(texts)))
        for row, image in zip(found, images, strict=True):
            boxes = self._boxes[self._name][label]
            [index] = [i for i, box in enumerate(boxes) if tuple(map(round, box[:2])) == _place(image)]
            row[COLORS.index(self._colors[self._name][label][index])] = 1
        return found


def _place(image: Image.Image) -> tuple[int, int]:
    """The place that the first pixel of an image had in the image of places."""
    red, green, blue = np.asarray(image.convert("RGB"))[0, 0].tolist()
    return red + (blue & 15) * 256, green + (blue >> 4) * 256


def _image_of_places(folder: Path) -> Path:
    y, x = np.mgrid[:_SIDE, :_SIDE]
    pixels = np.stack([x & 255, y & 255, (x >> 8) | (y >> 8) << 4], -1).astype(np.uint8)
    path = folder / "places.png"
    Image.fromarray(pixels).save(path)
    return path


def check_geneval(check: Check) -> None:
    for variant in ("plain", "rewritten"):
        with check.at("prompts", variant):
            items = check.benchmark(variant=variant).items()
            recorded = check.recorded.take("prompts", "items")
            check.same("ids", [item.id for item in items], list(recorded))
            for item in items:
                check.same(f"{item.id}.prompt", item.prompt, recorded[item.id][variant])
    with check.at("prompts", "settings"):
        _check_settings(check)
    for mode in MODES:
        with check.at("scores", mode):
            _check_verdicts(check, mode)
    with check.at("rules"):
        _check_rules(check)


def _check_settings(check: Check) -> None:
    items = check.benchmark().items()
    settings = dict(check.recorded.take("prompts", "settings"))
    for item in items:
        check.same(f"{item.id}.pictures_per_prompt", len(item.seeds), settings["pictures_per_prompt"])
    settings_agree(check, items[0].settings, settings)
    written = check.recorded.take("prompts", "output")
    name = items[3].outputs[1].replace(items[3].id, "<index, five digits>").replace("00001.png", "<k, five digits>.png")
    check.same("output", f"{name} and <index>/metadata.jsonl", written)
    default = check.recorded.take("prompts", "default_file")
    check.same("default_file", (check.recorded.data / default).is_file(), True)
    texts = check.recorded.take("prompts", "colour_check")
    check.same("colours", COLORS, texts["colours"])
    check.same("background", BACKGROUND, texts["background"])
    check.same(
        "texts",
        color_texts("tv remote"),
        [
            [text.replace("COLOUR", x).replace("NAME", "tv remote") for text in texts["texts_for_class_NAME"]]
            for x in COLORS
        ],
    )


def _scored(check: Check, mode: str) -> tuple[dict[str, Score], Summary]:
    boxes, colors = check.recorded.take("answers", "detections"), check.recorded.take("answers", "colours")
    bench = check.benchmark(mode)
    scores = {}
    with TemporaryDirectory() as folder:
        path = _image_of_places(Path(folder))
        for item in bench.items():
            scripted = RecordedBoxes(boxes, colors, item.outputs)
            result = ItemResult(images=(path,) * len(item.outputs))
            scores[item.id] = bench.score(item, result, Judges(detector=scripted, classifier=scripted))
    return scores, bench.aggregate(scores)


def _check_verdicts(check: Check, mode: str) -> None:
    scores, summary = _scored(check, mode)
    found = {name: verdict for score in scores.values() for name, verdict in score.detail["images"].items()}
    recorded = check.recorded.take("expected", "items")
    check.same("images", sorted(found), sorted(recorded))
    for name, wanted in recorded.items():
        verdict = found[name]
        check.same(f"{name}.correct", verdict["correct"], wanted["correct"])
        check.same(f"{name}.why", verdict["why"] or "ok", wanted["why"])
        check.same(f"{name}.counted", verdict["counted"], wanted["counted"])
    wanted = check.recorded.take("expected", mode)
    check.numbers({tag: summary.rows[tag].value for tag in TAGS}, wanted["by_tag"])
    check.close("overall", summary.rows["overall"].value, wanted["overall"], digits=5)
    for name in ("images_correct_percent", "prompts_correct_percent"):
        check.close(name, summary.extra[name], wanted[name], digits=2)
    if mode == "as_published":
        backwards = dict(reversed(wanted["by_tag"].items()))
        check.same(
            "printed_row", printed_row(backwards), check.recorded.take("expected", "heading_quirk", "printed_row")
        )


def _check_rules(check: Check) -> None:
    wanted = check.recorded.take("expected", "thresholds")
    many = [Detection("kite", wanted["score"] + 0.01 + i / 100, (0, 0, 1, 1)) for i in range(40)]
    kept = found_things([*many, Detection("kite", wanted["score"], (0, 0, 1, 1))], threshold_of("colors"))
    check.same("score", threshold_of("colors"), wanted["score"])
    check.same("score_counting", threshold_of("counting"), wanted["score_counting"])
    check.same("max_per_class", [len(kept["kite"]), MOST_OF_A_CLASS], [wanted["max_per_class"]] * 2)
    edge = found_things([Detection("kite", wanted["score"], (0, 0, 1, 1))], threshold_of("colors"))
    check.same("comparison", "greater than or equal" if edge else "greater than, not equal", wanted["comparison"])
    for index, case in enumerate(check.recorded.take("expected", "position")):
        check.same(f"position/{index}", sorted(relations(tuple(case["a"]), tuple(case["b"]))), case["a_is"])
    folder = check.recorded.data / "crops"
    for case in check.recorded.take("expected", "crops"):
        with Image.open(folder / case["mask"]) as mask, Image.open(folder / case["picture"]) as image:
            found = crop(image.convert("RGB"), Detection("kite", 1.0, tuple(case["box"]), np.array(mask) > 0))
        check.same(f"{case['picture']}.size", found.size, case["size"])
        with Image.open(folder / case["expected"]) as expected:
            wanted_pixels = np.array(expected.convert("RGB"))
        same = wanted_pixels.shape == np.array(found).shape and bool((np.array(found) == wanted_pixels).all())
        check.same(f"{case['picture']}.pixels", same, True)

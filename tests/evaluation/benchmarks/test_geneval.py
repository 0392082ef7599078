"""GenEval on the recorded set: prompts, settings, names, verdicts, positions, cut-outs, means; and drawn scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bagel_mot.errors import DataError, EvaluationError, SettingError
from bagel_mot.evaluation.base import BenchmarkOptions, ItemResult, Protocol, Score
from bagel_mot.evaluation.benchmarks.geneval import HEADING, TAGS, GenEval, printed_row
from bagel_mot.evaluation.benchmarks.geneval_rules import (
    COLORS,
    color_texts,
    crop,
    found_things,
    judge,
    relations,
    threshold_of,
)
from bagel_mot.evaluation.judges.base import Detection, Judges
from bagel_mot.evaluation.run_summary import summarize_scores

GOLDEN = Path(__file__).parents[2] / "golden-eval/geneval"
DATA = GOLDEN / "data"


def read(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


ANSWERS, EXPECTED, PROMPTS = read("answers.json"), read("expected.json"), read("prompts.json")


def benchmark(protocol: Protocol = Protocol.PUBLISHED, **options: Any) -> GenEval:
    return GenEval(
        BenchmarkOptions(options.pop("data", DATA), protocol, partial=options.pop("partial", True), **options)
    )


class Recorded:
    """The recorded boxes and colors of one image, as detector and as classifier.

    Cut-outs carry no names, so each box is told by its place: the image's pixels hold their own coordinates.
    """

    def __init__(self, output: str) -> None:
        self.boxes = ANSWERS["detections"][output]
        self.colors = ANSWERS["colours"][output]

    def detect(self, image: Image.Image) -> list[Detection]:
        return [Detection(name, box[4], tuple(box[:4])) for name, boxes in self.boxes.items() for box in boxes]

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> np.ndarray:
        name = texts[0][0].removeprefix(f"a photo of a {COLORS[0]} ")
        assert list(map(tuple, texts)) == color_texts(name)
        found = np.zeros((len(images), len(texts)))
        for row, image in zip(found, images, strict=True):
            red, green, blue = image.getpixel((0, 0))
            place = (red + (blue & 15) * 256, green + (blue >> 4) * 256)
            (index,) = [i for i, box in enumerate(self.boxes[name]) if tuple(map(round, box[:2])) == place]
            row[COLORS.index(self.colors[name][index])] = 1
        return found


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, x = np.mgrid[:1024, :1024]
    pixels = np.stack([x & 255, y & 255, (x >> 8) | (y >> 8) << 4], -1).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "coordinates.png"
    Image.fromarray(pixels).save(path)
    return path


def scored(which: GenEval, image: Path) -> dict[str, Score]:
    scores = {}
    for item in which.items():
        verdicts: dict[str, Any] = {}
        for output in item.outputs:
            judges = Judges(detector=Recorded(output), classifier=Recorded(output))
            one = which.score(item, ItemResult(images=(image,)), judges).detail["images"]
            verdicts[output] = one[item.outputs[0]]
        right = sum(verdict["correct"] for verdict in verdicts.values())
        scores[item.id] = Score({"right": right / 4, "images_right": float(right), "images": 4.0}, {"images": verdicts})
    return scores


@pytest.mark.parametrize("variant", ["plain", "rewritten"])
def test_prompts_settings_and_names_agree_with_the_record(variant: str) -> None:
    items = benchmark(variant=variant).items()
    assert {item.id: item.prompt for item in items} == {k: v[variant] for k, v in PROMPTS["items"].items()}
    wanted = PROMPTS["settings"]
    for item in items:
        assert item.kind == "generate"
        for name, value in wanted.items():
            if name in item.settings:
                assert json.loads(json.dumps(item.settings[name])) == value
        assert set(item.settings) == {
            "size", "num_timesteps", "timestep_shift", "cfg_text_scale", "cfg_interval", "cfg_renorm_type",
            "cfg_renorm_min", "think",
        }  # fmt: skip
        assert len(item.seeds) == len(item.outputs) == wanted["pictures_per_prompt"]
        assert item.outputs == tuple(f"{item.id}/samples/{k:05d}.png" for k in range(4))
    assert len({seed for item in items for seed in item.seeds}) == 4 * len(items)


def test_color_texts_agree_with_the_record() -> None:
    wanted = PROMPTS["colour_check"]
    assert list(COLORS) == wanted["colours"]
    assert color_texts("tv remote") == [
        tuple(text.replace("COLOUR", color).replace("NAME", "tv remote") for text in wanted["texts_for_class_NAME"])
        for color in COLORS
    ]


@pytest.mark.parametrize("protocol", [Protocol.PUBLISHED, Protocol.FIXED])
def test_verdicts_and_means_agree_with_the_record(protocol: Protocol, coordinates: Path) -> None:
    which = benchmark(protocol)
    scores = scored(which, coordinates)
    found = {output: verdict for score in scores.values() for output, verdict in score.detail["images"].items()}
    assert found.keys() == EXPECTED["items"].keys()
    for output, wanted in EXPECTED["items"].items():
        verdict = found[output]
        seen = {"correct": verdict["correct"], "why": verdict["why"] or "ok", "counted": verdict["counted"]}
        assert seen == wanted, output
        assert len(verdict["reasons"]) == len(verdict["why"])
    wanted = EXPECTED["fixed" if protocol is Protocol.FIXED else "as_published"]
    summary = which.aggregate(scores)
    assert {tag: summary.rows[tag].value for tag in TAGS} == pytest.approx(wanted["by_tag"], rel=1e-6)
    assert round(summary.rows["overall"].value, 5) == wanted["overall"]
    assert summary.extra["images_correct_percent"] == wanted["images_correct_percent"]
    assert summary.extra["prompts_correct_percent"] == wanted["prompts_correct_percent"]


def test_only_published_repeats_the_printed_table(coordinates: Path) -> None:
    which = benchmark()
    scores = scored(which, coordinates)
    back = dict(sorted(scores.items(), key=lambda pair: -list(TAGS).index(which._by_id[pair[0]].facts["tag"])))
    printed = which.aggregate(back).extra["printed"]
    assert printed == {"heading": list(HEADING), "row": EXPECTED["heading_quirk"]["printed_row"]}
    assert "printed" not in benchmark(Protocol.FIXED).aggregate(back).extra
    assert printed_row(dict.fromkeys(TAGS, 0.5)) == ["0.50"] * 7


def test_the_thresholds_are_the_recorded_ones() -> None:
    wanted = EXPECTED["thresholds"]
    assert threshold_of("position") == wanted["score"]
    assert threshold_of("counting") == wanted["score_counting"]
    many = [Detection("cup", 0.31 + i / 100, (0, 0, 1, 1)) for i in range(20)]
    kept = found_things([*many, Detection("cup", wanted["score"], (0, 0, 1, 1))], wanted["score"])["cup"]
    assert [thing.score for thing in kept] == sorted((thing.score for thing in many), reverse=True)[:16]


@pytest.mark.parametrize("case", EXPECTED["position"], ids=range(len(EXPECTED["position"])))
def test_relations_agree_with_the_record(case: dict[str, Any]) -> None:
    assert sorted(relations(tuple(case["a"]), tuple(case["b"]))) == case["a_is"]


def test_a_relation_turned_round_is_the_opposite_one() -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    corners = np.random.default_rng(0).integers(0, 400, (200, 2, 4)).astype(float)
    for a, b in corners.tolist():
        assert relations(tuple(b), tuple(a)) == {opposite[name] for name in relations(tuple(a), tuple(b))}
    assert relations((0, 0, 9, 9), (0, 0, 9, 9)) == frozenset()


@pytest.mark.parametrize("case", EXPECTED["crops"], ids=range(len(EXPECTED["crops"])))
def test_cut_outs_agree_with_the_record(case: dict[str, Any]) -> None:
    with Image.open(DATA / "crops" / case["mask"]) as mask, Image.open(DATA / "crops" / case["picture"]) as image:
        thing = Detection("kite", 1.0, tuple(case["box"]), np.array(mask) > 0)
        found = crop(image.convert("RGB"), thing)
    with Image.open(DATA / "crops" / case["expected"]) as wanted:
        assert found.size == tuple(case["size"])
        assert np.array_equal(np.array(found), np.array(wanted.convert("RGB")))


def test_a_cut_out_has_at_least_one_pixel() -> None:
    assert crop(Image.new("RGB", (9, 9)), Detection("kite", 1.0, (3.4, 3.4, 3.49, 3.49))).size == (1, 1)


SHADES = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20), "pink": (250, 150, 190)}
SHAPES = {"clock": "ellipse", "book": "rectangle"}


class SceneDetector:
    """The exact things of scenes drawn here: it knows where each was put."""

    def __init__(self, things: Sequence[tuple[str, str, tuple[int, int, int, int]]]) -> None:
        self.things = things

    def image(self) -> Image.Image:
        image = Image.new("RGB", (200, 200), "white")
        for name, color, box in self.things:
            getattr(ImageDraw.Draw(image), SHAPES[name])(box, fill=SHADES[color])
        return image

    def detect(self, image: Image.Image) -> list[Detection]:
        found = []
        for name, color, box in self.things:
            mask = np.zeros((200, 200), bool)
            left, top, right, bottom = box
            inside = np.array(image)[top : bottom + 1, left : right + 1] == SHADES[color]
            mask[top : bottom + 1, left : right + 1] = inside.all(-1)
            found.append(Detection(name, 0.95, (left, top, right + 1, bottom + 1), mask))
        return found


class ShadeClassifier:
    """The nearest shade to the mean of those pixels that are not painted over."""

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> np.ndarray:
        found = np.zeros((len(images), len(COLORS)))
        for row, image in zip(found, images, strict=True):
            pixels = np.array(image).reshape(-1, 3)
            mean = pixels[(pixels != 0x99).any(1)].mean(0)
            nearest = min(SHADES, key=lambda name: np.abs(np.array(SHADES[name]) - mean).sum())
            row[COLORS.index(nearest)] = 1
        return found


RED_CLOCK_LEFT = [("clock", "red", (10, 80, 50, 120)), ("book", "blue", (140, 80, 190, 130))]


@pytest.mark.parametrize(
    ("include", "exclude", "scene", "why"),
    [
        ([{"class": "clock", "count": 1, "color": "red"}], [], RED_CLOCK_LEFT, []),
        ([{"class": "clock", "count": 1, "color": "pink"}], [], RED_CLOCK_LEFT, ["color"]),
        ([{"class": "book", "count": 2}], [], RED_CLOCK_LEFT, ["missing"]),
        ([{"class": "book", "count": 1}], [{"class": "book", "count": 2}], RED_CLOCK_LEFT, []),
        ([{"class": "book", "count": 1}], [{"class": "book", "count": 1}], RED_CLOCK_LEFT, ["too_many"]),
        (
            [{"class": "book", "count": 1}, {"class": "clock", "count": 1, "position": ["left of", 0]}],
            [],
            RED_CLOCK_LEFT,
            [],
        ),
        (
            [{"class": "book", "count": 1}, {"class": "clock", "count": 1, "position": ["above", 0]}],
            [],
            RED_CLOCK_LEFT,
            ["position"],
        ),
        (
            [{"class": "kite", "count": 1}, {"class": "clock", "count": 1, "position": ["above", 0]}],
            [],
            RED_CLOCK_LEFT,
            ["missing", "no_target"],
        ),
    ],
)
def test_drawn_scenes_are_judged_by_what_is_in_them(
    include: list[dict[str, Any]], exclude: list[dict[str, Any]], scene: list[Any], why: list[str], tmp_path: Path
) -> None:
    line = {"tag": "colors", "include": include, "exclude": exclude, "prompt": "a scene"}
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    which = benchmark(data=tmp_path)
    detector = SceneDetector(scene)
    detector.image().save(tmp_path / "scene.png")
    judges = Judges(detector=detector, classifier=ShadeClassifier())
    score = which.score(which.items()[0], ItemResult(images=(tmp_path / "scene.png",)), judges)
    assert score.detail["images"]["00000/samples/00000.png"]["why"] == why
    assert score.values["right"] == (0.0 if why else 1.0)


def test_the_color_of_a_thing_is_asked_only_when_enough_are_there() -> None:
    line = {"tag": "colors", "include": [{"class": "kite", "count": 2, "color": "red"}], "prompt": ""}
    asked: list[int] = []

    def colors_of(name: str, things: Sequence[Detection]) -> list[str]:
        asked.append(len(things))
        return ["red"] * len(things)

    one = [Detection("kite", 0.9, (0, 0, 5, 5))]
    assert judge(line, one, colors_of).why == ("missing",)
    assert asked == []
    assert judge(line, one * 3, colors_of).correct
    assert asked == [2]


@pytest.mark.parametrize("missing", ["detector", "classifier"])
def test_what_is_needed_is_said(missing: str, coordinates: Path) -> None:
    which = benchmark()
    item = which.items()[9]
    detector = None if missing == "detector" else Recorded(item.outputs[0])
    with pytest.raises(EvaluationError, match=f"GenEval needs a {missing}.*pip install"):
        which.score(item, ItemResult(images=(coordinates,)), Judges(detector=detector))


def test_the_official_scorer_s_results_are_read(coordinates: Path, tmp_path: Path) -> None:
    which = benchmark()
    ours = scored(which, coordinates)
    lines = [
        {
            "filename": f"/runs/x/{int(item.id):04d}/samples/{k:04d}.png",
            "tag": item.facts["tag"],
            "prompt": item.prompt,
            "correct": ours[item.id].detail["images"][output]["correct"],
            "reason": "expected kite>=1, found 0",
            "metadata": json.dumps(item.facts),
            "details": "{}",
        }
        for item in which.items()
        for k, output in enumerate(item.outputs)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)), encoding="utf-8")
    read_back = which.read_scores(path)
    summary = which.aggregate(read_back)
    assert summary.rows == which.aggregate(ours).rows
    low, high = summary.rows["overall"].interval
    assert low <= summary.rows["overall"].value <= high
    report = summarize_scores(which, read_back, path.name)
    assert (report["model"], report["items"], report["of"], report["scored"]) == ("results.jsonl", 18, 18, 18)
    assert report["rows"]["overall"]["value"] == summary.rows["overall"].value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "picture.png"}, "line 1: 'picture.png' names no prompt"),
        ({"filename": "x/00099/samples/0000.png"}, "names no prompt"),
        ({"correct": "False"}, "line 1: correct is 'False', not true or false"),
        ({"prompt": "a photo of a dog"}, "prompt 00000 is 'a photo of a dog', here it is 'a photo of a kite'"),
    ],
)
def test_results_of_another_set_are_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    line = {"filename": "x/00000/samples/0000.png", "tag": "single_object", "prompt": "a photo of a kite"}
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line | {"correct": True} | change) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        benchmark().read_scores(path)


def test_an_image_that_comes_twice_is_refused(tmp_path: Path) -> None:
    line = {"filename": "00000/samples/0000.png", "tag": "single_object", "prompt": "a photo of a kite"}
    path = tmp_path / "results.jsonl"
    path.write_text(2 * (json.dumps(line | {"correct": True}) + "\n"), encoding="utf-8")
    with pytest.raises(DataError, match="line 2: 00000/samples/0000.png comes a second time"):
        benchmark().read_scores(path)


def test_the_files_for_the_official_scorer_are_written(coordinates: Path, tmp_path: Path) -> None:
    which = benchmark()
    item = which.items()[0]
    image = tmp_path / "images" / item.outputs[0]
    image.parent.mkdir(parents=True)
    image.write_bytes(coordinates.read_bytes())
    result = ItemResult(images=(image,))
    score = which.score(item, result, Judges(detector=Recorded(item.outputs[0])))
    metadata, results = which.write_submission(tmp_path / "files", {item.id: result}, {item.id: score})
    assert metadata == tmp_path / "images/00000/metadata.jsonl"
    assert json.loads(metadata.read_text(encoding="utf-8")) == dict(item.facts)
    assert which.read_scores(results)[item.id].values == score.values


def test_an_incomplete_set_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"GenEval is not complete.*single_object 3 of 80, two_object 3 of 99"):
        benchmark(partial=False)


def test_a_complete_set_is_taken(tmp_path: Path) -> None:
    lines = [
        {"tag": tag, "include": [{"class": "kite", "count": 1}], "prompt": f"{tag} {i}"}
        for tag, count in TAGS.items()
        for i in range(count)
    ]
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/evaluation_metadata_long.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    items = benchmark(data=tmp_path, partial=False, variant="rewritten", think=True).items()
    assert len(items) == GenEval.info.items == 553
    assert items[552].outputs[3] == "00552/samples/00003.png"
    assert items[0].settings["max_think_tokens"] == 2047


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colour"}, "line 1: tag 'colour' is unknown: did you mean colors"),
        ({"include": [{"class": "unicorn", "count": 1}]}, "line 1: .*unicorn.* is no thing"),
        ({"include": [{"class": "kite"}]}, "is no thing"),
        ({"include": [{"class": "kite", "count": 1, "color": "mauve"}]}, "color 'mauve' is none of red"),
        ({"include": [{"class": "kite", "count": 1, "position": ["above", 0]}]}, "position .* earlier thing"),
        ({"include": {}}, "must be lists"),
    ],
)
def test_a_line_that_the_rules_cannot_read_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    line = {"tag": "colors", "include": [{"class": "kite", "count": 1}], "prompt": "a kite"} | change
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        benchmark(data=tmp_path)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(SettingError, match="no variant 'long'"):
        benchmark(variant="long")


def test_overall_waits_for_all_six(coordinates: Path) -> None:
    which = benchmark()
    few = dict(list(scored(which, coordinates).items())[:3])
    summary = which.aggregate(few)
    assert summary.rows["overall"].value is None
    assert summary.rows["single_object"].value == 0.75

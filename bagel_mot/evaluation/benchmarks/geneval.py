"""GenEval: 553 prompts for things, their number, colors and places, judged by a detector and a color classifier.

Four images are drawn for each prompt. The data are `evaluation_metadata.jsonl` of the benchmark; the published system
adds `evaluation_metadata_long.jsonl`, the same lines with rewritten prompts, which its script takes by default. The one
fault of the published scorer is in its printed table: a fixed heading stands over columns in the order of the results,
so `published` also gives that row as it would be printed. Scores agree in all protocols.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from bagel_mot.errors import DataError, EvaluationError, SettingError, did_you_mean
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.benchmarks.drawing import drawing_settings, seeds_of
from bagel_mot.evaluation.benchmarks.geneval_rules import COLORS, RELATIONS, color_texts, crop, judge
from bagel_mot.evaluation.data import locate, named, read_json_lines, require_complete
from bagel_mot.evaluation.judges.base import Classifier, Detection, Judges
from bagel_mot.evaluation.judges.coco import COCO_CLASSES
from bagel_mot.evaluation.statistics import bootstrap, mean_interval
from bagel_mot.files import write_text
from bagel_mot.images.opening import open_image
from bagel_mot.installation import install_command

TAGS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
HEADING = ("SO", "TO", "CT", "CL", "POS", "ATTR", "ALL")
_IMAGES = 4
_FILES = {"plain": "evaluation_metadata.jsonl", "rewritten": "evaluation_metadata_long.jsonl"}
_FOLDERS = ("", "prompts/", "geneval/prompts/", "eval/gen/geneval/prompts/")
_PAPER = "arXiv 2505.14683, table 5"


def _published(model: str, values: Sequence[float]) -> tuple[PublishedScore, ...]:
    rows = (*TAGS, "overall")
    note = "settings as MetaQuery-XL, says the paper; the images' seeds are not given"
    return tuple(PublishedScore(row, value, model, _PAPER, note) for row, value in zip(rows, values, strict=True))


class GenEval(Benchmark):
    """The benchmark of `evaluation_metadata.jsonl`; see the module.

    An item is a prompt with four images, its id the line's number with five digits. Its score is the share of right
    images. The detail holds for each image, by its path, whether it is right, the kinds of failed checks, and the
    number of things found.
    """

    info = BenchmarkInfo(
        name="geneval",
        title="GenEval",
        ability="drawing things, counts, colors and places as told",
        items=553,
        needs="a detector",
        source="https://github.com/djghosh13/geneval, folder prompts; the rewritten prompts come with the published "
        "BAGEL repository",
        licence="MIT",
        paper="arXiv 2310.11513",
        published=(
            *_published("BAGEL", (0.99, 0.94, 0.81, 0.88, 0.64, 0.63, 0.82)),
            *_published("BAGEL, rewritten prompts", (0.98, 0.95, 0.84, 0.95, 0.78, 0.77, 0.88)),
            PublishedScore("overall", 0.78, "BAGEL, a user's run", "issue 123 of the BAGEL repository", "A100"),
            PublishedScore(
                "overall", 0.86, "BAGEL, rewritten prompts, a user's run", "issue 123 of the BAGEL repository", "A100"
            ),
        ),
        variants=("plain", "rewritten"),
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        variant = options.variant or self.info.variants[0]
        if variant not in _FILES:
            raise SettingError(f"{self.info.title} has no variant {variant!r}: {did_you_mean(variant, _FILES)}")
        path = locate(options.data, *(folder + _FILES[variant] for folder in _FOLDERS))
        rows = read_json_lines(path, columns=("tag", "include", "prompt"))
        for number, row in enumerate(rows, 1):
            _check(row, f"{path}, line {number}")
        require_complete(self.info.title, Counter(row["tag"] for row in rows), TAGS, partial=options.partial)
        self._items = tuple(self._item(index, row) for index, row in enumerate(rows))
        self._by_id = {item.id: item for item in self._items}

    def _item(self, index: int, row: Mapping[str, Any]) -> Item:
        name = f"{index:05d}"
        return Item(
            id=name,
            kind="generate",
            prompt=row["prompt"],
            settings=drawing_settings((0.0, 1.0), self.options.think),
            seeds=seeds_of(index, _IMAGES),
            outputs=tuple(f"{name}/samples/{k:05d}.png" for k in range(_IMAGES)),
            facts=dict(row),
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        if judges.detector is None:
            raise EvaluationError(f"GenEval needs a detector: {install_command('eval')}")
        verdicts = {}
        for output, path in zip(item.outputs, result.images, strict=False):
            image = open_image(path)
            colors = _Colors(image, judges.classifier)
            verdict = judge(item.facts, judges.detector.detect(image), colors)
            verdicts[output] = {
                "correct": verdict.correct,
                "why": list(verdict.why),
                "reasons": list(verdict.reasons),
                "counted": dict(verdict.counted),
            }
        return _score(verdicts)

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        right: dict[str, int] = {}
        images: dict[str, int] = {}
        shares: dict[str, list[float]] = {tag: [] for tag in TAGS}
        for name, score in scores.items():
            tag = self._by_id[name].facts["tag"]
            right[tag] = right.get(tag, 0) + int(score.values["images_right"] or 0)
            images[tag] = images.get(tag, 0) + int(score.values["images"] or 0)
            if (share := score.values["right"]) is not None:
                shares[tag].append(share)
        by_tag = {tag: right[tag] / images[tag] for tag in right if images[tag]}
        # Images of one prompt are alike, so intervals are over prompts.
        rows = {tag: SummaryRow(by_tag.get(tag), images.get(tag, 0), mean_interval(shares[tag])) for tag in TAGS}
        # The mean of the six is not known before each of them is.
        overall = sum(by_tag.values()) / len(TAGS) if len(by_tag) == len(TAGS) else None
        rows["overall"] = SummaryRow(overall, sum(images.values()), bootstrap(list(shares.values())))
        extra: dict[str, Any] = {}
        if any(images.values()):
            extra["images_correct_percent"] = round(100 * sum(right.values()) / sum(images.values()), 2)
            some = sum(bool(score.values["images_right"]) for score in scores.values())
            extra["prompts_correct_percent"] = round(100 * some / len(scores), 2)
        if self.options.protocol is Protocol.PUBLISHED and overall is not None:
            extra["printed"] = {"heading": list(HEADING), "row": printed_row(by_tag)}
        return Summary(rows, ("overall",), extra)

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `metadata.jsonl` of each prompt where the benchmark's own scorer looks for it, which is beside the
        folder `samples`, and our verdicts as a `results.jsonl` like its own.
        """
        written = []
        lines = []
        for name, result in results.items():
            item = self._by_id[name]
            beside = [p.parent.parent for p in result.images if p.as_posix().endswith(item.outputs[0])]
            path = (beside[0] if beside else folder / name) / "metadata.jsonl"
            write_text(path, json.dumps(item.facts) + "\n")
            written.append(path)
            files = {output: str(image) for output, image in zip(item.outputs, result.images, strict=False)}
            for output, verdict in (scores[name].detail["images"] if name in scores else {}).items():
                lines.append(
                    {
                        "filename": files[output],
                        "tag": item.facts["tag"],
                        "prompt": item.prompt,
                        "correct": verdict["correct"],
                        "reason": "\n".join(verdict["reasons"]),
                        "metadata": json.dumps(item.facts),
                        "details": json.dumps(verdict["counted"]),
                    }
                )
        if lines:
            path = folder / "results.jsonl"
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
            written.append(path)
        return written

    def read_scores(self, path: Path) -> dict[str, Score]:
        """Scores from the `results.jsonl` of the benchmark's own scorer, which has the detector of mmdet.

        A line is one image: filename, which ends in PROMPT/samples/IMAGE.png, tag, prompt, correct and reason. The
        names' numbers may have any digits; every prompt must have as many images as the others.
        """
        verdicts: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(read_json_lines(path, columns=("filename", "tag", "prompt", "correct")), 1):
            item, sample = self._place(line, f"{path}, line {number}")
            output = f"{item.id}/samples/{sample}"
            if output in verdicts.setdefault(item.id, {}):
                raise DataError(f"{path}, line {number}: {output} comes a second time; one line an image is expected.")
            if not isinstance(line["correct"], bool):
                raise DataError(f"{path}, line {number}: correct is {line['correct']!r:.50}, not true or false.")
            reasons = [text for text in str(line.get("reason", "")).split("\n") if text]
            verdicts[item.id][output] = {"correct": line["correct"], "why": [], "reasons": reasons, "counted": {}}
        most = max(map(len, verdicts.values()))
        lacking = [item.id for item in self._items if len(verdicts.get(item.id, ())) < most]
        if lacking and not self.options.partial:
            raise DataError(
                f"{path} lacks images of {len(lacking)} of {len(self._items)} prompts ({named(lacking)}): it has up to "
                f"{most} of others, and would not be comparable."
            )
        return {item.id: _score(verdicts[item.id]) for item in self._items if item.id in verdicts}

    def _place(self, line: Mapping[str, Any], where: str) -> tuple[Item, str]:
        """The item that a line of a results file belongs to, and the file name of its image."""
        parts = PurePosixPath(str(line["filename"]).replace("\\", "/")).parts
        folder = parts[-3] if len(parts) >= 3 and parts[-2] == "samples" else ""
        item = self._by_id.get(f"{int(folder):05d}") if folder.isdecimal() else None
        if item is None:
            raise DataError(f"{where}: {line['filename']!r} names no prompt: NUMBER/samples/IMAGE.png is expected.")
        if (line["tag"], line["prompt"]) != (item.facts["tag"], item.prompt):
            raise DataError(f"{where}: prompt {item.id} is {line['prompt']!r:.80}, here it is {item.prompt!r:.80}.")
        return item, parts[-1]


def printed_row(by_tag: Mapping[str, float]) -> list[str]:
    """The row under `HEADING` as the published script prints it: tags in the order in which their results came.

    Where that is not the order of the heading, the columns are under wrong names.
    """
    return [f"{value:.2f}" for value in (*by_tag.values(), sum(by_tag.values()) / len(by_tag))]


def _score(verdicts: Mapping[str, Mapping[str, Any]]) -> Score:
    right = sum(verdict["correct"] for verdict in verdicts.values())
    values = {
        "right": right / len(verdicts) if verdicts else None,
        "images_right": float(right),
        "images": float(len(verdicts)),
    }
    return Score(values, {"images": dict(verdicts)})


class _Colors:
    """The color of each box of a class in one image, by a classifier of its cut-out.

    Args:
        image: RGB.
        classifier: None is refused at the first question.
    """

    def __init__(self, image: Image.Image, classifier: Classifier | None) -> None:
        self._image = image
        self._classifier = classifier

    def __call__(self, name: str, things: Sequence[Detection]) -> list[str]:
        if self._classifier is None:
            raise EvaluationError(f"GenEval needs a classifier of colors: {install_command('eval')}")
        crops = [crop(self._image, thing) for thing in things]
        return [COLORS[best] for best in self._classifier.probabilities(crops, color_texts(name)).argmax(1)]


def _check(row: Mapping[str, Any], where: str) -> None:
    """Checks that the rules can read a line.

    Raises: DataError naming the line and the field.
    """
    if row["tag"] not in TAGS:
        raise DataError(f"{where}: tag {row['tag']!r:.60} is unknown: {did_you_mean(str(row['tag']), TAGS)}.")
    wanted = row["include"]
    if not isinstance(wanted, list) or not isinstance(row.get("exclude", []), list):
        raise DataError(f"{where}: include and exclude must be lists of things.")
    for thing in (*wanted, *row.get("exclude", [])):
        named = isinstance(thing, dict) and thing.get("class") in COCO_CLASSES
        if not named or not isinstance(thing.get("count"), int):
            raise DataError(f"{where}: {thing!r:.80} is no thing: a class of COCO and a count are expected.")
        if thing.get("color", COLORS[0]) not in COLORS:
            raise DataError(f"{where}: color {thing['color']!r:.40} is none of {', '.join(COLORS)}.")
    for index, thing in enumerate(wanted):
        match thing.get("position"):
            case None:
                pass
            case [str(relation), int(target)] if relation in RELATIONS and 0 <= target < index:
                pass
            case position:
                raise DataError(
                    f"{where}: position {position!r:.60} must be one of {', '.join(RELATIONS)}, and the number of an "
                    "earlier thing."
                )

"""The comparison of what a benchmark's class makes with what is recorded: prompts, settings, scores, rows, requests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.evaluation.base import Benchmark, BenchmarkOptions, Item, ItemResult, Protocol, Score, Summary
from bagel_mot.evaluation.data import open_input
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeRequest, Judges
from bagel_mot.evaluation.registry import benchmark_named
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform
from bagel_mot.verify.golden_eval.recorded import RecordedBenchmark
from bagel_mot.verify.records import Comparison

_RELATIVE = 1e-6
_SHORT = 60  # characters of a text that a recorded request holds in full
MODES = {"as_published": Protocol.PUBLISHED, "fixed": Protocol.FIXED}
"""The protocols by the marks of a set."""


@dataclass
class ScriptedJudge:
    """A judge that gives recorded replies in turn, and keeps what it was asked.

    Attributes:
        replies: the replies in the order of the calls.
        requests: the calls so far.
    """

    replies: Sequence[str | None]
    requests: list[JudgeRequest] = field(default_factory=list)

    def complete(self, request: JudgeRequest) -> str | None:
        self.requests.append(request)
        if len(self.requests) > len(self.replies):
            raise LookupError(
                f"the judge is asked {len(self.requests)} times; {len(self.replies)} replies are recorded"
            )
        return self.replies[len(self.requests) - 1]


@dataclass
class Check:
    """Compares one benchmark; each quantity becomes a `Comparison`.

    Attributes:
        recorded: the record of the benchmark.
        rows: the comparisons so far.
        where: the present kind of comparison, and the run and mode if there are such.
    """

    recorded: RecordedBenchmark
    rows: list[Comparison] = field(default_factory=list)
    where: str = ""

    @contextmanager
    def at(self, *parts: str) -> Iterator[None]:
        """Lets comparisons within belong to this kind, run and mode. An error becomes a failing row."""
        before, self.where = self.where, "/".join(parts)
        try:
            yield
        except KeyError as error:
            self.fail("record", f"there is no {error}")
        except Exception as error:  # the code under test may fail in any way; the report must come out all the same
            self.fail("run", f"{type(error).__name__}: {error}")
        finally:
            self.where = before

    # ---------------------------------------------------------------------------------------------------- comparisons

    def same(self, quantity: str, got: Any, recorded: Any) -> None:
        """Compares two values that must be equal. A tuple is as good as a list, and 1.0 as 1 and as True."""
        equal = _plain(got) == _plain(recorded)
        self._add(quantity, float(not equal), equal, "" if equal else f"{got!r:.200} instead of {recorded!r:.200}")

    def close(self, quantity: str, got: float | None, recorded: float | None, digits: int | None = None) -> None:
        """Compares two numbers: within 1e-6, relative, or equal after rounding to these digits."""
        if got is None or recorded is None:
            return self.same(quantity, got, recorded)
        if digits is not None:
            # A printed half may have gone either way.
            equal = abs(got - recorded) <= 0.5 * 10**-digits * (1 + 1e-9)
            return self._add(quantity, float(not equal), equal, "" if equal else f"{got!r} instead of {recorded!r}")
        error = abs(got - recorded) / max(abs(recorded), 1e-30) if got != recorded else 0.0
        return self._add(
            quantity, error, error <= _RELATIVE, "" if error <= _RELATIVE else f"{got!r} instead of {recorded!r}"
        )

    def numbers(
        self, got: Mapping[str, float | None], recorded: Mapping[str, float | None], digits: int | None = None
    ) -> None:
        """Compares numbers by name; all that are recorded must be there."""
        for name, value in recorded.items():
            if name not in got:
                self.fail(name, f"it is not among {', '.join(got)}")
            else:
                self.close(name, got[name], value, digits)

    def unknown(self, quantity: str, why: str) -> None:
        """Counts a value apart that cannot be had here, by the reason."""
        self.rows.append(Comparison(f"{self.recorded.name}/{self.where}", quantity, None, True, why, differs=why))

    def fail(self, quantity: str, note: str) -> None:
        self._add(quantity, None, False, note)

    def _add(self, quantity: str, error: float | None, passed: bool, note: str = "") -> None:
        self.rows.append(Comparison(f"{self.recorded.name}/{self.where}", quantity, error, passed, note))

    # ------------------------------------------------------------------------------------------------------ benchmarks

    def benchmark(
        self, mode: str = "as_published", arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> Benchmark:
        """This benchmark on the recorded data, in a mode, or as its own repository has it ("upstream").

        Args:
            mode: the mode.
            arguments: further arguments of the class.
            **options: fields of `BenchmarkOptions`.
        """
        texts = self.recorded.folder / "judge_texts"
        defaults = {"data": self.recorded.data, "judge_texts": texts if texts.is_dir() else None}
        given = BenchmarkOptions(**{**defaults, **options}, protocol=MODES.get(mode, Protocol.UPSTREAM), partial=True)
        return benchmark_named(self.recorded.name)(given, **(arguments or {}))

    def questions(self, benchmark: Benchmark, *place: str) -> None:
        """Compares prompts, images, sizes and limits of all items with those recorded at a place of prompts.json."""
        items = benchmark.items()
        recorded = self.recorded.take("prompts", *place, "items")
        settings = self.recorded.take("prompts", *place, "settings")
        self.same("settings", _settings_of(items[0], settings), settings)
        self.same("ids", sorted(item.id for item in items), sorted(recorded))
        for item in items:
            wanted = recorded[item.id]
            images = [open_input(image) for image in item.images]
            transform = ImageTransform(
                VIT_TRANSFORM.max_size, item.settings["vit_min_size"], VIT_TRANSFORM.stride, VIT_TRANSFORM.max_pixels
            )
            self.same(f"{item.id}.prompt", item.prompt, wanted["prompt"])
            self.same(f"{item.id}.pictures", _names_of(item, wanted["pictures"]), wanted["pictures"])
            self.same(f"{item.id}.picture_sizes", [image.size for image in images], wanted["picture_sizes"])
            self.same(f"{item.id}.vit_sizes", [transform.size(*image.size) for image in images], wanted["vit_sizes"])
            self.same(f"{item.id}.max_length", item.settings["max_new_tokens"] + 1, wanted["max_length"])

    def answered(
        self,
        benchmark: Benchmark,
        answers: Mapping[str, str],
        replies: Mapping[str, Sequence[str | None]] | None = None,
    ) -> tuple[dict[str, Score], dict[str, list[JudgeRequest]], Summary]:
        """The scores of recorded answers, what the judge was asked for each, and the summary."""
        scores, asked = {}, {}
        self.same("ids", sorted(item.id for item in benchmark.items()), sorted(answers))
        for item in benchmark.items():
            judge = ScriptedJudge((replies or {}).get(item.id, ()))
            scores[item.id] = benchmark.score(item, ItemResult((answers[item.id],)), Judges(chat=judge))
            asked[item.id] = judge.requests
            if replies is not None:
                self.same(f"{item.id}.calls", len(judge.requests), len(judge.replies))
        return scores, asked, benchmark.aggregate(scores)


def judged(
    benchmark: Benchmark,
    replies: Mapping[str, Sequence[str | None]],
    images: Mapping[str, Path],
) -> tuple[dict[str, Score], dict[str, list[JudgeRequest]], Summary]:
    """The scores of recorded images by recorded replies, what the judge was asked for each, and the summary."""
    scores, asked = {}, {}
    for item in benchmark.items():
        judge = ScriptedJudge(replies[item.id])
        scores[item.id] = benchmark.score(item, ItemResult(images=(images[item.id],)), Judges(chat=judge))
        asked[item.id] = judge.requests
    return scores, asked, benchmark.aggregate(scores)


def value_of(score: Score, name: str) -> Any:
    """A number or fact of a score."""
    return score.values[name] if name in score.values else score.detail[name]


def structure_of(request: JudgeRequest) -> list[dict[str, Any]]:
    """The messages of a request as requests.json records them."""
    return [
        {"role": message.role, "content": [_part_of(part) for part in message.content]} for message in request.messages
    ]


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Settings of the scripts that `Bagel` lacks, because they are always so or belong to the run.
_NO_SETTINGS = ("batch_size", "pictures_per_prompt", "seed")


def settings_agree(check: Check, ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Compares the settings of drawing; a guidance that is not given there is off here."""
    for name, value in recorded.items():
        if name == "cfg_image_scale" and value is None:
            check.same(name, ours.get(name, 1.0), 1.0)
        elif name == "size" and isinstance(value, str):
            continue  # that of the first input, which each item's `output_size` holds
        elif name not in _NO_SETTINGS:
            check.same(name, ours[name], value)


def _part_of(part: str | JudgeImage) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part} if len(part) < _SHORT else {"text_sha256": hash_of(part), "chars": len(part)}
    with Image.open(io.BytesIO(part.data)) as image:
        facts = {"mime": part.mime, "format": image.format, "size": list(image.size), "detail": part.detail}
    return {"picture": facts}


def _settings_of(item: Item, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a question in the form of prompts.json.

    Any budget of pixels agrees that no image with sides of at most `max_size` can exceed.
    """
    budget = recorded["picture_transform"]["max_pixels"]
    is_free = min(budget, VIT_TRANSFORM.max_pixels) >= VIT_TRANSFORM.max_size**2
    return {
        "decoding": "sampled" if item.settings.get("do_sample") else "greedy",
        "stop": "<|im_end|>",
        "picture_transform": {
            "max_size": VIT_TRANSFORM.max_size,
            "min_size": item.settings["vit_min_size"],
            "stride": VIT_TRANSFORM.stride,
            "max_pixels": budget if is_free else VIT_TRANSFORM.max_pixels,
            "mean": 0.5,
            "std": 0.5,
        },
        "sequence": ["pictures in order, ViT only", "prompt", "answer"],
        "system_prompt": None,
    }


def _names_of(item: Item, recorded: Sequence[str]) -> list[str]:
    """The names of an item's images where they are files, as long as the recorded ones; else the recorded ones."""
    if len(item.images) != len(recorded):
        return [f"{len(item.images)} images"]
    return [
        image.as_posix()[-len(name) :] if isinstance(image, Path) else name
        for image, name in zip(item.images, recorded, strict=True)
    ]


def sizes_of(item: Item) -> dict[str, Any]:
    """The sizes of an edit, (width, height): of the image to be drawn, and of each input for the VAE and the ViT."""
    sizes = [open_input(image).size for image in item.images]
    # With a shortest side of its own, the ViT sees images as they were given.
    vit = ImageTransform(VIT_TRANSFORM.max_size, item.settings["vit_min_size"], VIT_TRANSFORM.stride)
    vae = [VAE_TRANSFORM.size(*size) for size in sizes]
    return {
        "output_size": item.settings.get("size") or vae[-1],
        "vae_sizes": vae,
        "vit_sizes": [vit.size(*size) for size in sizes],
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value

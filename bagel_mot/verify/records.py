"""Recorded cases on disk, and the comparison of computed with recorded results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bagel_mot.errors import DataError
from bagel_mot.files import read_text
from bagel_mot.images import ImageTransform, open_image

Case = Mapping[str, Any]
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Comparison:
    """The result of comparing one quantity of one case: a row of the report.

    Attributes:
        case, quantity: the names of the case and of the recorded tensor or value.
        error: the relative error of floats, or the number of differing entries where equality is required; None if
            nothing was compared.
        passed: whether the error is within the tolerance.
        note: the reason of a failure, or the unit of the error.
        differs: the name of the quirk of the published program that is not followed here; empty if nothing differs
            that may.
    """

    case: str
    quantity: str
    error: float | None
    passed: bool
    note: str = ""
    differs: str = ""

    def to_json(self) -> dict[str, Any]:
        finite = self.error is None or math.isfinite(self.error)
        return {**vars(self), "error": self.error if finite else str(self.error)}  # JSON has no NaN


class Recorded:
    """A folder of recorded cases, read and checked for completeness.

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not a folder; a folder with cases.json and expected.safetensors is expected"
            )
        content = self._read_cases()
        self.cases: list[Case] = content["cases"]
        self.transforms = {name: image_transform(content, f"{name}_transform") for name in ("vae", "vit")}
        tensors = self.folder / "expected.safetensors"
        try:
            self.tensors: dict[str, Tensor] = load_file(tensors)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{tensors} could not be read as safetensors (missing or damaged?): {error}") from error
        for name in sorted({name for case in self.cases for name in _images_of(case)}):
            if not self.image_path(name).is_file():
                raise DataError(f"{self.image_path(name)} is missing; a case uses this picture")

    def image_path(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.png"

    def image(self, name: str) -> Image.Image:
        return open_image(self.image_path(name))

    def resized(self, name: str) -> Image.Image:
        """An image as every model input begins: RGB over white, within the autoencoder's limits."""
        return self.transforms["vae"].resize(self.image(name))

    def _read_cases(self) -> dict[str, Any]:
        path = self.folder / "cases.json"
        try:
            content = json.loads(read_text(path, DataError))
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f"{path} could not be read as JSON (missing or damaged?): {error}") from error
        cases = content.get("cases") if isinstance(content, dict) else None
        if not isinstance(cases, list) or not cases:
            raise DataError(f"{path} has no list of cases under the key 'cases'")
        for number, case in enumerate(cases):
            if not isinstance(case, dict) or not {"name", "kind"} <= case.keys():
                raise DataError(f"{path}: case number {number} has no name or no kind")
            if not _are_inputs(case.get("inputs", [])):
                raise DataError(
                    f"{path}: inputs of case {case['name']!r} are not a list of mappings, or an image has no name"
                )
        return content


def _are_inputs(inputs: Any) -> bool:
    return isinstance(inputs, list) and all(
        isinstance(item, dict) and (item.get("type") != "image" or isinstance(item.get("value"), str))
        for item in inputs
    )


def _images_of(case: Case) -> Iterator[str]:
    if isinstance(case.get("image"), str):
        yield case["image"]
    for item in case.get("inputs", ()):
        if item.get("type") == "image":
            yield item["value"]


def image_transform(content: Mapping[str, Any], key: str) -> ImageTransform:
    """The image transform under `key`, whose numbers have their published names.

    Raises:
        DataError: it is missing or incomplete.
    """
    try:
        raw = content[key]
        limits = {"max_pixels": raw["max_pixels"]} if "max_pixels" in raw else {}
        return ImageTransform(raw["max_image_size"], raw["min_image_size"], raw["image_stride"], **limits)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"cases.json: {key} must be a mapping with max_image_size, min_image_size and image_stride ({error})"
        ) from error


class MissingTensorError(DataError):
    """A recorded tensor that a case needs is missing."""


@dataclass
class Checker:
    """Compares the results of one case with the recorded ones; each quantity becomes a `Comparison`.

    Attributes:
        case: the entry of cases.json.
        tensors: all recorded tensors, by "CASE/QUANTITY".
        tolerance: the largest relative error of floats that passes.
        rows: the comparisons so far.
        seen: the keys of the recorded tensors that were used.
    """

    case: Case
    tensors: Mapping[str, Tensor]
    tolerance: float
    rows: list[Comparison] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return str(self.case["name"])

    def recorded(self, prefix: str) -> list[str]:
        """The recorded quantities of this case whose names begin with `prefix`."""
        start = f"{self.name}/{prefix}"
        return sorted(key.removeprefix(f"{self.name}/") for key in self.tensors if key.startswith(start))

    def take(self, quantity: str) -> Tensor:
        """A recorded tensor, marked as used from now on.

        Raises:
            MissingTensorError: it was not recorded.
        """
        key = f"{self.name}/{quantity}"
        if key not in self.tensors:
            raise MissingTensorError(f"expected.safetensors has no {key}")
        self.seen.add(key)
        return self.tensors[key]

    def recorded_or_none(self, quantity: str) -> Tensor | None:
        """A recorded tensor, or None; this does not mark it as used."""
        return self.tensors.get(f"{self.name}/{quantity}")

    def given(self, quantity: str) -> Tensor:
        """A recorded tensor that is an input of the case; its row says so."""
        tensor = self.take(quantity)
        self._add(quantity, None, True, "input")
        return tensor

    def close(self, quantity: str, got: Tensor | float, *, largest: float = 0.0) -> None:
        """Compares floats: ‖got − expected‖ / ‖expected‖ must be within the tolerance.

        A recorded norm below a millionth of `largest` is zero but for rounding, and its error is relative to `largest`.
        """
        got = torch.as_tensor(got)
        with self._row(quantity, got):
            self._close(quantity, got, self.take(quantity), largest)

    def equal(self, quantity: str, got: Tensor) -> None:
        """Compares integers or booleans: no entry may differ."""
        with self._row(quantity, got):
            expected = self.take(quantity)
            if self._same_shape(quantity, got, expected):
                self._equal(quantity, int((got.cpu() != expected).sum()), "entries differ")

    def levels(self, quantity: str, got: Tensor) -> None:
        """Compares images in 8 bits: no value may differ by more than 1. The error is the largest difference."""
        with self._row(quantity, got):
            expected = self.take(quantity)
            if self._same_shape(quantity, got, expected):
                worst = int((got.cpu().int() - expected.int()).abs().max()) if expected.numel() else 0
                self._add(quantity, float(worst), worst <= 1, "levels of 255")

    def listed(self, quantity: str, got: Any) -> None:
        """Compares with a value in cases.json: equal, or within the tolerance if it is a float."""
        if quantity not in self.case:
            return self._add(quantity, None, False, "cases.json does not give it")
        expected = self.case[quantity]
        if isinstance(expected, float):
            return self._close(quantity, torch.tensor(float(got)), torch.tensor(expected, dtype=torch.float64), 0.0)
        return self._equal(quantity, int(got != expected), f"{got!r} instead of {expected!r}")

    def count(self, quantity: str, wrong: int) -> None:
        """Checks a property that must hold everywhere: `wrong` is the number of places where it does not."""
        self._equal(quantity, wrong, "places where it does not hold")

    def fail(self, quantity: str, note: str) -> None:
        self._add(quantity, None, False, note)

    @contextmanager
    def _row(self, quantity: str, got: Tensor) -> Iterator[None]:
        """Turns a missing tensor into a failure of its own row; an empty result needs no recorded tensor."""
        try:
            yield
        except MissingTensorError as error:
            if got.numel():
                self.fail(quantity, str(error))

    def _same_shape(self, quantity: str, got: Tensor, expected: Tensor) -> bool:
        if got.shape == expected.shape:
            return True
        self.fail(quantity, f"shape {list(got.shape)} instead of {list(expected.shape)}")
        return False

    def _close(self, quantity: str, got: Tensor, expected: Tensor, largest: float) -> None:
        if not self._same_shape(quantity, got, expected):
            return
        wide = expected.double()
        scale = wide.norm().item()
        rounding = scale < _ROUNDING * largest
        error = (got.detach().cpu().double() - wide).norm().item() / ((largest if rounding else scale) or 1.0)
        note = "zero but for rounding; error against the largest gradient" if rounding else ""
        self._add(quantity, error, error <= self.tolerance, note)  # NaN is not within it

    def _equal(self, quantity: str, different: int, note: str) -> None:
        self._add(quantity, float(different), different == 0, note if different else "")

    def _add(self, quantity: str, error: float | None, passed: bool, note: str = "") -> None:
        self.rows.append(Comparison(self.name, quantity, error, passed, note))

"""Cases about single images: opened, resized and as pixels; and the limits beyond which none is opened."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import AnyImage, FrameFile, opened
from bagel_mot.data.rows import SkipRow
from bagel_mot.images import ImageTransform, published, to_pixels
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import pictures_of
from bagel_mot.verify.data.recorded import QUIRK, RecordedData

PIXELS_TOLERANCE = 1e-5  # absolute
_FORMS = ("vae", "vit")


def judge_picture(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges an image opened as published; and as here by default, where a quirk may differ."""
    _judge(recorded, judge, "published", "")
    _judge(recorded, judge, "upright", "by default: ")


def _judge(recorded: RecordedData, judge: RecordJudge, opener: str, prefix: str) -> None:
    case = judge.case
    row = recorded.by_name(case["row"])
    dataset = recorded.dataset(row["group"], row["data_set"], opener=opener)
    pictures = pictures_of(dataset, recorded.row(row))
    source = pictures[case["index"]]
    by_default = opener != "published"
    quirk = str(row.get("note") or judge.quirk) if by_default and judge.mark == QUIRK else ""
    try:
        image = _no_image() if source is None else opened(source, dataset.images.opener)
    except SkipRow as skipped:
        if case.get("undecodable"):
            return judge.holds(f"{prefix}undecodable", True, str(skipped))
        return judge.same(f"{prefix}opened", str(skipped), "an image", may_differ=quirk)
    if case.get("undecodable"):
        return judge.fail(f"{prefix}undecodable", f"it was opened as an image of {image.size}")
    judge.same(f"{prefix}size", list(image.size), case["size"], may_differ=quirk)
    if not prefix:
        judge.same("mode", _mode(source), case["mode"])
    for form, transform, share in _forms(dataset, case, len(pictures)):
        size = list(transform.size(*image.size, images=share))
        judge.same(prefix + form, size, case[form], may_differ=quirk)
        official = f"{form}_official"
        if official in case and not prefix:
            large = recorded.dataset(row["group"], row["data_set"], "official").images
            limits = large.vae if form == "vae" else large.vit
            assert limits is not None
            judge.same(official, list(limits.size(*image.size, images=share)), case[official])
        if form in case.get("pixels", {}):
            _pixels(judge, prefix, form, image, transform(image, share), quirk)
    return None


def _no_image() -> Image.Image:
    raise SkipRow("an image is null")


def _forms(dataset: Dataset, case: Any, pictures: int) -> list[tuple[str, ImageTransform, int]]:
    """(name in the record, limits, images that share the budget of pixels) of each form that the record has."""
    limits = {"vae": dataset.images.vae, "vit": dataset.images.vit}
    found: list[tuple[str, ImageTransform, int]] = []
    for name in case:
        form, _, number = name.partition("_of_")
        transform = limits.get(form)
        if form in _FORMS and transform is not None:
            shared = int(number) if number else pictures if dataset.images.vae is None else 1
            found.append((name, transform, shared))
    return found


def _pixels(judge: RecordJudge, prefix: str, form: str, image: Image.Image, pixels: Tensor, quirk: str) -> None:
    key = judge.case["pixels"][form]
    what = f"{prefix}{form} pixels"
    if quirk:
        recorded = judge.recorded.tensor(key)
        agree = pixels.shape == recorded.shape and bool((pixels - recorded).abs().max() <= PIXELS_TOLERANCE)
        judge.same(what, "agree" if agree else "differ", "agree", may_differ=quirk)
    else:
        judge.tensor(what, pixels, key, PIXELS_TOLERANCE)
    if not prefix and form in judge.case.get("pixels_older", {}):
        # Versions of Pillow before 13 resize the width first, whatever the sizes.
        size = pixels.shape[2], pixels.shape[1]
        bicubic = Image.Resampling.BICUBIC
        older = image.resize((size[0], image.height), bicubic).resize(size, bicubic)
        judge.tensor(f"{form} pixels of older versions", to_pixels(older), judge.case["pixels_older"][form], 1e-5)


def _mode(source: AnyImage) -> str:
    file = source.path if isinstance(source, FrameFile) else source
    assert isinstance(file, bytes | Path)
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return image.mode


def judge_limits(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges the limits of the published opener: the numbers, and that a long text and a missing end are taken."""
    case = judge.case
    judge.same("warn_above_pixels", published.WARNED_PIXELS, case["warn_above_pixels"])
    judge.same("refuse_above_pixels", published.MAX_PIXELS, case["refuse_above_pixels"])
    judge.same("png_text_chunk", published.MAX_TEXT_CHUNK, case["png_text_chunk"])
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "x" * (2 << 20))  # beyond what Pillow takes by itself
    Image.new("RGB", (3, 2), "red").save(file := io.BytesIO(), "PNG", pnginfo=texts)
    judge.same("a long text", published.open_published(file.getvalue()).getpixel((2, 1)), (255, 0, 0))
    Image.effect_noise((64, 64), 50).convert("RGB").save(file := io.BytesIO(), "JPEG")
    try:
        accepted = published.open_published(file.getvalue()[:-400]).size == (64, 64)
    except Exception:  # whatever it raises, it is not accepted
        accepted = False
    judge.same("truncated_accepted", accepted, case["truncated_accepted"])

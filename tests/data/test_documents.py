"""Condition dropout leaves out what it says, as often as it says, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.data.documents import (
    OPENERS,
    Dropout,
    FramesPart,
    ImagePart,
    ImageRules,
    SampleBuilder,
    TextPart,
    UnencodedImage,
)
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.images import ImageTransform
from bagel_mot.sequence import DroppedImage, FramesSegment, TextSegment, VitSegment
from bagel_mot.tokenizer import SpecialTokens, Tokenizer


class _Letters:
    special = SpecialTokens(1, 2, 3, 4)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def _builder(**dropout: float) -> SampleBuilder:
    transform = ImageTransform(64, 64, 16)
    chances = Dropout(**{"text": 0.0, "vit": 0.0, "vae": 0.0, **dropout})
    tokenizer: Any = _Letters()
    return SampleBuilder(tokenizer, transform, transform, 16, 16, chances)


def _edit(droppable: bool = True) -> list[TextPart | ImagePart]:
    image = Image.new("RGB", (64, 64))
    given = ImagePart(image, vae=True, vit=True, droppable=droppable)
    return [given, TextPart("make it red", droppable=droppable), ImagePart(image, target=True, droppable=droppable)]


def _dropped(builder: SampleBuilder, droppable: bool = True) -> list[tuple[bool, bool]]:
    """(VAE dropped, ViT dropped) of the given picture, in 400 documents."""
    found = []
    for index in range(400):
        segments = builder(index, _edit(droppable), random.Random(index)).segments
        assert sum(isinstance(s, UnencodedImage) and s.noised for s in segments) == 1
        found.append((isinstance(segments[0], DroppedImage), isinstance(segments[1], DroppedImage)))
    return found


def test_each_form_of_an_image_is_dropped_on_its_own() -> None:
    found = _dropped(_builder(vae=0.3, vit=0.5))
    assert 0.2 < sum(vae for vae, _ in found) / 400 < 0.4
    assert 0.4 < sum(vit for _, vit in found) / 400 < 0.6
    assert 0.1 < sum(vae and vit for vae, vit in found) / 400 < 0.2


def test_all_images_are_dropped_together() -> None:
    found = _dropped(_builder(images=0.25))
    assert all(vae == vit for vae, vit in found)
    assert 0.18 < sum(vae for vae, _ in found) / 400 < 0.32


def test_what_may_not_be_dropped_stays() -> None:
    assert not any(vae or vit for vae, vit in _dropped(_builder(images=1.0, vae=1.0, vit=1.0, text=1.0), False))


def test_thinking_loses_its_words_or_its_image_but_never_speaks_of_what_is_not_there() -> None:
    source = MiniConfig(mix={"think_edit": 1.0}, unconditional_thinking=0.2).open(3)
    builder = _builder()
    kinds = {"whole": 0, "no words": 0, "no picture": 0}
    for index in range(300):
        segments = builder(index, source(index), random.Random(index)).segments
        texts = [s for s in segments if isinstance(s, TextSegment)]
        seen = any(isinstance(s, VitSegment) for s in segments)
        speaks = any(s.labels for s in texts)
        if len(texts) == 1:
            kinds["no words"] += 1
            assert seen
            assert not speaks
        elif not seen:
            kinds["no picture"] += 1
            assert len(texts) == 3
            assert not speaks
        else:
            kinds["whole"] += 1
            assert speaks
    assert 40 < kinds["no words"] < 80
    assert 40 < kinds["no picture"] < 80


def test_the_length_is_that_before_dropout() -> None:
    source = MiniConfig(mix={"edit": 1.0, "draw": 1.0}).open(3)
    whole, less = _builder(text=0.0, vit=0.0, vae=0.0), _builder(text=0.5, vit=0.5, vae=0.5)
    lost = 0
    for index in range(40):
        kept = whole(index, source(index), random.Random(index))
        dropped = less(index, source(index), random.Random(index))
        assert kept.length == kept.und_len + kept.gen_len == dropped.length
        lost += kept.length - dropped.und_len - dropped.gen_len
    assert lost > 0


def _gray(level: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def test_frames_are_one_segment_noised_and_one_clean() -> None:
    part = FramesPart((_gray(1), _gray(2)), (4, 7), target=True, vae=True, copies=2, following=12)
    segments = _builder()(0, [part, TextPart("x", starts_image=True)], random.Random(0)).segments
    noised, again, clean, text = segments
    assert isinstance(noised, FramesSegment)
    assert isinstance(clean, FramesSegment)
    assert noised is again
    assert [frame.noised for s in (noised, clean) for frame in s.frames] == [True, True, False, False]
    assert (noised.offsets, noised.advance, clean.advance) == ((0, 3), 0, 8)
    levels = [frame.levels for s in (noised, clean) for frame in s.frames if isinstance(frame, UnencodedImage)]
    assert [int(level[0, 0, 0]) for level in levels] == [1, 2, 1, 2]
    assert levels[0] is levels[2]  # encoded once
    assert isinstance(text, TextSegment)
    assert (text.labels, text.first_label) == ((3,), 2)


def test_dropped_frames_still_move_the_position() -> None:
    part = FramesPart((_gray(1), _gray(2)), (0, 5), vae=True, droppable=True)
    sample = _builder(vae=1.0)(0, [part], random.Random(0))
    (dropped,) = sample.segments
    assert isinstance(dropped, DroppedImage)
    assert (dropped.advance, sample.und_len, sample.gen_len) == (6, 0, 0)
    assert sample.length == 2 * (16 + 2)


def test_files_are_opened_as_the_rules_say_once_the_sample_is_made(tmp_path: Path) -> None:
    turned = Image.new("RGB", (64, 32))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    builder = SampleBuilder(_builder().tokenizer, *[ImageTransform(64, 16, 16)] * 2, 16, 16, Dropout(0.0, 0.0, 0.0))
    for opener, grid in [("upright", (4, 2)), ("published", (2, 4))]:
        for image in (tmp_path / "turned.png", (tmp_path / "turned.png").read_bytes()):
            rules = ImageRules(opener=OPENERS[opener])
            (segment,) = builder(0, [ImagePart(image, target=True)], random.Random(0), rules).segments
            assert segment.grid == grid  # type: ignore[attr-defined]
    with pytest.raises(SkipRow, match=r"missing\.png.* cannot be read") as caught:
        builder(0, [ImagePart(tmp_path / "missing.png", vit=True)], random.Random(0))
    assert caught.value.reason == "an image cannot be read"
    with pytest.raises(SkipRow, match="no valid Unicode"):
        SampleBuilder(Tokenizer.train(["a"], 300), *[ImageTransform(64, 16, 16)] * 2, 16, 16, Dropout())(
            0, [TextPart("\ud800")], random.Random(0)
        )


def test_limits_of_a_data_set_come_before_the_runs_and_are_shared() -> None:
    image = _gray(9, (100, 50))
    rules = ImageRules(vae=ImageTransform(32, 16, 16), vit=ImageTransform(96, 16, 16), vit_of_original=True)
    document = [ImagePart(image, vae=True, vit=True)]
    vae, vit = _builder()(0, document, random.Random(0), rules).segments
    assert (vae.grid, vit.grid) == ((1, 2), (3, 6))  # type: ignore[attr-defined]
    small = replace(rules, vit_of_original=False)
    vae, vit = _builder()(0, document, random.Random(0), small).segments
    assert (vae.grid, vit.grid) == ((1, 2), (1, 2))  # type: ignore[attr-defined]
    shared = ImageRules(vit=ImageTransform(96, 16, 16, 96 * 48), vit_of_original=True)
    (vit,) = _builder()(0, [ImagePart(image, vit=True, share=4)], random.Random(0), shared).segments
    assert vit.grid == (1, 2)  # type: ignore[attr-defined]

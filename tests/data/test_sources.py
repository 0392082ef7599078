"""A recipe's `data` section opens a source; hooks that a source lacks are left out."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bagel_mot.data import sheets
from bagel_mot.data.documents import Document
from bagel_mot.data.sources import SOURCES, read_source_config
from bagel_mot.data.sources.base import IndexedSource
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.errors import DataError
from bagel_mot.worlds.mini.draw import draw_array
from bagel_mot.worlds.mini.sampling import sample_scene


def test_the_kind_selects_a_type() -> None:
    assert read_source_config({"kind": "mini", "side": 128}) == MiniConfig(side=128)
    for content in ({}, {"kind": "minni"}, {"kind": ["mini"]}):
        with pytest.raises(ValueError, match="which no source of data has; (did you mean|there are) "):
            read_source_config(content)
    fixed = {kind: made for kind, made in SOURCES.items() if made is not RowsConfig}
    assert all(kind == made.__dataclass_fields__["kind"].default for kind, made in fixed.items())


def test_every_source_takes_a_number_of_workers() -> None:
    assert read_source_config({"kind": "mini", "workers": 3}).workers == 3
    assert read_source_config({"kind": "mini"}).workers == 0
    assert all("workers" in made.__dataclass_fields__ for made in SOURCES.values())


def test_a_source_needs_no_hooks(tmp_path: Path) -> None:
    class Bare(IndexedSource):
        def __call__(self, index: int) -> Document:
            return []

    source, rng = Bare(), random.Random(0)
    for hook in (source.texts, lambda: source.images(rng, 1), lambda: source.masked_images(rng, 1)):
        with pytest.raises(DataError, match="Bare, the source that data.kind selects, has no (texts|images) to train"):
            hook()
    assert source.preview_images(64) is None
    source.write_samples(None, tmp_path / "samples.png")
    assert not list(tmp_path.iterdir())


def test_the_toy_worlds_hooks_repeat_themselves() -> None:
    source = MiniConfig().open(4)
    first, again = (source.texts() for _ in range(2))
    assert [next(first) for _ in range(20)] == [next(again) for _ in range(20)]
    images, masks = source.masked_images(random.Random(2), 4)
    assert (images.shape, images.dtype, masks.shape, masks.dtype) == ((4, 64, 64, 3), np.uint8, (4, 64, 64), np.bool_)
    assert 0.01 < masks.mean() < 0.7
    assert masks[1::2].mean() > masks[::2].mean()  # every second one is full
    rng = random.Random(3)
    assert np.array_equal(source.images(random.Random(3), 2)[1], [draw_array(sample_scene(rng)) for _ in range(2)][1])
    sheet = source.preview_images(64)
    assert sheet is not None
    assert sheet.size == (512, 512)
    assert source.preview_images(63) is None


def test_captions_of_a_sheet_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, at, text, **_: written.append(text))
    cell = sheets.captioned(Image.new("RGB", (8, 8)), "a green moon in the top left and a red car", 3)
    assert written == ["a green moon in the", "top left and a red car"]
    assert cell.height == sheets._SHOWN + 2 + 3 * sheets._LINE

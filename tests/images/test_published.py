"""Images opened as the published training opens them; recorded outputs are compared by `bagel verify`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from bagel_mot.errors import ImageError
from bagel_mot.images import published
from bagel_mot.images.published import open_published, open_published_frame


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    image.save(file := io.BytesIO(), kind, **settings)
    return file.getvalue()


def test_alpha_goes_over_white_but_for_gray_and_for_frames() -> None:
    clear = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert open_published(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert open_published_frame(encoded(clear)).getpixel((0, 0)) == (200, 0, 0)
    assert open_published(encoded(Image.new("LA", (2, 2), (40, 0)))).getpixel((0, 0)) == (40, 40, 40)
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30])
    assert open_published(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_published(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_there_is_of_a_truncated_file_is_taken(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    cut = whole[: len(whole) * 2 // 3]
    if kind == "WEBP":  # whose decoder has no partial results
        with pytest.raises(ImageError, match="save it anew"):
            open_published(cut)
        return
    image = np.asarray(open_published(cut)).astype(int)
    assert image.shape == (64, 64, 3)
    assert (image[:24] == np.asarray(open_published(whole))[:24]).all()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # not for anybody else


def test_large_images_are_taken_up_to_the_published_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow alone refuses twice as many
    before = Image.MAX_IMAGE_PIXELS
    assert open_published(encoded(Image.new("RGB", (60, 60)))).size == (60, 60)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(published, "MAX_PIXELS", 3500)
    with pytest.raises(ImageError, match="is too large: 60×60 = 3600 pixels; at most 3500"):
        open_published(encoded(Image.new("RGB", (60, 60))))


@pytest.mark.parametrize(
    ("source", "said"), [(b"", "not in a known"), (b"no image", "not in a known"), (Path("x.png"), "No such")]
)
def test_what_is_no_image_is_one_sentence(source: bytes | Path, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        open_published(source)

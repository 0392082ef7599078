"""Images as the published training opens them: orientation is not applied, truncated files are taken.

It differs from `open_image`, which people's own images go through, in three things that recorded outputs show: a file
that ends too early gives what there is of it, the EXIF orientation is not applied, and gray with alpha loses its alpha.
Colour profiles are not applied either.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from bagel_mot.errors import ImageError
from bagel_mot.images import formats, png

WARNED_PIXELS = 200_000_000
"""Pixels above which the published program warns."""
MAX_PIXELS = 2 * WARNED_PIXELS
"""Pixels above which it refuses an image."""
MAX_TEXT_CHUNK = 1 << 30
"""Bytes of text in a PNG file that it takes; here texts are left out before a file is decoded, whatever their size."""

_LENIENT = threading.Lock()


def open_published(source: bytes | Path) -> Image.Image:
    """An image as the published data sets open it: RGB, transparency over white but for gray with alpha.

    Raises:
        ImageError: it is missing, of no known format, too large, or so damaged that nothing of it can be decoded.
    """
    image = _decoded(source)
    if image.mode == "RGBA" or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def open_published_frame(source: bytes | Path) -> Image.Image:
    """A frame of a clip as the published data sets open it: RGB, without regard to transparency.

    Raises:
        ImageError: see `open_published`.
    """
    return _decoded(source).convert("RGB")


def _decoded(source: bytes | Path) -> Image.Image:
    name = f"the picture of {len(source)} bytes" if isinstance(source, bytes) else f"the picture {str(source)!r}"
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}): give the path of a picture file.") from error
    if data.startswith(png.SIGNATURE):
        data = png.without_metadata(data)
    try:
        return _loaded(data, name)
    except ImageError:
        raise
    except Exception:  # Pillow raises many types on files that end too early, are damaged or large
        with _lenient():
            try:
                return _loaded(data, name)
            except ImageError:
                raise
            except UnidentifiedImageError as error:
                raise ImageError(f"{name} is not in a known picture format: save it as PNG, JPEG or WebP.") from error
            except Exception as error:
                raise ImageError(
                    f"{name} is damaged, or of a kind that is not read ({error}): save it anew."
                ) from error


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """Lets Pillow take truncated and large files meanwhile. It has settings for the whole process alone, so this is
    done where a file was refused, and no longer than it takes.
    """
    with _LENIENT:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = True, WARNED_PIXELS
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _loaded(data: bytes, name: str) -> Image.Image:
    Image.init()
    known = [kind for kind in formats.FORMATS if kind in Image.OPEN]
    image: Image.Image = Image.open(io.BytesIO(data), formats=known)
    formats.check_size(image.size, name, MAX_PIXELS)
    image.load()
    return image

"""PNG files: damaged or oversized metadata is left out first, and transparent colours are seen at any depth."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
IOS_SIGNATURE = SIGNATURE + b"\0\0\0\4CgBI"
_MAX_TEXT = 1 << 20  # bytes; Pillow refuses files with a longer text or colour profile
_KEY_BYTES = {0: (2,), 2: (6,), 3: range(1, 257)}  # length of tRNS by colour type
# The mask and the step to 8 bits of a transparent level, by Pillow's name of the depth: it widens all levels but this.
_KEY_DEPTH = {"1": (1, 1), "L;2": (3, 85), "L;4": (15, 17), "L": (255, 1)}


def without_metadata(data: bytes) -> bytes:
    """A PNG file with nothing left but the pixels, transparency, colour profile and orientation.

    Ancillary chunks with a wrong checksum or length are left out, too. Whatever follows a break in the chain of chunks
    is kept as it is, so that the decoder judges it.
    """
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or not kind.isalpha():
            break
        ancillary = bool(kind[0] & 0x20)
        if not ancillary or _is_useful(kind, data[at + 8 : end - 4], data[at + 4 : end], data):
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            return b"".join(kept)
    return b"".join([*kept, data[at:]])


def _is_useful(kind: bytes, content: bytes, chunk: bytes, data: bytes) -> bool:
    """Whether an ancillary chunk is sound and says anything about how the pixels look."""
    if kind not in (b"tRNS", b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        return False
    if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind == b"tRNS":
        return len(content) in _KEY_BYTES.get(data[25], ())
    if kind == b"eXIf":
        return True
    keyword, _, rest = content.partition(b"\0")
    if kind == b"iCCP":
        return 0 < len(keyword) < 80 and _inflates(rest)
    if keyword == b"XML:com.adobe.xmp":  # may hold the orientation, as may the next
        return kind == b"iTXt" and rest[:1] == b"\0" and len(rest) < _MAX_TEXT
    if keyword == b"Raw profile type exif":
        return (kind == b"tEXt" and len(rest) < _MAX_TEXT) or (kind == b"zTXt" and _inflates(rest))
    return False


def _inflates(compressed: bytes) -> bool:
    """Whether a method byte and its zlib stream yield a text within the limit."""
    try:
        stream = zlib.decompressobj()
        return compressed[:1] == b"\0" and len(stream.decompress(compressed[1:], _MAX_TEXT)) < _MAX_TEXT and stream.eof
    except zlib.error:
        return False


def widen_key(image: Image.Image) -> None:
    """Brings the transparent level or colour of an image that is not decoded yet to the depth Pillow decodes it to."""
    key, depth = image.info.get("transparency"), _stored_depth(image)
    if isinstance(key, int) and depth in _KEY_DEPTH:
        mask, step = _KEY_DEPTH[depth]
        image.info["transparency"] = (key & mask) * step
    elif isinstance(key, tuple) and depth in ("RGB", "RGB;16B"):
        image.info["transparency"] = tuple(value & 255 if depth == "RGB" else value >> 8 for value in key)


def with_exact_key(image: Image.Image, data: bytes) -> Image.Image:
    """The image, decoded, where of 16-bit colours exactly the one that the file names is transparent.

    Pillow keeps the high byte of each sample only, so many colours would equal the transparent one.
    """
    key = image.info.get("transparency")
    if not isinstance(key, tuple) or _stored_depth(image) != "RGB;16B":
        return image
    with Image.open(io.BytesIO(data), formats=["PNG"]) as again:
        again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
        low = np.asarray(again)
    del image.info["transparency"]
    samples = np.asarray(image).astype(np.uint16) << 8 | low
    opaque = (samples != np.array(key, np.uint16)).any(axis=2)
    image = image.copy()
    image.putalpha(Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0))))
    return image


def _stored_depth(image: Image.Image) -> str:
    """Pillow's name of the samples' layout in a PNG file that is not decoded yet, or an empty text."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    return tiles[0].args if tiles and isinstance(tiles[0].args, str) else ""

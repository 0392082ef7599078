"""JPEG files: damaged metadata is left out, large photos are decoded at a reduced scale, and a missing end marker does
no harm.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image, ImageChops, JpegImagePlugin

SIGNATURE = b"\xff\xd8\xff"
MAX_REDUCTION = 8
"""Ratio of the pixels that a JPEG file may have to those of other files, since it can be decoded at a reduced scale."""
_MAX_BUFFERED_REDUCTION = 2  # the same where the decoder has to hold the whole file's coefficients, at full size

# Application segments that change how the pixels look, and the least length of each.
_USEFUL = {
    0xE0: ((b"JFIF\0", 14),),
    0xE1: ((b"Exif\0\0", 14), (b"http://ns.adobe.com/xap/1.0/\0", 29)),
    0xE2: ((b"ICC_PROFILE\0", 14),),
    0xEE: ((b"Adobe", 12),),
}
_COMMENT, _SCAN, _END = 0xFE, 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_NO_CONTENT = {0x00, 0x01, *range(0xD0, 0xD9)}  # stuffing, TEM, restarts, start
# What no encoder writes where a scan has ended, so that it shows whether a scan has.
_PROBES = (b"\x55\xa3\x1c\x7e\x93\x4d" * 12, b"\xaa\x5c\xe3\x81\x6c\xb2" * 12)


def without_metadata(data: bytes) -> bytes:
    """A JPEG file with nothing left but the pixels, colour transform, colour profile and orientation."""
    kept, at = [data[:2]], 2
    for marker, start, end in _segments(data):
        if marker == _SCAN:
            break
        application = 0xE0 <= marker <= 0xEF
        if (not application and marker != _COMMENT) or any(
            data.startswith(name, start + 4) and end - start - 4 >= length for name, length in _USEFUL.get(marker, ())
        ):
            kept.append(data[start:end])
        at = end
    return b"".join([*kept, data[at:]])


def open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile:
    """A JPEG file with its header read; any number of pixels is taken, as `reduce` bounds them afterwards."""
    return JpegImagePlugin.JpegImageFile(io.BytesIO(data))


def most_pixels(data: bytes, max_pixels: int) -> int:
    """The number of pixels at which a file is refused, where `max_pixels` may be decoded at once."""
    layers = 0
    for marker, start, _ in _segments(data):
        if marker in _FRAMES and len(data) > start + 9:
            layers = data[start + 9]
            if marker in _PROGRESSIVE:
                return max_pixels * _MAX_BUFFERED_REDUCTION
        if marker == _SCAN:
            one_scan = len(data) > start + 4 and data[start + 4] == layers
            return max_pixels * (MAX_REDUCTION if one_scan else _MAX_BUFFERED_REDUCTION)
    return max_pixels


def reduce(image: JpegImagePlugin.JpegImageFile, max_pixels: int) -> None:
    """Sets the largest scale of 1, 1/2, 1/4 and 1/8 at which an image that is not decoded yet fits the limit."""
    width, height = image.size
    for scale in (1, 2, 4, 8):
        if -(-width // scale) * -(-height // scale) <= max_pixels:
            break
    if scale > 1:
        image.draft(image.mode, (max(width // scale, 1), max(height // scale, 1)))


def decode_without_end(data: bytes, max_pixels: int) -> Image.Image | None:
    """The image of a file whose end marker is missing; None if more than the marker is.

    What follows a complete scan changes no pixel. So the file is decoded with different bytes after its own; where the
    results differ, the last scan is cut short.
    """
    body = data[:-1] if data.endswith(b"\xff") else data
    if not _has_all_scans(body):
        return None
    restart = _next_restart(body)

    def decoded(following: bytes) -> Image.Image:
        image = open_jpeg(body + following + bytes([0xFF, _END]))
        reduce(image, max_pixels)
        image.load()
        return image

    whole = decoded(b"")
    for probe in _PROBES:
        if ImageChops.difference(whole, decoded(probe + restart + probe)).getbbox():
            return None
    return whole


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker, start and end of each segment in the header, up to the first scan or anything unexpected."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            yield marker, at, at + 1
            at += 1
            continue
        if marker in _NO_CONTENT or marker == _END:
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            return
        yield marker, at, end
        if marker == _SCAN:
            return
        at = end


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans that a file begins bring every coefficient of every component in full precision."""
    missing: dict[int, set[int]] = {}
    progressive = False
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in _NO_CONTENT or data[at + 1] == 0xFF:
            at = data.find(b"\xff", at + 1)  # coded data, in which no other marker occurs
            if at < 0:
                break
            continue
        marker, content = data[at + 1], data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if marker in _FRAMES and len(content) >= 6 + 3 * content[5]:
            progressive = marker in _PROGRESSIVE
            missing = {content[6 + 3 * index]: set(range(64)) for index in range(content[5])}
        elif marker == _SCAN and len(content) >= 4 + 2 * content[0]:
            first, last, precision = content[1 + 2 * content[0] :][:3]
            if not progressive:
                first, last, precision = 0, 63, 0
            for index in range(content[0]):
                if not precision & 15:
                    missing.get(content[1 + 2 * index], set()).difference_update(range(first, last + 1))
        at += 4 + len(content)
    return bool(missing) and not any(missing.values())


def _next_restart(data: bytes) -> bytes:
    """The restart marker that would come next."""
    latest = max(range(8), key=lambda number: data.rfind(bytes([0xFF, 0xD0 + number])))
    found = data.rfind(bytes([0xFF, 0xD0 + latest])) >= 0
    return bytes([0xFF, 0xD0 + ((latest + 1) % 8 if found else 0)])

"""JPEG XL files: their size, which has to be known before the plugin of Pillow opens them, since it decodes at once."""

from __future__ import annotations

import re

SIGNATURE = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")
_SIZE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # each is a width to a height


def size(data: bytes) -> tuple[int, int]:
    """The width and height that the header of a file names.

    Raises:
        ValueError: if the header is damaged.
    """
    start = _codestream(data)
    bits = int.from_bytes(data[start : start + 16], "little")  # the first bit is the lowest

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take(_SIZE_BITS[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return side(small), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _codestream(data: bytes) -> int:
    """The offset of the coded image behind its two bytes of signature."""
    if data.startswith(b"\xff\x0a"):
        return 2
    at = 0
    while at + 16 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)  # a part begins with its number
            if data[start : start + 2] == b"\xff\x0a":
                return start + 2
            break
        if length < head:
            break
        at += length
    raise ValueError("its header is damaged")

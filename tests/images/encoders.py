"""Writers of odd but valid image files, where Pillow writes none: PNG, TIFF, BMP, ICO and colour profiles by hand.

They share nothing with the code under test.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

# Everywhere


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples (H, N) as bytes, the first sample in the highest bits, each row filled up to a whole byte."""
    if bits == 8:
        return values.astype(np.uint8).tobytes()
    if bits == 16:
        return values.astype(">u2").tobytes()
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# PNG


def chunk(kind: bytes, content: bytes, crc_error: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ crc_error)


def _filtered(rows: np.ndarray, depth: int, channels: int, rng: np.random.Generator) -> bytes:
    """Rows of samples (H, W, channels) with a filter of each kind, chosen by chance."""
    height = len(rows)
    raw = np.frombuffer(pack_bits(rows.reshape(height, -1), depth), np.uint8).reshape(height, -1).astype(int)
    step = max(channels * depth // 8, 1)
    out = b""
    for index in range(height):
        row = raw[index]
        above = raw[index - 1] if index else np.zeros_like(row)
        left = np.concatenate([np.zeros(step, int), row[:-step]])[: len(row)]
        corner = np.concatenate([np.zeros(step, int), above[:-step]])[: len(row)]
        guess = left + above - corner
        distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
        paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
        kind = int(rng.integers(5))
        predicted = [0, left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - predicted) & 255).astype(np.uint8).tobytes()
    return out


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(
    samples: np.ndarray,
    color_type: int,
    depth: int,
    *,
    interlace: bool = False,
    chunks: Iterable[bytes] = (),
    pieces: int = 1,
    after: Iterable[bytes] = (),
    end: bool = True,
) -> bytes:
    """A PNG file of samples (H, W, channels).

    Args:
        chunks: chunks between header and data.
        pieces: the number of IDAT chunks.
        after: chunks between data and end.
        end: whether the file has its end chunk.
    """
    rng = np.random.default_rng(len(samples))
    height, width, channels = samples.shape
    passes = ADAM7 if interlace else ((0, 0, 1, 1),)
    raw = b""
    for x, y, step_x, step_y in passes:
        part = samples[y::step_y, x::step_x]
        if part.size:
            raw += _filtered(part, depth, channels, rng)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlace))
    data = zlib.compress(raw)
    size = -(-len(data) // pieces)
    idat = [chunk(b"IDAT", data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, *idat, *after, chunk(b"IEND", b"") if end else b""])


# TIFF

_TYPES = {"B": 1, "H": 3, "I": 4}


def tiff(
    strips: Sequence[bytes],
    width: int,
    height: int,
    bits: Sequence[int],
    photometric: int,
    *,
    order: str = "<",
    tags: dict[int, tuple[str, Sequence[int]]] | None = None,
    tile: int | None = None,
    rows: int | None = None,
) -> bytes:
    """A TIFF file of one image, whose strips (or tiles of `tile` pixels a side) hold `rows` rows each."""
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    data = b"".join(strips)
    data += b"\0" * (len(data) % 2)
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", bits),
        259: ("H", [1]),
        262: ("H", [photometric]),
        277: ("H", [len(bits)]),
    }
    lengths = [len(strip) for strip in strips]
    if tile:
        entries |= {322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", offsets), 325: ("I", lengths)}
    else:
        entries |= {273: ("I", offsets), 278: ("I", [rows or height]), 279: ("I", lengths)}
    entries |= tags or {}
    place = 8 + len(data)
    extra_at = place + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for number, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            value = struct.pack(order + "I", extra_at + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
        else:
            value = packed.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", number, _TYPES[kind], len(values)) + value
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", place)
    return start + data + directory + struct.pack(order + "I", 0) + extra


# BMP and ICO


def bmp_rows(samples: np.ndarray, bits: int) -> bytes:
    """Rows of samples (H, N) from the bottom up, each filled up to four bytes."""
    packed = pack_bits(samples, bits)
    length = len(packed) // len(samples)
    rows = [packed[at : at + length] for at in range(0, len(packed), length)]
    return b"".join(row.ljust(-(-length // 4) * 4, b"\0") for row in reversed(rows))


def bmp_header(width: int, height: int, bits: int, compression: int = 0, colors: int = 0, size: int = 0) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, size, 2835, 2835, colors, 0)


def bmp(header: bytes, palette: bytes, data: bytes) -> bytes:
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def ico(width: int, height: int, bits: int, data: bytes, cursor: bool = False) -> bytes:
    kind = 2 if cursor else 1
    return struct.pack("<HHHBBBBHHII", 0, kind, 1, width, height, 0, 0, 1, bits, len(data), 22) + data


# Colour profiles


def s15(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


SRGB_XYZ = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3_XYZ = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""The colorants in XYZ, adapted to D50, of red, green and blue."""
SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + s15((2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))


def gamma_curve(gamma: float) -> bytes:
    return b"para\0\0\0\0\0\0\0\0" + s15((gamma,))


def profile(space: bytes, curve: bytes, colorants: Sequence[Sequence[float]] = ()) -> bytes:
    """A colour profile of version 4 made of curves, and a matrix for RGB."""
    tags = {
        b"desc": b"mluc\0\0\0\0\0\0\0\1\0\0\0\x0cenUS\0\0\0\2\0\0\0\x1c\0x",
        b"cprt": b"mluc\0\0\0\0\0\0\0\1\0\0\0\x0cenUS\0\0\0\2\0\0\0\x1c\0x",
        b"wtpt": b"XYZ \0\0\0\0" + s15((0.9642, 1.0, 0.8249)),
    }
    if space == b"RGB ":
        for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True):
            tags[name] = b"XYZ \0\0\0\0" + s15(xyz)
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(
        ">I4sI4s4s4s12s4s",
        128 + len(table) + len(body),
        b"",
        0x04300000,
        b"mntr",
        space,
        b"XYZ ",
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0),
        b"acsp",
    )
    head += b"\0" * 24 + struct.pack(">I", 0) + s15((0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + table + body

"""Over 200 odd image files with their right pixels, made from a seed.

The right pixels come from the samples that were encoded, never from the code under test: by the formulas of the formats
(levels scaled to 8 bits, transparency over white, profiles by their curves and matrices).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from tests.images.encoders import (
    P3_XYZ,
    SRGB_CURVE,
    SRGB_XYZ,
    bmp,
    bmp_header,
    bmp_rows,
    chunk,
    gamma_curve,
    ico,
    pack_bits,
    png,
    profile,
    saved,
    tiff,
)

WIDTH, HEIGHT = 13, 11


@dataclass(frozen=True)
class Case:
    """A file, and either its pixels (H, W, 3) with the allowed difference in levels, or its refusal's words."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    tolerance: int = 0
    refusal: str = ""


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def noise(name: str, channels: int, bits: int = 8, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return rng(name).integers(0, 1 << bits, (height, width, channels))


def eight(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples as 8-bit levels: fewer bits are stretched, of more the high ones are kept."""
    return samples >> (bits - 8) if bits > 8 else samples * (255 // ((1 << bits) - 1))


def rgb(samples: np.ndarray) -> np.ndarray:
    return np.broadcast_to(samples, (*samples.shape[:2], 3)) if samples.shape[2] == 1 else samples


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Levels (H, W, 1 or 3) and alpha (H, W, 1) in 0..255, mixed with white."""
    return rgb(np.rint((color * alpha + 255 * (255 - alpha)) / 255).astype(int))


def smooth(width: int = 40, height: int = 24) -> np.ndarray:
    """An RGB image (H, W, 3) that JPEG keeps almost as it is, different in each corner."""
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    return np.rint(np.stack([220 * x + 0 * y, 200 * y + 0 * x, 60 + 100 * x * y], axis=2)).astype(np.uint8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as they are stored so that the EXIF orientation turns them upright."""
    flips = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    vertical, horizontal = flips[orientation]
    if orientation < 5:
        return pixels[::vertical, ::horizontal]
    # The stored row 0 is the upright left (5, 8 …) or right column, the stored column 0 the top or bottom row.
    return pixels.swapaxes(0, 1)[:: {5: 1, 6: -1, 7: -1, 8: 1}[orientation], :: {5: 1, 6: 1, 7: -1, 8: -1}[orientation]]


def cases() -> list[Case]:
    Image.init()
    made = [*pngs(), *png_damage(), *tiffs(), *jpegs(), *jpeg_damage(), *others(), *profiles()]
    assert len({case.name for case in made}) == len(made)
    return made


# PNG


def pngs() -> Iterator[Case]:
    """Every colour type, depth, transparency and interlacing."""
    for interlace in (False, True):
        for depth in (1, 2, 4, 8, 16):
            for keyed in (False, True):
                name = f"png-gray{depth}{'-key' * keyed}{'-adam7' * interlace}"
                samples = noise(name, 1, depth)
                expected, chunks = rgb(eight(samples, depth)), []
                if keyed:
                    samples[3, 4] = interlace if depth == 1 else samples[3, 4] | 1  # not 0, the same at every depth
                    key = int(samples[3, 4, 0])
                    samples[0, 0] = key ^ 1  # differs in the last bit only
                    expected = over_white(eight(samples, depth), (samples != key) * 255)
                    unused = 1 << depth if interlace and depth < 16 else 0  # bits above the depth do not count
                    chunks = [chunk(b"tRNS", struct.pack(">H", key | unused))]
                yield Case(name, png(samples, 0, depth, interlace=interlace, chunks=chunks), expected)
        for depth in (8, 16):
            for keyed in (False, True):
                name = f"png-rgb{depth}{'-key' * keyed}{'-adam7' * interlace}"
                samples = noise(name, 3, depth)
                expected, chunks = eight(samples, depth), []
                if keyed:
                    samples[5, 6], samples[5, 7] = samples[3, 4], samples[3, 4] ^ [0, 0, 1]
                    alpha = (samples != samples[3, 4]).any(axis=2, keepdims=True) * 255
                    expected = over_white(eight(samples, depth), alpha)
                    unused = 256 if interlace and depth == 8 else 0
                    chunks = [chunk(b"tRNS", struct.pack(">3H", *samples[3, 4] | unused))]
                yield Case(name, png(samples, 2, depth, interlace=interlace, chunks=chunks), expected)
            for color_type, channels in ((4, 2), (6, 4)):
                name = f"png-{'gray' if color_type == 4 else 'rgb'}{depth}-alpha{'-adam7' * interlace}"
                samples = noise(name, channels, depth)
                levels = eight(samples, depth)
                expected = over_white(levels[..., :-1], levels[..., -1:])
                yield Case(name, png(samples, color_type, depth, interlace=interlace), expected, 1)
        for depth in (1, 2, 4, 8):
            for keyed in (False, True):
                name = f"png-palette{depth}{'-alpha' * keyed}{'-adam7' * interlace}"
                samples, palette = noise(name, 1, depth), noise(name, 3, 8, 1, 1 << depth)[0]
                alpha = noise(name, 1, 8, 1, (1 << depth) - 1)[0]  # tRNS may be shorter than the palette
                chunks = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
                expected = palette[samples[..., 0]]
                if keyed:
                    chunks.append(chunk(b"tRNS", alpha.astype(np.uint8).tobytes()))
                    expected = over_white(expected, np.append(alpha, [[255]], axis=0)[samples[..., 0]])
                data = png(samples, 3, depth, interlace=interlace, chunks=chunks)
                yield Case(name, data, expected, int(keyed))


def png_damage() -> Iterator[Case]:
    """Files whose pixels are sound, whatever else is not."""
    samples = noise("png-damage", 3)
    big = zlib.compress(b"x" * (1 << 21))
    metadata = {
        "zTXt": chunk(b"zTXt", b"workflow\0\0" + big),
        "tEXt": chunk(b"tEXt", b"workflow\0" + b"x" * (1 << 21)),
        "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + big),
        "iTXt-xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * (1 << 21)),
        "zTXt-no-zlib": chunk(b"zTXt", b"workflow\0\0no zlib"),
        "zTXt-exif": chunk(b"zTXt", b"Raw profile type exif\0\0" + big),
        "iCCP": chunk(b"iCCP", b"icc\0\0" + big),
        "iCCP-no-zlib": chunk(b"iCCP", b"icc\0\0no zlib"),
        "iCCP-junk": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"no profile")),
        "iCCP-method": chunk(b"iCCP", b"icc\0\7" + zlib.compress(b"no profile")),
        "crc": chunk(b"tEXt", b"a\0b", crc_error=1),
        "crc-tRNS": chunk(b"tRNS", struct.pack(">3H", *samples[0, 0]), crc_error=1),
        "eXIf-junk": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        "unknown": chunk(b"abCd", b"anything"),
    }
    for kind in (
        b"gAMA",
        b"cHRM",
        b"pHYs",
        b"sRGB",
        b"acTL",
        b"fcTL",
        b"bKGD",
        b"sBIT",
        b"tIME",
        b"hIST",
        b"cICP",
        b"oFFs",
    ):
        metadata[f"{kind.decode()}-empty"] = chunk(kind, b"")
        metadata[f"{kind.decode()}-long"] = chunk(kind, b"\1" * 37)
    for length in (0, 1, 3, 5, 7):
        metadata[f"tRNS-{length}"] = chunk(b"tRNS", b"\0" * length)
    for name, content in metadata.items():
        yield Case(f"png-damage-{name}", png(samples, 2, 8, chunks=[content]), samples)
    for name in ("zTXt", "tEXt", "crc", "zTXt-no-zlib"):
        yield Case(f"png-damage-{name}-behind", png(samples, 2, 8, after=[metadata[name]]), samples)
    yield Case("png-no-end", png(samples, 2, 8, end=False), samples)
    yield Case("png-junk-behind", png(samples, 2, 8) + b"junk" * 9, samples)
    yield Case("png-pieces", png(samples, 2, 8, pieces=9), samples)
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    second = struct.pack(">IIIIIHHBB", 1, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    other = struct.pack(">I", 2) + zlib.compress(b"\0" * HEIGHT * (1 + 3 * WIDTH))
    frames = [chunk(b"fcTL", second), chunk(b"fdAT", other)]
    animated = chunk(b"acTL", struct.pack(">II", 2, 0))
    yield Case("apng", png(samples, 2, 8, chunks=[animated, chunk(b"fcTL", control)], after=frames), samples)
    yield Case("apng-default-image", png(samples, 2, 8, chunks=[animated], after=frames), samples)
    whole = png(samples, 2, 8)
    yield Case("png-cut", whole[: len(whole) * 2 // 3], refusal="truncated")
    yield Case("png-ios", whole[:8] + chunk(b"CgBI", b"\0\0\0\0") + whole[8:], refusal="iOS")


# TIFF


def tiffs() -> Iterator[Case]:
    for order in "<>":
        byte_order = "II" if order == "<" else "MM"
        for photometric in (0, 1):
            for bits in (1, 2, 4, 8):
                name = f"tiff-gray{bits}-{'black' if photometric else 'white'}-is-0-{byte_order}"
                samples = noise(name, 1, bits)
                levels = eight(samples, bits)
                data = tiff([pack_bits(samples[..., 0], bits)], WIDTH, HEIGHT, [bits], photometric, order=order)
                yield Case(name, data, rgb(levels if photometric else 255 - levels))
        samples = noise(f"tiff-rgb-{byte_order}", 3, 16)
        deep = samples.astype(order + "u2").tobytes()
        yield Case(f"tiff-rgb16-{byte_order}", tiff([deep], WIDTH, HEIGHT, [16] * 3, 2, order=order), samples >> 8)
        deep = samples[..., 0].astype(order + "u2").tobytes()
        data = tiff([deep], WIDTH, HEIGHT, [16], 1, order=order)
        yield Case(f"tiff-gray16-{byte_order}", data, rgb(samples[..., :1] >> 8))
        shallow = samples & 255
        data = tiff([shallow.astype(np.uint8).tobytes()], WIDTH, HEIGHT, [8] * 3, 2, order=order)
        yield Case(f"tiff-rgb8-{byte_order}", data, shallow)
        planes = [shallow[..., index].astype(np.uint8).tobytes() for index in range(3)]
        data = tiff(planes, WIDTH, HEIGHT, [8] * 3, 2, order=order, tags={284: ("H", [2])})
        yield Case(f"tiff-rgb8-planar-{byte_order}", data, shallow)
        yield from float_tiffs(order, byte_order)
    samples = noise("tiff-white-16", 1, 16)
    data = tiff([samples.astype("<u2").tobytes()], WIDTH, HEIGHT, [16], 0)
    yield Case("tiff-gray16-white-is-0-II", data, rgb(255 - (samples >> 8)))
    samples = noise("tiff-12", 1, 12)
    yield Case("tiff-gray12", tiff([pack_bits(samples[..., 0], 12)], WIDTH, HEIGHT, [12], 1), rgb(samples >> 4))
    for bits in (1, 4, 8):
        samples = noise(f"tiff-fill-{bits}", 1, bits)
        swapped = np.packbits(
            np.unpackbits(np.frombuffer(pack_bits(samples[..., 0], bits), np.uint8)), bitorder="little"
        )
        data = tiff([swapped.tobytes()], WIDTH, HEIGHT, [bits], 1, tags={266: ("H", [2])})
        yield Case(f"tiff-gray{bits}-fill-order-2", data, rgb(eight(samples, bits)))
    for bits in (1, 2, 4, 8):
        samples, palette = noise(f"tiff-palette-{bits}", 1, bits), noise("palette", 3, 16, 1, 1 << bits)[0]
        tags = {320: ("H", palette.T.ravel().tolist())}
        data = tiff([pack_bits(samples[..., 0], bits)], WIDTH, HEIGHT, [bits], 3, tags=tags)
        yield Case(f"tiff-palette{bits}", data, palette[samples[..., 0]] >> 8)
    samples = noise("tiff-rgba", 4)
    raw = samples.astype(np.uint8).tobytes()
    color, alpha = samples[..., :3], samples[..., 3:]
    for kind, expected in (("unused", color), ("straight", over_white(color, alpha))):
        tags = {338: ("H", [0 if kind == "unused" else 2])}
        yield Case(f"tiff-rgba-{kind}", tiff([raw], WIDTH, HEIGHT, [8] * 4, 2, tags=tags), expected, 1)
    premultiplied = np.concatenate([color * alpha // 255, alpha], axis=2)
    data = tiff([premultiplied.astype(np.uint8).tobytes()], WIDTH, HEIGHT, [8] * 4, 2, tags={338: ("H", [1])})
    yield Case("tiff-rgba-premultiplied", data, premultiplied[..., :3] + 255 - alpha, 2)
    data = tiff([raw[: 2 * WIDTH * HEIGHT]], WIDTH, HEIGHT, [8] * 2, 1, tags={338: ("H", [2])})
    pairs = samples.reshape(-1)[: 2 * WIDTH * HEIGHT].reshape(HEIGHT, WIDTH, 2)
    yield Case("tiff-gray-alpha", data, over_white(pairs[..., :1], pairs[..., 1:]), 1)
    palette = noise("palette", 3, 16, 1, 256)[0]
    tags = {320: ("H", palette.T.ravel().tolist()), 338: ("H", [2])}
    data = tiff([pairs.astype(np.uint8).tobytes()], WIDTH, HEIGHT, [8] * 2, 3, tags=tags)
    yield Case("tiff-palette-alpha", data, over_white(palette[pairs[..., 0]] >> 8, pairs[..., 1:]), 1)
    deep = noise("tiff-rgba16", 4, 16)
    for order in "<>":
        data = tiff(
            [deep.astype(order + "u2").tobytes()], WIDTH, HEIGHT, [16] * 4, 2, order=order, tags={338: ("H", [2])}
        )
        yield Case(f"tiff-rgba16{order}", data, over_white(deep[..., :3] >> 8, deep[..., 3:] >> 8), 1)
    ink = 255 - samples
    cmyk = np.rint(ink[..., :3] * ink[..., 3:] / 255).astype(int)
    yield Case("tiff-cmyk", tiff([raw], WIDTH, HEIGHT, [8] * 4, 5), cmyk, 1)
    lab = np.stack(
        [np.linspace(20, 95, WIDTH * HEIGHT), 15 * np.sin(np.arange(143.0)), 15 * np.cos(np.arange(143.0))], 1
    )
    stored = np.stack([np.rint(lab[:, 0] * 2.55), np.rint(lab[:, 1]) % 256, np.rint(lab[:, 2]) % 256], 1).astype(
        np.uint8
    )
    data = tiff([stored.tobytes()], WIDTH, HEIGHT, [8] * 3, 8)
    yield Case("tiff-lab", data, lab_to_srgb(lab).reshape(HEIGHT, WIDTH, 3), 4)
    samples = noise("tiff-strips", 3)
    strips = [part.astype(np.uint8).tobytes() for part in (samples[:4], samples[4:8], samples[8:])]
    yield Case("tiff-strips", tiff(strips, WIDTH, HEIGHT, [8] * 3, 2, rows=4), samples)
    for channels in (1, 3):
        samples = noise(f"tiff-tiles-{channels}", channels, height=40, width=37)
        padded = np.zeros((48, 48, channels), np.uint8)
        padded[:40, :37] = samples
        tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16, 32) for x in (0, 16, 32)]
        data = tiff(tiles, 37, 40, [8] * channels, 1 if channels == 1 else 2, tile=16)
        yield Case(f"tiff-tiles-{channels}", data, rgb(samples))
    image = Image.fromarray(samples.astype(np.uint8))
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma"):
        data = saved(image, "TIFF", compression=compression)
        yield Case(f"tiff-{compression}", data, samples)
    yield Case("tiff-predictor", saved(image, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), samples)
    yield Case("tiff-big", saved(image, "TIFF", big_tiff=True), samples)
    yield Case("tiff-jpeg", saved(Image.fromarray(smooth()), "TIFF", compression="jpeg", quality=95), smooth(), 9)
    dots = noise("tiff-fax", 1, 1)
    for compression in ("group3", "group4", "tiff_ccitt"):
        data = saved(
            Image.fromarray((dots[..., 0] * 255).astype(np.uint8)).convert("1"), "TIFF", compression=compression
        )
        yield Case(f"tiff-{compression}", data, rgb(dots * 255))
    for orientation in range(1, 9):
        samples = noise(f"tiff-turned-{orientation}", 1, 16)
        stored = np.ascontiguousarray(turned(samples, orientation))
        height, width, _ = stored.shape
        data = tiff([stored.astype("<u2").tobytes()], width, height, [16], 0, tags={274: ("H", [orientation])})
        yield Case(f"tiff-turned-{orientation}", data, rgb(255 - (samples >> 8)))
    data = tiff([raw], WIDTH, HEIGHT, [8] * 4, 5, tags={50706: ("B", [1, 4, 0, 0])})
    yield Case("tiff-dng", data, refusal="raw")
    data = tiff([raw], WIDTH, HEIGHT, [8] * 4, 5, tags={254: ("I", [1]), 330: ("I", [8])})
    yield Case("tiff-preview", data, refusal="raw")
    yield Case("tiff-half-float", tiff([raw], WIDTH, HEIGHT, [16], 1, tags={339: ("H", [3])}), refusal="TIFF")


def float_tiffs(order: str, byte_order: str) -> Iterator[Case]:
    """Integers and floats of 32 bits: scaled where their range can be told, refused elsewhere."""

    def make(values: np.ndarray, kind: str, sample_format: int, photometric: int = 1) -> bytes:
        raw = values.astype(order + kind).tobytes()
        tags = {339: ("H", [sample_format])}
        return tiff([raw], WIDTH, HEIGHT, [8 * int(kind[1:])], photometric, order=order, tags=tags)

    unit = rng(f"float-{order}").random((HEIGHT, WIDTH, 1))
    levels = noise(f"integer-{order}", 1)
    expected = rgb(np.rint(unit.astype(np.float32) * 255).astype(int))
    yield Case(f"tiff-float-{byte_order}", make(unit, "f4", 3), expected)
    yield Case(f"tiff-float-white-is-0-{byte_order}", make(unit, "f4", 3, 0), 255 - expected)
    yield Case(f"tiff-float-levels-{byte_order}", make(levels, "f4", 3), rgb(levels))
    yield Case(f"tiff-float-high-{byte_order}", make(unit * 3.5, "f4", 3), refusal="floats from")
    yield Case(f"tiff-float-negative-{byte_order}", make(unit - 0.5, "f4", 3), refusal="floats from -0")
    yield Case(f"tiff-float-nan-{byte_order}", make(np.where(unit > 0.9, np.nan, unit), "f4", 3), refusal="nan")
    yield Case(f"tiff-int32-levels-{byte_order}", make(levels, "i4", 2), rgb(levels))
    yield Case(f"tiff-int32-deep-{byte_order}", make(levels * 257, "i4", 2), rgb(levels))
    yield Case(f"tiff-int32-full-{byte_order}", make(levels * 8_000_000, "i4", 2), refusal="integers from")
    yield Case(f"tiff-int32-negative-{byte_order}", make(levels - 128, "i4", 2), refusal="integers from -")
    yield Case(f"tiff-int16-levels-{byte_order}", make(levels, "i2", 2), rgb(levels))
    yield Case(f"tiff-int8-negative-{byte_order}", make(levels - 128, "i1", 2), refusal="negative")
    if order == "<":
        yield Case("tiff-uint32-levels", make(levels, "u4", 1), rgb(levels))
        yield Case("tiff-uint32-full", make(levels * 16_843_009, "u4", 1), refusal="integers from")


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Levels of CIE L*a*b* values (N, 3) with the white point D50."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + np.rint(lab[:, 1]) / 500, fy, fy - np.rint(lab[:, 2]) / 200], 1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    return to_srgb_levels(xyz @ np.linalg.inv(np.array(SRGB_XYZ)))


# JPEG


def jpegs() -> Iterator[Case]:
    color = smooth()
    image = Image.fromarray(color)
    gray = np.asarray(image.convert("L"))[..., None].astype(int)
    for progressive in (False, True):
        kind = "progressive" if progressive else "baseline"
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            data = saved(image, "JPEG", quality=95, subsampling=subsampling, progressive=progressive)
            yield Case(f"jpeg-{kind}-{subsampling}", data, color, 9)
        data = saved(image.convert("L"), "JPEG", quality=95, progressive=progressive)
        yield Case(f"jpeg-{kind}-gray", data, rgb(gray), 5)
    for name, options in {
        "restart-rows": {"restart_marker_rows": 1},
        "restart-blocks": {"restart_marker_blocks": 3},
        "optimized": {"optimize": True},
        "comment": {"comment": b"x" * 60_000},
        "rgb": {"keep_rgb": True},
        "dpi": {"dpi": (300, 300)},
    }.items():
        yield Case(f"jpeg-{name}", saved(image, "JPEG", quality=95, **options), color, 9)
    ink = smooth_ink()
    expected = np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255).astype(int)
    inverted = saved(Image.fromarray(ink.astype(np.uint8), "CMYK"), "JPEG", quality=97)
    yield Case("jpeg-cmyk", inverted, expected, 9)
    yield Case("jpeg-ycck", ycck(ink), expected, 12)
    for orientation in range(1, 9):
        stored = Image.fromarray(np.ascontiguousarray(turned(color, orientation)))
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(f"jpeg-turned-{orientation}", saved(stored, "JPEG", quality=95, exif=exif), color, 9)
    second = Image.new("RGB", (40, 24), "red")
    yield Case("mpo", saved(image, "MPO", quality=95, save_all=True, append_images=[second]), color, 9)
    plain = saved(image, "JPEG", quality=95)
    yield Case("jpeg-no-jfif", plain[:2] + plain[20:], color, 9)
    yield Case("jpeg-filled", plain[:2] + b"\xff" * 3 + plain[2:], color, 9)


def smooth_ink() -> np.ndarray:
    return np.concatenate(
        [smooth(), np.broadcast_to(np.linspace(0, 120, 24).astype(int)[:, None, None], (24, 40, 1))], 2
    )


def ycck(ink: np.ndarray) -> bytes:
    """A JPEG file in Adobe's YCCK: written as if the samples were CMYK, with the transform's number set afterwards."""
    c, m, y, k = (ink[..., index].astype(float) for index in range(4))
    luma = 0.299 * c + 0.587 * m + 0.114 * y
    blue, red = 128 + (y - luma) * 0.564, 128 + (c - luma) * 0.713
    # Pillow stores all four samples inverted; the decoder inverts the colours once more by the transform.
    written = np.stack([255 - luma, 255 - blue, 255 - red, k], axis=2)
    data = bytearray(saved(Image.fromarray(np.rint(written).clip(0, 255).astype(np.uint8), "CMYK"), "JPEG", quality=97))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def jpeg_damage() -> Iterator[Case]:
    color = smooth()
    image = Image.fromarray(color)
    plain = saved(image, "JPEG", quality=95)

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    segments = {
        "APP0-short": segment(0xE0, b"JFIF\0"),
        "APP0-cut": segment(0xE0, b"JFIF\0\1\1"),
        "APP0-empty": segment(0xE0, b""),
        "APP1-empty": segment(0xE1, b""),
        "APP1-exif-short": segment(0xE1, b"Exif\0\0"),
        "APP1-exif-cut": segment(0xE1, b"Exif\0\0MM\0*\0\0"),
        "APP1-exif-junk": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40),
        "APP1-xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orient"),
        "APP2-icc-short": segment(0xE2, b"ICC_PROFILE\0"),
        "APP2-icc-junk": segment(0xE2, b"ICC_PROFILE\0\1\1no profile"),
        "APP2-icc-parts": segment(0xE2, b"ICC_PROFILE\0\1\3part"),
        "APP2-mpf": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        "APP13-short": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
        "APP13-cut": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\x10\0"),
        "APP14-short": segment(0xEE, b"Adobe"),
        "APP14-cut": segment(0xEE, b"Adobe\0\x64"),
        "COM-empty": segment(0xFE, b""),
    }
    for name, content in segments.items():
        yield Case(f"jpeg-{name}", plain[:2] + content + plain[2:], color, 9)
    progressive = saved(image, "JPEG", quality=95, progressive=True)
    restarts = saved(image, "JPEG", quality=95, restart_marker_blocks=2)
    files = {"baseline": plain, "progressive": progressive, "restarts": restarts}
    for name, data in files.items():
        yield Case(f"jpeg-{name}-no-end", data[:-2], color, 9)
        yield Case(f"jpeg-{name}-half-end", data[:-1], color, 9)
        for share in (0.6, 0.8, 0.95):
            scan = data.index(b"\xff\xda")
            cut = data[: scan + int((len(data) - scan) * share)]
            yield Case(f"jpeg-{name}-{share}", cut, refusal="truncated")
    yield Case("jpeg-restarts-between", restarts[: restarts.rindex(b"\xff\xd1")], refusal="truncated")
    yield Case("jpeg-restarts-behind", restarts[: restarts.rindex(b"\xff\xd1") + 2], refusal="truncated")
    yield Case("jpeg-scans-missing", progressive[: progressive.rindex(b"\xff\xda")], refusal="truncated")
    ink = smooth_ink()
    data = saved(Image.fromarray(ink.astype(np.uint8), "CMYK"), "JPEG", quality=97)
    expected = np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255).astype(int)
    yield Case("jpeg-cmyk-no-end", data[:-2], expected, 9)


# The other formats


def others() -> Iterator[Case]:
    samples = noise("others", 3)
    image = Image.fromarray(samples.astype(np.uint8))
    with_alpha = noise("others-alpha", 4)
    transparent = Image.fromarray(with_alpha.astype(np.uint8))
    mixed = over_white(with_alpha[..., :3], with_alpha[..., 3:])
    gray = samples[..., :1]
    other = Image.new("RGB", (WIDTH, HEIGHT), "red")

    yield from gifs()
    yield Case("webp", saved(image, "WEBP", lossless=True), samples)
    yield Case("webp-alpha", saved(transparent, "WEBP", lossless=True, exact=True), mixed, 1)
    yield Case("webp-animated", saved(image, "WEBP", lossless=True, save_all=True, append_images=[other]), samples)
    yield Case("webp-lossy", saved(Image.fromarray(smooth()), "WEBP", quality=98), smooth(), 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(turned(samples, 6)).astype(np.uint8))
    yield Case("webp-turned", saved(stored, "WEBP", lossless=True, exif=exif), samples)
    yield Case("jpeg2000", saved(image, "JPEG2000"), samples)
    yield Case("jpeg2000-alpha", saved(transparent, "JPEG2000"), mixed, 1)
    if "AVIF" in Image.SAVE:  # since Pillow 11.3
        yield Case("avif", saved(Image.fromarray(smooth()), "AVIF", quality=95, subsampling="4:4:4"), smooth(), 9)
    yield Case("tga", saved(image, "TGA"), samples)
    yield Case("tga-rle", saved(image, "TGA", compression="tga_rle"), samples)
    yield Case("tga-alpha", saved(transparent, "TGA"), mixed, 1)
    coded = b"".join(b"\xfe" + bytes(pixel) for pixel in samples.reshape(-1, 3).tolist())
    yield Case("qoi", b"qoif" + struct.pack(">IIBB", WIDTH, HEIGHT, 3, 0) + coded + b"\0" * 7 + b"\1", samples)
    yield Case("pcx", saved(image, "PCX"), samples)
    square = noise("icns", 3, height=16, width=16)
    icon = saved(Image.fromarray(square.astype(np.uint8)), "PNG")
    yield Case("icns", b"icns" + struct.pack(">I4sI", 16 + len(icon), b"icp4", 8 + len(icon)) + icon, square)

    yield from bitmaps()

    size = f"{WIDTH} {HEIGHT}".encode()
    for maxval in (65535, 1023, 255, 100):
        values = rng(f"pgm-{maxval}").integers(0, maxval + 1, (HEIGHT, WIDTH, 1))
        raw = values.astype(">u2" if maxval > 255 else np.uint8).tobytes()
        scaled = rgb(np.rint(values * 255 / maxval).astype(int))
        yield Case(f"pgm-{maxval}", b"P5 " + size + b" %d\n" % maxval + raw, scaled, 1)
        text = " ".join(map(str, values.ravel())).encode()
        yield Case(f"pgm-text-{maxval}", b"P2 " + size + b" %d\n" % maxval + text, scaled, 1)
    dark = gray & 127
    data = b"P5 " + size + b" 65535\n" + dark.astype(">u2").tobytes()
    yield Case("pgm-dark", data, np.zeros((HEIGHT, WIDTH, 3), int))  # 16 bits by its format, however dark
    deep = noise("ppm-16", 3, 16)
    yield Case("ppm-16", b"P6 " + size + b" 65535\n" + deep.astype(">u2").tobytes(), deep >> 8, 1)
    yield Case("ppm", b"P6\n# comment\n" + size + b"\n255\n" + samples.astype(np.uint8).tobytes(), samples)
    yield Case("ppm-text", b"P3 " + size + b" 255\n" + " ".join(map(str, samples.ravel())).encode(), samples)
    dots = noise("pbm", 1, 1)
    yield Case("pbm", b"P4 " + size + b"\n" + pack_bits(dots[..., 0], 1), rgb(255 - dots * 255))
    yield Case("pbm-text", b"P1 " + size + b"\n" + " ".join(map(str, dots.ravel())).encode(), rgb(255 - dots * 255))
    unit = rng("pfm").random((HEIGHT, WIDTH, 1)).astype(np.float32)
    levels = rgb(np.rint(unit * 255).astype(int))
    for scale, order in ((b"-1.0", "<f4"), (b"1.0", ">f4")):
        data = b"Pf\n" + size + b"\n" + scale + b"\n" + unit[::-1].astype(order).tobytes()
        yield Case(f"pfm{scale.decode()}", data, levels)
    yield Case("pfm-high", b"Pf\n" + size + b"\n-1.0\n" + (unit * 9).astype("<f4").tobytes(), refusal="floats")

    for name, data, words in (
        ("svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("html", b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("pdf", b"%PDF-1.7\n", "PDF"),
        ("psd", b"8BPS\0\1" + b"\0" * 60, "Photoshop"),
        ("mp4", b"\0\0\0\x18ftypisom" + b"\0" * 60, "video"),
        ("cr2", b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 60, "raw"),
        ("hdr", b"#?RADIANCE\n", "dynamic range"),
        ("zip", b"PK\3\4" + b"\0" * 60, "archive"),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known picture format"),
    ):
        yield Case(f"no-image-{name}", data, refusal=words)


def gifs() -> Iterator[Case]:
    samples, palette = noise("gif", 1, 4), noise("gif", 3, 8, 1, 16)[0]
    image = Image.fromarray(samples[..., 0].astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    colors = palette[samples[..., 0]]
    for interlace in (0, 1):
        yield Case(f"gif-{interlace}", saved(image, "GIF", interlace=interlace, optimize=False), colors)
    holes = over_white(colors, (samples != 3) * 255)
    yield Case("gif-transparent", saved(image, "GIF", transparency=3, optimize=False), holes)
    second = Image.new("RGB", (WIDTH, HEIGHT), "red")
    yield Case("gif-animated", saved(image, "GIF", save_all=True, append_images=[second], optimize=False), colors)
    plain = saved(image, "GIF", optimize=False)
    yield Case("gif-no-trailer", plain[:-1], colors)
    yield Case("gif-comment", saved(image, "GIF", comment=b"x" * 999, optimize=False), colors)


def bitmaps() -> Iterator[Case]:
    """BMP files, and the icons and cursors that hold them."""
    samples = noise("bmp", 3)
    blue_first = samples[..., ::-1].reshape(HEIGHT, -1)
    yield Case("bmp-24", bmp(bmp_header(WIDTH, HEIGHT, 24), b"", bmp_rows(blue_first, 8)), samples)
    upside = bmp(bmp_header(WIDTH, -HEIGHT, 24), b"", bmp_rows(blue_first[::-1], 8))
    yield Case("bmp-24-top-down", upside, samples)
    padded = np.concatenate([samples[..., ::-1], np.zeros((HEIGHT, WIDTH, 1), int)], axis=2).reshape(HEIGHT, -1)
    yield Case("bmp-32", bmp(bmp_header(WIDTH, HEIGHT, 32), b"", bmp_rows(padded, 8)), samples)
    for bits in (1, 4, 8):
        indices, colors = noise(f"bmp-{bits}", 1, bits), noise(f"bmp-{bits}-palette", 3, 8, 1, 1 << bits)[0]
        table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colors)
        header = bmp_header(WIDTH, HEIGHT, bits, colors=1 << bits)
        rows = bmp_rows(indices[..., 0], bits)
        yield Case(f"bmp-{bits}", bmp(header, table, rows), colors[indices[..., 0]])
        mask = rng(f"ico-{bits}").integers(0, 2, (HEIGHT, WIDTH, 1))
        doubled = bmp_header(WIDTH, 2 * HEIGHT, bits, colors=1 << bits)
        expected = over_white(colors[indices[..., 0]], 255 - mask * 255)
        content = doubled + table + rows + bmp_rows(mask[..., 0], 1)
        yield Case(f"ico-{bits}", ico(WIDTH, HEIGHT, bits, content), expected)
    runs = b"".join(bytes([WIDTH, index]) + b"\0\0" for index in range(HEIGHT)) + b"\0\1"
    colors = noise("bmp-rle", 3, 8, 1, 256)[0]
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colors)
    header = bmp_header(WIDTH, HEIGHT, 8, compression=1, colors=256, size=len(runs))
    expected = np.broadcast_to(colors[HEIGHT - 1 :: -1][:HEIGHT, None], (HEIGHT, WIDTH, 3))
    yield Case("bmp-rle8", bmp(header, table, runs), expected)
    five = noise("bmp-555", 3, 5)
    words = (five[..., 0] << 10) | (five[..., 1] << 5) | five[..., 2]
    raw = b"".join(row.astype("<u2").tobytes().ljust(28, b"\0") for row in words[::-1])
    yield Case("bmp-16", bmp(bmp_header(WIDTH, HEIGHT, 16), b"", raw), np.rint(five * 255 / 31).astype(int), 8)

    mask = rng("ico-24").integers(0, 2, (HEIGHT, WIDTH, 1))
    content = bmp_header(WIDTH, 2 * HEIGHT, 24) + bmp_rows(blue_first, 8) + bmp_rows(mask[..., 0], 1)
    yield Case("ico-24", ico(WIDTH, HEIGHT, 24, content), over_white(samples, 255 - mask * 255))
    rgba = noise("ico-32", 4)
    content = bmp_header(WIDTH, 2 * HEIGHT, 32) + bmp_rows(rgba[..., [2, 1, 0, 3]].reshape(HEIGHT, -1), 8)
    content += bmp_rows(np.zeros((HEIGHT, WIDTH), int), 1)
    expected = over_white(rgba[..., :3], rgba[..., 3:])
    yield Case("ico-32", ico(WIDTH, HEIGHT, 32, content), expected, 1)
    yield Case("cur-32", ico(WIDTH, HEIGHT, 32, content, cursor=True), expected, 1)
    inner = png(rgba, 6, 8)
    yield Case("ico-png", ico(WIDTH, HEIGHT, 32, inner), expected, 1)


# Colour profiles


def to_srgb_levels(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(int)


def from_srgb(unit: np.ndarray) -> np.ndarray:
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def p3_to_srgb(samples: np.ndarray) -> np.ndarray:
    """Levels (..., 3) of Display P3 in sRGB, where they are inside of it."""
    return to_srgb_levels(from_srgb(samples / 255) @ np.array(P3_XYZ) @ np.linalg.inv(np.array(SRGB_XYZ)))


def profiles() -> Iterator[Case]:
    p3 = profile(b"RGB ", SRGB_CURVE, P3_XYZ)
    samples = noise("p3", 3)
    image = Image.fromarray(samples.astype(np.uint8))
    expected = p3_to_srgb(samples)
    assert np.abs(expected - samples).max() > 20
    for file_format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        yield Case(f"p3-{file_format}", saved(image, file_format, icc_profile=p3, **options), expected, 2)
    pale = smooth() // 3 + 110  # far from the edge of sRGB, where small differences grow
    data = saved(Image.fromarray(pale), "JPEG", quality=97, subsampling="4:4:4", icc_profile=p3)
    yield Case("p3-JPEG", data, p3_to_srgb(pale), 9)
    rgba = noise("p3-alpha", 4)
    data = saved(Image.fromarray(rgba.astype(np.uint8)), "PNG", icc_profile=p3)
    yield Case("p3-alpha", data, over_white(p3_to_srgb(rgba[..., :3]), rgba[..., 3:]), 2)
    palette, indices = noise("p3-palette", 3, 8, 1, 16)[0], noise("p3-indices", 1, 4)
    chunks = [chunk(b"iCCP", b"p3\0\0" + zlib.compress(p3)), chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    yield Case("p3-palette", png(indices, 3, 4, chunks=chunks), p3_to_srgb(palette)[indices[..., 0]], 2)
    gray = samples[..., :1]
    data = saved(Image.fromarray(gray[..., 0].astype(np.uint8)), "PNG", icc_profile=profile(b"GRAY", gamma_curve(1.8)))
    yield Case("gray-gamma-1.8", data, rgb(to_srgb_levels((gray / 255) ** 1.8)), 3)
    srgb = profile(b"RGB ", SRGB_CURVE, SRGB_XYZ)
    yield Case("srgb", saved(image, "PNG", icc_profile=srgb), samples)
    for name, points in (("table", 1024), ("short-table", 26)):
        curve = (
            b"curv\0\0\0\0"
            + struct.pack(">I", points)
            + np.rint(from_srgb(np.linspace(0, 1, points)) * 65535).astype(">u2").tobytes()
        )
        yield Case(f"srgb-{name}", saved(image, "PNG", icc_profile=profile(b"RGB ", curve, SRGB_XYZ)), samples)
    pillows = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pillows = pillows[:24] + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + pillows[36:]  # without the time of its making
    yield Case("srgb-pillow", saved(image, "PNG", icc_profile=pillows), samples)
    yield Case("srgb-gray", saved(Image.fromarray(gray[..., 0].astype(np.uint8)), "PNG", icc_profile=srgb), rgb(gray))
    yield Case("gray-profile-on-rgb", saved(image, "PNG", icc_profile=profile(b"GRAY", gamma_curve(1.8))), samples)
    yield Case("p3-cut", saved(image, "PNG", icc_profile=p3[:150]), samples)

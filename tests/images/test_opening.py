"""Sources of images, values of every type, large photos, HEIC, and files that chance has damaged."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.images import jxl, open_image
from bagel_mot.serving.limits import Limits
from tests.images.corpus import cases, noise, over_white, p3_to_srgb, smooth
from tests.images.encoders import P3_XYZ, SRGB_CURVE, profile, saved

SAMPLES = noise("opening", 3).astype(np.uint8)


def opened(source: Any, **options: Any) -> np.ndarray:
    return np.asarray(open_image(source, **options)).astype(int)


# Sources


def test_binary_files_are_read_from_their_start(tmp_path: Path) -> None:
    data = saved(Image.fromarray(SAMPLES), "PNG")
    buffer = io.BytesIO()
    Image.fromarray(SAMPLES).save(buffer, "PNG")  # and left at its end
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(data)
        for source in (buffer, buffer, file, spooled):
            assert np.array_equal(opened(source), SAMPLES)
    with pytest.raises(ImageError, match="cannot be read.*closed"):
        open_image(file)
    with (tmp_path / "a.png").open(encoding="latin-1") as text, pytest.raises(ImageError, match="'rb'"):
        open_image(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["http://x/y.png", "https://x/y.png", Path("http://x/y.png"), "data:image/png;base64,aGk=", "file:///a.png"]
)
def test_urls_are_not_fetched(url: Any) -> None:
    with pytest.raises(ImageError, match="is a URL, and URLs are not fetched: download"):
        open_image(url)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_arrays_of_floats_are_scaled(dtype: type, shape: tuple[int, ...]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape)
    got = opened((levels / 255).astype(dtype))
    assert np.array_equal(got, opened(levels.astype(np.uint8)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), 1.5), "array has floats from 1.5 to 1.5: scale"),
        (np.full((4, 4, 3), -1.0), "floats from -1"),
        (np.full((4, 4), np.nan), "floats from nan"),
        (np.full((4, 4), np.inf), "floats from inf"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((3, 4, 4)), None),
        (np.zeros((3, 64, 64)), r"\(3, 64, 64\)"),
        (np.zeros((1, 4, 4, 3)), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4), np.float32), "empty"),
    ],
)
def test_arrays_that_cannot_be_told_are_refused(array: np.ndarray, message: str | None) -> None:
    if message is None:
        assert open_image(array).size == (4, 3)
        return
    with pytest.raises(ImageError, match=message):
        open_image(array)


# Pillow's images


def test_deep_and_premultiplied_modes() -> None:
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    levels = np.arange(64).reshape(8, 8) * 4
    pair = noise("La", 2).astype(np.uint8)
    alpha = pair[..., 1:].astype(int)
    premultiplied = Image.merge("LA", [Image.fromarray(pair[..., 0] * 1), Image.fromarray(pair[..., 1] * 1)]).convert(
        "La"
    )
    for image, expected, tolerance in (
        (Image.fromarray(unit), np.rint(unit * 255)[..., None], 0),
        (Image.fromarray(levels.astype(np.float32)), levels[..., None], 0),
        (Image.fromarray(levels.astype(np.int32)), levels[..., None], 0),
        (Image.fromarray((levels * 257).astype(np.int32)), levels[..., None], 0),
        (Image.fromarray((levels * 257).astype(np.uint16)), levels[..., None], 0),
        (premultiplied, over_white(pair[..., :1].astype(int), alpha), 2),
    ):
        assert np.abs(opened(image) - expected).max() <= tolerance, image.mode
    for values in (unit * 2, unit - 1, np.where(unit > 0.5, np.nan, unit)):
        with pytest.raises(ImageError, match="floats from"):
            open_image(Image.fromarray(values.astype(np.float32)))


def test_a_profile_is_applied_once() -> None:
    p3 = profile(b"RGB ", SRGB_CURVE, P3_XYZ)
    image = Image.open(io.BytesIO(saved(Image.fromarray(SAMPLES), "PNG", icc_profile=p3)))
    once = open_image(image)
    assert np.abs(np.asarray(once) - p3_to_srgb(SAMPLES)).max() <= 2
    assert np.array_equal(opened(once), np.asarray(once))
    assert "icc_profile" in image.info  # which is the caller's


# Large photos


@pytest.mark.parametrize(("mode", "limit", "scale"), [("RGB", 96_000, 1), ("RGB", 95_999, 2), ("L", 24_000, 2)])
@pytest.mark.parametrize("cut", [0, 2])
def test_large_jpegs_are_decoded_at_a_reduced_scale(mode: str, limit: int, scale: int, cut: int) -> None:
    image = Image.fromarray(smooth(400, 240)).convert(mode)
    data = saved(image, "JPEG", quality=95)
    got = open_image(data[: len(data) - cut], max_pixels=limit)
    assert got.size == (400 // scale, 240 // scale)
    expected = image.convert("RGB").resize(got.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(expected)).max() <= 6


def test_jpegs_beyond_the_reduced_scale_are_refused() -> None:
    image = Image.fromarray(smooth(400, 240))
    plain, progressive = saved(image, "JPEG"), saved(image, "JPEG", progressive=True)
    assert open_image(plain, max_pixels=12_000).size == (100, 60)
    with pytest.raises(ImageError, match="400×240 = 96000 pixels; at most 95992"):
        open_image(plain, max_pixels=11_999)
    assert open_image(progressive, max_pixels=48_000).size == (200, 120)
    with pytest.raises(ImageError, match="at most 95998"):
        open_image(progressive, max_pixels=47_999)
    frame = plain.index(b"\xff\xc0") + 5
    with pytest.raises(ImageError, match="too large: 65500×65500"):
        open_image(plain[:frame] + b"\xff\xdc" * 2 + plain[frame + 4 :])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(8064, 6048), (12_000, 9000)])
def test_photos_of_todays_phones_are_opened(size: tuple[int, int]) -> None:
    data = saved(Image.linear_gradient("L").resize(size), "JPEG", quality=50)
    limit = Limits().image_pixels
    tracemalloc.start()
    got = open_image(data, limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(data) + (1 << 20)  # Python's part: copies of the file, no pixels
    assert got.width * got.height <= limit
    column = np.asarray(got)[:: got.height // 8, 0, 0].astype(int)
    assert np.abs(column - np.linspace(0, 255, 9)[: len(column)]).max() <= 4


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}], ids=str
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_jpeg_that_is_cut_anywhere_is_whole_or_refused(options: dict[str, Any], flat: bool) -> None:
    image = Image.new("RGB", (32, 16), "white") if flat else Image.fromarray(smooth(32, 16))
    data = saved(image, "JPEG", **options)
    whole, refused = opened(data), 0
    for length in range(data.index(b"\xff\xda"), len(data)):
        try:
            assert np.array_equal(opened(data[:length]), whole)
        except ImageError:
            refused += 1
    assert refused > 10


# Plugins

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + b"\0" * 40
JXL = b"\xff\x0a" + b"\0" * 40


@pytest.mark.parametrize(
    ("data", "module", "message"),
    [
        (HEIC, "pillow_heif", r"HEIC picture, which needs pillow-heif: pip install .*\[heic\]"),
        (JXL, "pillow_jxl", r"JPEG XL picture, which needs pillow-jxl-plugin: pip install .*\[jxl\]"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + JXL, "pillow_jxl", "JPEG XL picture, which needs"),
    ],
)
def test_files_that_need_a_plugin_name_its_extra(
    data: bytes, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=message):
        open_image(data)


def header(*fields: tuple[int, int]) -> bytes:
    """Fields of a value and a number of bits each, the lowest bit first."""
    bits, count = 0, 0
    for value, length in fields:
        bits |= value << count
        count += length
    return bits.to_bytes(16, "little")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (((1, 1), (7, 5), (1, 3)), (64, 64)),
        (((1, 1), (7, 5), (0, 3), (3, 5)), (32, 64)),
        (((0, 1), (0, 2), (299, 9), (4, 3)), (450, 300)),
        (((0, 1), (2, 2), (99_999, 18), (0, 3), (3, 2), (1_999_999, 30)), (2_000_000, 100_000)),
    ],
)
def test_the_size_of_jpeg_xl_is_known_before_decoding(fields: Any, size: tuple[int, int]) -> None:
    stream = b"\xff\x0a" + header(*fields)

    def box(kind: bytes, content: bytes) -> bytes:
        return (len(content) + 8).to_bytes(4, "big") + kind + content

    start = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    for data in (
        stream,
        start + box(b"jxlc", stream),
        start + box(b"Exif", b"abc") + box(b"jxlp", b"\0\0\0\0" + stream),
    ):
        assert jxl.size(data) == size
    with pytest.raises(ValueError, match="damaged"):
        jxl.size(start)


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_xl_is_opened_with_its_extra(orientation: int) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = orientation  # which does not count beside the codestream's own
    data = saved(Image.fromarray(SAMPLES), "JXL", lossless=True, exif=exif.tobytes())
    assert np.array_equal(opened(data), SAMPLES)
    rgba = noise("jxl", 4)
    with_alpha = saved(Image.fromarray(rgba.astype(np.uint8)), "JXL", lossless=True)
    assert np.abs(opened(with_alpha) - over_white(rgba[..., :3], rgba[..., 3:])).max() <= 1
    with pytest.raises(ImageError, match="13×11 = 143 pixels; at most 142"):
        open_image(data, max_pixels=142)
    for wrong in (data[: len(data) // 2], JXL):
        with pytest.raises(ImageError):
            open_image(wrong)


def test_heic_is_opened_with_its_extra() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    data = saved(Image.fromarray(smooth()), "HEIF", quality=95, chroma=444)
    assert np.abs(opened(data) - smooth()).max() <= 12
    with pytest.raises(ImageError, match="too large"):
        open_image(data, max_pixels=900)
    with pytest.raises(ImageError):
        open_image(HEIC)


# Chance

CASES = [case for case in cases() if len(case.data) < 20_000]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, before it fails
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(CASES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_are_opened_or_refused(case: Any, flips: list[tuple[float, int]], kept: float) -> None:
    """An image comes out, or an ImageError, no other error."""
    data = bytearray(case.data[: len(case.data) if kept > 0.6 else int(len(case.data) * kept / 0.6)])
    for place, bits in flips:
        if data:
            data[int(place * len(data))] ^= bits
    with contextlib.suppress(ImageError):
        assert open_image(bytes(data), max_pixels=20_000).mode == "RGB"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.binary(max_size=80), st.binary(max_size=300), st.integers(0, 400))
def test_metadata_of_any_bytes_costs_no_pixels(file_format: str, exif: bytes, icc: bytes, place: int) -> None:
    """EXIF and profiles that chance has written, or damaged, leave the image as large and as bright as it is."""
    sound = profile(b"RGB ", SRGB_CURVE, P3_XYZ)
    icc = sound[:place] + icc[:8] + sound[place + 8 :] if place % 2 else icc
    options = {"lossless": True} if file_format == "WEBP" else {}
    prefix = b"Exif\0\0MM\0*" if place % 3 else b"Exif\0\0"
    image = Image.new("RGB", (8, 8), "white")
    got = opened(saved(image, file_format, exif=prefix + exif, icc_profile=icc, **options))
    assert got.shape == (8, 8, 3)
    if place % 2 == 0:
        assert got.min() >= 254

"""Opening pictures within limits, the resize rule, pixels, patches and latent tokens."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from bagel_mot.errors import ImageError, SettingError, SizeError
from bagel_mot.images import (
    VAE_TRANSFORM,
    VIT_TRANSFORM,
    ImageTransform,
    open_image,
    patchify,
    resize_bicubic,
    scale_levels,
    to_levels,
    to_pil,
    to_pixels,
    to_uint8,
    unpatchify,
)


def transform_of(settings: dict[str, int]) -> ImageTransform:
    names = {"max_image_size": "max_size", "min_image_size": "min_size", "image_stride": "stride"}
    return ImageTransform(**{names.get(name, name): value for name, value in settings.items()})


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# Recorded cases


def test_recorded_sizes(golden: Any) -> None:
    for case in golden.cases("resize"):
        transform = transform_of(case["transform"])
        for item in case["cases"]:
            assert list(transform.size(*item["wh"], images=item["images"])) == item["expect"], (case["name"], item)


def test_recorded_transforms(golden: Any) -> None:
    vae, vit = (transform_of(golden.document[name]) for name in ("vae_transform", "vit_transform"))
    for case in golden.cases("transform"):
        name = case["name"]
        image = open_image(golden.image(case["image"]))
        resized = vae.resize(image)
        assert torch.equal(vae(resized), golden.expected[f"{name}/vae"])
        assert torch.equal(vit(resized), golden.expected[f"{name}/vit"])
        assert torch.equal(vit(image), golden.expected[f"{name}/vit_direct"])


def test_recorded_patches(golden: Any) -> None:
    vit = transform_of(golden.document["vit_transform"])
    for case in golden.cases("vit"):
        pixels = vit(open_image(golden.image(case["image"])))
        assert torch.equal(patchify(pixels, 14), golden.expected[f"{case['name']}/pixels"])


# Opening


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    array = noise(20, 10)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), Image.open(path), array):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), array)


def test_an_opened_image_is_a_copy() -> None:
    original = Image.new("RGB", (4, 4))
    open_image(original).putpixel((0, 0), (255, 0, 0))
    assert original.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(channels: int | None) -> None:
    array = noise(5, 4, channels or 1)
    if channels == 4:
        array[..., 3] = 255
    got = np.asarray(open_image(array[..., 0] if channels is None else array))
    assert got.shape == (4, 5, 3)
    assert np.array_equal(got, np.broadcast_to(array[..., :3], got.shape))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_alpha_goes_over_white(mode: str) -> None:
    """Left half opaque black, right half transparent black."""
    alpha = Image.new("L", (8, 4), 0)
    alpha.paste(255, (0, 0, 4, 4))
    if mode == "P":
        image = Image.new("P", (8, 4), 1)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 4, 4))
        data = encoded(image, "PNG", transparency=1)
    elif mode == "RGB":
        image = Image.new("RGB", (8, 4), (0, 0, 1))
        image.paste((0, 0, 0), (0, 0, 4, 4))
        data = encoded(image, "PNG", transparency=(0, 0, 1))
    else:
        image = Image.new(mode, (8, 4))
        image.putalpha(alpha)
        data = encoded(image, "PNG")
    got = np.asarray(open_image(data))
    assert (got[:, :4] == 0).all()
    assert (got[:, 4:] == 255).all()


def test_half_transparent_is_mixed_with_white() -> None:
    assert open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).getpixel((0, 0)) == (255, 204, 204)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(noise(6, 4))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = open_image(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(got), np.asarray(upright))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, before it fails
def test_damaged_exif_is_ignored() -> None:
    image = Image.fromarray(noise(6, 4))
    got = open_image(encoded(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert np.array_equal(np.asarray(got), np.asarray(image))


def test_sixteen_bit_grays_are_scaled() -> None:
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    got = np.asarray(open_image(encoded(Image.fromarray(levels), "PNG")))
    assert np.array_equal(got[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "F"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(noise(6, 4)).convert(mode)
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(image.convert("RGB")))


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG file whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, before it fails
@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000), (2**31 - 1, 2**31 - 1), (100_000_000, 1)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="too large.*89478485"):
        open_image(png_claiming(*size))


def test_the_pixel_limit_can_be_set() -> None:
    image = Image.new("RGB", (100, 50))
    assert open_image(image, max_pixels=5000).size == (100, 50)
    for source in (image, encoded(image, "PNG"), np.zeros((50, 100, 3), np.uint8)):
        with pytest.raises(ImageError, match="100×50 = 5000 pixels; at most 4999"):
            open_image(source, max_pixels=4999)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, before it fails
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(file_format: str) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), file_format)
    assert open_image(data).size == (64, 64)
    for share in (0.02, 0.5, 0.9):
        with pytest.raises(ImageError):
            open_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, before it fails
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_are_opened_or_refused(file_format: str) -> None:
    """Whatever bytes are wrong: a picture comes out, or an ImageError, no other error."""
    data = encoded(Image.fromarray(noise(24, 24)), file_format)
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        try:
            assert open_image(bytes(damaged), max_pixels=10_000).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/picture.png", "no/such/picture.png.*No such file"),
        ("a\0b", "null"),
        (b"", "0 bytes.*known picture format"),
        (b"no picture", "known picture format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known picture format"),
        (3, "int"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((4,), np.uint8), r"\(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (Image.new("RGB", (0, 3)), "0×3"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="directory"):
        open_image(tmp_path)


# Resizing


@pytest.mark.parametrize("transform", [VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform(64, 64, 16)])
def test_sizes_keep_within_the_limits(transform: ImageTransform) -> None:
    rng = random.Random(0)
    for _ in range(2000):
        width, height = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        images = rng.randrange(1, 9)
        size = transform.size(width, height, images)
        assert all(side > 0 and side % transform.stride == 0 for side in size)
        assert max(size) <= transform.max_size
        assert size == transform.size(height, width, images)[::-1]


def test_a_fitting_image_is_left_as_it_is() -> None:
    image = Image.fromarray(noise(768, 1024))
    assert VAE_TRANSFORM.size(768, 1024) == (768, 1024)
    assert torch.equal(VAE_TRANSFORM(image), to_pixels(image))


def test_transforms_take_any_mode() -> None:
    transform = ImageTransform(64, 32, 16)
    assert (transform(Image.new("RGBA", (40, 40), (0, 0, 0, 0))) == 1).all()
    assert transform(Image.new("L", (100, 50))).shape == (3, 32, 64)


@pytest.mark.parametrize("settings", [(0, 1, 16), (64, 32, 0), (64, 128, 16), (64.0, 32, 16), (64, 32, 16, 0)])
def test_impossible_transforms_are_refused(settings: tuple[Any, ...]) -> None:
    with pytest.raises(SettingError, match="image transform"):
        ImageTransform(*settings)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (5, 5, 0)])
def test_impossible_sizes_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(SizeError):
        VAE_TRANSFORM.size(*arguments)


# Pixels, patches, tokens


def test_every_level_survives_the_way_out_and_in() -> None:
    """Truncation must not turn a level into the one below it."""
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_pixels(Image.fromarray(array))
    assert pixels.shape == (3, 16, 16)
    assert pixels.is_contiguous()
    assert (pixels.min(), pixels.max()) == (-1, 1)
    back = to_uint8(pixels).numpy().astype(int)
    assert np.abs(back - array).max() <= 1
    assert np.array_equal(to_uint8(pixels + 1e-4).numpy(), array)


def test_uint8_is_clamped_and_truncated() -> None:
    pixels = torch.tensor([-7.0, -1.0, 0.0, 0.999, 1.0, 7.0]).expand(3, 1, 6)
    assert to_uint8(pixels)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    assert to_uint8(pixels.bfloat16())[0, :3, 0].tolist() == [0, 0, 127]


def test_uint8_of_batches_and_images() -> None:
    pixels = torch.rand(2, 3, 4, 5) * 2 - 1
    assert to_uint8(pixels).shape == (2, 4, 5, 3)
    assert torch.equal(to_uint8(pixels)[1], to_uint8(pixels[1]))
    image = to_pil(pixels[0])
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert np.array_equal(np.asarray(image), to_uint8(pixels[0]).numpy())
    for wrong in (pixels[0, 0], pixels.transpose(1, 3)):
        with pytest.raises(SizeError):
            to_uint8(wrong)
    with pytest.raises(SizeError):
        to_pil(pixels)


@pytest.mark.parametrize(("channels", "rows", "columns", "patch"), [(3, 2, 5, 14), (16, 3, 1, 2), (4, 1, 1, 1)])
def test_patches_come_back(channels: int, rows: int, columns: int, patch: int) -> None:
    pixels = torch.randn(channels, rows * patch, columns * patch)
    patches = patchify(pixels, patch)
    assert patches.shape == (rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(patches, rows * patch, columns * patch, patch), pixels)


def test_order_inside_a_token_is_row_column_channel() -> None:
    latent = torch.randn(4, 6, 10)
    tokens = patchify(latent, 2)
    assert tokens.shape == (15, 16)
    for token, values in enumerate(tokens):
        row, column = divmod(token, 5)
        expected = [
            latent[channel, 2 * row + inner_row, 2 * column + inner_column]
            for inner_row in range(2)
            for inner_column in range(2)
            for channel in range(4)
        ]
        assert torch.equal(values, torch.stack(expected))
    assert torch.equal(unpatchify(tokens, 6, 10, 2), latent)


def test_unfit_patches_are_refused() -> None:
    with pytest.raises(SizeError, match="multiples of 2"):
        patchify(torch.zeros(3, 5, 4), 2)
    for patches, height in ((torch.zeros(6, 12), 4), (torch.zeros(4, 13), 4), (torch.zeros(4, 12), 5)):
        with pytest.raises(SizeError, match="do not fill"):
            unpatchify(patches, height, 4, 2)


@pytest.mark.parametrize(
    ("size", "wanted", "height_first"),
    [
        ((40, 90), (64, 32), True),
        ((90, 40), (32, 64), False),
        ((100, 167), (71, 32), True),  # 135 rows and 29 columns fewer
        ((85, 182), (18, 50), False),  # 132 and 67: not more than twice as many
        ((10, 10), (20, 9), True),
        ((10, 10), (20, 20), False),
    ],
)
def test_resizing_is_the_same_with_every_pillow(
    size: tuple[int, int], wanted: tuple[int, int], height_first: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    first = (size[0], wanted[1]) if height_first else (wanted[0], size[1])
    other = (wanted[0], size[1]) if height_first else (size[0], wanted[1])
    bicubic = Image.Resampling.BICUBIC
    got = np.asarray(resize_bicubic(image, wanted))
    assert (got == np.asarray(image.resize(first, bicubic).resize(wanted, bicubic))).all()
    assert (got != np.asarray(image.resize(other, bicubic).resize(wanted, bicubic))).any()
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert (got == np.asarray(image.resize(wanted, bicubic))).all()


def test_levels_scaled_anywhere_are_the_pixels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    levels = to_levels(image)
    assert torch.equal(scale_levels(levels).permute(2, 0, 1), to_pixels(image))
    assert torch.equal(scale_levels(patchify(levels.permute(2, 0, 1), 16)), patchify(to_pixels(image), 16))
    assert levels.dtype == torch.uint8

"""Images in and out: opening with limits, the resize rule, pixels in [-1, 1], patches, latent tokens.

The way in: `open_image` (any source to RGB, upright, over white), then `ImageTransform` (resized, a tensor (3, H, W) in
[-1, 1]), then `patchify` for the ViT, or the autoencoder and `patchify` again. The way out: `to_uint8` and `to_pil`.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bagel_mot.errors import ImageError, SettingError, SizeError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray

MAX_IMAGE_PIXELS = 89_478_485  # 1 GiB / 4 / 3 bytes a pixel: Pillow's own threshold for a decompression bomb

# Raster formats with a decoder of Pillow's own. Others are left out on purpose: EPS, for one, starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "TGA", "QOI")


def open_image(source: ImageSource, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens an image as a new, fully decoded RGB image: turned upright by its EXIF orientation, alpha over white.

    Args:
        source: a path, the bytes of an image file, a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4). Of an animation the first frame is taken.
        max_pixels: images with more pixels are refused before they are decoded. Pillow itself never opens files with
            more than twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ImageError: if the image is missing, unreadable, truncated, empty, too large, or of an unsupported type.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the picture", max_pixels)
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), "the array", max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = f"the picture of {len(source)} bytes", bytes(source)
    elif isinstance(source, str | os.PathLike):
        name = f"the picture {os.fspath(source)!r}"
        try:
            with open(source, "rb") as file:
                data = file.read()
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(f"{name} cannot be read ({reason}): give the path of a picture file.") from error
    else:
        raise ImageError(
            f"a picture cannot be a {type(source).__name__}: give a path, bytes, a PIL image or a uint8 array."
        )
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return _decode(image, name, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large: at most {max_pixels} pixels are accepted; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not in a known picture format: save it as PNG, JPEG or WebP.") from error
    except Exception as error:  # Pillow's parsers raise many types on damaged headers
        raise ImageError(f"{name} is damaged and cannot be opened ({error}): save it anew.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy of an image: transparent parts over white, 16-bit grays scaled to 8 bits, the rest converted."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode.startswith("I"):  # 16-bit PNG, TIFF and PGM; Pillow would clip at 255 where the eye expects scaling
        levels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    return image.convert("RGB")


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(f"{name} is empty ({width}×{height} pixels): it needs at least one pixel.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is too large: {width}×{height} = {width * height} pixels; at most {max_pixels} are accepted."
        )
    try:
        image.load()
        upright = _upright(image)
        return to_rgb(upright)
    except Exception as error:  # OSError for truncated files, but damaged streams raise many other types
        raise ImageError(f"{name} is truncated or damaged ({error}): save or download it anew.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is no reason to refuse the pixels
        return image


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not a picture: "
            "give uint8 values of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."
        )
    if 0 in array.shape:
        raise ImageError(f"the array of shape {array.shape} is empty: a picture needs at least one pixel.")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array))


@dataclass(frozen=True)
class ImageTransform:
    """Resizes images within limits (Pillow, bicubic) and turns them into tensors.

    Attributes:
        max_size: the most pixels of the long side.
        min_size: the pixels the short side is enlarged to, as far as the other limits allow.
        stride: both sides become multiples of it.
        max_pixels: budget of pixels, shared by all images of one sample.
    """

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def __post_init__(self) -> None:
        for name in ("max_size", "min_size", "stride", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"image transform: {name} is {value!r}, but must be a positive integer.")
        if self.min_size > self.max_size:
            raise SettingError(
                f"image transform: min_size {self.min_size} is greater than max_size {self.max_size}; swap the two."
            )

    def size(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """The (width, height) that an image of width × height pixels is resized to.

        Args:
            width: pixels, at least 1.
            height: pixels, at least 1.
            images: the number of images that share `max_pixels`.

        Raises:
            SizeError: if width, height or images is less than 1.
        """
        if min(width, height, images) < 1:
            raise SizeError(f"cannot resize {images} picture(s) of {width}×{height} pixels: each must be at least 1.")
        scale = min(self.max_size / max(width, height), 1.0)
        scale = max(scale, self.min_size / min(width, height))
        width, height = self._scaled(width, scale), self._scaled(height, scale)
        budget = self.max_pixels / images
        if width * height > budget:
            # The published rule scales the sides by the ratio of the areas, without the square root, so large images
            # shrink more than they need to. Kept, since checkpoints were trained with it.
            scale = budget / (width * height)
            width, height = self._scaled(width, scale), self._scaled(height, scale)
        if max(width, height) > self.max_size:
            scale = self.max_size / max(width, height)
            width, height = self._scaled(width, scale), self._scaled(height, scale)
        return width, height

    def resize(self, image: Image.Image, images: int = 1) -> Image.Image:
        """The image as RGB at `size(...)`; `images` share the pixel budget."""
        rgb = image if image.mode == "RGB" else to_rgb(image)
        return resize_bicubic(rgb, self.size(*rgb.size, images=images))

    def __call__(self, image: Image.Image, images: int = 1) -> Tensor:
        """The float32 pixels (3, H, W) in [-1, 1] of an image, resized; `images` share the pixel budget."""
        return to_pixels(self.resize(image, images))

    def _scaled(self, side: int, scale: float) -> int:
        return max(round(round(side * scale) / self.stride) * self.stride, self.stride)


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic resizing to (width, height), the same in every version of Pillow.

    It resizes one side after the other and rounds to 8 bits in between, so the order shows: by up to a dozen levels.
    Before version 13 the width always came first; since then it is the height, where that shrinks by more than twice as
    many pixels as the width does. The newer order is the recorded one.
    """
    width, height = size
    fewer_rows, fewer_columns = image.height - height, image.width - width
    height_first = fewer_rows > 0 and fewer_rows > 2 * fewer_columns
    between = (image.width, height) if height_first else (width, image.height)
    return image.resize(between, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


VAE_TRANSFORM = ImageTransform(max_size=1024, min_size=512, stride=16)
VIT_TRANSFORM = ImageTransform(max_size=980, min_size=224, stride=14)


def to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """The float32 pixels (3, H, W) in [-1, 1] of an RGB image or a uint8 array (H, W, 3), at its own size."""
    levels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    return (
        levels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(0.5).div_(0.5)
    )


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Cuts pixels or a latent (C, H, W) into patches (H/patch · W/patch, patch·patch·C) in reading order.

    Inside a patch the order is row, column, channel.

    Raises:
        SizeError: if pixels is not 3-dimensional or a side is not a multiple of `patch`.
    """
    if pixels.ndim != 3 or pixels.shape[1] % patch or pixels.shape[2] % patch:
        raise SizeError(
            f"shape {tuple(pixels.shape)} cannot be cut into {patch}×{patch} patches: "
            f"give (C, H, W) with H and W multiples of {patch}."
        )
    channels, height, width = pixels.shape
    grid = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def unpatchify(patches: Tensor, height: int, width: int, patch: int) -> Tensor:
    """The inverse of `patchify`: (H/patch · W/patch, patch·patch·C) back to (C, height, width).

    Args:
        patches: rows in reading order.
        height, width: the size of the result in pixels (or latent cells), multiples of `patch`.
        patch: the side of a patch.

    Raises:
        SizeError: if the number or length of the patches does not fit.
    """
    rows, columns = height // patch, width // patch
    fits = patches.ndim == 2 and height % patch == 0 and width % patch == 0 and patches.shape[0] == rows * columns
    if not fits or patches.shape[1] % (patch * patch):
        raise SizeError(
            f"patches of shape {tuple(patches.shape)} do not fill {height}×{width} (height × width) "
            f"in {patch}×{patch} patches: {rows * columns} patches of {patch * patch} × channels are needed."
        )
    grid = patches.reshape(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, height, width)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels (3, H, W) or (B, 3, H, W), in [-1, 1], as uint8 (H, W, 3) or (B, H, W, 3).

    Values beyond the range are clamped; levels are truncated, not rounded, as the published code does.

    Raises:
        SizeError: if the shape is neither.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise SizeError(f"pixels have shape {tuple(pixels.shape)}: give (3, H, W) or (B, 3, H, W).")
    levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()


def to_pil(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as an RGB image.

    Raises:
        SizeError: if the shape is another.
    """
    if pixels.ndim != 3:
        raise SizeError(f"pixels have shape {tuple(pixels.shape)}: give one picture (3, H, W).")
    return Image.fromarray(to_uint8(pixels).cpu().numpy())

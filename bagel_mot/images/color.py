"""Any Pillow image as 8-bit sRGB: deep and float samples scaled, colour profiles applied, transparency over white."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from bagel_mot.errors import ImageError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SIGNED = 2
_SRGB_TOLERANCE = 3  # levels; profiles of sRGB itself differ by this much in their rounding
_LEAST_MEAN = 8  # of levels; floats above 1 whose mean is less are rather of high dynamic range
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_rgb(image: Image.Image, name: str = "the picture", *, shared: bool = False) -> Image.Image:
    """A new RGB image of a decoded one: 8 bits, in sRGB, transparent parts over white, without any metadata.

    An image that is tagged as sRGB, or not tagged, keeps its levels.

    Args:
        image: the decoded image.
        name: its name in messages.
        shared: whether the new image may have the same memory, where nothing has to be changed.

    Raises:
        ImageError: if it has integers of 32 bits or floats whose range cannot be told.
    """
    profile = image.info.get("icc_profile")
    image = _to_levels(image, name)
    if shared and image.mode == "RGB" and not profile and not image.has_transparency_data:
        rgb = image._new(image.im)
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
        alpha = image.getchannel("A")
        color = _to_srgb(image.getchannel("L") if image.mode == "LA" else image.convert("RGB"), profile)
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(color, mask=alpha)
    else:
        rgb = _to_srgb(image, profile)
    rgb.info = {}  # a profile that stayed here would be applied again
    return rgb


def levels_of(values: np.ndarray, name: str) -> np.ndarray:
    """The uint8 levels of floats of any shape in 0..1.

    Raises:
        ImageError: if a value is not finite or outside.
    """
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # written so that values that are not numbers are refused
        raise ImageError(
            f"{name} has floats from {low:g} to {high:g}: scale them to 0..1, or give uint8 levels of 0..255."
        )
    return np.rint(values * 255).astype(np.uint8)


def _to_levels(image: Image.Image, name: str) -> Image.Image:
    """The image with 8 bits a sample, in a mode that Pillow can convert."""
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode == "I":
        return Image.fromarray(_integer_levels(image, name))
    if image.mode == "F":
        return Image.fromarray(_float_levels(image, name))
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB")) or image
    if image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED and np.asarray(image).max() > 127:
        raise ImageError(f"{name} has negative values of 8 bits: save it with unsigned levels of 0..255.")
    return image


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.uint16)
    levels: np.ndarray = samples
    if _tag(image, _BITS_PER_SAMPLE) == 12:  # Pillow leaves these in 0..4095
        levels = levels << 4
    if _tag(image, _PHOTOMETRIC) == 0:  # white is 0, which Pillow sees to up to 8 bits only
        levels = ~levels
    gray = Image.fromarray((levels >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray.putalpha(Image.fromarray(np.where(samples == key, np.uint8(0), np.uint8(255))))
    return gray


def _integer_levels(image: Image.Image, name: str) -> np.ndarray:
    """The uint8 levels of an image of mode I, which holds 8, 16 or 32 bits: by its format, or else by its values."""
    samples = np.asarray(image)
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} has integers from {low} to {high}, whose black and white cannot be told: "
            "save it with levels of 8 or 16 bits."
        )
    sixteen_bits = image.format == "PPM" or high > 255
    return (samples >> 8 if sixteen_bits else samples).astype(np.uint8)


def _float_levels(image: Image.Image, name: str) -> np.ndarray:
    """The uint8 levels of an image of mode F: floats in 0..1, or levels of 0..255, as Pillow's own conversions are."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low >= 0 and 1 < high <= 255 and (values.mean() >= _LEAST_MEAN or (values == np.rint(values)).all()):
        levels = np.asarray(image.convert("L"))
    else:
        levels = levels_of(values, name)
    return ~levels if _tag(image, _PHOTOMETRIC) == 0 else levels


def _tag(image: Image.Image, tag: int) -> int | None:
    """The first value of a tag of a TIFF file."""
    value: Any = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image without transparency as a new RGB image; a profile that is damaged or of other channels is ignored."""
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES.get(source.profile.xcolor_space.strip(), "")
        fits = image.mode in ("1", "L") if mode == "L" else (image.mode == "CMYK") == (mode == "CMYK")
        if mode and fits:
            transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                mode,
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if mode == "CMYK" or _changes_colors(transform, mode):
                return ImageCms.applyTransform(image.convert(mode), transform) or image.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged metadata is no reason to refuse the pixels
        pass
    return image.convert("RGB")


def _changes_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform of L or RGB to RGB changes any level by more than rounding does."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        grid = steps[:, None, None].repeat(3, axis=2)
    else:
        grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(len(steps), -1, 3)
    given = Image.fromarray(np.ascontiguousarray(grid))
    changed = ImageCms.applyTransform(given.convert(mode), transform)
    return changed is None or int(np.abs(np.asarray(changed).astype(int) - grid).max()) > _SRGB_TOLERANCE

"""Image files: which formats are opened, by which decoder, and the sentence for each file that is not."""

from __future__ import annotations

import importlib
import io
import re
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from bagel_mot.errors import ImageError
from bagel_mot.images import jpeg, jxl, png
from bagel_mot.installation import install_command

# Raster formats with a decoder of Pillow's own. Others are left out on purpose: EPS, for one, starts Ghostscript.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000"),
    *("ICO", "CUR", "ICNS", "PCX", "TGA", "QOI"),
)

# Containers of media, by the names in their first box.
_HEIC = re.compile(rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)
_AVIF = re.compile(rb"....ftyp.{0,64}?avi[fs]", re.DOTALL)

# Files that people take for images, and the way out of each.
_RAW = "a camera's raw file, which has to be developed: export it as JPEG or PNG"
_FOREIGN = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), sentence)
    for pattern, sentence in (
        (rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIRO|IIRS|MMOR|IIU\0|....ftypcrx |FOVb|\0MRM", _RAW),
        (rb"....ftyp", "a video, or a format of its kind that is not read: save one frame as PNG or JPEG"),
        (rb"\x1aE\xdf\xa3|RIFF....AVI ", "a video: save one frame as PNG or JPEG"),
        (rb"%PDF", "a PDF file: save the page as PNG or JPEG"),
        (
            rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,512}?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg",
            "an SVG drawing: save it as PNG",
        ),
        (
            rb"(?:\xef\xbb\xbf)?\s*<(?:!DOCTYPE html|html|head|\?xml)",
            "a web page or XML, not a picture: download the picture itself",
        ),
        (rb"version https://git-lfs", "a Git LFS pointer, not the picture: run `git lfs pull`"),
        (rb"8BPS|8BPB", "a Photoshop file: export it as PNG or JPEG"),
        (rb"gimp xcf", "a GIMP file: export it as PNG or JPEG"),
        (rb"v/1\x01|#\?RADIANCE|#\?RGBE", "a picture of high dynamic range: tone-map it and save it as PNG or JPEG"),
        (
            re.escape(png.IOS_SIGNATURE),
            "a PNG file optimised for iOS, which only Apple's tools read: save it as plain PNG",
        ),
        (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "an archive: unpack it and give the picture"),
    )
)


def decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The bytes of an image file as a decoded Pillow image, in the file's own mode and orientation.

    Args:
        data: the whole file.
        name: the image's name in messages, such as "the picture 'a.png'".
        max_pixels: the greatest number of pixels that are decoded. JPEG files may have more: they are decoded at a
            reduced scale.

    Raises:
        ImageError: if the file is of no known format, damaged, truncated or too large.
    """
    for pattern, sentence in _FOREIGN:
        if pattern.match(data[:1024]) and not _reads_boxes(data):
            raise ImageError(f"{name} is {sentence}.")
    try:
        if data.startswith(jpeg.SIGNATURE):
            return _decode_jpeg(jpeg.without_metadata(data), name, max_pixels)
        if data.startswith(png.SIGNATURE):
            data = png.without_metadata(data)
        image: Image.Image = Image.open(io.BytesIO(data), formats=_openers(data, name, max_pixels))
        check_size(image.size, name, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, name)
        if image.format == "PNG":
            image = png.with_exact_key(image, data)
        load(image, name)
        check_size(image.size, name, max_pixels)  # icons say only when they are decoded
        return image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large: at most {max_pixels} pixels are accepted; make it smaller.") from error
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ImageError(
                f"{name} is a TIFF file of a kind that is not read, or damaged: save it as PNG."
            ) from error
        raise ImageError(f"{name} is not in a known picture format: save it as PNG, JPEG or WebP.") from error
    except Exception as error:  # Pillow's parsers raise many types on damaged headers
        raise ImageError(f"{name} is damaged, or of a kind that is not read ({error}): save it anew.") from error


def load(image: Image.Image, name: str) -> Image.Image:
    """The image with its pixels decoded.

    Raises:
        ImageError: if the file ends too early or its data is damaged.
    """
    png.widen_key(image)
    try:
        image.load()
    except Exception as error:  # OSError for truncated files, but damaged streams raise many other types
        raise ImageError(f"{name} is truncated or damaged ({error}): save or download it anew.") from error
    return image


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refuses an image that has no pixels or too many, by its width and height.

    Raises:
        ImageError: it has.
    """
    width, height = size
    if width == 0 or height == 0:
        raise ImageError(f"{name} is empty ({width}×{height} pixels): it needs at least one pixel.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is too large: {width}×{height} = {width * height} pixels; at most {max_pixels} are accepted."
        )


def _decode_jpeg(data: bytes, name: str, max_pixels: int) -> Image.Image:
    image = jpeg.open_jpeg(data)
    check_size(image.size, name, jpeg.most_pixels(data, max_pixels))
    jpeg.reduce(image, max_pixels)
    try:
        return load(image, name)
    except ImageError:
        whole = jpeg.decode_without_end(data, max_pixels)
        if whole is None:
            raise
        return whole


def _reads_boxes(data: bytes) -> bool:
    """Whether the file is of the one kind of media container that is read: HEIC and AVIF."""
    return bool(_HEIC.match(data) or _AVIF.match(data))


def _openers(data: bytes, name: str, max_pixels: int) -> list[str]:
    """Pillow's names of the formats that may be tried on a file; registers the plugin that it takes."""
    if data.startswith(png.SIGNATURE):
        Image.preinit()  # the plugins of all formats take a quarter of a second to import
        return ["PNG"]
    Image.init()
    allowed = [known for known in FORMATS if known in Image.OPEN]
    if jxl.SIGNATURE.match(data):
        _plugin("pillow_jxl", "pillow-jxl-plugin", f"{name} is a JPEG XL picture", "jxl")
        check_size(jxl.size(data), name, max_pixels)
        return ["JXL"]
    if _HEIC.match(data) and not ("AVIF" in allowed and _AVIF.match(data)):
        _plugin("pillow_heif", "pillow-heif", f"{name} is a HEIC picture", "heic").register_heif_opener()
        return ["HEIF"]
    return allowed


def _plugin(module: str, package: str, subject: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(
            f"{subject}, which needs {package}: {install_command(extra)}; or save it as JPEG or PNG."
        ) from error


def _check_tiff(image: TiffImagePlugin.TiffImageFile, name: str) -> None:
    """Refuses raw files of cameras, which are TIFF files whose first image is a small preview of an inner one."""
    dng_version, subfile_type, inner_images, reduced = 50706, 254, 330, 1
    kind = image.tag_v2.get(subfile_type, 0)
    if dng_version in image.tag_v2 or (inner_images in image.tag_v2 and isinstance(kind, int) and kind & reduced):
        raise ImageError(f"{name} is {_RAW}.")

"""The resize rule: images within limits of sides and pixels, by Pillow's bicubic filter, as tensors in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from bagel_mot.errors import SettingError, SizeError
from bagel_mot.images.color import to_rgb
from bagel_mot.images.pixels import to_pixels


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
        """The image as RGB at `size(...)`, itself if it is so already; `images` share the pixel budget."""
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
    many pixels as the width does. The newer order is the recorded one. An image that has the size is returned as it is.
    """
    width, height = size
    if size == image.size:
        return image
    fewer_rows, fewer_columns = image.height - height, image.width - width
    height_first = fewer_rows > 0 and fewer_rows > 2 * fewer_columns
    between = (image.width, height) if height_first else (width, image.height)
    if between != image.size:
        image = image.resize(between, Image.Resampling.BICUBIC)
    return image if between == size else image.resize(size, Image.Resampling.BICUBIC)


VAE_TRANSFORM = ImageTransform(max_size=1024, min_size=512, stride=16)
VIT_TRANSFORM = ImageTransform(max_size=980, min_size=224, stride=14)

"""Sizes to choose from: the usual proportions, at the size of a checkpoint's own images."""

from __future__ import annotations

from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import official_defaults

RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
Size = tuple[int, int]


def default_size(bagel: Bagel) -> Size:
    """Of an image that follows no other."""
    size: Size = bagel.defaults.of("generate").get("size") or official_defaults(bagel.config).of("generate")["size"]
    return size


def sizes(bagel: Bagel) -> dict[str, Size]:
    """Sizes by proportion ("4:3"), all of them multiples of the latent stride and within the position table.

    The long side is that of the checkpoint's own size. Where two proportions come to the same, the first one stands.
    """
    stride, long = bagel.config.latent_stride, max(default_size(bagel))
    found: dict[str, Size] = {}
    for width, height in RATIOS:
        short = max(round(long * min(width, height) / max(width, height) / stride), 1) * stride
        size = (long, short) if width >= height else (short, long)
        if size not in found.values():
            found[f"{width}:{height}"] = size
    return found


def shown(size: Size) -> str:
    """As people write it."""
    return f"{size[0]}×{size[1]}"

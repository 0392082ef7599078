"""Measures what bfloat16 changes in the pixels of the autoencoder, for the table of docs/precision.md:
`python benchmarks/autoencoder.py`, then `python benchmarks/readme.py`.

The trained autoencoder that is here is `mini`'s, so its images are those that can be measured: of its own world, and
photographs drawn by code, of which it was never shown any. Each image is encoded and decoded in float32 and in bfloat16
(its latent in bfloat16 too), and the two results are compared level by level, whole and in strips.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from bagel_mot.bench.machine import processor
from bagel_mot.checkpoint.official import fingerprint, load_autoencoder
from bagel_mot.files import write_text
from bagel_mot.images import to_pixels, to_uint8
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model import vae_strips
from bagel_mot.model.prepacked_conv import prepack_convolutions
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.items import scene_items

RESULT = Path(__file__).parent / "results" / "autoencoder-bfloat16.json"
PHOTO_SIDE = 256


def photograph(seed: int, side: int = PHOTO_SIDE) -> Image.Image:
    """An image with the statistics of a photograph: things of all sizes that hide one another ("dead leaves"), each
    shaded and of its own colour, in soft light, slightly out of focus, with the grain of a sensor.
    """
    random = np.random.default_rng(seed)
    row, column = np.mgrid[0:side, 0:side] / side
    image = np.ones((side, side, 3)) * random.uniform(0.2, 0.8, 3)
    for _ in range(400):
        radius = 0.02 / np.sqrt(random.uniform(0.0025, 1))  # most are small; none is larger than 0.4
        y, x = random.uniform(-0.2, 1.2, 2)
        inside = (row - y) ** 2 + (column - x) ** 2 < radius**2
        shade = 1 + 0.5 * ((row - y) * random.normal() + (column - x) * random.normal()) / radius
        image[inside] = (random.uniform(0, 1, 3) * shade[..., None].clip(0.3, 1.7))[inside]
    image *= (0.7 + 0.5 * (row * random.normal() + column * random.normal()).clip(-0.5, 0.5))[..., None]
    for axis in (0, 1):  # out of focus by a pixel
        image = (np.roll(image, 1, axis) + 2 * image + np.roll(image, -1, axis)) / 4
    image += random.normal(0, 0.01, image.shape)
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def differences(images: list[Image.Image], *, strips: bool) -> dict[str, Any]:
    """Levels by which the bfloat16 result differs: mean, share of values that differ by more than two, the worst."""
    exact = load_autoencoder(MINI_FOLDER).requires_grad_(False)
    rounded = load_autoencoder(MINI_FOLDER, dtype=torch.bfloat16).requires_grad_(False)
    prepack_convolutions(rounded)
    found = []
    usual, vae_strips.SMALLEST_MAP = vae_strips.SMALLEST_MAP, 0 if strips else 1 << 50
    try:
        with torch.inference_mode():
            for image in images:
                pixels = to_pixels(image)[None]
                levels = [
                    to_uint8(each.decode(each.encode(pixels.to(each.dtype))).float()).int() for each in (exact, rounded)
                ]
                found.append((levels[0] - levels[1]).abs().flatten())
    finally:
        vae_strips.SMALLEST_MAP = usual
    off = torch.cat(found).float()
    return {
        "images": len(images),
        "mean": float(off.mean()),
        "share_above_2": float((off > 2).float().mean()),
        "worst": int(off.max()),
    }


def main(
    images: Annotated[int, typer.Option(help="Images of each kind.", min=1)] = 24,
    target: Annotated[Path, typer.Option("--json", help="The file for the results.")] = RESULT,
) -> None:
    """Measure what bfloat16 changes in pixels."""
    kinds = {
        "scenes of mini's world, 64×64": [draw(scene) for scene in scene_items(images)],
        f"photographs drawn by code, {PHOTO_SIDE}×{PHOTO_SIDE}": [photograph(seed) for seed in range(images)],
    }
    rows = {
        f"{kind}, {'in strips' if strips else 'whole'}": differences(drawn, strips=strips)
        for kind, drawn in kinds.items()
        for strips in (False, True)
    }
    machine = {"processor": processor(), "torch": torch.__version__}
    report = {"machine": machine, "fingerprint": fingerprint(MINI_FOLDER), "rows": rows}
    write_text(target, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)

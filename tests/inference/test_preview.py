"""Previews: when they come, what they show, and what a checkpoint may bring along for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot.checkpoint.side_files import PREVIEW_FILE
from bagel_mot.errors import CheckpointError
from bagel_mot.images import to_pixels
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import read_defaults
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.inference.preview import MAX_PREVIEWS, Previewer, due
from bagel_mot.model.vae import Autoencoder
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.scene import Scene, Thing


@pytest.fixture(scope="module")
def mini() -> Bagel:
    return Bagel.from_pretrained("mini", precision="float32")


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 24, 49, 999])
def test_a_few_looks_and_none_at_the_end(steps: int) -> None:
    looks = [done for done in range(1, steps + 1) if due(done, steps)]
    assert len(looks) <= MAX_PREVIEWS
    assert steps not in looks
    assert len(looks) >= min(steps - 1, MAX_PREVIEWS // 2)


def test_a_look_at_an_encoded_image_is_like_the_image(mini: Bagel) -> None:
    scenes = [
        Scene("sea", (Thing("car", "red", "large", "top left"),)),
        Scene("night", (Thing("star", "yellow", "large", "bottom right"), Thing("cup", "blue", "large", "top left"))),
    ]
    images = [draw(scene, 64) for scene in scenes]
    latents = mini.engine.autoencoder.encode(torch.stack([to_pixels(image) for image in images]))
    looks = [mini.runtime.previewer(latent) for latent in latents]
    assert [look.size for look in looks] == [(64, 64)] * 2
    for i in range(2):
        assert difference(looks[i], images[i]) < 0.5 * difference(looks[i], images[1 - i])


def test_looks_come_nearer_to_that_of_the_image(mini: Bagel) -> None:
    looks: list[Image.Image] = []
    ticket = mini.submit(["a red car in the middle, at sea"], on_preview=looks.append, seed=1, num_timesteps=17)
    image = ticket.result().image
    assert image is not None
    assert len(looks) == 7
    latent = mini.engine.autoencoder.encode(to_pixels(image)[None])[0]
    last = mini.runtime.previewer(latent)
    assert difference(looks[-1], last) < 0.7 * difference(looks[0], last)


def test_looking_changes_nothing(bagel: Bagel) -> None:
    plain = bagel.generate("a red circle", seed=3)
    ticket = bagel.submit(["a red circle"], on_preview=lambda _: None, seed=3)
    assert ticket.result().value.tobytes() == plain.tobytes()  # type: ignore[union-attr]


def test_large_images_have_small_previews() -> None:
    from bagel_mot.config import VaeConfig

    torch.manual_seed(0)
    autoencoder = Autoencoder(VaeConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)).eval()
    previewer = Previewer(autoencoder)
    assert previewer(torch.randn(4, 128, 64)).size == (128, 256)
    assert previewer(torch.randn(4, 300, 20)).size == (20, 300)  # a pixel for each cell at the least
    assert previewer(torch.randn(4, 3, 5)).size == (40, 24)


def test_pooled_previews_are_the_pooled_large_ones(mini: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    full = np.asarray(mini.runtime.previewer(latent), float)
    monkeypatch.setattr("bagel_mot.inference.preview._LARGEST_SIDE", 32)
    small = np.asarray(mini.runtime.previewer(latent), float)
    assert small.shape == (32, 32, 3)
    pooled = full.reshape(32, 2, 32, 2, 3).mean((1, 3))
    inside = (full.reshape(32, 2, 32, 2, 3) % 255 != 0).all((1, 3))  # where nothing was cut off
    assert inside.mean() > 0.3
    assert np.abs(small - pooled)[inside].max() <= 1.5


@pytest.mark.parametrize(
    ("content", "expected"), [("no picture", "not in a known picture format"), ((20, 20), "must be 64 pixels a side")]
)
def test_a_bad_sheet_is_refused(tmp_path: Path, content: Any, expected: str) -> None:
    for path in MINI_FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    config = Bagel.from_pretrained("mini").config
    if isinstance(content, str):
        (tmp_path / PREVIEW_FILE).write_text(content)
    else:
        Image.new("RGB", content).save(tmp_path / PREVIEW_FILE)
    with pytest.raises(CheckpointError, match=expected):
        read_defaults(tmp_path, config)

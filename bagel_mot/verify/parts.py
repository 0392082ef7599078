"""The kinds of case that check one part each: tokenizer, images, vision transformer, autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.sequence import PackSpec, Sample, pack_cached, vit_segment
from bagel_mot.verify.records import Checker, Comparison, Recorded, image_transform


@dataclass(frozen=True)
class Subject:
    """The loaded checkpoint under verification, and the folder of its recorded cases."""

    recorded: Recorded
    checkpoint: Checkpoint
    spec: PackSpec
    bagel: Bagel

    @property
    def device(self) -> torch.device:
        return self.checkpoint.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.model.dtype


def check_tokenize(subject: Subject, check: Checker) -> None:
    """Checks the ids of texts and of the special tokens."""
    tokenizer = subject.checkpoint.tokenizer
    check.listed("ids", [tokenizer.encode(text) for text in check.case["texts"]])
    special = {
        "bos_token_id": tokenizer.special.bos,
        "eos_token_id": tokenizer.special.eos,
        "start_of_image": tokenizer.special.start_of_image,
        "end_of_image": tokenizer.special.end_of_image,
    }
    check.listed("special", special)


def check_resize(subject: Subject, check: Checker) -> None:
    """Checks the resize rule alone."""
    transform = image_transform(check.case, "transform")
    for item in check.case["cases"]:
        width, height = item["wh"]
        got = list(transform.size(width, height, images=item["images"]))
        what = f"{width}×{height}, {item['images']} sharing"
        check.rows.append(
            Comparison(check.name, what, float(got != item["expect"]), got == item["expect"], f"-> {got[0]}×{got[1]}")
        )


def check_transform(subject: Subject, check: Checker) -> None:
    """Checks the transforms of an image to pixels in [-1, 1]."""
    name, transforms = check.case["image"], subject.recorded.transforms
    resized = subject.recorded.resized(name)
    check.close("vae", transforms["vae"](resized))
    check.close("vit", transforms["vit"](resized))
    check.close("vit_direct", transforms["vit"](subject.recorded.image(name)))


def check_vit(subject: Subject, check: Checker) -> None:
    """Checks the vision transformer and the connector on one image."""
    model, patch = subject.checkpoint.model, subject.checkpoint.config.vit.patch_size
    pixels = subject.recorded.transforms["vit"](subject.recorded.image(check.case["image"]))
    segment = vit_segment(pixels, patch)
    patches = segment.patches.to(subject.device)
    layout = pack_cached([Sample((segment,))], subject.spec).to(subject.device)
    check.close("pixels", patches)
    check.equal("position_ids", layout.vit_index)
    with torch.inference_mode():
        check.close("features", model.vit(patches.to(model.dtype), layout.vit_index, layout.vit_grids))
        check.close("embeds", model.embed_images(layout, patches))


def check_vae(subject: Subject, check: Checker) -> None:
    """Checks the autoencoder on one image, encoding and decoding."""
    pixels = subject.recorded.transforms["vae"](subject.recorded.image(check.case["image"]))[None]
    check.close("pixels", pixels)
    with torch.inference_mode():
        latent = subject.checkpoint.autoencoder.encode(pixels.to(subject.device, subject.dtype))
        check.close("latent", latent)
        check.close("decoded", subject.checkpoint.autoencoder.decode(latent))

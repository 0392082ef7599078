"""The recorded cases of inference, through the public interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bagel_mot.images import open_image, patchify
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ops import DecodeOp, EncodeOp, Steps
from bagel_mot.inference.request import Recorder
from bagel_mot.inference.result import Result
from bagel_mot.sequence import Sample, VitSegment, pack_cached

TOLERANCE = 1e-5
CASES = json.loads((Path(__file__).parent.parent / "golden" / "cases.json").read_text(encoding="utf-8"))["cases"]


def of_kind(kind: str) -> Callable[[Any], Any]:
    found = [case for case in CASES if case["kind"] == kind]
    assert found
    return pytest.mark.parametrize("case", found, ids=[case["name"] for case in found])


def replay(bagel: Bagel, golden: Any, case: dict[str, Any]) -> tuple[Result, Recorder]:
    """Runs one recorded case; its setting names are the published code's."""
    settings = dict(case["settings"])
    output = "text" if settings.pop("understanding_output", False) else "image"
    limit = settings.pop("max_think_token_n", None)  # counts the start token
    if limit is not None:
        settings["max_new_tokens" if output == "text" else "max_think_tokens"] = limit - 1
    if "image_shapes" in settings:
        height, width = settings.pop("image_shapes")
        settings["size"] = (width, height)
    if "cfg_img_scale" in settings:
        settings["cfg_image_scale"] = settings.pop("cfg_img_scale")
    inputs = [i["value"] if i["type"] == "text" else golden.image(i["value"]) for i in case["inputs"]]
    recorder = Recorder()
    noise = golden.expected.get(f"{case['name']}/noise")
    result = bagel.interleave(inputs, output=output, noise=noise, recorder=recorder, return_result=True, **settings)
    return result, recorder


@of_kind("interleave")
def test_interleave(bagel: Bagel, golden: Any, case: dict[str, Any]) -> None:
    result, recorder = replay(bagel, golden, case)
    expected = {key.split("/")[1]: t for key, t in golden.expected.items() if key.startswith(f"{case['name']}/")}
    compared = {"noise"}
    if "tokens" in expected:
        assert recorder.tokens == expected["tokens"].tolist()
        assert golden.error(torch.stack(recorder.logits), expected["logits"]) < TOLERANCE
        assert result.raw_text == case["text"]
        compared |= {"tokens", "logits"}
    if "latent" in expected:
        assert recorder.latent is not None
        assert result.image is not None
        assert golden.error(recorder.latent, expected["latent"]) < TOLERANCE
        image = torch.from_numpy(np.array(result.image)).int()
        assert image.shape == expected["image"].shape
        assert (image - expected["image"].int()).abs().max() <= 1
        compared |= {"latent", "image"}
    assert compared >= set(expected)


@of_kind("vae")
def test_autoencoder_jobs(bagel: Bagel, golden: Any, case: dict[str, Any]) -> None:
    def both(pixels: Tensor) -> Steps[tuple[Tensor, Tensor]]:
        encode = EncodeOp(pixels)
        yield [encode]
        decode = DecodeOp(encode.result)
        yield [decode]
        return encode.result, decode.result

    name = case["name"]
    pixels = bagel.defaults.vae_transform(open_image(golden.image(case["image"])))
    assert golden.error(pixels[None], golden.expected[f"{name}/pixels"]) < TOLERANCE
    latent, decoded = bagel.engine.submit(both(pixels)).result()
    assert golden.error(latent[None], golden.expected[f"{name}/latent"]) < TOLERANCE
    assert golden.error(decoded[None], golden.expected[f"{name}/decoded"]) < TOLERANCE


@of_kind("vit")
def test_images_embedded(bagel: Bagel, golden: Any, case: dict[str, Any]) -> None:
    name = case["name"]
    pixels = bagel.defaults.vit_transform(open_image(golden.image(case["image"])))
    patch = bagel.config.vit.patch_size
    grid = pixels.shape[1] // patch, pixels.shape[2] // patch
    patches = patchify(pixels, patch)
    layout = pack_cached([Sample((VitSegment(patches, grid),))], bagel.engine.runner.spec)
    with torch.inference_mode():
        embeds = bagel.checkpoint.model.embed_images(layout, patches)
    expected = golden.expected
    if f"{name}/pixels" in expected:
        assert golden.error(patches, expected[f"{name}/pixels"]) < TOLERANCE
    assert torch.equal(layout.vit_index, expected[f"{name}/position_ids"])
    assert golden.error(embeds, expected[f"{name}/embeds"]) < TOLERANCE

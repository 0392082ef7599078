"""The kind `interleave`: texts and images in, an image or a text out, through `Bagel.interleave`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bagel_mot.errors import DataError
from bagel_mot.inference.request import Recorder
from bagel_mot.inference.settings import SETTINGS
from bagel_mot.task import Task
from bagel_mot.verify.parts import Subject
from bagel_mot.verify.records import Checker

# Settings whose published names differ from ours; those that `_our_settings` handles one by one are not listed.
_RENAMED = {"cfg_img_scale": "cfg_image_scale", "text_temperature": "temperature"}
_PUBLISHED_TOKENS = 1000  # the published limit where a case gives none


def check_interleave(subject: Subject, check: Checker) -> None:
    """Checks tokens, logits and text of generated text, and latent and pixels of an image drawn from recorded noise."""
    given: Mapping[str, Any] = check.case["settings"]
    reading = bool(given.get("understanding_output", False))
    writing = reading or bool(given.get("think", False))
    images = any(item["type"] == "image" for item in check.case["inputs"])
    settings = _our_settings(given, reading, writing, images)
    inputs: list[str | Path] = []
    for item in check.case["inputs"]:
        if item["type"] not in ("text", "image"):
            raise DataError(f"an input is of type {item['type']!r}; there are text and image")
        image = item["type"] == "image"
        inputs.append(subject.recorded.image_path(item["value"]) if image else item["value"])
    recorder = Recorder()
    noise = None if reading else check.given("noise")
    output = "text" if reading else "image"
    result = subject.bagel.interleave(
        inputs, output=output, noise=noise, recorder=recorder, return_result=True, **settings
    )
    if writing:
        _check_text(subject, check, recorder, result.raw_text)
    if not reading:
        assert recorder.latent is not None
        check.close("latent", recorder.latent)
        check.levels("image", torch.from_numpy(np.array(result.image)))
        if "image_shape" in check.case:
            check.listed("image_shape", [result.image.height, result.image.width])


def _our_settings(given: Mapping[str, Any], reading: bool, writing: bool, images: bool) -> dict[str, Any]:
    task: Task = Task.ASK if reading else Task.EDIT if images else Task.GENERATE
    settings: dict[str, Any] = {"seed": 0}
    for name, value in given.items():
        if name == "image_shapes":
            settings["size"] = (value[1], value[0])  # published: height, width
        elif name not in ("understanding_output", "max_think_token_n"):
            ours = _RENAMED.get(name, name)
            if ours in SETTINGS and task not in SETTINGS[ours].tasks:
                continue  # the published interface takes all settings for every task
            settings[ours] = value
    if writing:
        # The published limit counts the start token, which ours does not.
        limit = given.get("max_think_token_n", _PUBLISHED_TOKENS) - 1
        settings["max_new_tokens" if reading else "max_think_tokens"] = limit
    return settings


def _check_text(subject: Subject, check: Checker, recorder: Recorder, text: str) -> None:
    check.listed("text", text)
    expected = check.recorded_or_none("tokens")
    tokens = list(recorder.tokens)
    if expected is not None and expected.numel() == len(tokens) + 1:
        tokens.append(subject.checkpoint.special.eos)  # a recording may end with the end token itself
    check.equal("tokens", torch.tensor(tokens))
    check.close("logits", torch.stack(recorder.logits))

"""What the measurements share: how large they are, seconds of a call, and failures that leave the others."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.placement.rates import synchronize

PROMPT = "a red car under a yellow sun, in the style of an old postcard"
INSTRUCTION = "make it night"
QUESTION = "What is in the picture?"
Keep = Callable[[dict[str, Any]], None]
"""Takes what has been found so far, so that it is there if nothing more is."""


@dataclass(frozen=True)
class Scale:
    """How large the measurement is."""

    config: BagelConfig
    side: int
    image_side: int  # pixels a side of what is edited and asked about
    steps: int  # timesteps of the runs that are measured
    tokens: int  # of the answers
    batches: tuple[int, ...]  # each twice the one before
    texts: tuple[int, ...]  # of texts alone, going on from there
    whole: bool  # whether a single image is drawn in all its timesteps, too

    def image(self) -> Image.Image:
        """What is edited and asked about."""
        return Image.linear_gradient("L").resize((self.image_side, self.image_side)).convert("RGB")


FULL = Scale(NAMED_CONFIGS["7b-mot"], 1024, 1024, 8, 32, (1, 2, 4, 8), (16, 32), True)


def smoke_scale() -> Scale:
    """The same in miniature: one layer of narrow widths."""
    config = NAMED_CONFIGS["7b-mot"]
    decoder = replace(
        config.decoder, hidden_size=128, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=256,
        vocab_size=2048,
    )  # fmt: skip
    vit = replace(config.vit, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
    return Scale(
        replace(config, decoder=decoder, vit=vit, vae=replace(config.vae, ch=32)), 64, 64, 5, 4, (1, 2), (4,), False
    )


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def failure(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def attempt(call: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What a call finds; if it fails, however that is, its `error`: one measurement must not end the others."""
    try:
        return call()
    except Exception as error:
        found = {"error": failure(error)}
    free(device)  # only here, where the error is gone: its traceback held the tensors
    return found


def free(device: torch.device) -> None:
    """Gives back the memory of what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

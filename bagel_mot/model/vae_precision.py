"""The precision in which an autoencoder computes where nobody chose one."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import nn

from bagel_mot.config import VaeConfig
from bagel_mot.model.measuring import shortest
from bagel_mot.threads import Threads

_SIDE, _TURNS = 64, 3  # a convolution on such maps is timed so many times
_CLEARLY = 0.8  # bfloat16 is taken from this share of float32's time on: below there is doubt about which is faster
_LARGE_WIDTH = 64  # channels: a smaller autoencoder takes milliseconds in any precision, and stays as exact as it can


def bfloat16_pays(device: torch.device, config: VaeConfig) -> bool:
    """Whether an autoencoder is faster in bfloat16 by enough to lose accuracy for it: large ones on CUDA devices, and
    on CPUs that compute convolutions faster in it, which is measured once in a process.
    """
    if config.ch < _LARGE_WIDTH:
        return False
    return device.type == "cuda" or (device.type == "cpu" and faster_on_cpu(config.ch))


@cache
def faster_on_cpu(channels: int) -> bool:
    """Whether a 3×3 convolution of so many channels is clearly faster in bfloat16. Both are timed in turn, in some
    forty milliseconds with AMX.
    """
    calls = {}
    # With several threads each call would wait for the slowest of them, and the answer would depend on what else runs.
    with torch.inference_mode(), Threads(1, asked=True).at_work():
        for dtype in (torch.float32, torch.bfloat16):
            conv = nn.utils.skip_init(nn.Conv2d, channels, channels, 3, padding=1, dtype=dtype, device="cpu")
            nn.init.constant_(conv.weight, 0.5)
            x = torch.full((1, channels, _SIDE, _SIDE), 0.5, dtype=dtype)
            calls[dtype] = partial(conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
        seconds = shortest(calls, turns=_TURNS)
    return seconds[torch.bfloat16] < _CLEARLY * seconds[torch.float32]

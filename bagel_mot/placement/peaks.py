"""Peak rates of devices: dense matmuls in bfloat16 with float32 sums, as their makers state them."""

from __future__ import annotations

import re

import torch

# Words of a device's name -> 10¹² operations a second; a longer match comes before a shorter one.
PEAK_TFLOPS: dict[str, float] = {
    "MI300X": 1307.4,
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "L40S": 362.05,
    "L40": 181.05,
    "L20": 119.5,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "RTX 3070 Ti": 21.75,
}


def peak_flops(name: str) -> float | None:
    """Operations a second that a device of this name reaches at most; None where that is not known.

    A name has to have the words as they are: an unknown relative of a known device has another rate.
    """
    words = re.sub(r"[-_]", " ", name)
    found = [known for known in PEAK_TFLOPS if re.search(rf"\b{known}\b(?! Ti\b)", words)]
    return PEAK_TFLOPS[max(found, key=len)] * 1e12 if found else None


def device_peak(device: torch.device) -> float | None:
    """The peak rate of a device here; None for a CPU, and where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

"""The precision of each part of a model: `"bfloat16"`, `"int8"`, `"int8,head=int8"`, …

A name gives the format of the decoder's big matrices (q, k, v, o, gate, up and down of both experts: nine tenths of
all weights). Everything else stays in the precision of the activations unless a part is named too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from bagel_mot.config import VaeConfig
from bagel_mot.errors import DeviceError
from bagel_mot.model.kernels import has_float8_matmul
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.vae_precision import bfloat16_pays

PLAIN = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DYNAMIC = "-dynamic"
BY_ROWS = ("fp8", "int8")
"""Formats of which a row can be dequantised by itself, as an embedding needs it."""
QUANTISED = ("fp8", "fp8-dynamic", "int8", "int8-dynamic", "int4", "nf4")
NAMES = (*PLAIN, *QUANTISED)
LOSSY: frozenset[str] = frozenset({"int4", "nf4", "gguf-q4_0"})
"""Formats, of files too, that cost `mini` more than two points of any ability (docs/precision.md, which a test
compares).
"""
PARTS = {
    "decoder": re.compile(r"decoder\.layers\.\d+\.(und|gen)\.(q|k|v|o|gate|up|down)\.weight"),
    "embedding": re.compile(r"decoder\.embed_tokens\.weight"),
    "head": re.compile(r"decoder\.lm_head\.weight"),
    "vit": re.compile(r"vit\.layers\.\d+\.(q|k|v|out|fc1|fc2)\.weight|connector\.fc[12]\.weight"),
}
"""Parts that can be quantised, by our names of their matrices."""


@dataclass(frozen=True)
class Precision:
    """The precision of a model.

    Attributes:
        activations: the type of activations and of all weights that are not quantised.
        parts: the formats of quantised parts by name, each one of QUANTISED.
        autoencoder: the type of the autoencoder where it was chosen; else it follows, see `autoencoder_on`.
    """

    activations: torch.dtype = torch.bfloat16
    parts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    autoencoder: torch.dtype | None = None

    def autoencoder_on(self, device: torch.device, config: VaeConfig) -> torch.dtype:
        """The type in which the autoencoder computes on a device: the chosen one; else bfloat16 where the model is in
        bfloat16 and that is faster there, else float32. Float16 overflows in autoencoders of this kind.
        """
        if self.autoencoder is not None:
            return self.autoencoder
        follows = self.activations == torch.bfloat16 and bfloat16_pays(device, config)
        return torch.bfloat16 if follows else torch.float32

    @property
    def name(self) -> str:
        """The precision as it would be typed."""
        plain = dtype_name(self.activations)
        named = [self.parts.get("decoder", plain)]
        named += [f"{part}={stored}" for part, stored in self.parts.items() if part != "decoder"]
        if "decoder" in self.parts and self.activations != torch.bfloat16:
            named.append(f"activations={plain}")
        if self.autoencoder is not None and self.autoencoder != _otherwise(self.activations):
            named.append(f"autoencoder={dtype_name(self.autoencoder)}")
        return ",".join(named)

    def stored_as(self, name: str) -> str | None:
        """The format of a tensor (our name): one of QUANTISED, or None where it is not quantised."""
        return next((stored for part, stored in self.parts.items() if PARTS[part].fullmatch(name)), None)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type as it would be typed, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def parse_precision(text: str, *, activations: torch.dtype = torch.bfloat16) -> Precision:
    """A precision from what was typed.

    Args:
        text: one of NAMES for the decoder's big matrices, then for parts `part=name`, comma-separated.
        activations: the type of activations where the text does not say it.

    Raises:
        DeviceError: a name or part is unknown.
    """
    first, *others = [item.strip() for item in text.split(",")]
    parts: dict[str, str] = {}
    autoencoder: torch.dtype | None = None
    if first in PLAIN:
        activations = PLAIN[first]
    elif first in QUANTISED:
        parts["decoder"] = first
    else:
        raise DeviceError(f"precision is {text!r}: it must be 'auto' or {', '.join(NAMES)}.")
    for item in others:
        part, _, stored = (side.strip() for side in item.partition("="))
        if part in PARTS and part != "decoder" and stored in (BY_ROWS if part == "embedding" else QUANTISED):
            parts[part] = stored
        elif part == "activations" and stored in PLAIN and first in QUANTISED:
            activations = PLAIN[stored]
        elif part == "autoencoder" and stored in PLAIN:
            autoencoder = PLAIN[stored]
        else:
            raise DeviceError(
                f"precision is {text!r}, where {item!r} is not known: after the name for the decoder it takes "
                f"head= and vit= with {', '.join(QUANTISED)}, embedding= with {' or '.join(BY_ROWS)}, activations= "
                f"(beside a quantised decoder) and autoencoder= with {', '.join(PLAIN)}."
            )
    return Precision(
        activations, MappingProxyType(parts), None if autoencoder == _otherwise(activations) else autoencoder
    )


def _otherwise(activations: torch.dtype) -> torch.dtype | None:
    """The type that an autoencoder always has where none was chosen; None where that depends on the machine."""
    return None if activations == torch.bfloat16 else torch.float32


def check_hardware(precision: Precision, device: torch.device) -> None:
    """Checks that a device can compute in a precision.

    Raises:
        DeviceError: it cannot.
    """
    for stored in precision.parts.values():
        if stored == "fp8-dynamic" and not has_float8_matmul(device):
            there = device.type == "cuda" and torch.cuda.is_available()
            here = torch.cuda.get_device_name(device) if there else str(device)
            raise DeviceError(
                "precision 'fp8-dynamic' multiplies in FP8, which takes an NVIDIA GPU of compute capability 8.9 or "
                f"later, or one of AMD's with the same FP8, but this is {here}: use 'fp8', which only stores "
                "weights so."
            )
        if stored == "int8-dynamic" and device.type == "mps":
            raise DeviceError("precision 'int8-dynamic' is not to be had on 'mps': use 'int8'.")
        if stored.startswith("fp8") and device.type == "mps":
            raise DeviceError(f"precision {stored!r} is not to be had on 'mps', which has no FP8: use 'int8'.")


def format_of(stored: str) -> str:
    """The name of the matrix format behind one of QUANTISED."""
    found = stored.removesuffix(DYNAMIC)
    assert found in FORMATS
    return found

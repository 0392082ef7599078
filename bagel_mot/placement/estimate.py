"""The one estimate of memory, from the configuration alone: weights, the cache, what is alive while a pass computes.

The engine asks it before a pass, a plan before loading, the service at its start, and `bagel info` shows it. Its
formulas count what the model's own code keeps alive at once: a test goes through that code without values and compares
(`tests/placement/test_estimate.py`). The memory that a process holds for that is measured (docs/official.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bagel_mot.checkpoint.official import needed
from bagel_mot.checkpoint.precision import Precision, format_of
from bagel_mot.checkpoint.shapes import autoencoder_shapes, model_shapes
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig
from bagel_mot.model.buckets import bucket
from bagel_mot.model.cache import SLAB_TOKENS
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.vae_strips import STRIP_BYTES, strips_pay

MARGIN = 0.05
"""Share of the free memory, of the machine and of each device, that is left alone."""
MAX_STEP_TOKENS = 32768
"""Tokens of one forward pass, at most."""
MAX_STEP_PIXELS = 4 << 20
"""Pixels of one pass of the autoencoder, at most."""
PROCESS_BYTES = 560 << 20
"""Memory of a process with its libraries, a vocabulary and compiled kernels, without weights."""
DEVICE_BYTES = 600 << 20
"""Memory of a CUDA context with its libraries' workspaces."""
MAX_GRAPHS = 16
"""Recorded passes that are kept, at most."""
_GRAPH_BYTES = 64 << 20  # memory that a driver takes for recorded passes: assumed, not measured
_HEAP_SHARE = 1.5
"""Bytes that a process on the CPU holds for each byte alive in a pass of the model: the C library's heap has gaps
between blocks. Measured at the official size: 1.39 to 1.56, of whole feature maps of the autoencoder too.
"""
_STRIPS_SHARE = 1.1
"""The same for an autoencoder that works in strips, whose whole maps are too large for the heap: 0.97 and 1.03 for
1024×1024.
"""
_CACHE_SHARE, _PREFIX_SHARE = 0.6, 0.2  # all caches, of usable memory; prefixes kept for later requests, of caches
_CPU = torch.device("cpu")
_MAX_CACHE_TOKENS = 1 << 22
_PROMPT_TOKENS, _ANSWER_TOKENS = 66, 256  # tokens of a reference workload
_DRAWN_EVALUATIONS, _EDITED_EVALUATIONS = 90, 147  # of 49 steps: guidance is off in the last ones of a drawing


# ------------------------------------------------------------------------------------------------- what a pass holds


def forward_bytes(config: DecoderConfig, und_tokens: int, gen_tokens: int, dtype: torch.dtype) -> int:
    """Bytes alive in one forward pass, its largest moment being the feed-forward network: gate, up, the activated gate
    (in which the product is made), their input and its residual stream of one expert, beside what all tokens have
    until the layer ends: embeddings, the residual stream before the layer, what attention found, cosines and sines.

    Args:
        config: the decoder's configuration.
        und_tokens, gen_tokens: tokens of all rows together, by the expert that works on them.
        dtype: the type of activations.
    """
    widest = (3 * config.intermediate_size + 2 * config.hidden_size) * max(und_tokens, gen_tokens)
    streams = (2 * config.hidden_size + config.num_heads * config.head_dim) * (und_tokens + gen_tokens)
    done = config.hidden_size * min(und_tokens, gen_tokens)  # by the other expert
    rotations = 2 * config.head_dim * torch.float32.itemsize * (und_tokens + gen_tokens)
    return (widest + streams + done) * dtype.itemsize + rotations


def cache_bytes(config: DecoderConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of `tokens` tokens in all layers."""
    return tokens * 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def encode_bytes(config: VaeConfig, pixels: int, dtype: torch.dtype, *, images: int = 1, on_cpu: bool = False) -> int:
    """Bytes alive while the autoencoder encodes images. For one of 1024×1024 on the CPU that is less than 0.65 GB in
    bfloat16 and 1.2 GB in float32 at the official size, weights aside.

    Args:
        config: the autoencoder's configuration.
        pixels: the number of pixels of all images together.
        dtype: the type in which it computes.
        images: the number of images, all of one size.
        on_cpu: whether the CPU computes, which works on images one by one, and on large ones in strips.
    """
    pixels = pixels // images if on_cpu else pixels
    if on_cpu and strips_pay("cpu", dtype, pixels * config.ch):
        widths = [config.ch * multiplier for multiplier in config.ch_mult]
        return _strip_bytes(zip([config.ch, *widths[:-1]], widths, strict=True), pixels, dtype)
    maps = (3 + min(2, config.num_res_blocks)) * config.ch_mult[0]  # the finest level has most
    return pixels * maps * config.ch * dtype.itemsize


def decode_bytes(config: VaeConfig, pixels: int, dtype: torch.dtype, *, images: int = 1, on_cpu: bool = False) -> int:
    """Bytes alive while the autoencoder decodes images. For one of 1024×1024 on the CPU that is less than 1.2 GB in
    bfloat16 and 2.3 GB in float32 at the official size, weights aside. Arguments as `encode_bytes`.
    """
    if on_cpu and strips_pay("cpu", dtype, pixels // images * config.ch):
        widths = [config.ch * multiplier for multiplier in config.ch_mult]
        drawn = config.out_ch * (pixels + (pixels if images > 1 else 0)) * dtype.itemsize
        return drawn + _strip_bytes(zip([*widths[1:], widths[-1]], widths, strict=True), pixels // images, dtype)
    before = config.out_ch * (pixels - pixels // images) * dtype.itemsize if on_cpu else 0  # the other images
    pixels = pixels // images if on_cpu else pixels
    # The first block of the finest level still has the channels of the level before.
    maps = max(5 * config.ch_mult[0], 3 * max(config.ch_mult[:2]))
    return before + pixels * maps * config.ch * dtype.itemsize


def _strip_bytes(levels: Iterable[tuple[int, int]], pixels: int, dtype: torch.dtype) -> int:
    """Bytes alive while an image of `pixels` pixels is worked on in strips: whole, a map before a residual block, its
    sum where it has other channels, and the map between its convolutions; beside them a strip before and after a
    convolution.

    Args:
        levels: channels before and after the first block of each level, the finest first.
    """
    most = 0
    for level, (before, after) in enumerate(levels):
        number = (pixels >> 2 * level) * dtype.itemsize
        maps = 2 * after + (before if before != after else 0)
        most = max(most, number * maps + min(STRIP_BYTES, number * before) + min(STRIP_BYTES, number * after))
    return most


def _held(alive: int, on_cpu: bool) -> int:
    """Bytes that a process or a device holds for what is alive at once."""
    return int(alive * _HEAP_SHARE) if on_cpu else alive


def image_bytes(config: VaeConfig, pixels: int, dtype: torch.dtype, *, decode: bool, on_cpu: bool) -> int:
    """Bytes that a process or a device holds while the autoencoder encodes or decodes an image of `pixels` pixels."""
    alive = (decode_bytes if decode else encode_bytes)(config, pixels, dtype, on_cpu=on_cpu)
    if on_cpu and strips_pay("cpu", dtype, pixels * config.ch):
        return int(alive * _STRIPS_SHARE)
    return _held(alive, on_cpu)


# --------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights by part, in some precision.

    Attributes:
        layer: one decoder layer, both experts or the one that is loaded.
        layers: the number of decoder layers.
        embedding: the token embedding.
        rest: everything else in the model, adapters among it.
        autoencoder: the autoencoder.
        parameters: the number (not bytes) of one expert's parameters in all layers.
    """

    layer: int
    layers: int
    embedding: int
    rest: int
    autoencoder: int
    parameters: int

    @property
    def outside(self) -> int:
        """Everything but the layers."""
        return self.embedding + self.rest + self.autoencoder

    @property
    def total(self) -> int:
        """All weights."""
        return self.layer * self.layers + self.outside


def weight_bytes(
    config: BagelConfig,
    precision: Precision,
    tasks: tuple[str, ...],
    adapter_parameters: int = 0,
    *,
    device: torch.device = _CPU,
) -> WeightBytes:
    """The bytes of the weights that some tasks need, and of as many parameters of adapters, on a device that computes:
    the precision of the autoencoder depends on it.
    """
    reads, draws = needed(tasks)
    layer = embedding = rest = expert = 0
    for name, shape in model_shapes(config, reads=reads, draws=draws).items():
        count = shape.numel()
        stored = precision.stored_as(name)
        kind = None if stored is None else FORMATS[format_of(stored)]
        fits = kind is not None and kind.fits((shape[0], shape[1]))
        size = kind.stored_bytes((shape[0], shape[1])) if kind and fits else count * precision.activations.itemsize
        if name.startswith("decoder.layers.0."):
            layer += size
            expert += count if ".und." in name else 0
        elif name == "decoder.embed_tokens.weight":
            embedding = size
        elif not name.startswith("decoder.layers."):
            rest += size
    images = sum(shape.numel() for shape in autoencoder_shapes(config.vae).values()) if draws else 0
    layers = config.decoder.num_layers
    rest += adapter_parameters * precision.activations.itemsize
    autoencoder = images * precision.autoencoder_on(device, config.vae).itemsize
    return WeightBytes(layer, layers, embedding, rest, autoencoder, expert * layers)


# -------------------------------------------------------------------------------------------------------- workloads


@dataclass(frozen=True)
class Workload:
    """A reference request whose memory is estimated.

    Attributes:
        task: "generate", "edit" or "understand".
        images: (width, height) in pixels of the images that are read.
        drawn: (width, height) in pixels of the image that is drawn.
        branches: branches of guidance, the full context among them.
        evaluations: velocities that are computed for the image, over all steps and branches.
    """

    task: str
    images: tuple[tuple[int, int], ...] = ()
    drawn: tuple[int, int] | None = None
    branches: int = 1
    evaluations: int = 0

    @property
    def name(self) -> str:
        """The task and its sizes in words."""
        size = "×".join(map(str, self.drawn if self.drawn and not self.images else self.images[0]))
        return f"edit {len(self.images)} of {size}" if self.task == "edit" else f"{self.task} {size}"


def reference_workloads(config: BagelConfig) -> tuple[Workload, ...]:
    """An image of 1024×1024, an edit of two, a question about one of 980×980, with official default settings; smaller
    ones for models whose position tables are smaller.
    """
    side = min(1024, config.max_latent_size * config.latent_stride)
    seen = min(980, config.vit.side * config.vit.patch_size)
    square = (side, side)
    return (
        Workload("generate", drawn=square, branches=2, evaluations=_DRAWN_EVALUATIONS),
        Workload("edit", (square, square), square, branches=3, evaluations=_EDITED_EVALUATIONS),
        Workload("understand", ((seen, seen),)),
    )


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a workload.

    Attributes:
        und: tokens of the understanding expert before the answer or the image: texts, patches, markers.
        latents: latent tokens of images that are read.
        noised: latent tokens of the image that is drawn.
    """

    und: int
    latents: int
    noised: int


def token_counts(config: BagelConfig, workload: Workload) -> TokenCounts:
    """The tokens of a workload."""
    patch, side = config.vit.patch_size, config.vit.side
    patches = sum(min(side, width // patch) * min(side, height // patch) + 2 for width, height in workload.images)
    latents = sum(_latents(config, size) for size in workload.images) if workload.drawn else 0
    markers = 2 * len(workload.images) if workload.drawn else 0
    noised = 0 if workload.drawn is None else _latents(config, workload.drawn)
    return TokenCounts(patches + markers + _PROMPT_TOKENS, latents, noised)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a workload takes beside the weights.

    Attributes:
        cache: keys and values in all layers.
        peak: the most bytes at once, the cache among them.
    """

    cache: int
    peak: int


def memory_estimate(
    config: BagelConfig, workload: Workload, activations: torch.dtype, autoencoder: torch.dtype, *, on_cpu: bool
) -> MemoryEstimate:
    """The memory of a workload beside the weights.

    Args:
        config: the model's configuration.
        workload: the request.
        activations, autoencoder: the types in which the model and the autoencoder compute.
        on_cpu: whether the CPU computes, whose heap holds more than what is alive.
    """
    counts = token_counts(config, workload)
    und, latents, noised = counts.und, counts.latents, counts.noised
    passes = [_held(forward_bytes(config.decoder, und, latents, activations), on_cpu)]
    if workload.drawn is not None:
        branches = workload.branches
        passes.append(_held(forward_bytes(config.decoder, 2 * branches, branches * noised, activations), on_cpu))
        drawn = workload.drawn[0] * workload.drawn[1]
        passes.append(image_bytes(config.vae, drawn, autoencoder, decode=True, on_cpu=on_cpu))
        # The first branch goes on behind the full context; one without text shares it up to the text.
        following = branches * (noised + 2) + (_PROMPT_TOKENS if branches > 2 else 0)
    else:
        following = _ANSWER_TOKENS
    held = und + latents + following + (0 if on_cpu else SLAB_TOKENS)  # small chunks share a slab there
    cache = cache_bytes(config.decoder, held, activations)
    pixels = sum(width * height for width, height in workload.images) if workload.drawn else 0
    # Images are encoded before there is a cache, those of one size together.
    encoding = image_bytes(config.vae, min(pixels, MAX_STEP_PIXELS), autoencoder, decode=False, on_cpu=on_cpu)
    return MemoryEstimate(cache, max(cache + max(passes), encoding))


def graph_bytes(config: BagelConfig, workload: Workload, activations: torch.dtype) -> int:
    """Bytes that recorded passes of a workload take beside what it takes without them: recorded passes share memory for
    what is alive in one of them, which nothing else may use, and each has its own for its outputs.

    Args:
        config: the model's configuration.
        workload: the request.
        activations: the type of activations.
    """
    decoder = config.decoder
    if workload.drawn is None:
        row = forward_bytes(decoder, 1, 0, activations) + decoder.vocab_size * torch.float32.itemsize
        counts = token_counts(config, workload)
        seen = bucket(counts.und + counts.latents + _ANSWER_TOKENS)
        return _GRAPH_BYTES + row + cache_bytes(decoder, seen, activations) // decoder.num_layers
    noised, branches = token_counts(config, workload).noised, workload.branches
    output = decoder.hidden_size * activations.itemsize + config.latent_dim * torch.float32.itemsize
    passes = branches + (1 if branches > 1 else 0)  # with guidance and, in the last steps, without
    return (
        _GRAPH_BYTES + forward_bytes(decoder, 2 * branches, branches * noised, activations) + passes * noised * output
    )


def _latents(config: BagelConfig, size: tuple[int, int]) -> int:
    return (size[0] // config.latent_stride) * (size[1] // config.latent_stride)


# --------------------------------------------------------------------------------------------------------- capacity


@dataclass(frozen=True)
class Capacity:
    """The requests that fit into memory together.

    Attributes:
        cache_tokens: tokens of cache for all requests at work together.
        prefix_tokens: tokens of cache kept for later requests.
        step_tokens: the most tokens of one forward pass.
        step_pixels: the most pixels of one pass of the autoencoder; a larger image is refused.
    """

    cache_tokens: int
    prefix_tokens: int
    step_tokens: int
    step_pixels: int


def capacity(
    config: BagelConfig, memory: int, activations: torch.dtype, autoencoder: torch.dtype, *, on_cpu: bool
) -> Capacity:
    """Divides memory among the caches, a forward pass, and a pass of the autoencoder.

    Args:
        config: the model's configuration.
        memory: bytes that may be used beside the weights.
        activations, autoencoder, on_cpu: see `memory_estimate`.
    """
    token = cache_bytes(config.decoder, 1, activations)
    cache = min(int(memory * _CACHE_SHARE) // token, _MAX_CACHE_TOKENS)
    half = (memory - cache * token) // 2
    step = _held(forward_bytes(config.decoder, 1, 0, activations), on_cpu)
    largest = (config.max_latent_size * config.latent_stride) ** 2
    image = max(
        image_bytes(config.vae, largest, autoencoder, decode=decode, on_cpu=on_cpu) / largest
        for decode in (False, True)
    )
    return Capacity(
        cache_tokens=cache - int(cache * _PREFIX_SHARE),
        prefix_tokens=int(cache * _PREFIX_SHARE),
        step_tokens=max(1, min(MAX_STEP_TOKENS, half // step)),
        step_pixels=min(MAX_STEP_PIXELS, int(half / image)),
    )

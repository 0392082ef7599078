"""The work whose memory is predicted, and what it takes beside the weights: the cache, and what is alive while it is
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bagel_mot.allocator import LARGEST_KEPT
from bagel_mot.config import BagelConfig
from bagel_mot.model.attention import CachedAttention, CachedSample
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.model.vae import Autoencoder
from bagel_mot.placement.trace import Exact, Heap, no_workspace, trace
from bagel_mot.sequence import PackSpec, Sample, Segment, SpecialTokens, TextSegment, VaeSegment, VitSegment, pack

_PROMPT = 64  # text tokens
_ANSWER = 256
_LAYERS = 2  # that are gone through: more of them hold no more at once
_SPECIAL = SpecialTokens(1, 2, 3, 4)


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        task: "generate", "edit" or "understand".
        images: (width, height) of those that are read.
        drawn: (width, height) of the one that is drawn.
        branches: of guidance, the full context among them.
    """

    task: str
    images: tuple[tuple[int, int], ...] = ()
    drawn: tuple[int, int] | None = None
    branches: int = 1

    @property
    def name(self) -> str:
        if self.task == "generate":
            return f"generate {_size(self.drawn)}"
        if self.task == "edit":
            return f"edit {len(self.images)} of {_size(self.images[0])}"
        return f"understand {_size(self.images[0])}"


def _size(size: tuple[int, int] | None) -> str:
    assert size is not None
    return f"{size[0]}×{size[1]}"


def usual_jobs(config: BagelConfig) -> tuple[Job, ...]:
    """An image of 1024×1024, an edit of two, a question about one of 980×980; smaller where the model knows none so
    large.
    """
    side = min(1024, config.max_latent_size * config.latent_stride)
    seen = min(980, config.vit.side * config.vit.patch_size)
    square = (side, side)
    return (
        Job("generate", drawn=square, branches=2),
        Job("edit", (square, square), square, branches=3),
        Job("understand", ((seen, seen),)),
    )


@dataclass(frozen=True)
class Taken:
    """Bytes that a job takes beside weights.

    Attributes:
        cache: keys and values in all layers.
        peak: most bytes at once, the cache among them.
    """

    cache: int
    peak: int


@cache
def taken(
    config: BagelConfig, job: Job, activations: torch.dtype, autoencoder: torch.dtype, *, on_cpu: bool = True
) -> Taken:
    """What a job takes, found by going through it (`bagel_mot.placement.trace`): a second or two.

    Args:
        config: of the model.
        job: the work.
        activations, autoencoder: what they compute in.
        on_cpu: memory is that of the C library's heap, in which gaps stay from one piece of the work to the next; else
            a device's, of which no more is taken than is alive.
    """
    memory: Exact | Heap = Heap(LARGEST_KEPT) if on_cpu else Exact()
    segments = _segments(config, job)
    length = sum(segment.und_len + segment.gen_len for segment in segments)
    noised = _image_tokens(config, job.drawn) + 2 if job.drawn else 0
    following = noised or _ANSWER
    text = _PROMPT + 2
    # The first branch goes on behind the full context; one without text shares it up to the text.
    tokens = length + following + max(0, job.branches - 1) * noised + (text if job.branches > 2 else 0)
    d = config.decoder
    cached = tokens * 2 * d.num_layers * d.num_kv_heads * d.head_dim * activations.itemsize
    if job.task == "edit":
        _images(config, autoencoder, *_batch(job.images), memory, decode=False)
    memory.allocate(cached)
    _forward(config, activations, segments, 1, 0, memory)
    if job.drawn:
        _forward(config, activations, (_noised(config, job),), job.branches, length, memory)
        _images(config, autoencoder, 1, job.drawn, memory, decode=True)
    else:
        _forward(config, activations, (TextSegment((5,)),), 1, length, memory)
    return Taken(cached, memory.peak)


def _batch(images: tuple[tuple[int, int], ...]) -> tuple[int, tuple[int, int]]:
    """Pictures of one size are encoded together, as far as the engine lets them (4 megapixels)."""
    most = max(images, key=lambda size: size[0] * size[1])
    return max(1, min(images.count(most), 4 * 1024 * 1024 // (most[0] * most[1]))), most


def _image_tokens(config: BagelConfig, size: tuple[int, int] | None) -> int:
    assert size is not None
    return size[0] * size[1] // config.latent_stride**2


def _segments(config: BagelConfig, job: Job) -> tuple[Segment, ...]:
    found: list[Segment] = []
    patch = config.vit.patch_size
    for width, height in job.images:
        if job.task == "edit":
            grid = height // config.latent_stride, width // config.latent_stride
            found.append(VaeSegment(torch.zeros(1).expand(grid[0] * grid[1], config.latent_dim), grid))
        most = config.vit.side
        grid = min(most, height // patch), min(most, width // patch)
        found.append(VitSegment(torch.zeros(1).expand(grid[0] * grid[1], config.vit.patch_dim), grid))
    return (*found, TextSegment((5,) * (_PROMPT + 2)))


def _noised(config: BagelConfig, job: Job) -> Segment:
    assert job.drawn is not None
    grid = job.drawn[1] // config.latent_stride, job.drawn[0] // config.latent_stride
    latents = torch.zeros(1).expand(grid[0] * grid[1], config.latent_dim)
    return VaeSegment(latents, grid, noised=True, timestep=0.5)


def _forward(
    config: BagelConfig,
    dtype: torch.dtype,
    segments: tuple[Segment, ...],
    rows: int,
    context_length: int,
    allocator: Exact | Heap,
) -> None:
    """Takes what is alive in one forward of `rows` equal rows, each behind a context."""
    shallow = replace(config, decoder=replace(config.decoder, num_layers=min(_LAYERS, config.decoder.num_layers)))
    tokens = sum(segment.und_len + segment.gen_len for segment in segments)
    packed = pack([[Sample(segments, 0)] * rows], PackSpec.of(config, _SPECIAL))

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        model = _without_values(BagelModel(shallow), dtype)
        empty: dict[str, Any] = {
            name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in vars(packed).items()
            if isinstance(value, Tensor)
        }
        fake = replace(packed, **empty)
        samples = []
        for spans in packed.spans:
            context = Context(shallow.decoder, dtype, torch.device("cpu"))
            if context_length:
                behind = context.allocate(context_length, scratch=True)
                context.commit(behind, (TextSegment((5,) * context_length),))
            samples.append(CachedSample(spans, context.allocate(tokens, scratch=True)))
        caches = [layer for sample in samples for layer in sample.tail.chunk.layers]
        caches += [layer for sample in samples for view in sample.tail.views_before for layer in view.chunk.layers]
        before = [
            *model.parameters(),
            *model.buffers(),
            *caches,
            *(v for v in vars(fake).values() if isinstance(v, Tensor)),
        ]

        def compute() -> None:
            und, gen = model(fake, CachedAttention(samples))
            if segments[-1].gen_len == 0:
                model.logits(und[-rows:]).float()
            else:
                model.velocity(gen).float()

        return before, compute

    trace(prepare, allocator)


M = TypeVar("M", bound=nn.Module)


def _without_values(module: M, dtype: torch.dtype) -> M:
    """The module with weights of a type, as they are made within `without_values`."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    kind[name] = nn.Parameter(torch.empty(tensor.shape, dtype=dtype), requires_grad=False)
    return module.eval()


def _images(
    config: BagelConfig,
    dtype: torch.dtype,
    count: int,
    size: tuple[int, int] | None,
    allocator: Exact | Heap,
    *,
    decode: bool,
) -> None:
    """Takes what is alive in the autoencoder."""
    assert size is not None
    step = config.vae.downsample

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        autoencoder = _without_values(Autoencoder(config.vae), dtype)
        if decode:
            x = torch.empty(count, config.vae.z_channels, size[1] // step, size[0] // step, dtype=dtype)
            return [*autoencoder.parameters(), x], lambda: autoencoder.decode(x)
        x = torch.empty(count, config.vae.in_channels, size[1], size[0], dtype=dtype)
        return [*autoencoder.parameters(), x], lambda: autoencoder.encode(x)

    trace(prepare, allocator, _convolutions if isinstance(allocator, Heap) else no_workspace)


def _convolutions(operation: str, given: list[Tensor], made: list[Tensor]) -> tuple[int, int]:
    """oneDNN brings images into an order of its own, convolves, and brings the result back from it."""
    return (given[0].nbytes, made[0].nbytes) if "conv" in operation else (0, 0)

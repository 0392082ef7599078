"""Drawing: an image that follows a history, denoised step by step under up to three guidance contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.config import BagelConfig
from bagel_mot.images import to_pil, unpatchify
from bagel_mot.inference import sampler
from bagel_mot.inference.engine.ops import DecodeOp, ForwardOp, Output, Steps, VelocityOp
from bagel_mot.inference.history import History
from bagel_mot.inference.preview import due
from bagel_mot.inference.request import Listener, Request
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.sampler import Role
from bagel_mot.inference.steps.read import read_alone
from bagel_mot.inference.taylorseer import TaylorSeer
from bagel_mot.model.cache import Context, KVReservation
from bagel_mot.model.finite import is_finite
from bagel_mot.model.transfer import to_device
from bagel_mot.sequence import VaeSegment


@dataclass(frozen=True)
class Drawing:
    """An image that was drawn, and the branch evaluations that it took."""

    image: Image.Image
    evaluations: int


@dataclass(frozen=True, eq=False)
class Branch:
    """A guidance context, with room for the noised image behind it."""

    context: Context
    scratch: KVReservation


def draw(runtime: Runtime, history: History, request: Request, listener: Listener) -> Steps[Drawing]:
    """Draws an image that follows a history, which stays as it is.

    Each step evaluates the velocity of the noised image (N, latent_dim) under the guidance contexts that it needs.
    """
    settings, config = request.settings, runtime.config
    assert request.size is not None, "an image needs a size"
    grid = request.size[1] // config.latent_stride, request.size[0] // config.latent_stride
    times = sampler.timesteps(settings.num_timesteps, settings.timestep_shift).tolist()
    branches = yield from _branches(runtime, history, sampler.roles_used(settings), request.noised_tokens)
    seers = {role: TaylorSeer() for role in branches} if settings.enable_taylorseer else {}
    noises = noises_of(config, request.size, request.seed, request.noise)
    device, evaluations = runtime.engine.model.device, 0
    x = to_device(next(noises).float(), device)
    for done, (t, following) in enumerate(pairwise(times), start=1):
        noised = VaeSegment(x, grid, noised=True, timestep=t)
        ops = _ops(branches, seers, sampler.roles(t, settings), noised, runtime.engine.model.dtype)
        yield list(dict.fromkeys(ops.values()))  # roles with one context share one op
        evaluations += len({op for op in ops.values() if isinstance(op, ForwardOp)})
        for role, op in ops.items():
            if seers and isinstance(op, ForwardOp) and op.hidden is not None:
                seers[role].update(op.hidden)
        v = full = ops[Role.FULL].result
        if Role.WITHOUT_TEXT in ops:
            without_image = ops[Role.WITHOUT_IMAGE].result if Role.WITHOUT_IMAGE in ops else None
            v = sampler.guide(full, ops[Role.WITHOUT_TEXT].result, without_image, settings)
        if listener.on_preview is not None and due(done, len(times) - 1):
            # Guidance overshoots: what the full context alone leads to is nearer to the image.
            preview = runtime.previewer(_latent(config, x - t * full, grid))
            if preview is None:
                raise runtime.engine.runner.overflow.error()
            listener.on_preview(preview)
        if listener.on_step is not None:
            listener.on_step(done, len(times) - 1)
        fresh = None
        if settings.eta and following and (not seers or done <= TaylorSeer.SMOOTH_AFTER):
            fresh = to_device(next(noises).float(), device)
        x = sampler.step(x, v, t, following, settings.eta, fresh)
        if device.type == "cpu" and not is_finite(x):  # on others it would be waited for: they see it in the image
            raise runtime.engine.runner.overflow.error()
    decode = DecodeOp(_latent(config, x, grid))
    yield [decode]
    if listener.recorder is not None:
        listener.recorder.latent = x.cpu()
    return Drawing(to_pil(decode.result), evaluations)


def noises_of(config: BagelConfig, size: tuple[int, int], seed: int, start: Tensor | None = None) -> Iterator[Tensor]:
    """All noise of an image: the one to start from, which may be given, then fresh ones without end.

    Yields: (rows·columns, latent_dim) float32, drawn on the CPU, for an image of `size` (width, height) in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = (size[1] // config.latent_stride) * (size[0] // config.latent_stride)
    first = torch.randn(tokens, config.latent_dim, generator=generator)
    yield first if start is None else start
    while True:
        yield torch.randn(tokens, config.latent_dim, generator=generator)


def _branches(runtime: Runtime, history: History, roles: Sequence[Role], tokens: int) -> Steps[dict[Role, Branch]]:
    """A branch with room for `tokens` tokens for each role; roles with the same segments share one. What the known
    contexts lack is read here.
    """
    segments_of = history.guidance()
    branches: dict[tuple[int, ...], Branch] = {}
    found: dict[Role, Branch] = {}
    for role in roles:
        key = tuple(map(id, segments_of[role]))
        if key not in branches:
            # A session keeps its context without image for the next one; room for noise would be kept with it.
            kept = history.keeps_growing and role is Role.WITHOUT_IMAGE
            # In one piece with the noise attention is faster.
            room = 0 if kept else tokens
            context, missing = history.closest(segments_of[role])
            if missing:
                context = yield from read_alone(runtime, context, missing, room)
            elif not context.length:
                context = runtime.engine.new_context(room)
            if kept:
                history.without_image = context
            branches[key] = Branch(context, context.allocate(tokens, scratch=True))
        found[role] = branches[key]
    return found


def _ops(
    branches: Mapping[Role, Branch],
    seers: Mapping[Role, TaylorSeer],
    roles: Sequence[Role],
    noised: VaeSegment,
    dtype: torch.dtype,
) -> dict[Role, ForwardOp | VelocityOp]:
    """The ops of one step by role: a forward pass behind the role's context, or the head on an extrapolated state."""
    ops: dict[Role, ForwardOp | VelocityOp] = {}
    forwards: dict[int, ForwardOp] = {}
    for role in roles:
        branch = branches[role]
        if seers and not seers[role].must_compute:
            ops[role] = VelocityOp(seers[role].predict().to(dtype))
        else:
            op = ForwardOp(branch.context, (noised,), Output.VELOCITY, scratch=branch.scratch)
            ops[role] = forwards.setdefault(id(branch), op)
    return ops


def _latent(config: BagelConfig, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latent tokens (rows·columns, latent_dim) as a scaled latent (z, h, w)."""
    patch = config.latent_patch_size
    return unpatchify(tokens, grid[0] * patch, grid[1] * patch, patch)

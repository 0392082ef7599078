"""What requests are made of: reading, writing, drawing. Each is a generator of work for the engine, on a `History`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.config import BagelConfig
from bagel_mot.errors import ContextLengthError
from bagel_mot.images import ImageTransform, to_pil, to_pixels, tokens_to_latent
from bagel_mot.inference import sampler as flow
from bagel_mot.inference.decode import TextStream, choose_token
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import Decode, Encode, Output, Request, Row, Work
from bagel_mot.inference.history import History, Kind, Turn
from bagel_mot.inference.prefixes import PrefixCache
from bagel_mot.inference.preview import Previewer, due
from bagel_mot.inference.sampler import Role, TaylorSeer
from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.model.cache import Context, KVReservation
from bagel_mot.sequence import Segment, TextSegment, VaeSegment, segment_length, text_segment, vae_segment, vit_segment
from bagel_mot.tokenizer import SpecialTokens, Tokenizer

Item = tuple[Kind, str | Image.Image]


@dataclass(frozen=True)
class Runtime:
    """What all requests share."""

    engine: Engine
    config: BagelConfig
    tokenizer: Tokenizer
    special: SpecialTokens
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    preview_images: Image.Image | None = None
    prefixes: PrefixCache | None = None

    @cached_property
    def previewer(self) -> Previewer:
        """Fitted when it is first asked for."""
        return Previewer(self.engine.autoencoder, self.preview_images)

    def text(self, text: str) -> TextSegment:
        return text_segment(self.tokenizer.encode(text), self.special)

    def positions(self, items: Sequence[Item], latents: bool) -> int:
        """How far `items` will move the rotary position of a context."""
        return sum(self.text(content).advance if isinstance(content, str) else 1 + latents for _, content in items)

    def room(self, context: Context) -> int:
        """The positions left behind a context."""
        return self.config.decoder.max_position_embeddings - context.position

    def check_room(self, used: int, more: int) -> None:
        """
        Raises:
            ContextLengthError: positions `used` and `more` ones are more than the model has.
        """
        limit = self.config.decoder.max_position_embeddings
        if used + more > limit:
            raise ContextLengthError(
                f"the context and what is to follow would take {used + more} positions or more, the model has {limit} "
                "(each text token takes one, each picture two): shorten it."
            )

    def fitting(self, text: str, room: int) -> str:
        """A text, or as much of its beginning as takes no more than `room` positions (3 or more) when it is read.

        That may be more than it took to write it, such as where it holds broken characters.
        """
        if self.text(text).advance <= room:
            return text
        beyond = bisect_right(range(len(text)), room, key=lambda length: self.text(text[:length]).advance)
        return text[: beyond - 1]


@dataclass
class Recorder:
    """Filled with what happens inside a request, for verification.

    Attributes:
        tokens: of the text written, its start token first.
        logits: (V,) after each of `tokens`, on the CPU; for this one more pass is run when the text ends at its limit.
        latent: (N, latent_dim) of the image drawn, as tokens, on the CPU.
    """

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    latent: Tensor | None = None


@dataclass(frozen=True)
class Written:
    """A text written.

    Attributes:
        text: up to the end token, the limit, or the first stop text. It can be read behind the history.
        tokens: that it took, the end token included.
        complete: whether it ended by itself or at a stop text, not at the limit.
    """

    text: str
    tokens: int
    complete: bool


@dataclass(frozen=True)
class Drawing:
    """An image drawn, and how many branch evaluations it took."""

    image: Image.Image
    evaluations: int


def read(runtime: Runtime, history: History, items: Sequence[Item], *, latents: bool) -> Request[None]:
    """Adds texts and images to a history, all in one prefill.

    An image is resized by the VAE transform, then by the ViT transform.

    Args:
        items: (kind, content) in order.
        latents: let images stand as clean VAE image, then ViT image; else as ViT image alone.
    """
    resized = {i: runtime.vae_transform.resize(c) for i, (_, c) in enumerate(items) if isinstance(c, Image.Image)}
    encoded: dict[int, Tensor] = {}
    if latents and resized:
        works: list[Work] = [Encode(to_pixels(image)) for image in resized.values()]
        encoded = dict(zip(resized, (yield works), strict=True))
    turns = []
    for i, (kind, content) in enumerate(items):
        segments: list[Segment] = []
        if isinstance(content, str):
            segments.append(runtime.text(content))
        else:
            if i in encoded:
                segments.append(vae_segment(encoded[i], runtime.config.latent_patch_size))
            segments.append(vit_segment(runtime.vit_transform(resized[i]), runtime.config.vit.patch_size))
        turns.append(Turn(kind, content, tuple(segments)))
    yield [Row(history.context, tuple(segment for turn in turns for segment in turn.segments))]
    for turn in turns:
        history.append(turn)


def write(
    runtime: Runtime,
    history: History,
    settings: GenerationSettings,
    seed: int,
    max_tokens: int,
    *,
    leave: int = 0,
    recorder: Recorder | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Request[Written]:
    """Writes a text that follows a history, which stays as it is; the tokens' cache is dropped.

    It is dropped, since what stands in a context is the text, read as any other: its tokens need not be those that it
    was written with, and its end token has to be read in any case.

    Args:
        seed: of the token sampling.
        max_tokens: the most tokens; fewer where the text, with its start and end token, would find no room.
        leave: positions to be left behind the text.
        recorder: is filled.
        on_text: is called with each piece of the text as it becomes known.
    """
    context = history.context.fork()
    room = runtime.room(context) - leave
    max_tokens = min(max_tokens, room - 2)
    generator = torch.Generator().manual_seed(seed)
    stream = TextStream(runtime.tokenizer, settings.stop)
    context.bound(context.length + 1 + max_tokens)
    tokens: list[int] = []
    token = runtime.special.bos

    def follow(token: int) -> Request[Tensor]:
        row = Row(context, (TextSegment((token,)),), Output.LOGITS, record=False)
        (logits,) = yield [row]
        if recorder is not None:
            recorder.tokens.append(token)
            recorder.logits.append(logits.cpu())
        return logits

    def give(piece: str) -> None:
        if piece and on_text is not None:
            on_text(piece)

    while True:
        logits = yield from follow(token)
        token = choose_token(logits, tokens, settings, generator, runtime.tokenizer.vocab_size)
        if token == runtime.special.eos:
            break
        tokens.append(token)
        give(stream.add(token))
        if stream.stopped:
            break
        if len(tokens) >= max_tokens:
            if recorder is not None:
                yield from follow(token)
            break
    give(stream.finish())
    ended = token == runtime.special.eos
    return Written(runtime.fitting(stream.text, room), len(tokens) + ended, ended or stream.stopped)


@dataclass
class _Branch:
    """A guidance context with room for the noised image behind it."""

    context: Context
    tail: KVReservation


def _branches(runtime: Runtime, history: History, roles: Sequence[Role], tokens: int) -> Request[dict[Role, _Branch]]:
    """A branch for each role; roles with the same history share one. What a branch lacks is prefilled here."""
    segments_of = history.guidance()
    branches: dict[tuple[int, ...], _Branch] = {}
    found: dict[Role, _Branch] = {}
    for role in roles:
        segments = segments_of[role]
        key = tuple(map(id, segments))
        if key not in branches:
            context, missing = history.closest(segments)
            if not context.length:  # with nothing in common: memory for this branch, not for the whole conversation
                # In one piece with the noise attention is faster; but what is kept would keep that room, too.
                room = 0 if history.lasting and role is Role.WITHOUT_IMAGE else tokens
                context = runtime.engine.new_context(sum(map(segment_length, missing)) + room)
            if missing:
                yield [Row(context, missing)]
            if history.lasting and role is Role.WITHOUT_IMAGE:
                history.text_only = context
            branches[key] = _Branch(context, context.allocate(tokens, scratch=True))
        found[role] = branches[key]
    return found


def draw(
    runtime: Runtime,
    history: History,
    settings: GenerationSettings,
    size: tuple[int, int],
    noises: Iterator[Tensor],
    *,
    recorder: Recorder | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_preview: Callable[[Image.Image], None] | None = None,
) -> Request[Drawing]:
    """Draws an image that follows a history, which stays as it is.

    Args:
        size: (width, height) in pixels.
        noises: (rows·columns, latent_dim) float32: the one to start from, then those that steps add.
        recorder: is filled.
        on_step: is called with the number of steps done and that of all.
        on_preview: is called now and then with a look at the image as it would be by now, just before `on_step`.
    """
    config, model = runtime.config, runtime.engine.model
    width, height = size
    grid = height // config.latent_stride, width // config.latent_stride
    branch_of = yield from _branches(runtime, history, flow.roles_used(settings), grid[0] * grid[1] + 2)
    seers = {role: TaylorSeer() for role in branch_of} if settings.enable_taylorseer else {}
    evaluations = done = 0
    patch = config.latent_patch_size

    def to_latent(tokens: Tensor) -> Tensor:
        return tokens_to_latent(tokens, grid[0] * patch, grid[1] * patch, patch)

    def velocities(x: Tensor, t: float, roles: Sequence[Role]) -> Request[dict[Role, Tensor]]:
        """The model's velocity for each role, every branch run at most once."""
        nonlocal evaluations
        computed = [role for role in roles if not seers or seers[role].must_compute]
        branches = list({id(branch_of[role]): branch_of[role] for role in computed}.values())
        segment = VaeSegment(x, grid, noised=True, timestep=t)
        rows: list[Work] = [Row(b.context, (segment,), Output.HIDDEN, tail=b.tail) for b in branches]
        results = (yield rows) if rows else []
        evaluations += len(rows)
        hidden = {id(branch): result for branch, result in zip(branches, results, strict=True)}
        states: dict[Any, Tensor] = {}  # by branch, or by role where each extrapolates on its own
        for role in roles:
            branch = id(branch_of[role])
            if not seers:
                states[branch] = hidden[branch]
            elif role in computed:
                states[role] = seers[role].update(hidden[branch])
            else:
                states[role] = seers[role].predict().to(model.dtype)
        split = model.velocity(torch.cat(list(states.values()))).float().split(x.shape[0])
        found = dict(zip(states, split, strict=True))
        return {role: found[role if seers else id(branch_of[role])] for role in roles}

    def velocity(x: Tensor, t: float) -> Request[Tensor]:
        nonlocal done
        found = yield from velocities(x, t, flow.roles(t, settings))
        v = found[Role.FULL]
        if Role.WITHOUT_TEXT in found:
            v = flow.guide(v, found[Role.WITHOUT_TEXT], found.get(Role.WITHOUT_IMAGE), settings)
        done += 1
        steps = settings.num_timesteps - 1
        if on_preview is not None and due(done, steps):
            # Guidance overshoots: what the full context alone leads to is nearer to the image.
            on_preview(runtime.previewer(to_latent(x - t * found[Role.FULL])))
        if on_step is not None:
            on_step(done, steps)
        return v

    here = (noise.to(model.device, torch.float32) for noise in noises)
    fresh = TaylorSeer.SMOOTH_AFTER if seers else None
    tokens = yield from flow.sample(
        velocity, here, settings.num_timesteps, settings.timestep_shift, settings.eta, fresh
    )
    if recorder is not None:
        recorder.latent = tokens.cpu()
    (pixels,) = yield [Decode(to_latent(tokens))]
    return Drawing(to_pil(pixels), evaluations)


def noises_of(config: BagelConfig, size: tuple[int, int], seed: int, start: Tensor | None = None) -> Iterator[Tensor]:
    """All noise (rows·columns, latent_dim) of an image of `size` (width, height): the one to start from, which may be
    given, then endless fresh ones. float32, drawn on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = (size[1] // config.latent_stride) * (size[0] // config.latent_stride)
    first = torch.randn(tokens, config.latent_dim, generator=generator)
    yield first if start is None else start
    while True:
        yield torch.randn(tokens, config.latent_dim, generator=generator)


def tokens_of(runtime: Runtime, items: Sequence[Item], *, latents: bool) -> int:
    """How many tokens `items` become in a context; `latents` as in `read`."""
    total = 0
    stride, patch = runtime.config.latent_stride, runtime.config.vit.patch_size
    for _, content in items:
        if isinstance(content, str):
            total += runtime.text(content).und_len
        else:
            vae_size = runtime.vae_transform.size(*content.size)
            vit_size = runtime.vit_transform.size(*vae_size)
            total += vit_size[0] * vit_size[1] // patch**2 + 2
            total += (vae_size[0] * vae_size[1] // stride**2 + 2) * latents
    return total

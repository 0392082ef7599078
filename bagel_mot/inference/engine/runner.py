"""The runner: batches of ops through the model and the autoencoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bagel_mot.inference.decode import NOT_FINITE, choose_tokens
from bagel_mot.inference.engine.graphs import Graphs, PassRecorder
from bagel_mot.inference.engine.ops import DecodeOp, EncodeOp, ForwardOp, Op, Output, VelocityOp
from bagel_mot.inference.engine.overflow import OverflowReport
from bagel_mot.inference.engine.static import decoding, denoising
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.buckets import token_bucket
from bagel_mot.model.cache import KVReservation
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.finite import finite_rows, is_finite
from bagel_mot.model.prepacked import FEWEST_ROWS, PrepackedLinear
from bagel_mot.model.transfer import to_device
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.widened import FEWEST_ROWS as FEWEST_WIDENED
from bagel_mot.model.widened import WidenedLinear
from bagel_mot.placement.estimate import cache_bytes, decode_bytes, encode_bytes, forward_bytes
from bagel_mot.sequence import Layout, PackSpec, Sample, TextSegment, VaeSegment, Values, pack_cached
from bagel_mot.tokenizer import SpecialTokens

_MAX_LAYOUTS = 16  # kept for further denoising steps


@dataclass
class EngineStats:
    """Counts of an engine's work since it was made."""

    steps: int = 0  # in which something was computed
    forwards: int = 0  # passes of the model
    forward_ops: int = 0
    prefill_tokens: int = 0  # read into contexts
    written_tokens: int = 0  # in texts being written, one per forward pass
    noised_tokens: int = 0  # in denoising steps, image markers included
    encoded: int = 0  # images
    decoded: int = 0  # images


class Runner:
    """Runs batches and settles their ops.

    Attributes:
        model: the model, in evaluation mode; its layers may be on several devices.
        autoencoder: the autoencoder, in evaluation mode.
        vocab_size: ids from here on are never chosen.
        spec: the facts that packing needs to know of the model.
        stats: counts what was done.
        overflow: says why numbers are not finite.
        graphs: runs denoising steps and decoded tokens, as recorded passes where there is a recorder.
    """

    def __init__(
        self,
        model: BagelModel,
        autoencoder: Autoencoder,
        special: SpecialTokens,
        vocab_size: int,
        recorder: PassRecorder | None = None,
    ) -> None:
        self.model, self.autoencoder, self.vocab_size = model, autoencoder, vocab_size
        self.graphs = Graphs(recorder, model.device)
        self.stats = EngineStats()
        self.overflow = OverflowReport(model, autoencoder)
        self._layouts: OrderedDict[tuple[object, ...], Layout] = OrderedDict()
        self.spec = PackSpec.of(model.config, special)
        linears = {type(part) for part in model.decoder.layers[0].modules()}
        self._least_und = FEWEST_ROWS if PrepackedLinear in linears else 0
        # Fewer und tokens, the markers of one image, would be multiplied otherwise than those of several.
        self._least_with_images = FEWEST_WIDENED if WidenedLinear in linears else self._least_und

    def forward(self, batch: Sequence[ForwardOp]) -> None:
        """One forward pass over the parts of all ops; the heads, too, run once for all.

        Returns: nothing; ops that are complete are settled, with an error where a token or an
            image is not made of finite numbers.
        """
        reservations = [op.scratch or op.context.allocate(op.tokens) for op in batch]
        if all(op.output is Output.VELOCITY and op.scratch and len(op.part) == 1 for op in batch):
            results = self._denoised(batch, reservations)
        elif self.graphs.on and all(map(_writes, batch, reservations)):
            results = self._written(batch, reservations)
        else:
            results = self._packed(batch, reservations)
        self.stats.forwards += 1
        for op, reservation in zip(batch, reservations, strict=True):
            tokens = op.tokens
            if op.scratch is not None:
                self.stats.noised_tokens += tokens
            elif op.record:
                self.stats.prefill_tokens += tokens
            else:
                self.stats.written_tokens += tokens
            if op.scratch is None:
                op.committing = True
                op.context.commit(reservation, op.part, op.names if op.record else [None] * len(op.part))
            if op.advance() and not op.settled:
                op.settle(results.get(op))
            op.committing = False
            self.stats.forward_ops += 1

    def _packed(self, batch: Sequence[ForwardOp], reservations: Sequence[KVReservation]) -> dict[Op, object]:
        """The results of ops of any kinds."""
        samples = [Sample(op.part, op.context.position) for op in batch]
        layout, values = self._pack(samples), Values.of(samples, self.spec)
        attend = CachedAttention([CachedSample(s, r) for s, r in zip(layout.spans, reservations, strict=True)])
        device = self.model.device
        und, gen = self.model(layout.to(device), values.to(device), attend)

        def last(*outputs: Output) -> tuple[list[ForwardOp], list[int]]:
            """The ops that have such an output now, and the slots of their last tokens."""
            spans = zip(batch, layout.spans, strict=True)
            found = [(op, own[-1].und[1] - 1) for op, own in spans if op.output in outputs and op.ends]
            return [op for op, _ in found], [slot for _, slot in found]

        results: dict[Op, object] = {}
        ops, slots = last(Output.LOGITS, Output.TOKEN)
        if ops:
            results |= self._text_results(ops, self.model.logits(und[to_device(slots, device)]).float())
        ops, slots = last(Output.NONE)
        if ops:  # the last token has attended to all before it
            results |= dict(zip(ops, finite_rows(und[to_device(slots, device)]), strict=True))
        images = [
            (op, gen[slice(*own[-1].gen)])
            for op, own in zip(batch, layout.spans, strict=True)
            if op.output is Output.VELOCITY
        ]
        if images:
            results |= self._velocities([op for op, _ in images], [states for _, states in images])
        return results

    def _denoised(self, batch: Sequence[ForwardOp], reservations: Sequence[KVReservation]) -> dict[Op, object]:
        """The velocities of images."""
        samples = [Sample(op.part, op.context.position) for op in batch]
        key, layout = self._layout(samples)
        step = denoising(self.model, layout, Values.of(samples, self.spec), reservations, key)
        velocities, states = self.graphs.run(step)
        sizes = [spans[-1].gen[1] - spans[-1].gen[0] for spans in layout.spans]
        sizes.append(layout.gen_len - sum(sizes))  # padding
        for op, own in zip(batch, states.split_with_sizes(sizes), strict=False):
            op.hidden = own
        return dict(zip(batch, velocities.split_with_sizes(sizes), strict=False))

    def _written(self, batch: Sequence[ForwardOp], reservations: Sequence[KVReservation]) -> dict[Op, object]:
        """The next tokens of texts."""
        tokens = [op.part[0].runs[0].ids[0] for op in batch]
        step = decoding(self.model, tokens, [op.context.position for op in batch], reservations)
        (logits,) = self.graphs.run(step)
        return self._text_results(batch, logits[: len(batch)])

    def _pack(self, samples: Sequence[Sample]) -> Layout:
        """The layout of samples. Where layers are compiled for each number of slots, few different ones are used."""
        with_images = any(isinstance(segment, VaeSegment) for sample in samples for segment in sample.segments)
        least = self._least_with_images if with_images else self._least_und
        return pack_cached(samples, self.spec, least, token_bucket if self.model.decoder.compiled else None)

    def _layout(self, samples: Sequence[Sample]) -> tuple[tuple[object, ...], Layout]:
        """The layout of noised images on the model's device, which further steps of the same images share, and its
        key.
        """
        shapes = tuple((sample.position, sample.segments[0].runs[1].grid) for sample in samples)
        if shapes not in self._layouts:
            self._layouts[shapes] = self._pack(samples).to(self.model.device)
        self._layouts.move_to_end(shapes)
        if len(self._layouts) > _MAX_LAYOUTS:
            self._layouts.popitem(last=False)
        return shapes, self._layouts[shapes]

    def _text_results(self, ops: Sequence[ForwardOp], logits: torch.Tensor) -> dict[Op, object]:
        """Logits or chosen tokens after `logits` (R, vocab) float32 of the last token of each op."""
        found: dict[Op, object] = dict(zip(ops, logits, strict=True))
        choosing = [(row, op, op.choice) for row, op in enumerate(ops) if op.choice is not None]
        if choosing:
            rows = logits if len(choosing) == len(ops) else logits[[row for row, _, _ in choosing]]
            choices = [choice for _, _, choice in choosing]
            tokens = choose_tokens(rows[:, : self.vocab_size], choices)
            for (row, op, choice), token in zip(choosing, tokens, strict=True):
                if token == NOT_FINITE:
                    op.settle(error=self.overflow.error())
                    continue
                found[op] = token
                if choice.record:
                    choice.logits = logits[row].cpu()
        return found

    def velocities(self, batch: Sequence[VelocityOp]) -> None:
        """The velocity head on states that were extrapolated."""
        for op, velocity in self._velocities(batch, [op.hidden for op in batch]).items():
            op.settle(velocity)

    def _velocities(self, ops: Sequence[Op], hidden: Sequence[torch.Tensor]) -> dict[Op, object]:
        """Velocities (N, latent_dim) float32 of several images, from their hidden states (N, hidden)."""
        lengths = [states.shape[0] for states in hidden]
        found = self.model.velocity(torch.cat(list(hidden))).float().split(lengths)
        for op, states in zip(ops, hidden, strict=True):
            if isinstance(op, ForwardOp):
                op.hidden = states
        return dict(zip(ops, found, strict=True))

    def encode(self, batch: Sequence[EncodeOp]) -> None:
        """Images of one size through the encoder."""
        pixels = torch.stack([op.pixels for op in batch])
        pixels = to_device(pixels, self.model.device).to(self.autoencoder.dtype)
        latents = self.autoencoder.encode(pixels).float()
        for op, latent in zip(batch, latents, strict=True):
            op.settle(latent)
        self.stats.encoded += len(batch)

    def decode(self, batch: Sequence[DecodeOp]) -> None:
        """Latents of one size through the decoder."""
        latents = torch.stack([op.latent for op in batch])
        pixels = self.autoencoder.decode(latents.to(self.model.device, self.autoencoder.dtype)).float().cpu()
        for op, image in zip(batch, pixels, strict=True):
            if is_finite(image):
                op.settle(image)
            else:
                op.settle(error=self.overflow.error())
        self.stats.decoded += len(batch)

    # ------------------------------------------------------------------------------------------------------- memory

    def forward_bytes(self, batch: Sequence[ForwardOp]) -> int:
        """Bytes that a forward pass takes at the least."""
        decoder, dtype = self.model.config.decoder, self.model.dtype
        segments = [segment for op in batch for segment in op.part]
        und, gen = sum(segment.und_len for segment in segments), sum(segment.gen_len for segment in segments)
        new = sum(op.tokens for op in batch if op.scratch is None)
        return forward_bytes(decoder, und, gen, dtype) + cache_bytes(decoder, new, dtype)

    def image_bytes(self, pixels: int, *, decode: bool, images: int = 1) -> int:
        """Bytes that a pass of the autoencoder over so many pixels, of images of one size, takes at the least."""
        needs = decode_bytes if decode else encode_bytes
        on_cpu = self.model.device.type == "cpu"
        return needs(self.model.config.vae, pixels, self.autoencoder.dtype, images=images, on_cpu=on_cpu)

    def pixels(self, op: EncodeOp | DecodeOp) -> int:
        """Pixels of the image of an op."""
        *_, height, width = shape_of(op)
        scale = self.model.config.vae.downsample if isinstance(op, DecodeOp) else 1
        return height * width * scale**2


def _writes(op: ForwardOp, reservation: KVReservation) -> bool:
    """Whether an op is the next token of a text whose context lies in slabs."""
    alone = op.output is Output.TOKEN and not op.record and op.tokens == 1
    return alone and isinstance(op.part[0], TextSegment) and reservation.chunk.pooled


def shape_of(op: EncodeOp | DecodeOp) -> tuple[int, ...]:
    """The shape of what an op encodes or decodes."""
    return tuple(op.pixels.shape if isinstance(op, EncodeOp) else op.latent.shape)

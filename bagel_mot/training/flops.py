"""The work of a training step in floating-point operations, and with it MFU and HFU.

Counted are matmuls and attention of the network's own tokens: each expert's matrices for its tokens, the head for text
targets, the layers for latents, the vision transformer for patches, and the pairs of a query and a key that it sees.
Padding, masked pairs and the frozen autoencoder are no useful work. A matrix takes 2 operations a weight and token
forward, as many for the gradient of its input where something before it trains, and as many for its own gradient where
it trains: 6 in all where everything trains, 4 where an adapter trains beside it.

What is computed a second time for the backward pass, and what the frozen base predicts beside its adapters, counts for
HFU alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from bagel_mot.config import DecoderConfig, VitConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.sequence import CAUSAL, NOISED, Layout, SegmentSpan, TrainingLayout

_FEWEST_TIMES = 16  # timesteps that are embedded at a time, at least


@dataclass(frozen=True)
class StepFlops:
    """Operations of some training packs.

    Attributes:
        useful: the operations that MFU counts.
        recomputed: operations that are done a second time, or by the base alone.
        published: the count of the published code: 6·D·tokens + 12·layers·heads·head_dim·Σ length², D being one
            expert with the embedding and the head, for all tokens, and every sample's attention whole.
    """

    useful: float = 0.0
    recomputed: float = 0.0
    published: float = 0.0

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(
            self.useful + other.useful, self.recomputed + other.recomputed, self.published + other.published
        )


def visible_pairs(spans: Iterable[Iterable[SegmentSpan]]) -> int:
    """Pairs of a query and a key that it sees, in one layer.

    Args:
        spans: the segments of each sample, in order.
    """
    pairs = 0
    for sample in spans:
        before = 0
        for span in sample:
            n = span.length
            pairs += n * before + (n * (n + 1) // 2 if span.mode == CAUSAL else n * n)
            if span.mode != NOISED:
                before += n
    return pairs


@dataclass(frozen=True)
class _WeightCounts:
    """The numbers of weights in matrices: those that train, and those that do not."""

    trained: int
    frozen: int

    def forward(self, tokens: int) -> float:
        return 2.0 * tokens * (self.trained + self.frozen)

    def backward(self, tokens: int, *, to_input: bool) -> float:
        """Gradients of the weights that train and, with `to_input`, of what goes in."""
        return 2.0 * tokens * (self.trained + (self.trained + self.frozen if to_input else 0))


class FlopCounter:
    """Counts the operations of packs, for a network as it trains."""

    def __init__(self, model: BagelModel, *, recomputes_layers: bool, chunk: int, distils: bool = False) -> None:
        """The counts of weights are taken here.

        Args:
            model: the network, with the parameters that train chosen.
            recomputes_layers: whether decoder layers are computed again in the backward pass.
            chunk: text targets beyond which logits are computed again.
            distils: whether a pack runs forward once more, up to its velocities.
        """
        self.decoder, self.vit = model.config.decoder, model.config.vit
        self.recomputes_layers, self.chunk, self.distils = recomputes_layers, chunk, distils
        layers = cast("list[DecoderLayer]", model.decoder.layers)
        self.und = _weights(matrix for layer in layers for matrix in _matrices(layer.und))
        self.gen = _weights(matrix for layer in layers for matrix in _matrices(layer.gen))
        self.head = _weights(_matrices(model.decoder.lm_head))
        self.latent_in, self.latent_out = _weights(_matrices(model.latent_in)), _weights(_matrices(model.latent_out))
        self.time_in = _weights(_matrices(model.time_embedding.fc1))
        self.time_out = _weights(_matrices(model.time_embedding.fc2))
        self.patches = _weights(_matrices(model.vit.patch_embedding))
        self.vit_layers = _weights(matrix for layer in model.vit.layers for matrix in _matrices(layer))
        self.connector = _weights(_matrices(model.connector))
        self.vit_trains = _trains(model.vit)
        self.seen_trains = self.vit_trains or _trains(model.connector)
        drawn = (model.latent_in, model.time_embedding)
        self.inputs_train = self.seen_trains or _trains(model.decoder.embed_tokens, *drawn)
        self.layers_train = self.inputs_train or _trains(model.decoder.layers)
        self.drawn_trains, self.time_trains = _trains(*drawn), _trains(model.time_embedding)

    def count(self, layout: TrainingLayout) -> StepFlops:
        """The operations of one pack, forward and backward; read from a layout on the host."""
        gen, patches, targets = layout.latent_slots.numel(), layout.vit_slots.numel(), layout.ce_slots.numel()
        und, images = layout.num_tokens - gen, len(layout.latent_grids)
        pairs = visible_pairs(layout.spans)
        attention = attention_flops(self.decoder, pairs)
        layers = self.und.forward(und) + self.gen.forward(gen) + attention
        head = self.head.forward(targets)
        useful = layers + head + self.latent_out.forward(gen)
        if self.layers_train:
            useful += self.und.backward(und, to_input=True) + self.gen.backward(gen, to_input=True) + 2 * attention
        useful += self.head.backward(targets, to_input=self.layers_train)
        useful += self.latent_out.backward(gen, to_input=self.layers_train)
        inputs = self._drawn(gen, images) + self._seen(layout, patches)
        useful += inputs
        again = layers if self.recomputes_layers and self.layers_train else 0.0
        again += head if targets > self.chunk else 0.0
        if self.distils:  # adapters alone train then, which this pass goes without
            base = 2.0 * (und * self.und.frozen + gen * self.gen.frozen) + attention
            again += base + self.latent_out.forward(gen) + inputs
        return StepFlops(useful, again, published_flops(self.decoder, layout))

    def _drawn(self, gen: int, images: int) -> float:
        """Latents and timesteps on their way in."""
        times = max(images, _FEWEST_TIMES) if images else 0
        forward = self.latent_in.forward(gen) + self.time_in.forward(times) + self.time_out.forward(times)
        backward = self.latent_in.backward(gen, to_input=False) + self.time_in.backward(times, to_input=False)
        return forward + backward + self.time_out.backward(times, to_input=self.time_in.trained > 0)

    def _seen(self, layout: Layout, patches: int) -> float:
        """Patches through the vision transformer and the connector."""
        attention = vit_attention_flops(self.vit, layout)
        work = self.patches.forward(patches) + self.vit_layers.forward(patches) + attention
        work += self.connector.forward(patches) + self.connector.backward(patches, to_input=self.vit_trains)
        work += self.patches.backward(patches, to_input=False)
        if self.vit_trains:
            work += self.vit_layers.backward(patches, to_input=True) + 2 * attention
        return work


def attention_flops(config: DecoderConfig, pairs: int) -> float:
    """Operations of the decoder's attention forward, in all layers: scores, and the sum of values.

    Args:
        config: the decoder's configuration.
        pairs: pairs of a query and a key, in one layer.
    """
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * pairs


def vit_attention_flops(config: VitConfig, layout: Layout) -> float:
    """Operations of the vision transformer's attention forward, in all layers: full within each image."""
    return (
        4.0 * config.num_layers * config.hidden_size * sum((rows * columns) ** 2 for rows, columns in layout.vit_grids)
    )


def published_flops(config: DecoderConfig, layout: Layout) -> float:
    """The published code's count of a pack (see `StepFlops`)."""
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    attention = hidden * (2 * heads + 2 * config.num_kv_heads * config.head_dim)
    dense = config.num_layers * (3 * hidden * config.intermediate_size + attention) + 2 * config.vocab_size * hidden
    squares = sum(sum(span.length for span in sample) ** 2 for sample in layout.spans)
    return 6.0 * dense * layout.num_tokens + 12.0 * config.num_layers * heads * squares


def _matrices(module: nn.Module) -> Iterator[tuple[int, bool]]:
    """(number of weights, whether they train) of each matrix that multiplies in a module."""
    for part in module.modules():
        if hasattr(part, "base_layer"):
            continue  # an adapted map shows the weight of its base, which is a module of its own
        weight = getattr(part, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(part, nn.Embedding):
            yield weight.numel(), weight.requires_grad
        elif isinstance(part, QuantisedLinear):
            yield part.in_features * part.out_features, False


def _weights(matrices: Iterable[tuple[int, bool]]) -> _WeightCounts:
    found = list(matrices)
    return _WeightCounts(sum(n for n, trains in found if trains), sum(n for n, trains in found if not trains))


def _trains(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())

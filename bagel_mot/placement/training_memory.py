"""The memory of a training step on each device, by part, from numbers alone.

The formulas count what the model's own code keeps for the backward pass. Tests count the same in small models: the
tensors that autograd saves, and the bytes that are alive at the worst moment. They agree within 10%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.placement.estimate import DEVICE_BYTES, PROCESS_BYTES, encode_bytes

Checkpointing = Literal["none", "selective", "full"]

_MASTER = 4  # bytes of a float32 number: weights that train, their gradients, moments and averages; statistics
_GATHERED_LAYERS = 2  # one computes while the next is gathered


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """The work of one process at a time.

    Attributes:
        rows: the rows of a pack.
        und, gen: und and gen slots of all rows together.
        patches: ViT patches of a pack, at most.
        targets: text targets of a pack, at most.
        encoded_pixels: pixels that the autoencoder encodes at a time.
        dtype: the type of matmuls.
        stream: the type of the residual stream and of norms, which is that of the embedding.
        chunk: text targets whose logits are held at once.
        checkpointing: the name of the tensors that a decoder layer keeps for the backward pass.
        masked: whether attention takes its mask as a whole, and not by blocks (FlexAttention) or segments.
        vit_trains: whether a parameter of the vision transformer or before it trains.
        accumulates: whether a process adds up the gradients of several packs.
        on_cpu: whether the CPU computes.
    """

    rows: int
    und: int
    gen: int
    patches: int
    targets: int
    encoded_pixels: int
    dtype: torch.dtype
    chunk: int
    checkpointing: Checkpointing = "none"
    masked: bool = True
    vit_trains: bool = True
    accumulates: bool = False
    stream: torch.dtype = torch.float32
    on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingWeights:
    """The weights of a run, as one process holds them.

    Attributes:
        trained: the number of parameters that train.
        trained_matrices: the number of those that have one moment (Muon) instead of two (AdamW).
        frozen_bytes: bytes of the parameters that do not.
        layer_parameters: the number of parameters of one decoder layer, where it is gathered from several processes;
            0 where nothing is.
        outside_parameters: the number of parameters outside decoder layers that are gathered; 0 where nothing is.
        cast_parameters: the number of float32 parameters in a decoder layer that are cast for its matmuls.
        dequantised_bytes: bytes of the largest quantised matrix as it multiplies.
        autoencoder_bytes: bytes of the autoencoder.
        optimizer_in_host: whether the moments are in main memory.
    """

    trained: int
    trained_matrices: int = 0
    frozen_bytes: int = 0
    layer_parameters: int = 0
    outside_parameters: int = 0
    cast_parameters: int = 0
    dequantised_bytes: int = 0
    autoencoder_bytes: int = 0
    optimizer_in_host: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device, by part.

    Attributes:
        weights: all weights, those that train in float32.
        optimizer: the optimiser's moments.
        average: averaged weights (EMA).
        autoencoder: the frozen autoencoder.
        gathered: weights of the layers at work, gathered from other processes.
        context: the process or the device's context, with libraries.
        gradients: gradients of the weights that train.
        activations: tensors that are kept from the forward pass for the backward pass.
        layer: the work in one layer: what it computes again, and the gradients of activations.
        logits: the logits of one chunk of text targets, with their gradients.
        encoding: the work of the autoencoder, before the others.
        accumulates: whether gradients of another pack are there already.
    """

    weights: int
    optimizer: int
    average: int
    autoencoder: int
    gathered: int
    context: int
    gradients: int
    activations: int
    layer: int
    logits: int
    encoding: int
    accumulates: bool

    @property
    def held(self) -> int:
        """Bytes that are held all the time."""
        return self.weights + self.optimizer + self.average + self.autoencoder + self.gathered + self.context

    @property
    def total(self) -> int:
        """The most bytes at once. Activations go as gradients come."""
        before = self.gradients if self.accumulates else 0
        return self.held + max(
            before + self.encoding,
            before + self.activations + self.logits,
            before + self.activations + self.layer,
            self.gradients + self.layer,
            2 * self.gradients,  # the optimiser holds as much again
        )


def training_memory(config: BagelConfig, work: TrainingWork, weights: TrainingWeights) -> TrainingMemory:
    """The memory of a training step on one device.

    Args:
        config: the model's configuration.
        work: the work of the process.
        weights: the weights that it holds.
    """
    itemsize, trained = work.dtype.itemsize, weights.trained
    gathered = itemsize * (_GATHERED_LAYERS * weights.layer_parameters + weights.outside_parameters)
    gathered += _MASTER * weights.layer_parameters if trained else 0  # gradients of a layer, before they are shared out
    layer = work_bytes(config.decoder, work) + weights.dequantised_bytes
    if work.checkpointing != "none":
        layer += layer_saved_bytes(config.decoder, work) + _cast_bytes(work, weights)
    return TrainingMemory(
        weights=_MASTER * trained + weights.frozen_bytes,
        optimizer=0 if weights.optimizer_in_host else _MASTER * (2 * trained - weights.trained_matrices),
        average=_MASTER * trained,
        autoencoder=weights.autoencoder_bytes,
        gathered=gathered,
        context=PROCESS_BYTES if work.on_cpu else DEVICE_BYTES,
        gradients=_MASTER * trained,
        activations=saved_bytes(config, work, weights),
        layer=layer,
        logits=logits_bytes(config.decoder, min(work.targets, work.chunk), work.dtype),
        encoding=encode_bytes(config.vae, work.encoded_pixels, work.dtype),
        accumulates=work.accumulates,
    )


def saved_bytes(config: BagelConfig, work: TrainingWork, weights: TrainingWeights) -> int:
    """Bytes of the tensors that are kept from the forward pass for the backward pass, without parameters.

    Args:
        config: the model's configuration.
        work: the work of the process.
        weights: the weights that it holds.
    """
    decoder, tokens = config.decoder, work.und + work.gen
    inputs = work.stream.itemsize * decoder.hidden_size * tokens
    if work.checkpointing == "full":
        layer = inputs
    elif work.checkpointing == "selective":
        layer = inputs + _kept_results(decoder, work)
    else:
        layer = layer_saved_bytes(decoder, work) + _cast_bytes(work, weights)
    ropes = 2 * _MASTER * decoder.head_dim * tokens
    mask = work.dtype.itemsize * tokens**2 // work.rows if work.masked else 0
    # The hidden states that the heads take, their norms and what the squared error keeps.
    heads = (2 * work.stream.itemsize + work.dtype.itemsize) * decoder.hidden_size
    heads *= min(work.targets, work.und) + work.gen
    errors = 3 * _MASTER * config.latent_dim * work.gen
    vit = vit_saved_bytes(config.vit, work) if work.vit_trains else 0
    return decoder.num_layers * layer + ropes + mask + heads + errors + vit


def _cast_bytes(work: TrainingWork, weights: TrainingWeights) -> int:
    """Bytes of a layer's weights as its matmuls take them, where they are kept in float32."""
    return 0 if work.dtype == torch.float32 else work.dtype.itemsize * weights.cast_parameters


def layer_saved_bytes(config: DecoderConfig, work: TrainingWork) -> int:
    """Bytes that one decoder layer keeps of its activations, without checkpointing.

    Norms that are not one fused kernel, as on the CPU, keep their normalised values beside their inputs.
    """
    itemsize, norm = work.dtype.itemsize, (2 if work.on_cpu else 1) * work.stream.itemsize
    hidden, queries, keys = (
        config.hidden_size,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    token = 2 * hidden * (norm + itemsize)  # two norms, and what goes into the matmuls behind them
    token += norm * (queries + keys)  # norms of queries and keys
    token += itemsize * (2 * queries + 2 * keys) + _MASTER * config.num_heads  # attention, its result, its statistics
    if work.rows > 1 or (work.on_cpu and not work.masked):
        token += itemsize * queries  # rows, or segments, are joined again
    token += 4 * itemsize * config.intermediate_size  # gate, up, the activated gate, the product
    return token * (work.und + work.gen)


def _kept_results(config: DecoderConfig, work: TrainingWork) -> int:
    """Bytes that a layer keeps with selective checkpointing: results of matmuls and of attention."""
    queries, keys = _head_sizes(config)
    matmuls = queries + 2 * keys + 2 * config.intermediate_size + 2 * config.hidden_size
    attention = queries * work.dtype.itemsize + _MASTER * config.num_heads
    return (matmuls * work.dtype.itemsize + attention) * (work.und + work.gen)


def _head_sizes(config: DecoderConfig) -> tuple[int, int]:
    """The numbers of a token's queries and of its keys."""
    return config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim


def vit_saved_bytes(config: VitConfig, work: TrainingWork) -> int:
    """Bytes that the vision transformer keeps of its activations, where something in it trains."""
    itemsize = work.dtype.itemsize
    patch = (2 * _MASTER + 7 * itemsize) * config.hidden_size + 2 * itemsize * config.intermediate_size
    return (config.num_layers * patch + itemsize * config.patch_dim) * work.patches


def work_bytes(config: DecoderConfig, work: TrainingWork) -> int:
    """Bytes alive in a layer's backward pass beside what was kept: gradients of the widest part, and of the residual
    stream.
    """
    widest = 3 * work.dtype.itemsize * config.intermediate_size * max(work.und, work.gen)
    return widest + 2 * work.stream.itemsize * config.hidden_size * (work.und + work.gen)


def logits_bytes(config: DecoderConfig, targets: int, dtype: torch.dtype) -> int:
    """Bytes alive while the logits of some targets become a loss: as matmuls give them, in float32 with their gradient,
    or both their logarithms.
    """
    narrow = dtype.itemsize if dtype != torch.float32 else 0
    return targets * config.vocab_size * (2 * _MASTER + narrow)

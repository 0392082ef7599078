"""The roofline: the matmuls of a forward pass alone, with exactly the same shapes and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer, Expert
from bagel_mot.model.joined import JoinedLinear
from bagel_mot.model.prepacked import PrepackedLinear

Linear = nn.Linear | PrepackedLinear | JoinedLinear


@dataclass(frozen=True)
class ForwardTokens:
    """Numbers of tokens that a measured piece of work sends through each part of the decoder.

    Attributes:
        und, gen: tokens of each expert, in every layer.
        logits: tokens whose logits are computed.
        latents: tokens whose velocity is computed.
        attended: pairs of a query and a key it sees, summed over all queries (one layer).
        backward: whether the gradients of inputs and weights are computed too, which is twice the work again.
    """

    und: int = 0
    gen: int = 0
    logits: int = 0
    latents: int = 0
    attended: int = 0
    backward: bool = False


def _linears(expert: Expert) -> tuple[Linear, ...]:
    qkv = (expert.q, expert.k, expert.v) if expert.qkv is None else (expert.qkv,)
    gate_up = (expert.gate, expert.up) if expert.gate_up is None else (expert.gate_up,)
    return *qkv, expert.o, *gate_up, expert.down


def matmuls(model: BagelModel, work: ForwardTokens) -> list[tuple[int, Linear]]:
    """(tokens, linear map) of every matmul, in the order of the forward pass."""
    found: list[tuple[int, Linear]] = []
    if work.latents:
        found.append((work.latents, model.latent_in))
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        for tokens, expert in ((work.und, layer.und), (work.gen, layer.gen)):
            if tokens:
                found += [(tokens, linear) for linear in _linears(expert)]
    if work.logits:
        found.append((work.logits, model.decoder.lm_head))
    if work.latents:
        found.append((work.latents, model.latent_out))
    return found


def flops(model: BagelModel, work: ForwardTokens) -> float:
    """Floating-point operations of the matmuls and of attention (scores and values)."""
    config = model.config.decoder
    attention = 4.0 * work.attended * config.num_heads * config.head_dim * len(model.decoder.layers)
    return matmul_flops(model, work) + attention * (3 if work.backward else 1)


def matmul_flops(model: BagelModel, work: ForwardTokens) -> float:
    """Floating-point operations of the matmuls alone."""
    once = sum(2.0 * tokens * linear.in_features * linear.out_features for tokens, linear in matmuls(model, work))
    return once * (3 if work.backward else 1)


def roofline(model: BagelModel, work: ForwardTokens) -> Callable[[], None]:
    """A call that runs the matmuls of `work` and nothing else, with the model's own weights, prepacked or plain.

    Inputs are made beforehand, one for each width.
    """
    listed = matmuls(model, work)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=model.dtype, device=model.device)

    inputs = {(tokens, linear.in_features): random(tokens, linear.in_features) for tokens, linear in listed}
    trained = listed if work.backward else []
    outputs = {(tokens, linear.out_features): random(tokens, linear.out_features) for tokens, linear in trained}

    @torch.no_grad()
    def run() -> None:
        for tokens, linear in listed:
            x = inputs[tokens, linear.in_features]
            linear(x)
            if work.backward:
                assert isinstance(linear, nn.Linear), "only plain weights are trained"
                gradient = outputs[tokens, linear.out_features]
                gradient @ linear.weight
                gradient.T @ x

    return run

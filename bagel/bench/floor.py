"""What the machine itself can do: the matmuls of a forward pass alone, of exactly the same shapes and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel.model.bagel import BagelModel
from bagel.model.decoder import DecoderLayer, Expert


@dataclass(frozen=True)
class Work:
    """Tokens that a measured piece of work runs through each part of the decoder.

    Attributes:
        und, gen: tokens of each expert, in every layer.
        logits: tokens whose logits are computed.
        latents: tokens whose velocity is computed.
        attended: pairs of a query and a key it sees, summed over all queries (one layer).
        backward: whether gradients are computed too: of the inputs and of the weights, twice the work again.
    """

    und: int = 0
    gen: int = 0
    logits: int = 0
    latents: int = 0
    attended: int = 0
    backward: bool = False


def _linears(expert: Expert) -> tuple[torch.nn.Linear, ...]:
    return expert.q, expert.k, expert.v, expert.o, expert.gate, expert.up, expert.down


def matmuls(model: BagelModel, work: Work) -> list[tuple[int, Tensor]]:
    """(tokens, weight) of every matmul, in the order of the forward pass."""
    found: list[tuple[int, Tensor]] = []
    if work.latents:
        found.append((work.latents, model.latent_in.weight))
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        for tokens, expert in ((work.und, layer.und), (work.gen, layer.gen)):
            if tokens:
                found += [(tokens, linear.weight) for linear in _linears(expert)]
    if work.logits:
        found.append((work.logits, model.decoder.lm_head.weight))
    if work.latents:
        found.append((work.latents, model.latent_out.weight))
    return found


def flops(model: BagelModel, work: Work) -> float:
    """Multiplications and additions of the matmuls and of attention (scores and values)."""
    linear = sum(2.0 * tokens * weight.numel() for tokens, weight in matmuls(model, work))
    config = model.config.decoder
    attention = 4.0 * work.attended * config.num_heads * config.head_dim * len(model.decoder.layers)
    return (linear + attention) * (3 if work.backward else 1)


def matmul_flops(model: BagelModel, work: Work) -> float:
    """The matmuls alone."""
    return sum(2.0 * tokens * weight.numel() for tokens, weight in matmuls(model, work)) * (3 if work.backward else 1)


def floor(model: BagelModel, work: Work) -> Callable[[], None]:
    """A call that runs the matmuls of `work` and nothing else. Inputs are made beforehand, one for each width."""
    listed = matmuls(model, work)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=model.dtype, device=model.device)

    inputs = {(tokens, w.shape[1]): random(tokens, w.shape[1]) for tokens, w in listed}
    outputs = {(tokens, w.shape[0]): random(tokens, w.shape[0]) for tokens, w in listed if work.backward}

    def run() -> None:
        for tokens, weight in listed:
            x = inputs[tokens, weight.shape[1]]
            F.linear(x, weight)
            if work.backward:
                gradient = outputs[tokens, weight.shape[0]]
                gradient @ weight
                gradient.T @ x

    return run

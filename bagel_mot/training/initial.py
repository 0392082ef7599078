"""The values that a new model begins with, part by part: each process of several makes what it keeps, and all together
have what one process makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bagel_mot.checkpoint.names import POSITION_TABLES
from bagel_mot.config import BagelConfig
from bagel_mot.model.bagel import BagelModel, sincos_table
from bagel_mot.model.without_values import without_values

_ZERO = ("decoder.lm_head.weight", "latent_out.weight")


class InitialValues:
    """Normal weights of deviation 1/√fan_in, zero biases, unit norms; the gen expert starts as a copy of the und
    expert.

    What writes into the residual stream (o, down) starts smaller by √(2·layers), and both output heads start at zero,
    so that the first predictions are uniform text and zero velocity.

    The weights are drawn one after another from one generator. Whoever wants a part of one draws those before it, too,
    and keeps one tensor at a time.
    """

    def __init__(self, config: BagelConfig, seed: int) -> None:
        with without_values():
            model = BagelModel(config)
        residual = (2 * config.decoder.num_layers) ** -0.5
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._deviations: dict[str, float] = {}  # for each weight that is drawn, in their order
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                scale = module.in_features**-0.5
                self._deviations[f"{name}.weight"] = scale * residual if name.endswith((".o", ".down")) else scale
            elif isinstance(module, nn.Embedding):
                # As large as the fixed sin-cos tables (unit scale), so that neither drowns the other.
                self._deviations[f"{name}.weight"] = 0.5
        self._generator = torch.Generator().manual_seed(seed)
        self._left = list(self._deviations)[::-1]  # the weights that are not drawn yet, the next one last
        self._states: dict[str, Tensor] = {}  # the generator's state before each of the others

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor, float32, in memory of its own.

        Args:
            name: the name of the tensor in a `BagelModel`.
            offsets: the place of the part's first entry along each axis.
            sizes: its entries along each axis.
        """
        part = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
        return self._whole(name)[part].clone(memory_format=torch.contiguous_format)

    def close(self) -> None:
        """Does nothing: no file is open."""

    def _whole(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name in POSITION_TABLES:
            return sincos_table(round(shape[0] ** 0.5), shape[1])
        if name in _ZERO:
            return torch.zeros(shape)
        if ".gen." in name:
            return self._whole(name.replace(".gen.", ".und."))
        if name in self._deviations:
            return self._drawn(name)
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)

    def _drawn(self, name: str) -> Tensor:
        while name not in self._states:
            before = self._left.pop()
            self._states[before] = self._generator.get_state()
            values = self._draw(before, self._generator)
            if before == name:
                return values
        again = torch.Generator()
        again.set_state(self._states[name])
        return self._draw(name, again)

    def _draw(self, name: str, generator: torch.Generator) -> Tensor:
        return torch.empty(self._shapes[name]).normal_(0.0, self._deviations[name], generator=generator)


@torch.no_grad()
def initialise(model: BagelModel, seed: int) -> None:
    """Gives a model its initial values, all of them."""
    values = InitialValues(model.config, seed)
    for name, tensor in model.state_dict().items():
        tensor.copy_(values.read(name, (0,) * tensor.ndim, tensor.shape))

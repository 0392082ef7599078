"""Adapters beside the matrices of a model, by the package peft, which keeps their ranks, scales, initial values and
names.

The layer here is one of peft's kind for every linear map of this model: plain, quantised (QLoRA) or prepacked. An
adapter's numbers (its master) are float32 in training whatever the precision of the base; it multiplies in the
precision of the activations.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.model.adapters import Adapter, MatrixAdapter
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer
from bagel_mot.model.joined import separate
from bagel_mot.model.prepacked import PrepackedLinear
from bagel_mot.model.quant.linear import QuantisedLinear

# peft looks for torchao and bitsandbytes, which log a warning for each kernel that this machine has no use for.
_level = logging.root.manager.disable
logging.disable(logging.WARNING)
from peft import LoraConfig  # noqa: E402
from peft.tuners import lora  # noqa: E402

logging.disable(_level)

ROWS = 1 << 10
"""The rows of a plain weight that are widened at a time."""


class MatrixShape(NamedTuple):
    """The rank and α of a matrix's new adapter."""

    rank: int
    alpha: float


class _Magnitude(nn.Module):
    """DoRA's magnitudes of a matrix's rows, under the name that peft has for them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class _Dora(lora.layer.LoraVariant):
    """Tells peft how DoRA begins here; `AdaptedLinear` computes it."""

    @staticmethod
    def init(module: lora.LoraLayer, adapter_name: str, **_: Any) -> None:
        """Gives an adapter the magnitudes of the rows as they are."""
        assert isinstance(module, AdaptedLinear)
        if "row_squares" not in module._buffers:
            module.register_buffer("row_squares", row_squares(module.base_layer))
        module.lora_magnitude_vector[adapter_name] = _Magnitude(module.row_squares.sqrt())


class AdaptedLinear(lora.Linear):
    """A linear map with adapters.

    DoRA needs the norms of the rows of W + s·B·A in every step of training. They are worked out from those of W, which
    never change, and W·Aᵀ, a product like any other: the matrix itself is not needed, however it is stored.

    Attributes:
        base_layer: the map without adapters.
        strengths: the factors of the changes that adapters make, by their names.
    """

    base_layer: Any
    row_squares: Tensor  # (out,) float32, the squared norms of the rows of the matrix; only with DoRA

    def __init__(self, base: nn.Module, name: str, config: LoraConfig, shape: MatrixShape) -> None:
        super().__init__(base, name, config=config, r=shape.rank, lora_alpha=config.lora_alpha)
        self.strengths: dict[str, float] = {}
        self._gains: dict[str, Tensor] = {}  # DoRA's, while nothing trains

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return cast(int, module.in_features), cast(int, module.out_features)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        return {(): None, ("use_dora",): _Dora}

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft would cast to the type of the base's weight, too.
        place = device or next(iter((*self.base_layer.buffers(), *self.base_layer.parameters())), torch.empty(0)).device
        if place.type != "meta":  # where values are still to come; the adapter's are here
            for part in (self.lora_A, self.lora_B):
                part[adapter_name].to(place)

    def factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A (rank, in) and B (out, rank) of an adapter."""
        return cast(nn.Parameter, self.lora_A[name].weight), cast(nn.Parameter, self.lora_B[name].weight)

    def magnitude(self, name: str) -> nn.Parameter:
        """DoRA's magnitudes of an adapter, (out,)."""
        return cast(nn.Parameter, self.lora_magnitude_vector[name].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)"""
        base: Tensor = self.base_layer(x)
        result = base
        for name in self.active_adapters:
            if name in self.lora_A:
                result = result + self._change(name, x, base)
        return result

    def _change(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        """The change that an adapter makes to `base` (T, out), the products of x (T, in) with the matrix."""
        dropped = self.lora_dropout[name](x)
        strength = self.strengths.get(name, 1.0)
        low = _multiply(self.lora_B[name], _multiply(self.lora_A[name], dropped)) * (self.scaling[name] * strength)
        if name not in self.lora_magnitude_vector:
            return low.to(base.dtype)
        gain = self._gain(name)
        products = self._products(dropped) if dropped is not x else self._without_bias(base)
        # The difference from 1 is small: it is worked out before it is rounded.
        return (strength * (gain - 1)).to(base.dtype) * products + gain.to(base.dtype) * low.to(base.dtype)

    def _gain(self, name: str) -> Tensor:
        """DoRA's factor of each row, m / ‖W + s·B·A‖: (out,) float32. As its authors have it, the norm is a constant to
        the gradient.
        """
        if self.training or torch.is_grad_enabled():
            self._gains.clear()
            return own_part(self.magnitude(name)).float() / self._row_norms(name)
        if name not in self._gains:
            self._gains[name] = own_part(self.magnitude(name)).float() / self._row_norms(name)
        return self._gains[name]

    @torch.no_grad()
    def _row_norms(self, name: str) -> Tensor:
        """‖W + s·B·A‖ of each row, (out,) float32."""
        down, up = (factor.float() for factor in self.factors(name))
        scale = self.scaling[name]
        with torch.autocast(down.device.type, enabled=False):
            inner = down @ down.T
            inner = inner.full_tensor() if hasattr(inner, "full_tensor") else inner  # A may be divided by its inputs
            down, up = own_part(down), own_part(up)
            crossed = self._products(down.to(_input_type(self.base_layer))).float().T  # W·Aᵀ, (out, rank)
            squares = own_part(self.row_squares) + 2 * scale * (crossed * up).sum(1)
            return (squares + scale**2 * ((up @ inner) * up).sum(1)).clamp_(min=0).sqrt()

    def _products(self, x: Tensor) -> Tensor:
        """x with the matrix alone."""
        return self._without_bias(self.base_layer(x))

    def _without_bias(self, products: Tensor) -> Tensor:
        bias = getattr(self.base_layer, "bias", None)
        return products if bias is None else products - own_part(bias)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor of any shape that is divided among several, and its gradient; the tensor itself
    elsewhere.
    """
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor


def _multiply(factor: Any, x: Tensor) -> Tensor:
    """A factor of an adapter, whose master may be float32, applied in the type of the activations x."""
    if factor.weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return cast(Tensor, factor(x))  # the module itself, which several processes may share
    return F.linear(x, factor.weight.to(x.dtype))


def _input_type(base: nn.Module) -> torch.dtype:
    """The type of the activations that a linear map takes."""
    return cast(torch.dtype, base.dtype if isinstance(base, QuantisedLinear) else base.weight.dtype)


@torch.no_grad()
def row_squares(base: nn.Module) -> Tensor:
    """The squared norms of the rows of a linear map's matrix, (out,) float32; without values where that has none."""
    if isinstance(base, QuantisedLinear):
        blocks = (base.matrix.dequantise(torch.float32, start, stop) for start, stop in base.matrix.blocks())
        return torch.cat([block.square().sum(1) for block in blocks])
    weight = cast(Tensor, base.weight)
    if weight.is_meta:
        return weight.new_empty(weight.shape[0], dtype=torch.float32)
    weight = weight.to_dense() if isinstance(base, PrepackedLinear) else weight.detach()
    return torch.cat([rows.float().square().sum(1) for rows in weight.split(ROWS)])


def add_new_adapter(
    model: BagelModel,
    name: str,
    shapes: Mapping[str, MatrixShape],
    *,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
) -> None:
    """Gives a model an adapter that changes nothing yet: A is random (uniform, as `nn.Linear`), B is zero.

    Args:
        model: the model, whose linear maps that are adapted become `AdaptedLinear`.
        name: the adapter's name, without dots.
        shapes: the rank and α of each matrix, by our name of its linear map.
        dropout: the share of an adapter's inputs that is dropped while it trains.
        rslora: divide α by √rank instead of the rank.
        dora: train magnitudes of rows, too.
    """
    for place, shape in shapes.items():
        config = LoraConfig(
            r=shape.rank, lora_alpha=cast(int, shape.alpha), lora_dropout=dropout, use_rslora=rslora, use_dora=dora
        )  # fmt: skip
        found = model.get_submodule(place)
        if isinstance(found, AdaptedLinear):
            found.update_layer(name, shape.rank, lora_alpha=config.lora_alpha, config=config)
            continue
        parent, _, leaf = place.rpartition(".")
        owner = model.get_submodule(parent)
        separate(owner, leaf)
        adapted = AdaptedLinear(getattr(owner, leaf), name, config, shape)
        adapted.train(found.training)
        setattr(owner, leaf, adapted)


@torch.no_grad()
def measure_rows(model: BagelModel, name: str, blocks: Callable[[str], Iterable[Tensor]]) -> None:
    """Gives DoRA what it needs of matrices that are still without values.

    Args:
        model: the model with a new adapter.
        name: the adapter's name.
        blocks: gives a matrix (out, in), by our name of its linear map, in blocks (some of its rows, in).
    """
    for place, layer in adapted_layers(model, name):
        if name in layer.lora_magnitude_vector:
            layer.row_squares = torch.cat([rows.float().square().sum(1) for rows in blocks(place)])
            layer.lora_magnitude_vector[name] = _Magnitude(layer.row_squares.sqrt())


def add_adapter(model: BagelModel, name: str, adapter: Adapter) -> None:
    """Gives a model for inference an adapter with its numbers, in the precision of the activations, on the device on
    which each layer computes. Matrices that the model was loaded without are left out.

    Args:
        model: the model.
        name: the adapter's name, without dots.
        adapter: the adapter, of matrices that a model of this shape has.
    """
    here = {place: matrix for place, matrix in adapter.matrices.items() if _has(model, place)}
    for place, matrix in here.items():
        dora = matrix.magnitude is not None
        shape = {place: MatrixShape(matrix.rank, matrix.alpha)}
        add_new_adapter(model, name, shape, rslora=adapter.rslora, dora=dora)
        layer, device = cast(AdaptedLinear, model.get_submodule(place)), _device(model, place)
        _fill(layer, name, matrix)
        for part in (layer.lora_A, layer.lora_B):
            part[name].to(device, model.dtype)
        if dora:
            layer.lora_magnitude_vector[name].to(device)
        layer.requires_grad_(False)


def fill_adapter(model: BagelModel, name: str, adapter: Adapter) -> None:
    """Puts numbers into an adapter that a model has, whose master stays float32.

    Raises:
        ValueError: the two are not of the same matrices, ranks and scales.
    """
    layers = dict(adapted_layers(model, name))
    if layers.keys() != adapter.matrices.keys():
        differing = sorted(layers.keys() ^ adapter.matrices.keys())
        raise ValueError(f"only one of them adapts {differing[0]}")
    for place, matrix in adapter.matrices.items():
        layer = layers[place]
        if (layer.r[name], name in layer.lora_magnitude_vector) != (matrix.rank, matrix.magnitude is not None):
            raise ValueError(f"the rank of {place} is {matrix.rank}, and {layer.r[name]} is asked for; or DoRA differs")
        scale, asked = matrix.scale(adapter.rslora), layer.scaling[name]
        if not math.isclose(scale, asked, rel_tol=1e-6):
            raise ValueError(
                f"the scale of {place}, α / rank or with rsLoRA α / √rank, is {scale:.4g}, and {asked:.4g} is asked for"
            )
        _fill(layer, name, matrix)


@torch.no_grad()
def _fill(layer: AdaptedLinear, name: str, matrix: MatrixAdapter) -> None:
    for factor, numbers in zip(layer.factors(name), (matrix.down, matrix.up), strict=True):
        factor.copy_(numbers)
    if matrix.magnitude is not None:
        layer.magnitude(name).copy_(matrix.magnitude)


def remove_adapter(model: BagelModel, name: str) -> None:
    """Takes an adapter away; linear maps that have no other are again as they were."""
    for place, layer in list(adapted_layers(model, name)):
        layer._active_adapter = [other for other in layer.active_adapters if other != name]
        layer.delete_adapter(name)
        layer._gains.pop(name, None)
        if not layer.lora_A:
            parent, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.base_layer)


def set_strengths(model: BagelModel, strengths: Mapping[str, float]) -> None:
    """Lets adapters of a model change what it does, each by its strength; those at 0, or not named, are off."""
    active = [name for name, strength in strengths.items() if strength]
    for _, layer in adapted_layers(model):
        layer._active_adapter = [name for name in active if name in layer.lora_A]
        layer.strengths = dict(strengths)


def adapted_layers(model: BagelModel, name: str | None = None) -> Iterator[tuple[str, AdaptedLinear]]:
    """The linear maps of a model that have adapters, or the adapter of this name, with our names."""
    for place, module in model.named_modules():
        if isinstance(module, AdaptedLinear) and (name is None or name in module.lora_A):
            yield place, module


def _has(model: BagelModel, place: str) -> bool:
    """Whether a model has a linear map: parts that its tasks do not need are None."""
    module: Any = model
    for part in place.split("."):
        module = getattr(module, part, None)
    return module is not None


def _device(model: BagelModel, place: str) -> torch.device:
    """The device on which a linear map computes, which may not be the one that holds its weights."""
    if place.startswith("decoder.layers."):
        return cast(DecoderLayer, model.decoder.layers[int(place.split(".")[2])]).device
    return model.device

"""Training adapters alone: the section `lora` of a recipe, and what it makes of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from bagel_mot.checkpoint.adapters import read_adapter
from bagel_mot.checkpoint.parts import ModelParts
from bagel_mot.checkpoint.precision import Precision
from bagel_mot.config import Count, Decay, Flag, Positive, Section, must_be
from bagel_mot.errors import RecipeError
from bagel_mot.inference.loading import find_adapter
from bagel_mot.installation import install_command
from bagel_mot.model.adapters import EXPERT_MATRICES, Adapter, ExpertMatrix, MatrixAdapter
from bagel_mot.model.attention import Attention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.training.objective import NoisedPack, OwnTargets, predict_velocities

NAME = "default"
"""The name that a trained adapter has in the network, as peft calls it."""
_ExpertName = Literal["und", "gen"]
_OneOrSeveral = BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
_ExpertNames = Annotated[
    tuple[_ExpertName, ...],
    Field(min_length=1),
    _OneOrSeveral,
    must_be("a list of und and gen, or one of them"),
]
_Matrices = Annotated[
    tuple[ExpertMatrix, ...],
    Field(min_length=1),
    _OneOrSeveral,
    must_be(f"a list of {', '.join(EXPERT_MATRICES)}"),
]


@dataclass(frozen=True, kw_only=True)
class ExpertAdapterConfig(Section):
    """The differences of one expert's adapters; None: as for both."""

    rank: Count | None = None
    alpha: Positive | None = None
    targets: _Matrices | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """The adapters that `trainable: lora` trains. Their learning rates are the optimiser's (`optimizer.lr_of` sets one
    for each expert).
    """

    experts: _ExpertNames = ("und", "gen")
    rank: Count = 32
    alpha: Positive = 64.0
    targets: _Matrices = EXPERT_MATRICES
    und: ExpertAdapterConfig | None = None
    gen: ExpertAdapterConfig | None = None
    dropout: Decay = 0.0
    use_rslora: Flag = False
    use_dora: Flag = False
    base: Literal["int8", "fp8", "int4", "nf4"] | None = None  # QLoRA: the frozen matrices' format; None: `precision`
    init: str | None = None  # the folder of an adapter to go on from, of the same ranks

    def __post_init__(self) -> None:
        for expert in ("und", "gen"):
            if getattr(self, expert) is not None and expert not in self.experts:
                raise ValueError(
                    f"{expert} changes adapters of an expert that has none: experts is {list(self.experts)}"
                )

    def of(self, expert: _ExpertName) -> tuple[int, float, tuple[str, ...]]:
        """The rank, α and matrices of an expert's adapters."""
        own = getattr(self, expert) or ExpertAdapterConfig()
        return own.rank or self.rank, own.alpha or self.alpha, own.targets or self.targets


def base_precision(config: AdapterConfig, activations: torch.dtype) -> Precision:
    """The precision of a frozen base: it computes in `activations`, and its big matrices are as the recipe says."""
    parts = {} if config.base is None else {"decoder": config.base}
    return Precision(activations, MappingProxyType(parts))


def add_adapters(model: BagelModel, config: AdapterConfig, parts: ModelParts | None = None) -> None:
    """Freezes a model and gives it the adapters of a recipe, which train.

    Args:
        model: the model.
        config: the adapters.
        parts: the parts of the model's values, where it has none yet. The adapters have theirs all the same.

    Raises:
        RecipeError: the package peft is missing, or the adapter to go on from is of other ranks or matrices.
        CheckpointError: that adapter cannot be read, or is of another model.
    """
    try:
        from bagel_mot.model.lora import ROWS, MatrixShape, add_new_adapter, fill_adapter, measure_rows
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "bagel_mot":
            raise
        raise RecipeError(f"adapters need {error.name}: run {install_command('train')}") from error

    model.requires_grad_(False)
    shapes: dict[str, MatrixShape] = {}
    for expert in config.experts:
        rank, alpha, matrices = config.of(expert)
        for layer in range(model.config.decoder.num_layers):
            shapes |= {f"decoder.layers.{layer}.{expert}.{matrix}": MatrixShape(rank, alpha) for matrix in matrices}
    add_new_adapter(
        model, NAME, shapes, dropout=config.dropout, rslora=config.use_rslora, dora=config.use_dora
    )  # fmt: skip
    if parts is not None and config.use_dora:
        dtype = model.dtype

        def blocks(place: str) -> Iterator[Tensor]:
            return (block.to(dtype) for block in parts.blocks(f"{place}.weight", ROWS))

        measure_rows(model, NAME, blocks)
    if config.init is not None:
        begun = read_adapter(find_adapter(config.init), model.config)
        try:
            fill_adapter(model, NAME, begun)
        except ValueError as error:
            raise RecipeError(
                f"lora.init: the adapter in {config.init} is not what this recipe trains: {error}"
            ) from error


def base_velocities(model: BagelModel, noised: NoisedPack, attend: Attention, own: OwnTargets | None = None) -> Tensor:
    """The velocities that the frozen base predicts, without its adapters. Arguments as `predict_velocities`."""
    from bagel_mot.model.lora import set_strengths

    set_strengths(model, {})
    try:
        return predict_velocities(model, noised, attend, own)
    finally:
        set_strengths(model, {NAME: 1.0})


def trained_adapter(model: BagelModel, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter of a model in training.

    Args:
        model: the model.
        config: its adapters.
        tensors: the numbers by the parameters' names in the model, such as their averages.
    """
    from bagel_mot.model.lora import adapted_layers

    matrices = {
        place: MatrixAdapter(
            tensors[f"{place}.lora_A.{NAME}.weight"],
            tensors[f"{place}.lora_B.{NAME}.weight"],
            layer.lora_alpha[NAME],
            tensors.get(f"{place}.lora_magnitude_vector.{NAME}.weight"),
        )
        for place, layer in adapted_layers(model, NAME)
    }
    return Adapter(matrices, config.use_rslora)

"""Training recipes: one a run, whose sections are the configurations of what it trains.

Recipes are YAML files (`bagel_mot.training.recipe_files`). Every value can be overridden on the command line as
`key=value`, nested keys with dots (`optimizer.lr=1e-3`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SerializeAsAny, TypeAdapter
from pydantic.dataclasses import dataclass

from bagel_mot.config import (
    Count,
    Decay,
    DecoderConfig,
    Flag,
    NotNegative,
    Positive,
    Section,
    VaeConfig,
    VitConfig,
    must_be,
)
from bagel_mot.data.documents import Dropout
from bagel_mot.errors import RecipeError
from bagel_mot.files import user_path
from bagel_mot.inference.loading import choose_device
from bagel_mot.model.widened import product_dtype
from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.threads import MOST_THREADS
from bagel_mot.training.lora import AdapterConfig
from bagel_mot.training.optimizer import OptimizerConfig, ScheduleConfig
from bagel_mot.training.replay import ReplayConfig
from bagel_mot.training.sizes import AnyPack, MaxSides, read_pack
from bagel_mot.training.trainable import LORA, PRESETS
from bagel_mot.training.validation import DataSection, ValidationConfig
from bagel_mot.training.wandb_board import WandbConfig

_Folder = Annotated[Path, must_be("the name of a folder"), AfterValidator(lambda path: user_path(path, RecipeError))]
_Pack = Annotated[SerializeAsAny[AnyPack], PlainValidator(read_pack)]
_Patterns = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    must_be(f"{', '.join(PRESETS)}, {LORA}, or a list of these and of patterns such as connector.*"),
]
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63), must_be("a whole number from 0 to 2⁶³ − 1")]
_ThreadCount = Annotated[
    int, Field(strict=True, ge=1, le=MOST_THREADS), must_be(f"a whole number from 1 to {MOST_THREADS}")
]
_Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False), must_be("a number of 1 or more")]


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """The type in which a network computes.

    Args:
        precision: the recipe's; "auto" is bfloat16, but float32 on processors that are clearly slower in bfloat16.
        device: the kind of device.
    """
    if precision == "auto":
        return product_dtype(torch.bfloat16, device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """The keys of every run."""

    # Keys that a run that has begun cannot change: its weights, or its place in the data, would lose their meaning.
    fixed: ClassVar[frozenset[str]] = frozenset({"seed", "packs_per_step", "optimizer.name", "trainable"})

    # Keys within a fixed section that a run may change all the same.
    free: ClassVar[frozenset[str]] = frozenset({"data.workers"})

    output: _Folder
    profile: str | None = None  # the profile of the recipe's file that was taken
    seed: _Seed = 0
    steps: Count
    packs_per_step: Count | None = None  # streams of data; by default one for each data-parallel process
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    compile: Flag = False
    threads: _ThreadCount | None = None
    trainable: _Patterns = ("*",)  # presets, or patterns of names of parameters; the others stay as they are
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Decay = 0.9999
    log_every: Count = 10
    save_every: Count = 1000
    save_async: Flag = True  # checkpoints are written beside the training, from a copy in main memory
    keep: Count = 2  # newest checkpoints kept
    sample_every: Count = 1000
    validation: ValidationConfig | None = None
    wandb: WandbConfig | None = None
    peak_tflops: Positive | None = None  # 10¹² operations a second of a device; by default as its name tells

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the network computes on this machine.

        Raises:
            DeviceError: there is no such device.
        """
        return compute_dtype(self.precision, choose_device(self.device).type)

    def stored(self) -> dict[str, Any]:
        """The recipe as JSON, for a checkpoint to keep; without the folder, which may be moved."""
        stored = TypeAdapter(type(self)).dump_python(self, mode="json")
        del stored["output"]
        return stored

    def check_resumes(self, begun: dict[str, Any]) -> None:
        """Checks that a run can go on with this recipe.

        Args:
            begun: the recipe that a checkpoint keeps; keys that it lacks are of a later version, and not compared.

        Raises:
            RecipeError: if something differs that a run cannot change.
        """
        changes = [
            f"{key} was {before!r} and is now {now!r}"
            for key, before, now in _differences(self, self.stored(), begun)
            if key not in self.free and (key in self.fixed or key.partition(".")[0] in self.fixed)
        ]
        if changes:
            raise RecipeError(
                f"the run in {self.output} was begun with another recipe ({', '.join(changes)}): "
                "go on with the values it has, or give another output"
            )


def _differences(
    section: Section, now: dict[str, Any], begun: dict[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of all that differs."""
    for name, value in now.items():
        if name not in begun or begun[name] == value:
            continue
        if isinstance(inner := getattr(section, name), Section) and isinstance(begun[name], dict):
            yield from _differences(inner, value, begun[name], f"{within}{name}.")
        else:
            yield within + name, begun[name], value


def _need_a_start(init: str | None, model: Section | None) -> None:
    if (init is None) == (model is None):
        raise ValueError("either init (a checkpoint to start from) or model (a new one) is needed, and not both")


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe):
    """The autoencoder: L1, squared error and a small KL term.

    Its latent is scaled to unit variance at every save, unless some of its parameters stay as they are.
    """

    fixed: ClassVar[frozenset[str]] = Recipe.fixed | {"kind", "init", "model", "z_channels", "data", "batch_size"}

    kind: Literal["autoencoder"] = "autoencoder"
    init: str | None = None  # a checkpoint with an autoencoder to start from
    model: VaeConfig | None = None  # a new one's shape
    z_channels: Count | None = None  # widens the latent of `init`
    data: DataSection
    batch_size: Count = 32
    l1_weight: NotNegative = 1.0
    mse_weight: NotNegative = 1.0
    peak_weight: NotNegative = 0.0  # weighs what an error, averaged over 3 × 3 pixels, exceeds the unnoticeable by
    kl_weight: NotNegative = 1e-4
    latent_noise: NotNegative = 0.0  # largest noise added to a latent, in deviations of its channel
    mask_weight: _Factor = 1.0  # weighs errors where the source's mask is

    def __post_init__(self) -> None:
        _need_a_start(self.init, self.model)
        if LORA in self.trainable:
            raise ValueError("trainable is lora, for the matrices of experts; an autoencoder has none")
        if self.optimizer.name == "muon":
            raise ValueError("optimizer.name is 'muon', for matrices in layers; an autoencoder has none: take 'adamw'")
        if self.z_channels is not None and self.init is None:
            raise ValueError("z_channels widens the latent of init; a new autoencoder has model.z_channels")


@dataclass(frozen=True, kw_only=True)
class NewModel(Section):
    """A model to be built from nothing; its tokenizer is trained on the texts of the data.

    `decoder.vocab_size` is the most tokens that the tokenizer may learn. The position table after the connector is as
    large as the ViT's own.
    """

    decoder: DecoderConfig
    vit: VitConfig
    max_latent_size: Count = 64

    def __post_init__(self) -> None:
        if self.decoder.vocab_size <= 300:
            raise ValueError(
                f"decoder.vocab_size is {self.decoder.vocab_size}; it must be above 300: 256 bytes come first"
            )


@dataclass(frozen=True, kw_only=True)
class BagelRecipe(Recipe):
    """The unified model."""

    fixed: ClassVar[frozenset[str]] = Recipe.fixed | {
        "kind", "init", "autoencoder", "model", "defaults", "data", "pack", "max_sides", "dropout", "lora", "replay"
    }  # fmt: skip

    kind: Literal["bagel"] = "bagel"
    init: str | None = None  # a checkpoint to start from
    model: NewModel | None = None
    autoencoder: str | None = None  # a checkpoint that has one; by default that of `init`
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)  # changes to the checkpoint's bagel_defaults.json
    data: DataSection
    pack: _Pack  # in slots, in images and text, or by the published loop
    max_sides: MaxSides = MaxSides()  # of images; the checkpoint's own limits count where they are lower
    dropout: Dropout = Dropout()
    ce_weight: NotNegative = 1.0
    mse_weight: NotNegative = 1.0
    attention: Literal["sdpa", "flex"] = "sdpa"  # flex: FlexAttention, on CUDA, for long rows of many samples
    ce_reweight: Flag = False  # weigh each target token by 1/√(length of its text)
    timestep_shift: Positive | None = None  # by default the checkpoint's own, or 1 for a new model
    replay: ReplayConfig | None = None  # what the checkpoint knows already, trained in between
    lora: AdapterConfig | None = None  # what `trainable: lora` trains; None: as its defaults are

    def __post_init__(self) -> None:
        _need_a_start(self.init, self.model)
        if self.model is not None and self.autoencoder is None:
            raise ValueError("a new model needs autoencoder: a checkpoint with config.json and ae.safetensors")
        if self.model is not None and self.replay is not None:
            raise ValueError("replay keeps what the checkpoint init knows; a new model knows nothing yet: leave it out")
        self._check_adapters()

    @property
    def adapters(self) -> AdapterConfig | None:
        """The adapters that are trained, on a frozen model; None where the model itself is."""
        return (self.lora or AdapterConfig()) if LORA in self.trainable else None

    @property
    def distils(self) -> bool:
        """Whether replayed images teach what the checkpoint itself predicts for them."""
        return self.replay is not None and self.replay.distil

    @property
    def drops_out(self) -> bool:
        """Whether the network itself draws random numbers while it trains: the dropout of adapters."""
        return self.adapters is not None and self.adapters.dropout > 0

    def _check_adapters(self) -> None:
        if self.adapters is None:
            if self.distils:
                raise ValueError(
                    "replay.distil takes what the checkpoint itself predicts, which is still there beside adapters "
                    f"alone; trainable is {list(self.trainable)}: set trainable to lora, or leave replay.distil out"
                )
            if self.lora is not None:
                raise ValueError(
                    f"lora is what `trainable: lora` trains; trainable is {list(self.trainable)}: set trainable to "
                    "lora, or lora to null"
                )
            return
        if len(self.trainable) > 1:
            raise ValueError(f"trainable is {list(self.trainable)}; lora trains adapters alone, beside nothing else")
        if self.model is not None:
            raise ValueError("trainable is lora: adapters belong to a trained model, so give init in place of model")
        if self.autoencoder is not None:
            raise ValueError("trainable is lora: adapters use the autoencoder of init, so leave autoencoder out")
        if self.optimizer.name != "adamw":
            raise ValueError(f"trainable is lora: optimizer.name must be 'adamw', not {self.optimizer.name!r}")


AnyRecipe = AutoencoderRecipe | BagelRecipe

KINDS: dict[str, type[AnyRecipe]] = {"autoencoder": AutoencoderRecipe, "bagel": BagelRecipe}
"""The types of recipes, by `kind`."""

"""Training recipes: one YAML file a run, checked key by key.

Every value can be overridden on the command line as `key=value`, nested keys with dots (`optimizer.lr=1e-3`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bagel_mot.errors import RecipeError
from bagel_mot.worlds.mini.draw import scale_of
from bagel_mot.worlds.mini.training_examples import sample_example


def _drawable_side(side: int) -> int:
    scale_of(side)
    return side


def _drawable_mix(mix: dict[str, float]) -> dict[str, float]:
    sample_example(random.Random(0), mix)
    return mix


# The image world itself says what it can draw: its errors are told as those of the key.
_Side = Annotated[int, AfterValidator(_drawable_side)]
_Mix = Annotated[dict[str, float], AfterValidator(_drawable_mix)]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[int, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimizerRecipe(_Strict):
    """`muon` uses Muon for the matrices inside layers and AdamW for the rest; `adamw` uses AdamW for everything."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)  # of AdamW
    muon_lr: float = Field(5e-3, gt=0)  # scaled so that an update's RMS is 0.2·lr, as AdamW's about is
    muon_weight_decay: float = Field(0.0, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(1e-15, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)


class ScheduleRecipe(_Strict):
    """Learning-rate factor by step: warm-up, then constant, cosine, or constant with a final linear decay (`wsd`)."""

    name: Literal["constant", "cosine", "wsd"] = "constant"
    warmup: int = Field(0, ge=0)
    decay: int = Field(0, ge=0)  # wsd: steps of the final decay
    floor: float = Field(0.0, ge=0, le=1)  # the factor at the end


class Recipe(_Strict):
    """What every run has."""

    # What a run that has begun cannot change: its weights, or where its data stands, would lose their meaning.
    fixed: ClassVar[frozenset[str]] = frozenset({"seed", "optimizer.name"})

    output: Path
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)  # packs per optimiser step
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    compile: bool = False
    threads: int | None = Field(None, gt=0, le=1024)
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    ema: float = Field(0.9999, ge=0, lt=1)
    log_every: int = Field(10, gt=0)
    save_every: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)  # newest checkpoints kept
    sample_every: int = Field(1000, gt=0)

    def stored(self) -> dict[str, Any]:
        """As JSON, for a checkpoint to keep; without the folder, which may be moved."""
        return self.model_dump(mode="json", exclude={"output"})

    def check_resumes(self, begun: dict[str, Any]) -> None:
        """
        Args:
            begun: the recipe that a checkpoint keeps; keys that it lacks are of a later version, and not compared.

        Raises:
            RecipeError: if something differs that a run cannot change.
        """
        changes = [
            f"{key} was {before!r} and is now {now!r}"
            for key, before, now in _differences(self, begun)
            if key in self.fixed or key.partition(".")[0] in self.fixed
        ]
        if changes:
            raise RecipeError(
                f"the run in {self.output} was begun with another recipe ({', '.join(changes)}): "
                "go on with the values it has, or give another output"
            )


def _differences(section: BaseModel, begun: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of all that differs."""
    for name, now in section.model_dump(mode="json").items():
        value = getattr(section, name)
        if name not in begun or begun[name] == now:
            continue
        if isinstance(value, BaseModel) and isinstance(begun[name], dict):
            yield from _differences(value, begun[name], f"{within}{name}.")
        else:
            yield within + name, begun[name], now


class AutoencoderModelRecipe(_Strict):
    ch: _Positive = 128
    ch_mult: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (1, 2, 4, 4)
    num_res_blocks: _Positive = 2
    z_channels: _Positive = 16


class AutoencoderRecipe(Recipe):
    """The autoencoder: L1, squared error and a small KL term. Its latent is scaled to unit variance at every save."""

    fixed = Recipe.fixed | {"kind", "init", "freeze_encoder", "side", "batch_size", "model"}

    kind: Literal["autoencoder"]
    # A checkpoint with an autoencoder to start from. Its shape stays, but `model.z_channels` may ask for more channels.
    init: str | None = None
    freeze_encoder: bool = False  # train the decoder alone: the latents stay what they are, scale and shift included
    side: _Side = 64
    batch_size: int = Field(32, gt=0)
    l1_weight: float = Field(1.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    peak_weight: float = Field(0.0, ge=0)  # of what an error, averaged over 3 × 3 pixels, exceeds the unnoticeable by
    kl_weight: float = Field(1e-4, ge=0)
    latent_noise: float = Field(0.0, ge=0)  # most noise added to a latent, in deviations of its channel
    thing_weight: float = Field(1.0, ge=1)  # of the error at a pixel where a thing is
    model: AutoencoderModelRecipe | None = None

    @field_validator("optimizer")
    @classmethod
    def _has_no_layers(cls, optimizer: OptimizerRecipe) -> OptimizerRecipe:
        if optimizer.name == "muon":
            raise ValueError("name is 'muon', which is for matrices in layers; an autoencoder has none: take 'adamw'")
        return optimizer


class DecoderRecipe(_Strict):
    hidden_size: int = Field(256, gt=0, multiple_of=4)  # sines and cosines of column and row share it
    num_layers: _Positive = 8
    num_heads: _Positive = 4
    num_kv_heads: _Positive = 2
    intermediate_size: _Positive = 768
    max_position_embeddings: _Positive = 4096

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}, but must be a multiple of twice num_heads, {self.num_heads}: "
                "rotary positions turn pairs of numbers"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, but must be a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        return self


class VitRecipe(_Strict):
    hidden_size: _Positive = 128
    num_layers: _Positive = 3
    num_heads: _Positive = 4
    intermediate_size: _Positive = 384
    patch_size: _Positive = 16

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, but must be a multiple of num_heads, {self.num_heads}"
            )
        return self


class BagelModelRecipe(_Strict):
    """A model to be built from nothing; its tokenizer is trained on the data's own texts."""

    decoder: DecoderRecipe = DecoderRecipe()
    vit: VitRecipe = VitRecipe()
    vocab_size: int = Field(1024, gt=300)
    max_latent_size: _Positive = 16


class DropoutRecipe(_Strict):
    """How often a condition is left out, each on its own; `pictures`: all images of a document at once."""

    text: float = Field(0.1, ge=0, le=1)
    vit: float = Field(0.3, ge=0, le=1)
    vae: float = Field(0.3, ge=0, le=1)
    images: float = Field(0.0, ge=0, le=1)


class PackRecipe(_Strict):
    """Slots of one pack: `rows` rows of `und` and `gen` slots each."""

    rows: int = Field(1, gt=0, le=100_000)
    und: int = Field(gt=0)
    gen: int = Field(gt=0)
    buffer: int = Field(64, ge=0)  # samples that may wait for a row they fit into


class MiniDataRecipe(_Strict):
    """The image world, drawn on the fly."""

    side: _Side = 64
    mix: _Mix | None = None
    target_copies: int = Field(1, gt=0)  # noised copies of each target, each at its own timestep


class BagelRecipe(Recipe):
    """The unified model, on the image world."""

    fixed = Recipe.fixed | {"kind", "init", "autoencoder", "model", "data", "pack", "dropout"}

    kind: Literal["bagel"]
    init: str | None = None  # a checkpoint to start from
    autoencoder: str | None = None  # a checkpoint that has one; by default that of `init`
    model: BagelModelRecipe | None = None
    data: MiniDataRecipe = MiniDataRecipe()
    pack: PackRecipe
    dropout: DropoutRecipe = DropoutRecipe()
    ce_weight: float = Field(1.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    attention: Literal["sdpa", "flex"] = "sdpa"  # flex: FlexAttention, on CUDA, for long rows of many samples
    activation_checkpointing: bool = False  # compute each layer's activations again instead of keeping them
    ce_reweight: bool = False  # weigh each target token by 1/√(length of its text)
    timestep_shift: float | None = Field(None, gt=0)  # by default the checkpoint's own, or 1 for a new model


_KINDS: dict[str, type[Recipe]] = {"autoencoder": AutoencoderRecipe, "bagel": BagelRecipe}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> AutoencoderRecipe | BagelRecipe:
    """Reads a recipe and applies `key=value` overrides.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown, or a value is out of its range.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's errors fill several lines
        raise RecipeError(f"{path} could not be read as a YAML recipe: {reason}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds a {type(raw).__name__}; a recipe is a YAML mapping")
    for override in overrides:
        _apply(raw, override)
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RecipeError(f"{path}: kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].model_validate(raw)  # type: ignore[return-value]
    except ValidationError as error:
        raise RecipeError(f"{path}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":  # of a check of ours, which says what was given
        return f"{where}: {first['ctx']['error']}"
    given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
    return f"{where}: {first['msg']}{given}"


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value")
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"override {override!r}: {parent} is not a section of the recipe")
    # YAML reads 1e-3 as a string; JSON and Python users mean a number.
    try:
        node[leaf] = float(text) if "e" in text.lower() and text[0].isdigit() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        node[leaf] = text

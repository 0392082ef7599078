"""Training recipes: one YAML file a run, checked key by key.

Every value can be overridden on the command line as `key=value`, nested keys with dots (`optimizer.lr=1e-3`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bagel.errors import RecipeError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerRecipe(_Strict):
    """`muon` uses Muon for the matrices inside layers and AdamW for the rest; `adamw` uses AdamW for everything."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)  # of AdamW
    muon_lr: float = Field(5e-3, gt=0)  # scaled so that an update's RMS is 0.2·lr, as AdamW's about is
    muon_weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
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

    output: Path
    seed: int = 0
    steps: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)  # packs per optimiser step
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    compile: bool = False
    threads: int | None = Field(None, gt=0)
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    ema: float = Field(0.9999, ge=0, lt=1)
    log_every: int = Field(10, gt=0)
    save_every: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)  # newest checkpoints kept
    sample_every: int = Field(1000, gt=0)


class AutoencoderModelRecipe(_Strict):
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16


class AutoencoderRecipe(Recipe):
    """The autoencoder: L1, squared error and a small KL term. Its latent is scaled to unit variance at every save."""

    kind: Literal["autoencoder"]
    # A folder with an autoencoder to start from. Its shape stays, but `model.z_channels` may ask for more channels.
    init: Path | None = None
    freeze_encoder: bool = False  # train the decoder alone: the latents stay what they are, scale and shift included
    side: int = Field(64, gt=0)
    batch_size: int = Field(32, gt=0)
    l1_weight: float = Field(1.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    peak_weight: float = Field(0.0, ge=0)  # of what an error, averaged over 3 × 3 pixels, exceeds the unnoticeable by
    kl_weight: float = Field(1e-4, ge=0)
    latent_noise: float = Field(0.0, ge=0)  # most noise added to a latent, in deviations of its channel
    thing_weight: float = Field(1.0, ge=1)  # of the error at a pixel where a thing is
    model: AutoencoderModelRecipe | None = None


class DecoderRecipe(_Strict):
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 768
    max_position_embeddings: int = 4096


class VitRecipe(_Strict):
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 384
    patch_size: int = 16


class BagelModelRecipe(_Strict):
    """A model to be built from nothing; its tokenizer is trained on the data's own texts."""

    decoder: DecoderRecipe = DecoderRecipe()
    vit: VitRecipe = VitRecipe()
    vocab_size: int = Field(1024, gt=300)
    max_latent_size: int = 16
    timestep_shift: float = Field(1.0, gt=0)


class DropoutRecipe(_Strict):
    """How often a condition is left out, each on its own; `pictures`: all pictures of a document at once."""

    text: float = Field(0.1, ge=0, le=1)
    vit: float = Field(0.3, ge=0, le=1)
    vae: float = Field(0.3, ge=0, le=1)
    pictures: float = Field(0.0, ge=0, le=1)


class PackRecipe(_Strict):
    """Slots of one pack: `rows` rows of `und` and `gen` slots each."""

    rows: int = Field(1, gt=0)
    und: int = Field(gt=0)
    gen: int = Field(gt=0)
    buffer: int = Field(64, ge=0)  # samples that may wait for a row they fit into


class MiniDataRecipe(_Strict):
    """The picture world, drawn on the fly."""

    side: int = 64
    mix: dict[str, float] | None = None
    target_copies: int = Field(1, gt=0)  # noised copies of each target, each at its own timestep


class BagelRecipe(Recipe):
    """The unified model, on the picture world."""

    kind: Literal["bagel"]
    init: str | None = None  # a checkpoint folder to start from
    autoencoder: Path | None = None  # a folder with config.json and ae.safetensors; by default that of `init`
    model: BagelModelRecipe | None = None
    data: MiniDataRecipe = MiniDataRecipe()
    pack: PackRecipe
    dropout: DropoutRecipe = DropoutRecipe()
    ce_weight: float = Field(1.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    ce_reweight: bool = False  # weigh each target token by 1/√(length of its text)


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
        raise RecipeError(f"{path} could not be read as a YAML recipe: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds a {type(raw).__name__}; a recipe is a YAML mapping")
    for override in overrides:
        _apply(raw, override)
    kind = raw.get("kind")
    if kind not in _KINDS:
        raise RecipeError(f"{path}: kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].model_validate(raw)  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        raise RecipeError(f"{path}: {where}: {first['msg']}{given}") from error


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

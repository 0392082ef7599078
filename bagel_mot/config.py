"""Configuration: the types, the one way of validating them, and the official JSON files.

Every section of a configuration, here and in recipes, is a frozen pydantic dataclass derived from `Section`; `parse`
turns plain data into one, or raises an error of one sentence.

An official checkpoint folder holds `llm_config.json` (Qwen2), `vit_config.json` (SigLIP) and `config.json` (everything
else). Three facts live only in the published loader, not in the files, and are applied here: the ViT runs **one layer
fewer** than `vit_config.json` says, q/k are RMS-normalised per head, and the output head is not tied to the embedding.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

from bagel_mot.errors import BagelError, CheckpointError, did_you_mean
from bagel_mot.files import read_json

JsonDict = dict[str, Any]
Parsed = TypeVar("Parsed")

_LARGEST_COUNT = 1 << 24
_GELU = "gelu_pytorch_tanh"


def must_be(wanted: str) -> WrapValidator:
    """Lets the type before it judge a value, and says in these words what would have been right."""

    def judge(value: Any, judge_by_type: Any) -> Any:
        try:
            return judge_by_type(value)
        except ValidationError:
            raise PydanticCustomError("wanted", "it must be {wanted}", {"wanted": wanted}) from None

    return WrapValidator(judge)


Count = Annotated[
    int, Field(strict=True, ge=1, le=_LARGEST_COUNT), must_be(f"a whole number from 1 to {_LARGEST_COUNT}")
]
Whole = Annotated[int, Field(strict=True, ge=0), must_be("a whole number of 0 or more")]
Counts = Annotated[tuple[Count, ...], Field(min_length=1), must_be("a list of whole numbers above 0")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), must_be("a number")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), must_be("a number above 0")]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), must_be("a number of 0 or more")]
Share = Annotated[float, Field(strict=True, ge=0, le=1), must_be("a number from 0 to 1")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1), must_be("a number from 0 to less than 1")]
Flag = Annotated[bool, Field(strict=True), must_be("true or false")]


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Section:
    """The base of every part of a configuration: frozen, validated, and strict about its keys."""

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, content: Any) -> Any:
        keys = content.kwargs or {} if isinstance(content, ArgsKwargs) else content
        known = [f.name for f in dataclasses.fields(cls)]
        if isinstance(keys, Mapping) and (unknown := [str(key) for key in keys if key not in known]):
            raise ValueError(f"{unknown[0]} is not known; {did_you_mean(unknown[0], known)}")
        return content


def parse(
    kind: type[Parsed],
    content: Any,
    where: str,
    error: type[BagelError] = CheckpointError,
    spelling: Mapping[str, str] | None = None,
) -> Parsed:
    """Plain data as a section of a configuration.

    Args:
        kind: the section's type.
        content: a mapping from keys to values.
        where: the words that the error begins with, such as the file.
        error: the error's type.
        spelling: our names of keys as the reader of the error knows them.

    Raises:
        BagelError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as invalid:
        sentence = _sentence(invalid)
        for ours, theirs in (spelling or {}).items():
            sentence = re.sub(rf"\b{ours}\b", theirs, sentence)
        raise error(f"{where}{': ' if where else ''}{sentence}") from invalid


def _sentence(invalid: ValidationError) -> str:
    """The first thing that is wrong: its key, its value, and what would be right."""
    first = invalid.errors(include_url=False)[0]
    key, value, wanted = ".".join(map(str, first["loc"])), first["input"], first["msg"]
    if first["type"] == "value_error":  # a check of ours, which names what was given
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    wanted = wanted.replace("Input should be", "it must be")
    if first["type"] == "dataclass_type":
        wanted = "it must be a section with keys of its own"
    if first["type"] == "missing" or value is None:
        return f"{key} is missing" + (f"; {wanted}" if wanted.startswith("it must") else "")
    return f"{key} is {value!r}; {wanted}"


@dataclass(frozen=True)
class DecoderConfig(Section):
    """The Qwen2 decoder that both experts instantiate."""

    hidden_size: Count = 3584
    num_layers: Count = 28
    num_heads: Count = 28
    num_kv_heads: Count = 4
    intermediate_size: Count = 18944
    vocab_size: Count = 152064
    rope_theta: Positive = 1e6
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Count = 32768
    head_dim: Count = 0  # left out: hidden_size / num_heads

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}; it must be a multiple of num_heads, {self.num_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size is {self.hidden_size}; the position tables need a multiple of 4")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even one")


@dataclass(frozen=True)
class VitConfig(Section):
    """The SigLIP vision transformer. `num_layers` counts the layers that run (one fewer than the file's number)."""

    hidden_size: Count = 1152
    num_layers: Count = 26
    num_heads: Count = 16
    intermediate_size: Count = 4304
    patch_size: Count = 14
    image_size: Count = 980
    num_channels: Count = 3
    layer_norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size is {self.hidden_size}; it must be a multiple of num_heads, {self.num_heads}")
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}; it must be at most image_size, {self.image_size}")

    @property
    def side(self) -> int:
        """Patches along one side of the learned position table."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True)
class VaeConfig(Section):
    """The FLUX autoencoder."""

    resolution: Count = 256
    in_channels: Count = 3
    ch: Count = 128
    out_ch: Count = 3
    ch_mult: Counts = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    z_channels: Count = 16
    scale_factor: Positive = 0.3611
    shift_factor: Number = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class BagelConfig(Section):
    """The whole model. The defaults are BAGEL-7B-MoT."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vit: VitConfig = field(default_factory=VitConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    latent_patch_size: Count = 2
    max_latent_size: Count = 64
    vit_max_num_patch_per_side: Count = 70
    interpolate_pos: Flag = False
    timestep_shift: Positive = 1.0  # training's timesteps; inference has a setting of its own

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels

    @property
    def latent_stride(self) -> int:
        """Pixels per latent token along a side."""
        return self.latent_patch_size * self.vae.downsample


# Our names of the fields that the official files call otherwise.
_OFFICIAL = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
# Fields that no tensor's shape tells and every official file has: they are not to be guessed.
_REQUIRED: dict[type, tuple[str, ...]] = {
    DecoderConfig: ("rope_theta", "rms_norm_eps", "max_position_embeddings"),
    VitConfig: ("num_heads",),
}
_PARTS = ("decoder", "vit", "vae")


def _plain_fields(kind: type) -> dict[str, str]:
    """Official names by our names of a section's fields, those that are sections themselves left out."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in _PARTS]
    return {name: _OFFICIAL.get(name, name) for name in names}


def _check(content: JsonDict, where: str, **wanted: Any) -> None:
    """Checks that keys have the only value that this model knows, unless they are left out."""
    for key, value in wanted.items():
        if content.get(key) not in (None, value):
            raise CheckpointError(f"{where}: {key} is {content[key]!r}; this model needs {value!r}")


def _section(kind: type[Parsed], content: JsonDict, where: str, **parts: Any) -> Parsed:
    """A section from its official file. A null counts as left out, and further keys of the file are not read."""
    values = {ours: content.get(theirs) for ours, theirs in _plain_fields(kind).items()}
    values = {name: value for name, value in values.items() if value is not None or name in _REQUIRED.get(kind, ())}
    return parse(kind, {**values, **parts}, where, spelling=_OFFICIAL)


def load_config(folder: Path | str) -> BagelConfig:
    """Reads the configuration of a checkpoint folder in the official layout.

    Raises:
        CheckpointError: a file is missing or not JSON, a value is of the wrong type or out of range, one that nothing
            else tells is missing, or something is asked for that the model does not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; a checkpoint folder with config.json is expected")
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json; a checkpoint folder in the official layout is expected")
    top, where = read_json(folder / "config.json", CheckpointError), str(folder / "config.json")
    llm, vit, vae = (_part(folder, top, name) for name in ("llm_config", "vit_config", "vae_config"))
    _check(*llm, hidden_act="silu", rope_scaling=None, use_sliding_window=False)
    _check(*vit, hidden_act=_GELU)
    _check(top, where, connector_act=_GELU)
    vit_config, vae_config = _section(VitConfig, *vit), _section(VaeConfig, *vae)
    _check(*vae, downsample=vae_config.downsample)
    if vit[0].get("num_hidden_layers") is not None:
        if vit_config.num_layers == 1:
            raise CheckpointError(f"{vit[1]}: num_hidden_layers is 1; it must be more, for the last layer is not run")
        vit_config = replace(vit_config, num_layers=vit_config.num_layers - 1)
    decoder = _section(DecoderConfig, *llm)
    return _section(BagelConfig, top, where, decoder=decoder, vit=vit_config, vae=vae_config)


def _part(folder: Path, top: JsonDict, name: str) -> tuple[JsonDict, str]:
    """A part of the configuration and where it is: a file of its own, else an object in config.json. The autoencoder's
    is never a file, and may be left out.
    """
    path, optional = folder / f"{name}.json", name == "vae_config"
    if not optional and path.exists():
        return read_json(path, CheckpointError), str(path)
    if name not in top and not optional:
        raise CheckpointError(
            f"{path} is missing; the official layout has config.json, llm_config.json, vit_config.json"
        )
    inner = top.get(name)
    if inner is not None and not isinstance(inner, dict):
        raise CheckpointError(f"{folder / 'config.json'}: {name} is {inner!r}; it must be an object")
    return inner or {}, f"{folder / 'config.json'}, {name}"


def dump_config(config: BagelConfig) -> dict[str, JsonDict]:
    """The three official files, as {"config.json": …, "llm_config.json": …, "vit_config.json": …}."""

    def values(section: Any) -> JsonDict:
        return {theirs: getattr(section, ours) for ours, theirs in _plain_fields(type(section)).items()}

    llm = values(config.decoder)
    if config.decoder.head_dim == config.decoder.hidden_size // config.decoder.num_heads:
        del llm["head_dim"]
    llm |= {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    vit = values(config.vit)
    vit |= {
        "num_hidden_layers": config.vit.num_layers + 1,
        "model_type": "siglip_vision_model",
        "hidden_act": _GELU,
    }
    vae = {**values(config.vae), "ch_mult": list(config.vae.ch_mult), "downsample": config.vae.downsample}
    top: JsonDict = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "connector_act": _GELU,
        **values(config),
        "vae_config": vae,
        "llm_config": llm,
        "vit_config": vit,
    }
    return {"config.json": top, "llm_config.json": llm, "vit_config.json": vit}


NAMED_CONFIGS: dict[str, BagelConfig] = {
    "7b-mot": BagelConfig(),  # the official size
    "0.5b": BagelConfig(
        decoder=DecoderConfig(
            hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, intermediate_size=4864, vocab_size=152064
        ),
    ),
}


def with_table_sides(config: BagelConfig, *, latent: int, vit: int) -> BagelConfig:
    """The same configuration with the table sides that a checkpoint's own tensors have."""
    sides = {"max_latent_size": latent, "vit_max_num_patch_per_side": vit}
    return parse(BagelConfig, {**vars(config), **sides}, "the position tables")

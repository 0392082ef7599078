"""Model configuration: dataclasses on our side, the official JSON files on disk.

An official checkpoint folder holds `llm_config.json` (Qwen2), `vit_config.json` (SigLIP) and `config.json` (everything
else). Three facts live only in the published loader, not in the files, and are applied here: the ViT runs **one layer
fewer** than `vit_config.json` says, q/k are RMS-normalised per head, and the output head is not tied to the embedding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bagel_mot.errors import CheckpointError

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class DecoderConfig:
    """The Qwen2 decoder that both experts instantiate."""

    hidden_size: int = 3584
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    intermediate_size: int = 18944
    vocab_size: int = 152064
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    head_dim: int = 0  # 0: hidden_size / num_heads

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_attention_heads is {self.num_heads}, "
                f"which num_key_value_heads {self.num_kv_heads} does not divide"
            )
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise CheckpointError(
                    f"hidden_size is {self.hidden_size}, which num_attention_heads {self.num_heads} does not divide"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.hidden_size % 4:
            raise CheckpointError(f"hidden_size is {self.hidden_size}; the position tables need a multiple of 4")
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary embeddings need an even one")


@dataclass(frozen=True)
class VitConfig:
    """The SigLIP vision transformer. `num_layers` counts the layers that run (one fewer than the file's number)."""

    hidden_size: int = 1152
    num_layers: int = 26
    num_heads: int = 16
    intermediate_size: int = 4304
    patch_size: int = 14
    image_size: int = 980
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise CheckpointError(
                f"the ViT's hidden_size is {self.hidden_size}, "
                f"which num_attention_heads {self.num_heads} does not divide"
            )
        if self.patch_size > self.image_size:
            raise CheckpointError(
                f"the ViT's patch_size is {self.patch_size}; it must be at most image_size {self.image_size}"
            )

    @property
    def side(self) -> int:
        """Patches along one side of the learned position table."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True)
class VaeConfig:
    """The FLUX autoencoder."""

    resolution: int = 256
    in_channels: int = 3
    ch: int = 128
    out_ch: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class BagelConfig:
    """The whole model. The defaults are BAGEL-7B-MoT."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vit: VitConfig = field(default_factory=VitConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    latent_patch_size: int = 2
    max_latent_size: int = 64
    vit_max_num_patch_per_side: int = 70
    interpolate_pos: bool = False
    timestep_shift: float = 1.0  # of the training timesteps; inference has its own setting

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels

    @property
    def latent_stride(self) -> int:
        """Pixels per latent token along a side."""
        return self.latent_patch_size * self.vae.downsample


_LARGEST_COUNT = 1 << 24
_GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class _Kind:
    """What a value in a file may be: in words, and whether one is of it."""

    wanted: str
    accepts: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_COUNT = _Kind(f"a whole number from 1 to {_LARGEST_COUNT}", _is_count)
_COUNTS = _Kind("a list of whole numbers above 0", lambda v: isinstance(v, list) and v != [] and all(map(_is_count, v)))
_NUMBER = _Kind("a number", _is_number)
_POSITIVE = _Kind("a number above 0", lambda v: _is_number(v) and v > 0)
_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))


@dataclass(frozen=True)
class _Key:
    """How a field of ours stands in a file.

    Attributes:
        name: in the file.
        kind: of its values.
        required: no tensor's shape tells it, and every official file has it: it is not to be guessed.
    """

    name: str
    kind: _Kind
    required: bool = False


# By our field name.
_DECODER_KEYS = {
    "hidden_size": _Key("hidden_size", _COUNT),
    "num_layers": _Key("num_hidden_layers", _COUNT),
    "num_heads": _Key("num_attention_heads", _COUNT),
    "num_kv_heads": _Key("num_key_value_heads", _COUNT),
    "intermediate_size": _Key("intermediate_size", _COUNT),
    "vocab_size": _Key("vocab_size", _COUNT),
    "rope_theta": _Key("rope_theta", _POSITIVE, required=True),
    "rms_norm_eps": _Key("rms_norm_eps", _POSITIVE, required=True),
    "max_position_embeddings": _Key("max_position_embeddings", _COUNT, required=True),
    "head_dim": _Key("head_dim", _COUNT),
}
_VIT_KEYS = {
    "hidden_size": _Key("hidden_size", _COUNT),
    "num_layers": _Key("num_hidden_layers", _COUNT),
    "num_heads": _Key("num_attention_heads", _COUNT, required=True),
    "intermediate_size": _Key("intermediate_size", _COUNT),
    "patch_size": _Key("patch_size", _COUNT),
    "image_size": _Key("image_size", _COUNT),
    "num_channels": _Key("num_channels", _COUNT),
    "layer_norm_eps": _Key("layer_norm_eps", _POSITIVE),
}
_VAE_KEYS = {
    "resolution": _Key("resolution", _COUNT),
    "in_channels": _Key("in_channels", _COUNT),
    "ch": _Key("ch", _COUNT),
    "out_ch": _Key("out_ch", _COUNT),
    "ch_mult": _Key("ch_mult", _COUNTS),
    "num_res_blocks": _Key("num_res_blocks", _COUNT),
    "z_channels": _Key("z_channels", _COUNT),
    "scale_factor": _Key("scale_factor", _POSITIVE),
    "shift_factor": _Key("shift_factor", _NUMBER),
}
_TOP_KEYS = {
    "latent_patch_size": _Key("latent_patch_size", _COUNT),
    "max_latent_size": _Key("max_latent_size", _COUNT),
    "vit_max_num_patch_per_side": _Key("vit_max_num_patch_per_side", _COUNT),
    "interpolate_pos": _Key("interpolate_pos", _FLAG),
    "timestep_shift": _Key("timestep_shift", _POSITIVE),
}


@dataclass(frozen=True)
class _Source:
    """A JSON object, and where it stands. What is null counts as left out."""

    where: str
    content: JsonDict

    @classmethod
    def of_file(cls, path: Path) -> _Source:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} could not be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is expected")
        return cls(str(path), content)

    def inner(self, key: str) -> _Source:
        """The object under a key; an empty one where it is left out."""
        content = self.content.get(key)
        if content is not None and not isinstance(content, dict):
            raise CheckpointError(f"{self.where}: {key} is {content!r}; it must be an object")
        return _Source(f"{self.where}, {key}", content or {})

    def pick(self, keys: Mapping[str, _Key]) -> JsonDict:
        """Values by our field names, those left out left out; lists become tuples."""
        picked: JsonDict = {}
        for ours, key in keys.items():
            value = self.content.get(key.name)
            if value is None:
                if key.required:
                    raise CheckpointError(f"{self.where}: {key.name} is missing; it must be {key.kind.wanted}")
                continue
            if not key.kind.accepts(value):
                raise CheckpointError(f"{self.where}: {key.name} is {value!r}; it must be {key.kind.wanted}")
            picked[ours] = tuple(value) if isinstance(value, list) else value
        return picked

    def check(self, key: str, wanted: Any) -> None:
        """That a key has the only value that this model knows, unless it is left out."""
        if self.content.get(key) not in (None, wanted):
            raise CheckpointError(f"{self.where}: {key} is {self.content[key]!r}; this model needs {wanted!r}")


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
    top = _Source.of_file(folder / "config.json")
    llm, vit = (_part(folder, top, name) for name in ("llm_config", "vit_config"))
    llm.check("hidden_act", "silu")
    llm.check("rope_scaling", None)
    llm.check("use_sliding_window", False)
    vit.check("hidden_act", _GELU)
    top.check("connector_act", _GELU)
    vit_fields = vit.pick(_VIT_KEYS)
    if "num_layers" in vit_fields:
        vit_fields["num_layers"] -= 1
    raw_vae = top.inner("vae_config")
    vae = VaeConfig(**raw_vae.pick(_VAE_KEYS))
    raw_vae.check("downsample", vae.downsample)
    return BagelConfig(
        decoder=DecoderConfig(**llm.pick(_DECODER_KEYS)),
        vit=VitConfig(**vit_fields),
        vae=vae,
        **top.pick(_TOP_KEYS),
    )


def _part(folder: Path, top: _Source, name: str) -> _Source:
    """The configuration of the decoder or the ViT: a file of its own, else an object within config.json."""
    path = folder / f"{name}.json"
    if path.exists():
        return _Source.of_file(path)
    if name in top.content:
        return top.inner(name)
    raise CheckpointError(f"{path} is missing; the official layout has config.json, llm_config.json, vit_config.json")


def dump_config(config: BagelConfig) -> dict[str, JsonDict]:
    """The three official files, as {"config.json": …, "llm_config.json": …, "vit_config.json": …}."""
    llm = {key.name: getattr(config.decoder, ours) for ours, key in _DECODER_KEYS.items()}
    if config.decoder.head_dim == config.decoder.hidden_size // config.decoder.num_heads:
        del llm["head_dim"]
    llm |= {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    vit = {key.name: getattr(config.vit, ours) for ours, key in _VIT_KEYS.items()}
    vit["num_hidden_layers"] += 1
    vit["model_type"] = "siglip_vision_model"
    vit["hidden_act"] = _GELU
    vae = {key: getattr(config.vae, key) for key in _VAE_KEYS}
    vae |= {"ch_mult": list(config.vae.ch_mult), "downsample": config.vae.downsample}
    top: JsonDict = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "connector_act": _GELU,
        **{key: getattr(config, key) for key in _TOP_KEYS},
        "vae_config": vae,
        "llm_config": llm,
        "vit_config": vit,
    }
    return {"config.json": top, "llm_config.json": llm, "vit_config.json": vit}


NAMED_CONFIGS: dict[str, BagelConfig] = {
    "7b": BagelConfig(),  # the official size, by either name
    "7b-mot": BagelConfig(),
    "0.5b": BagelConfig(
        decoder=DecoderConfig(
            hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, intermediate_size=4864, vocab_size=152064
        ),
    ),
}


def with_table_sides(config: BagelConfig, *, latent: int, vit: int) -> BagelConfig:
    """The same configuration with the table sides that a checkpoint's own tensors have."""
    return replace(config, max_latent_size=latent, vit_max_num_patch_per_side=vit)

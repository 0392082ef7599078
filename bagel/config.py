"""Model configuration: dataclasses on our side, the official JSON files on disk.

An official checkpoint folder holds `llm_config.json` (Qwen2), `vit_config.json` (SigLIP) and `config.json` (everything
else). Three facts live only in the published loader, not in the files, and are applied here: the ViT runs **one layer
fewer** than `vit_config.json` says, q/k are RMS-normalised per head, and the output head is not tied to the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bagel.errors import CheckpointError

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


# Our field name: the name in llm_config.json / vit_config.json.
_DECODER_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "head_dim": "head_dim",
}
_VIT_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "num_channels": "num_channels",
    "layer_norm_eps": "layer_norm_eps",
}
_VAE_KEYS = (
    "resolution",
    "in_channels",
    "ch",
    "out_ch",
    "num_res_blocks",
    "z_channels",
    "scale_factor",
    "shift_factor",
)
_TOP_KEYS = (
    "latent_patch_size",
    "max_latent_size",
    "vit_max_num_patch_per_side",
    "interpolate_pos",
    "timestep_shift",
)
_GELU = "gelu_pytorch_tanh"


def _read_json(path: Path) -> JsonDict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} could not be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is expected")
    return content


def _pick(raw: Mapping[str, Any], keys: Mapping[str, str]) -> JsonDict:
    return {ours: raw[theirs] for ours, theirs in keys.items() if raw.get(theirs) is not None}


def _check(raw: Mapping[str, Any], file: str, key: str, accepted: tuple[Any, ...]) -> None:
    if key in raw and raw[key] not in accepted:
        raise CheckpointError(f"{file}: {key} is {raw[key]!r}; this model needs {accepted[0]!r}")


def load_config(folder: Path | str) -> BagelConfig:
    """Reads the configuration of a checkpoint folder in the official layout.

    Raises:
        CheckpointError: a file is missing, is not JSON, or asks for something the model does not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; a checkpoint folder with config.json is expected")
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json; a checkpoint folder in the official layout is expected")
    top = _read_json(folder / "config.json")
    parts: dict[str, JsonDict] = {}
    for part in ("llm_config", "vit_config"):
        path = folder / f"{part}.json"
        if path.exists():
            parts[part] = _read_json(path)
        elif isinstance(top.get(part), dict):
            parts[part] = top[part]
        else:
            raise CheckpointError(
                f"{path} is missing; the official layout has config.json, llm_config.json, vit_config.json"
            )
    return parse_config(top, parts["llm_config"], parts["vit_config"])


def parse_config(top: JsonDict, llm: JsonDict, vit: JsonDict) -> BagelConfig:
    """Builds the configuration from the contents of the three official files."""
    _check(llm, "llm_config.json", "hidden_act", ("silu",))
    _check(llm, "llm_config.json", "rope_scaling", (None,))
    _check(llm, "llm_config.json", "use_sliding_window", (False,))
    _check(vit, "vit_config.json", "hidden_act", (_GELU,))
    _check(top, "config.json", "connector_act", (_GELU,))
    vit_fields = _pick(vit, _VIT_KEYS)
    if "num_layers" in vit_fields:
        vit_fields["num_layers"] -= 1
    raw_vae = top.get("vae_config") or {}
    vae_fields = {key: raw_vae[key] for key in _VAE_KEYS if key in raw_vae}
    if "ch_mult" in raw_vae:
        vae_fields["ch_mult"] = tuple(raw_vae["ch_mult"])
    vae = VaeConfig(**vae_fields)
    if raw_vae.get("downsample", vae.downsample) != vae.downsample:
        raise CheckpointError(
            f"config.json: vae_config.downsample is {raw_vae['downsample']}, "
            f"but ch_mult {list(vae.ch_mult)} makes it {vae.downsample}"
        )
    config = BagelConfig(
        decoder=DecoderConfig(**_pick(llm, _DECODER_KEYS)),
        vit=VitConfig(**vit_fields),
        vae=vae,
        **{key: top[key] for key in _TOP_KEYS if key in top},
    )
    return config


def dump_config(config: BagelConfig) -> dict[str, JsonDict]:
    """The three official files, as {"config.json": …, "llm_config.json": …, "vit_config.json": …}."""
    llm = {theirs: getattr(config.decoder, ours) for ours, theirs in _DECODER_KEYS.items()}
    if config.decoder.head_dim == config.decoder.hidden_size // config.decoder.num_heads:
        del llm["head_dim"]
    llm |= {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    vit = {theirs: getattr(config.vit, ours) for ours, theirs in _VIT_KEYS.items()}
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
    "7b": BagelConfig(),
    "0.5b": BagelConfig(
        decoder=DecoderConfig(
            hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, intermediate_size=4864, vocab_size=152064
        ),
    ),
}


def with_table_sides(config: BagelConfig, *, latent: int, vit: int) -> BagelConfig:
    """The same configuration with the table sides that a checkpoint's own tensors have."""
    return replace(config, max_latent_size=latent, vit_max_num_patch_per_side=vit)

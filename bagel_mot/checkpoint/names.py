"""Tensor names: ours on one side, those of the official layout on the other. The only place that knows both."""

from __future__ import annotations

import re

# Within a decoder layer: our name, the official name of the und expert, where the gen expert's suffix goes.
_EXPERT = {
    "input_norm": "input_layernorm{}",
    "q": "self_attn.q_proj{}",
    "k": "self_attn.k_proj{}",
    "v": "self_attn.v_proj{}",
    "o": "self_attn.o_proj{}",
    "q_norm": "self_attn.q_norm{}",
    "k_norm": "self_attn.k_norm{}",
    "mlp_norm": "post_attention_layernorm{}",
    "gate": "mlp{}.gate_proj",
    "up": "mlp{}.up_proj",
    "down": "mlp{}.down_proj",
}
_VIT_LAYER = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_PLAIN = {
    "decoder.embed_tokens": "language_model.model.embed_tokens",
    "decoder.norm": "language_model.model.norm",
    "decoder.norm_gen": "language_model.model.norm_moe_gen",
    "decoder.lm_head": "language_model.lm_head",
    "vit.patch_embedding": "vit_model.vision_model.embeddings.patch_embedding",
    "vit.position_embedding": "vit_model.vision_model.embeddings.position_embedding",
    "vit.post_norm": "vit_model.vision_model.post_layernorm",
    "connector.fc1": "connector.fc1",
    "connector.fc2": "connector.fc2",
    "time_embedding.fc1": "time_embedder.mlp.0",
    "time_embedding.fc2": "time_embedder.mlp.2",
    "latent_in": "vae2llm",
    "latent_out": "llm2vae",
}
# llama.cpp's names within a decoder layer (`blk.N.`): ours. The gen expert's suffix goes behind.
_LLAMA_LAYER = {
    "attn_norm": "input_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_LLAMA_PLAIN = {
    "token_embd": "decoder.embed_tokens",
    "output_norm": "decoder.norm",
    "output_norm_moe_gen": "decoder.norm_gen",
    "output": "decoder.lm_head",
}
POSITION_TABLES = {"latent_pos_embed": "latent_pos_embed.pos_embed", "vit_pos_embed": "vit_pos_embed.pos_embed"}

# A matrix with adapters (`bagel_mot.model.lora`) is within a module of its own, and has theirs beside it.
_BASE = ".base_layer"
_ADAPTED = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)\.[^.]+\.weight")
_DECODER_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(und|gen)\.(\w+)\.(\w+)")
_LLAMA_LAYER_NAME = re.compile(rf"blk\.(\d+)\.({'|'.join(_LLAMA_LAYER)})(_moe_gen)?\.(\w+)")
_VIT_LAYER_NAME = re.compile(r"vit\.layers\.(\d+)\.(\w+)\.(\w+)")
_MATRICES = "|".join(
    re.escape(_EXPERT[module].format(suffix))
    for module in ("q", "k", "v", "o", "gate", "up", "down")
    for suffix in ("", "_moe_gen")
)
_DECODER_MATRIX = re.compile(rf"language_model\.model\.layers\.\d+\.({_MATRICES})\.weight")


def is_decoder_matrix(official: str) -> bool:
    """Whether it is the official name of one of the decoder's big matrices."""
    return _DECODER_MATRIX.fullmatch(official) is not None


def official_name(name: str) -> str:
    """The official name of a tensor of `BagelModel`, e.g. `decoder.layers.0.gen.q.weight` ->
    `language_model.model.layers.0.self_attn.q_proj_moe_gen.weight`; a tensor of an adapter has that of its matrix with
    `lora_A`, `lora_B` or `lora_magnitude_vector` behind.
    """
    if name in POSITION_TABLES:
        return POSITION_TABLES[name]
    if match := _ADAPTED.fullmatch(name):
        module, part = match.groups()
        return f"{official_module(module)}.{part}.weight"
    name = name.replace(_BASE, "")
    if match := _DECODER_LAYER.fullmatch(name):
        layer, expert, module, kind = match.groups()
        suffix = "_moe_gen" if expert == "gen" else ""
        return f"language_model.model.layers.{layer}.{_EXPERT[module].format(suffix)}.{kind}"
    if match := _VIT_LAYER_NAME.fullmatch(name):
        layer, module, kind = match.groups()
        return f"vit_model.vision_model.encoder.layers.{layer}.{_VIT_LAYER[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    return f"{_PLAIN[module]}.{kind}"


def official_module(name: str) -> str:
    """The official name of a linear map of `BagelModel`, e.g. `decoder.layers.0.gen.q` ->
    `language_model.model.layers.0.self_attn.q_proj_moe_gen`."""
    return official_name(f"{name}.weight").removesuffix(".weight")


def kind_of(name: str) -> str:
    """The kind of a tensor (our name, of model or autoencoder): "position table", "bias", "norm", "embedding" or
    "matrix".
    """
    module, _, leaf = name.rpartition(".")
    if name in POSITION_TABLES:
        return "position table"
    if leaf == "bias":
        return "bias"
    last = module.rpartition(".")[2]
    return "norm" if "norm" in last else "embedding" if last in ("embed_tokens", "position_embedding") else "matrix"


def official_of_llama(name: str) -> str:
    """The official name of a tensor that llama.cpp names, e.g. `blk.0.attn_q_moe_gen.weight` ->
    `language_model.model.layers.0.self_attn.q_proj_moe_gen.weight`. Other names stay as they are: files of GGUF keep
    the official ones for what llama.cpp does not have.
    """
    if match := _LLAMA_LAYER_NAME.fullmatch(name):
        layer, module, gen, kind = match.groups()
        return official_name(f"decoder.layers.{layer}.{'gen' if gen else 'und'}.{_LLAMA_LAYER[module]}.{kind}")
    module, _, kind = name.rpartition(".")
    return official_name(f"{_LLAMA_PLAIN[module]}.{kind}") if module in _LLAMA_PLAIN else name

"""The names of the files in a checkpoint folder."""

from __future__ import annotations

MODEL_FILE = "ema.safetensors"
MODEL_FILES = (MODEL_FILE, MODEL_FILE + ".index.json", "model.safetensors.index.json", "model.safetensors")
"""Names of the model's weights, in the order in which they are looked for: the official file, indices, a plain file."""
ADAPTER_FILE = "adapter_config.json"  # marks the folder of an adapter (`bagel_mot.checkpoint.adapters`)
AUTOENCODER_FILE = "ae.safetensors"
DEFAULTS_FILE = "bagel_defaults.json"
GENERATION_FILE = "generation_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PREVIEW_FILE = "preview_pictures.png"
SCOPE_FILE = "bagel_scope.yaml"
REPLAY_FILE = "bagel_replay.yaml"  # names the source of data that fine-tuning may train in between
CONFIG_FILES = ("config.json", "llm_config.json", "vit_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
SETTINGS_FILES = (DEFAULTS_FILE, GENERATION_FILE, PREPROCESSOR_FILE, PREVIEW_FILE, SCOPE_FILE, REPLAY_FILE)
COMPANIONS = (*CONFIG_FILES, *TOKENIZER_FILES, AUTOENCODER_FILE, *SETTINGS_FILES)
"""All files beside the weights of the model; not every checkpoint has each."""

"""The files of a checkpoint folder beside the weights of the model."""

from __future__ import annotations

AUTOENCODER_FILE = "ae.safetensors"
DEFAULTS_FILE = "bagel_defaults.json"
PREVIEW_FILE = "preview_pictures.png"
CONFIG_FILES = ("config.json", "llm_config.json", "vit_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
COMPANIONS = (*CONFIG_FILES, *TOKENIZER_FILES, AUTOENCODER_FILE, DEFAULTS_FILE, PREVIEW_FILE)
"""All of them; not every checkpoint has each."""

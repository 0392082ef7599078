"""Checkpoints of any size with random weights, to measure and test with: everything but the numbers is as in a trained
one.

Weights are normal, of deviation 1/√fan_in, and smaller by √(2·layers) where they write into the residual stream (o,
down), so that activations stay of a sane size through all layers. Embeddings have deviation 0.5, biases 0.02; norms are
one. The heads are random too, so that logits and velocities are not constant.

Every block of a tensor has a generator of its own, seeded by the seed, the tensor's name and the block's number. So the
same seed gives the same weights however they are sharded and however many threads make them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isqrt, prod
from pathlib import Path

import torch
from torch import Tensor

from bagel_mot.checkpoint.names import kind_of, official_name
from bagel_mot.checkpoint.official import save_checkpoint
from bagel_mot.checkpoint.shapes import autoencoder_shapes, model_shapes
from bagel_mot.checkpoint.side_files import AUTOENCODER_FILE, MODEL_FILE
from bagel_mot.checkpoint.write import ByteProgress, TensorEntry, counting, write_model, write_safetensors
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_free_space, whole_folder
from bagel_mot.model.bagel import sincos_table
from bagel_mot.threads import choose_threads
from bagel_mot.tokenizer import Tokenizer

_BLOCK = 1 << 22  # values of one generator
_PIECE = 1 << 20  # values made at a time, in float32
_EMBEDDING, _BIAS = 0.5, 0.02


def write_random_checkpoint(
    folder: Path,
    config: BagelConfig,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    shard_size: int | None = None,
    progress: ByteProgress | None = None,
) -> None:
    """Writes a checkpoint folder in the official layout: the model in bfloat16, the autoencoder in float32.

    Args:
        folder: new or empty.
        config: the model's configuration.
        tokenizer: the tokenizer to put beside it; may have fewer tokens than the embedding has rows.
        seed: the seed of all weights.
        shard_size: bytes in a file; by default all weights are in one.
        progress: told bytes written and bytes in all.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
        OSError: the folder is not empty or cannot be written, or the disk has no room.
    """
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.decoder.vocab_size} rows"
        )
    residual = (2 * config.decoder.num_layers) ** -0.5
    weights = list(_entries(model_shapes(config), seed, torch.bfloat16, residual, official_name))
    images = list(_entries(autoencoder_shapes(config.vae), seed, torch.float32, 1.0, str))
    total = sum(entry.nbytes for entry in (*weights, *images))
    check_free_space(folder, total)
    advance = counting(progress, total)
    with whole_folder(folder) as staging:
        save_checkpoint(staging, config, tokenizer=tokenizer)
        write_safetensors(staging / AUTOENCODER_FILE, images, advance)
        write_model(staging / MODEL_FILE, weights, shard_size, advance)


def _entries(
    shapes: Mapping[str, torch.Size], seed: int, dtype: torch.dtype, residual: float, name_of: Callable[[str], str]
) -> Iterator[TensorEntry]:
    """The entry of each tensor of a network, under the names that `name_of` gives."""
    for ours, size in shapes.items():
        name, shape = name_of(ours), tuple(size)
        module, _, leaf = ours.rpartition(".")
        kind = kind_of(ours)
        make: Callable[[], Tensor]
        if kind == "position table":
            make = partial(_table, shape, dtype)
        elif "norm" in module.rpartition(".")[2]:
            make = partial(torch.full, shape, float(leaf == "weight"), dtype=dtype)
        else:
            deviation = {"embedding": _EMBEDDING, "bias": _BIAS}.get(kind, prod(shape[1:]) ** -0.5)
            if kind == "matrix" and module.endswith((".o", ".down")):
                deviation *= residual
            make = partial(normal, shape, deviation, seed, name, dtype)
        yield TensorEntry(name, shape, dtype, make)


def _table(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return sincos_table(isqrt(shape[0]), shape[1]).to(dtype)


def normal(shape: tuple[int, ...], deviation: float, seed: int, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of normal numbers that the seed and the name decide alone."""
    result = torch.empty(prod(shape), dtype=dtype)
    blocks = result.split(_BLOCK)

    def fill(index: int) -> None:
        digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        pieces = blocks[index].split(_PIECE)
        wide = torch.empty(pieces[0].numel())
        for piece in pieces:
            piece.copy_(wide[: piece.numel()].normal_(0.0, deviation, generator=generator))

    if len(blocks) == 1:
        fill(0)
    else:
        # PyTorch draws random numbers on one thread; several at a time are as fast as a disk.
        with ThreadPoolExecutor(min(len(blocks), choose_threads().count)) as pool:
            list(pool.map(fill, range(len(blocks))))
    return result.view(shape)

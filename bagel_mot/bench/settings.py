"""Settings and inputs of the measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bagel_mot.errors import SettingError
from bagel_mot.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(1, 2, 3, 4)


@dataclass(frozen=True)
class BenchSettings:
    """Sizes and rounds of the measurements.

    Attributes:
        prefill: text tokens of the prefill.
        images: image tokens of the denoising steps, laid out as nearly square as their number allows.
        contexts: numbers of text tokens before a decoded token.
        rounds: the number of times each call is timed.
        decoded: tokens decoded in one timing.
        compare: whether the plain loop runs too.
        train_text, train_image: text and image tokens of the training step.
    """

    prefill: int = 1024
    images: tuple[int, ...] = (256, 1024)
    contexts: tuple[int, ...] = (256, 4096)
    rounds: int = 5
    decoded: int = 8
    compare: bool = True
    train_text: int = 512
    train_image: int = 1024


QUICK = BenchSettings(
    prefill=256, images=(64, 256), contexts=(64, 1024), rounds=2, decoded=4, train_text=64, train_image=256
)


def grid_of(tokens: int, side: int) -> tuple[int, int]:
    """(rows, columns) for `tokens` image tokens, as nearly square as possible, within a position table of `side`².

    Raises:
        SettingError: there is no such grid.
    """
    rows = next((rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0), 0)
    if rows == 0 or tokens // rows > side:
        raise SettingError(
            f"no picture of {tokens} tokens fits a position table of {side}×{side}: give another number."
        )
    return rows, tokens // rows


def random_ids(count: int, vocab: int) -> Tensor:
    """Random token ids, int64 (count,), the same ones for the same count."""
    return torch.randint(5, vocab, (count,), generator=torch.Generator().manual_seed(count))

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
        train_samples: samples in the pack of the training step, each a text and an image that is drawn.
        train_text, train_image: text and image tokens of each; 1,024 are an image of 512×512 pixels.
        train_layers: decoder layers that are trained, at most; None for as many as memory allows.
        side: pixels a side of the images of whole tasks, at most.
        timesteps: timesteps of a whole drawing.
        answer: tokens of an answer about an image.
        text, following: tokens of a text that is read, and tokens that are written behind it.
        task_rounds: the number of times each whole task is timed.
        only: rows whose names hold one of these texts are measured; empty for all.
    """

    prefill: int = 1024
    images: tuple[int, ...] = (256, 1024)
    contexts: tuple[int, ...] = (256, 4096)
    rounds: int = 5
    decoded: int = 8
    compare: bool = True
    train_samples: int = 4
    train_text: int = 256
    train_image: int = 1024
    train_layers: int | None = None
    side: int = 512
    timesteps: int = 8
    answer: int = 64
    text: int = 1000
    following: int = 64
    task_rounds: int = 2
    only: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether the row of this name is to be measured."""
        return not self.only or any(text in name for text in self.only)


QUICK = BenchSettings(
    prefill=256,
    images=(64, 256),
    contexts=(64, 1024),
    rounds=2,
    decoded=4,
    train_samples=2,
    train_layers=4,
    side=256,
    timesteps=4,
    answer=16,
    text=250,
    following=16,
    task_rounds=1,
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

"""Sizes to which numbers of rows and tokens are rounded up, so that few different shapes come to be computed."""

from __future__ import annotations

FEW_TOKENS = 1024
"""Up to so many tokens a layer mostly reads weights, and twice as many take little longer."""


def token_bucket(n: int) -> int:
    """The number of slots for n tokens in compiled layers, each of whose shapes takes a compiler's time; 0 for none."""
    return bucket(n, least=8, steps=1 if n <= FEW_TOKENS else 8) if n else 0


def bucket(n: int, *, least: int = 1, steps: int = 2) -> int:
    """The smallest of a series of sizes that is not below n: powers of two from `least` on, with `steps` sizes, evenly
    spaced, to each doubling. What is computed in vain is less than 1/steps of the work.

    Args:
        n: the number of rows or tokens.
        least: the smallest size, a power of two.
        steps: the number of sizes to a doubling, a power of two.
    """
    if n <= least:
        return least
    below = 1 << (n - 1).bit_length() - 1  # the largest power of two below n
    step = max(1, below // steps)
    return -(-n // step) * step

"""A check that `torch.compile` works: on a CPU it needs a C++ compiler, on a GPU Triton; not all machines have them."""

from __future__ import annotations

from functools import cache

import torch


def note_on_compiling(asked: bool, device: torch.device) -> str | None:
    """The sentence for the user whose run goes on without the compiling that the recipe asks for; None where nothing
    is to be said.
    """
    reason = _obstacle(device.type) if asked else None
    return reason and f"compile is true, but torch.compile does not work here ({reason}): this run goes on without it"


@cache
def _obstacle(device: str) -> str | None:
    """The error of a small compiled function, in one line; None if it gives the right numbers."""
    x = torch.arange(4.0, device=device)
    try:
        found = torch.compile(_example, fullgraph=True)(x)
    except Exception as error:  # compiler, linker, loader and PyTorch have errors of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None if torch.allclose(found, _example(x)) else "its numbers are wrong"


def _example(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2 + 1

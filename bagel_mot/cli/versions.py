"""The versions, devices and threads that a report of a fault needs, as `bagel info --versions` shows them."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from re import match
from typing import Any

import torch

from bagel_mot.files import size_text
from bagel_mot.installation import NAME
from bagel_mot.version import __version__


def versions() -> dict[str, Any]:
    """Versions of this package, Python, the system, PyTorch and the packages of all extras, where they are installed;
    devices with their memory; CPU cores and threads.
    """
    return {
        NAME: f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or _rocm() or "not in this build of PyTorch",
        "devices": _devices(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": _packages(),
    }


def _rocm() -> str | None:
    return f"ROCm {torch.version.hip}" if torch.version.hip else None


def _devices() -> list[str]:
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {facts.name}, {size_text(facts.total_memory)}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _packages() -> dict[str, str]:
    """The installed packages that this one names as its dependencies or in its extras, by name."""
    try:
        wanted = requires(NAME) or []
    except PackageNotFoundError:  # run from its source without an installation
        wanted = []
    found = {}
    for name in sorted({_name(requirement) for requirement in wanted} - {"torch", NAME}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _name(requirement: str) -> str:
    named = match(r"[\w.-]+", requirement)
    assert named is not None  # metadata that pip accepted
    return named[0]

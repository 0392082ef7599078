"""A system whose memory and processors are what a test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel_mot import system_files
from bagel_mot.model import vae_precision


class FakeSystem:
    """The files in which a system says how much there is of everything, below a folder of a test's own.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object) -> None:
        """Writes one of the system's files."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def free(self, available: int, swap: int = 0) -> None:
        """Sets the free bytes of the machine, in whole KiB."""
        available, swap = available // 1024, swap // 1024
        self.write("proc/meminfo", f"MemTotal: 999 kB\nMemAvailable: {available} kB\nSwapFree: {swap} kB")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """A system that says nothing until a test lets it."""
    monkeypatch.setattr(system_files, "ROOT", tmp_path / "system")
    return FakeSystem(tmp_path / "system")


@pytest.fixture(autouse=True)
def _autoencoders_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU compute autoencoders in float32, whatever is faster on the one that runs the tests."""
    monkeypatch.setattr(vae_precision, "faster_on_cpu", lambda channels: False)

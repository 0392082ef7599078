"""Loading tells what it does, and does no more than it has to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bagel_mot.inference import loading
from bagel_mot.inference.loading import load
from bagel_mot.model import passes


@pytest.mark.skipif(passes.compiled() is None, reason="no compiler, or another system than Linux")
def test_compiling_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    load("mini", "float32", "cpu", progress=lambda *what: told.append(what))
    assert {doing for doing, _, _ in told} == {"loading"}  # so small a model needs no passes
    monkeypatch.setattr(loading, "LEAST_WIDTH", 1)
    monkeypatch.setattr(loading, "compiled", lambda: told.append(("done", 0, 0)))
    told.clear()
    load("mini", "float32", "cpu", progress=lambda *what: told.append(what))
    assert told[:3] == [("compiling", 0, 1), ("done", 0, 0), ("compiling", 1, 1)]
    assert {doing for doing, _, _ in told[3:]} == {"loading"}


def test_mini_is_loaded_without_the_plugins_of_all_image_formats() -> None:
    """Its images of previews are PNG; the plugins take a quarter of a second to import."""
    program = (
        "import sys; from bagel_mot import Bagel; Bagel.from_pretrained('mini'); "
        "print(*sorted(name for name in sys.modules if name.startswith('PIL.') and name.endswith('ImagePlugin')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert "PIL.PngImagePlugin" in found
    assert not {"PIL.WmfImagePlugin", "PIL.PsdImagePlugin", "PIL.FliImagePlugin"} & set(found)

"""The sdist is complete: it builds the wheel and passes its tests; the wheel holds what users need."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from bagel_mot.training.packaged import packaged_recipes
from bagel_mot.version import __version__

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# Quick tests that read what a clone holds beside the package.
SOME_TESTS = (
    "tests/test_package.py",
    "tests/test_installation.py",
    "tests/test_tokenizer.py",
    "tests/test_verify.py",
    "tests/test_rooms.py",
    "tests/test_readme.py",
    "tests/training/test_recipe.py",
)


def test_the_sdist_holds_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if (ROOT / ".git").exists():
        wanted = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split())
        wanted = {path for path in wanted if (ROOT / path).exists()} - {".gitignore"}
    else:  # the tests of an unpacked sdist
        wanted = {"tests/golden/cases.json", "tests/conftest.py", "docs/index.md", "constraints.txt", "Makefile"}
    assert wanted - held == set()
    assert not [name for name in held if "__pycache__" in name or name.startswith((".git/", "runs/", "build/"))]


def test_the_unpacked_sdist_passes_its_tests(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *SOME_TESTS]
    variables = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, cwd=unpacked, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_recipes_weights_and_a_description_for_indexes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(path))
    with_data = {str(path.relative_to(ROOT)) for path in (ROOT / "bagel_mot").rglob("*") if path.is_file()}
    assert {name for name in with_data if "__pycache__" not in name} - names == set()
    assert {f"bagel_mot/recipes/{name}.yaml" for name in packaged_recipes()} <= names
    assert not [name for name in names if not name.startswith(("bagel_mot/", "bagel_mot-"))]
    assert metadata["Version"] == __version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "](docs/" not in str(metadata.get_payload())
    assert {"all", "app", "serve", "train"} <= set(metadata.get_all("Provides-Extra") or ())

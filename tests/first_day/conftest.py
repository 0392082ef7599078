"""The package built as a release is, and installed where nothing of this repository can be found.

The sdist is built from a copy of the repository, the wheel from the unpacked sdist. The new environment takes all
packages but this one from the environment that runs the tests, so that nothing is downloaded.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.first_day.environment import Environment, run

ROOT = Path(__file__).parents[2]
# What commands, tools and editors leave in a working tree, so that a copy is as a fresh clone.
_LEFT = {".git", ".venv", "build", "dist", "demo", "runs", "checkpoints", "artifacts", "site", ".cache", ".hypothesis"}


def _build(kind: str, source: Path, output: Path) -> Path:
    """Builds with the backend of pyproject.toml, which is installed here; `python -m build` would download it."""
    output.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", code, output, cwd=source)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")

    def left(within: str, names: list[str]) -> set[str]:
        unwanted = {name for name in names if name.endswith((".egg-info", "_cache")) or name == "__pycache__"}
        return unwanted | (_LEFT.intersection(names) if Path(within) == ROOT else set())

    clone = Path(shutil.copytree(ROOT, folder / "clone", ignore=left))
    return _build("sdist", clone, folder / "sdist")


@pytest.fixture(scope="session")
def unpacked(sdist: Path) -> Path:
    """The folder in the sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent.parent, filter="data")
    return sdist.parent.parent / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def wheel(unpacked: Path) -> Path:
    return _build("wheel", unpacked, unpacked.parent / "wheel")


@pytest.fixture(scope="session")
def environment(wheel: Path) -> Environment:
    if sys.platform == "win32":
        pytest.skip("the README's commands are those of a Unix shell")
    made = Environment(wheel.parent.parent / "environment", wheel)
    run(sys.executable, "-m", "venv", "--without-pip", made.folder, cwd=wheel.parent)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(made.python, "-c", code, cwd=wheel.parent).strip())
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "tests-environment.pth").write_text("".join(f"{path}\n" for path in ours))
    made.pip("install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel)
    return made

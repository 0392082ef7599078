"""The package `bagel_mot` that the nodes use: the one in this repository, and what it needs of ComfyUI's Python."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
_NAME = "bagel_mot"


def find_library() -> None:
    """Makes `import bagel_mot` find the package of this repository, and no other folder of it, such as its tests.

    Raises:
        ImportError: packages that it needs are missing or too old, or another version of it is imported already.
    """
    source = ROOT / _NAME / "__init__.py"
    if not source.is_file():
        raise ImportError(
            f"BAGEL's nodes need the folder {_NAME} of their repository, and {ROOT} has none: clone the whole "
            "repository into custom_nodes (the package called bagel on PyPI is another project)."
        )
    _check_packages()
    present = sys.modules.get(_NAME)
    if present is None:
        spec = importlib.util.spec_from_file_location(_NAME, source)
        assert spec is not None
        assert spec.loader is not None
        present = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(present)
        except BaseException:
            del sys.modules[_NAME]
            raise
    found, wanted = getattr(present, "__version__", "unknown"), _version()
    if found != wanted:
        raise ImportError(
            f"BAGEL's nodes are of version {wanted}, but {_NAME} {found} was imported already from "
            f"{getattr(present, '__file__', 'elsewhere')}: remove the other one, or bring both to one version."
        )


def _version() -> str:
    """The version of the package beside the nodes."""
    text = (ROOT / _NAME / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


def _check_packages() -> None:
    """
    Raises:
        ImportError: a package of requirements.txt is missing or too old, or PyTorch is, which nothing replaces unasked.
    """
    requirements = ROOT / "requirements.txt"
    wanted = dict(re.findall(r"^([\w.-]+)>=([\d.]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE))
    lacking = [f"{name} {least} or later" for name, least in wanted.items() if _installed(name) < _numbers(least)]
    if lacking:
        raise ImportError(
            f"BAGEL's nodes need {', '.join(lacking)} in ComfyUI's Python: run `{sys.executable} -m pip install -r "
            f"{requirements}`, which leaves PyTorch as it is."
        )
    least = re.findall(r'"torch>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[0]
    if _numbers(torch.__version__) < _numbers(least):
        raise ImportError(
            f"BAGEL's nodes need PyTorch {least} or later, and ComfyUI's Python has {torch.__version__}: update "
            "ComfyUI's own, together with torchvision and torchaudio."
        )


def _installed(package: str) -> tuple[int, ...]:
    """The version of a package, as numbers; of none if it is missing."""
    try:
        return _numbers(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return ()


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows, such as +cu128."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()

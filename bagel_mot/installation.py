"""Tells where this package was installed from, and the command that installs one of its extras from there."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "bagel-mot"


def install_command(extra: str) -> str:
    """The command that adds the packages of an extra, as this package was itself installed.

    A source tree is installed as one; a folder, wheel or repository that pip installed from is named again if it is
    still there; everything else came from an index, which knows the package by its name.
    """
    source = Path(__file__).parent.parent
    if (source / "pyproject.toml").is_file():
        return f'pip install -e "{source}[{extra}]"'
    try:
        found = distribution(NAME)
    except PackageNotFoundError:
        return f'pip install "{NAME}[{extra}]"'
    return f'pip install "{_requirement(found, extra)}"'


def _requirement(found: Distribution, extra: str) -> str:
    """The requirement that makes pip find the same package again."""
    text = found.read_text("direct_url.json")  # pip and uv write it for everything that is not from an index
    if text is None:
        return f"{NAME}[{extra}]"
    origin: dict[str, Any] = json.loads(text)
    url: str = origin["url"]
    parts = urlsplit(url)
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        revision = f"@{vcs['requested_revision']}" if "requested_revision" in vcs else ""
        return f"{NAME}[{extra}] @ {vcs['vcs']}+{url}{revision}"
    if parts.scheme != "file":
        return f"{NAME}[{extra}] @ {url}"
    path = Path(url2pathname(parts.path))
    if not path.exists():  # such as a clone that was deleted after its installation
        return f"{NAME}[{extra}] @ git+{_repository(found)}"
    return f"{path}[{extra}]"


def _repository(found: Distribution) -> str:
    """The address of the repository, which `project.urls` of pyproject.toml holds."""
    urls = dict(entry.split(", ", 1) for entry in found.metadata.get_all("Project-URL") or ())
    return urls["Source"]

"""The one part of the package's metadata that has to be computed: README.md with absolute links, for package indexes.

Everything else is in pyproject.toml.
"""

import re
import runpy
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def long_description() -> str:
    """README.md, whose relative links and images lead to the repository at this version's tag."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project["urls"]["Source"]
    tag = f"v{runpy.run_path(str(ROOT / 'bagel_mot' / 'version.py'))['__version__']}"

    def absolute(found: re.Match[str]) -> str:
        view = "raw" if found["image"] else "blob"
        return f"{found['before']}{source}/{view}/{tag}/{found['path']}"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before = r"(?P<before>(?P<image>!\[[^\]]*\]\(|src=\")|\]\(|href=\")"
    return re.sub(before + r"(?![a-z]+:|#|/)(?P<path>[^)\s\"]+)", absolute, text)


if __name__ == "__main__":
    setup(long_description=long_description(), long_description_content_type="text/markdown")

"""The package as others get it: its metadata, its long description, and what the wheel and the sdist hold."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from bagel_mot.version import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def setup() -> ModuleType:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_long_description_lead_to_the_repository(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bagel_mot").mkdir()
    (tmp_path / "bagel_mot" / "version.py").write_text('__version__ = "3.1"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nurls = { Source = "https://h/o/r" }\n')
    (tmp_path / "README.md").write_text(
        '[a](docs/a.md#part) ![b](b.png) [![c](c.svg)](LICENSE) [d](https://x/y) [e](#here) <a href="f.md">'
        '<img src="g.png"></a> <img src="https://x/h.png">\n'
    )
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.long_description() == (
        "[a](https://h/o/r/blob/v3.1/docs/a.md#part) ![b](https://h/o/r/raw/v3.1/b.png) "
        "[![c](https://h/o/r/raw/v3.1/c.svg)](https://h/o/r/blob/v3.1/LICENSE) [d](https://x/y) [e](#here) "
        '<a href="https://h/o/r/blob/v3.1/f.md"><img src="https://h/o/r/raw/v3.1/g.png"></a> <img src="https://x/h.png">\n'
    )


def test_the_readme_leads_to_files_that_are_there(setup: ModuleType) -> None:
    text = setup.long_description()
    led = re.findall(rf"{PROJECT['urls']['Source']}/(?:raw|blob)/v{re.escape(__version__)}/([^)\s\"#]+)", text)
    assert "docs/architecture.md" in led
    assert not [path for path in led if not (ROOT / path).exists()]
    assert not re.findall(r"\]\((?!https:|#)", text)


def test_all_is_every_extra_of_a_user() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == [f"bagel-mot[{','.join(name for name in extras if name not in ('all', 'docs', 'dev'))}]"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE)
    assert versions[0] == __version__
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in cited


def test_the_sdist_names_every_file_of_the_repository() -> None:
    """MANIFEST.in covers what git knows; the slow test builds and looks inside."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.splitlines()
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    grafted = tuple(f"{line.split()[1]}/" for line in lines if line.startswith("graft "))
    included = {name for line in lines if line.startswith("include ") for name in line.split()[1:]}
    # setuptools takes these by itself.
    included |= {"pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"}
    missing = [path for path in tracked if not path.startswith(grafted) and path not in included]
    assert missing == [".gitignore"]

"""The advised command installs an extra from wherever this package itself came."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from bagel_mot import installation
from bagel_mot.installation import install_command

ROOT = Path(__file__).parent.parent
ADDRESS = "https://example.org/some/repository"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the package one that was installed with this direct_url.json, or from an index without one."""
    site = tmp_path / "site-packages"
    metadata = site / "bagel_mot-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: bagel-mot\nVersion: 0\n"
        f"Project-URL: Homepage, x\nProject-URL: Source, {ADDRESS}\n"
    )
    monkeypatch.setattr(installation, "__file__", str(site / "bagel_mot" / "installation.py"))
    monkeypatch.setattr(installation, "distribution", lambda _: Distribution.at(metadata))

    def install(origin: dict[str, Any] | None) -> None:
        if origin is not None:
            (metadata / "direct_url.json").write_text(json.dumps(origin))

    return install


def test_a_source_tree_is_installed_as_one() -> None:
    assert install_command("app") == f'pip install -e "{ROOT}[app]"'


def test_what_came_from_an_index_is_named(installed: Any) -> None:
    installed(None)
    assert install_command("app") == 'pip install "bagel-mot[app]"'


def test_without_metadata_the_name_is_all_there_is(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Distribution:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    assert install_command("serve") == 'pip install "bagel-mot[serve]"'


@pytest.mark.parametrize(
    ("revision", "shown"), [({}, ""), ({"requested_revision": "v0.2.0"}, "@v0.2.0")], ids=("no revision", "a revision")
)
def test_a_git_repository_is_named_again(installed: Any, revision: dict[str, str], shown: str) -> None:
    vcs = {"vcs": "git", "commit_id": "5eed", **revision}
    installed({"url": "https://example.org/fork.git", "vcs_info": vcs})
    assert install_command("gguf") == f'pip install "bagel-mot[gguf] @ git+https://example.org/fork.git{shown}"'


def test_a_wheel_of_a_server_is_named_again(installed: Any) -> None:
    url = "https://example.org/bagel_mot-0-py3-none-any.whl"
    installed({"url": url, "archive_info": {}})
    assert install_command("train") == f'pip install "bagel-mot[train] @ {url}"'


@pytest.mark.parametrize("kind", [{"dir_info": {}}, {"archive_info": {}}], ids=("folder", "wheel"))
def test_a_path_is_named_again_while_it_is_there(installed: Any, tmp_path: Path, kind: dict[str, Any]) -> None:
    path = tmp_path / "my downloads" / "bagel"
    installed({"url": path.as_uri(), **kind})
    assert install_command("app") == f'pip install "bagel-mot[app] @ git+{ADDRESS}"'
    path.mkdir(parents=True)
    assert install_command("app") == f'pip install "{path}[app]"'


def test_the_repository_of_the_advice_is_that_of_pyproject() -> None:
    import tomllib

    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls["Source"].startswith("https://")
    assert all(url.startswith(urls["Source"]) for url in urls.values())

"""Tests that share what takes long to make, or that start processes, are run by one process."""

from __future__ import annotations

from pathlib import Path

from tests.sharing import TOGETHER, group_of

ROOT = Path(__file__).parent.parent


def test_a_file_stays_together_and_some_folders_do() -> None:
    assert group_of("tests/data/test_mix.py::test_one[a::b]") == "tests/data/test_mix.py"
    assert group_of("tests/data/test_mix.py::test_one") != group_of("tests/data/test_order.py::test_one")
    for folder in TOGETHER:
        files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("test_*.py"))
        assert len(files) > 1, folder
        assert {group_of(f"{file}::test_one") for file in files} == {folder}

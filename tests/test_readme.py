"""The README shows the measured figures as the results hold them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from bagel.checkpoint.precision import LOSSY

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_figures_of_the_results(readme: ModuleType) -> None:
    tables = readme.tables()
    assert {path.name for path in tables} >= {"README.md", "official.md"}
    assert tables[ROOT / "README.md"].keys() == {"abilities", "speed"}
    for path, marked in tables.items():
        assert readme.filled(path, marked) == path.read_text(encoding="utf-8"), "run python benchmarks/readme.py"


def test_a_group_is_its_rows_together(readme: ModuleType) -> None:
    row = {"right": 150, "total": 200}
    other = {"right": 50, "total": 200}
    report = {
        "rows": {"edit/move": row, "edit/swap": other, "edit/chain of 3": other, "riddle/draw thinking": row},
        "summary": {"gain of thinking": 0.25},
    }
    lines = readme.abilities(report).splitlines()
    assert lines[2].startswith("| **edits** | 0.500 |")
    assert lines[3].startswith("| · move | 0.750 | 0.686 – 0.805 |")
    assert lines[5].startswith("| **chains of three edits in one session** | 0.250 |")
    assert lines[6].startswith("| **riddles, thinking** | 0.750 |")
    assert lines[7] == "| **what thinking adds** | +0.250 | | +0.30 |"


def test_what_loses_more_than_two_points_is_lossy(readme: ModuleType) -> None:
    good, worse = dict.fromkeys(readme.COMPARED, 0.8), dict.fromkeys(readme.COMPARED, 0.79)
    reports = {"bfloat16": {"summary": good}, "int8": {"summary": worse}, "nf4": {"summary": {**good, "ask": 0.77}}}
    assert readme.lossy(reports) == {"nf4"}


def test_precisions_are_called_lossy_as_they_scored(readme: ModuleType) -> None:
    reports = readme.whole(readme.read(readme.SCORED))
    if len(reports) < len(readme.PRECISIONS):
        assert not LOSSY, "it is said of some that they lose accuracy, but not all have been scored"
        return
    assert len({(report["fingerprint"], report["items"], report["seed"]) for report in reports.values()}) == 1
    assert readme.lossy(reports) == LOSSY

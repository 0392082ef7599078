"""The README and docs show the settings as they are, and the measured figures as the results hold them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bagel_mot.checkpoint.precision import LOSSY, QUANTISED

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
    assert {path.name for path in tables} >= {"README.md", "official.md", "settings.md"}
    assert tables[ROOT / "README.md"].keys() == {"cards"}
    assert tables[ROOT / "docs" / "measured.md"].keys() == {"abilities", "speed"}
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
    assert readme.lossy({"bfloat16": {"summary": good}, "float32": {"summary": {**good, "ask": 0.7}}}) == set()


def test_chains_are_compared_on_more_items_where_they_have_been_scored(readme: ModuleType) -> None:
    def report(chains: float, *longer: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            "summary": {**dict.fromkeys(readme.COMPARED, 0.8), "chains": chains},
            "items": 200,
            "fingerprint": "5eed",
        }
        if longer:
            row = {"share": longer[0], "total": 600}
            found["chains"] = {"rows": {"edit/chain of 3": row}}
        return found

    reports = {"bfloat16": report(0.36, 0.35), "fp8": report(0.32, 0.345), "int4": report(0.10)}
    assert readme.lossy(reports) == {"int4"}
    assert readme.lossy(reports, but=("chains",)) == set()
    table = readme.scores_by_precision(reports).splitlines()
    assert "| chains | 0.360 | -0.5 | -26.0 |" in table
    assert table[-1] == (
        "200 items in each row of the evaluation; of the chains 600 for fp8 (bfloat16: 0.350 of these); "
        "of the checkpoint whose files have the fingerprint 5eed."
    )


def test_precisions_are_called_lossy_as_they_scored(readme: ModuleType) -> None:
    reports = readme.scored()
    assert list(reports) == list(readme.SCORED)
    longer = [report["chains"] for report in reports.values() if "chains" in report]
    for found in (list(reports.values()), longer):
        assert (
            len({(report.get("made_from", report["fingerprint"]), report["items"], report["seed"]) for report in found})
            == 1
        )
    assert longer[0]["fingerprint"] == reports["bfloat16"]["fingerprint"]
    assert readme.lossy(reports) == LOSSY & set(readme.SCORED)
    unscored = LOSSY - set(readme.SCORED)
    assert unscored == {f"{name}-dynamic" for name in LOSSY if f"{name}-dynamic" in QUANTISED} - set(readme.SCORED)

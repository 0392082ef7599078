"""The report shows what a run's records hold, in HTML and in Markdown alike, and compares two runs item by item."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bagel_mot.cli.evaluation.tables import print_report
from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
from bagel_mot.evaluation.curves import TrainingPoint, ability_curves
from bagel_mot.evaluation.report.pages import write_report
from bagel_mot.evaluation.run_summary import summarize, write_summary
from bagel_mot.evaluation.runner import ItemRunner
from tests.evaluation.scripted import Knowing, Sums


def evaluated(folder: Path, respondent: Knowing, protocol: Protocol = Protocol.PUBLISHED) -> Path:
    benchmark = Sums(BenchmarkOptions(Path(), protocol))
    place = folder / ("sums" if protocol is Protocol.PUBLISHED else f"sums-{protocol}")
    runner = ItemRunner(benchmark, respondent, place)
    runner.run(benchmark.items())
    write_summary(place, summarize(runner, benchmark.items(), 12))
    return folder


def test_a_report_of_one_run(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, Knowing(wrong=("1+1", "2+1"), broken=("3+1",)))
    files, content = write_report(folder)
    assert files == [folder / "report.html", folder / "report.md"]
    page, markdown = (path.read_text(encoding="utf-8") for path in files)
    for text in (
        "knowing",
        "0.8182",
        "0.5 (BAGEL)",
        "the image of 3+1 cannot be read.",
        "4 + 1 = ?",
        "none: rules alone",
    ):
        assert text in page, text
        assert text in markdown, text
    assert "3 + 1 = ?" not in page  # the item has no result to look at
    assert page.count("<figure>") == 11
    assert page.count("data:image/jpeg;base64,") == 4
    assert "![](sums/images/drawn/2.png)" in markdown
    assert "a &lt;table&gt;" in page
    assert "<table>" not in markdown
    assert content["runs"][0]["rows"]["all"]["value"] == pytest.approx(9 / 11)


def test_two_runs_are_compared_on_the_items_of_both(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "a", Knowing(wrong=("0+1",), broken=("3+1",)))
    second = evaluated(tmp_path / "b", Knowing(wrong=("5+1", "6+1", "7+1")))
    (page, _), content = write_report(first, second)
    [row] = content["differences"][0]["rows"]
    assert (row["items"], row["only_first"], row["only_second"]) == (11, 3, 1)
    assert row["p"] == pytest.approx(2 * (1 + 4) / 2**4)
    assert row["difference"] == pytest.approx(-2 / 11)
    assert {id for id, *_ in row["most"]} == {"0+1", "5+1", "6+1", "7+1"}
    assert "McNemar, exact" in page.read_text(encoding="utf-8")


def test_runs_by_different_protocols_are_not_compared(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "a", Knowing())
    second = evaluated(tmp_path / "b", Knowing(wrong=("5+1",)))
    evaluated(second, Knowing(wrong=("6+1", "7+1")), Protocol.FIXED)
    [row] = write_report(first, second)[1]["differences"][0]["rows"]
    assert (row["only_first"], row["only_second"]) == (1, 0)
    with pytest.raises(EvaluationError, match="with the same data, variant, protocol and judge"):
        write_report(first, second / "sums-fixed")


def test_shares_are_shown_on_the_scale_of_the_published_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sums, "info", replace(Sums.info, scale=100))
    folder = evaluated(tmp_path, Knowing(wrong=("1+1", "2+1"), broken=("3+1",)))
    files, content = write_report(folder)
    page, markdown = (path.read_text(encoding="utf-8") for path in files)
    for text in ("81.82", "50 (BAGEL)", "52.3"):
        assert text in page, text
        assert text in markdown, text
    summary = content["runs"][0]
    assert summary["rows"]["all"]["value"] == pytest.approx(9 / 11)  # what is stored stays a share
    print_report(summary)
    shown = capsys.readouterr().out
    assert "81.82" in shown
    assert "50 (BAGEL)" in shown
    earlier = {name: value for name, value in summary.items() if name != "scale"}
    (folder / "sums" / "summary.json").write_text(json.dumps(earlier))
    assert "0.8182" in write_report(folder)[0][0].read_text(encoding="utf-8")


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is not a folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(EvaluationError, match="holds no summary"):
        write_report(tmp_path)


def test_the_curves_of_a_training_run_stand_in_its_report(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, Knowing())
    points = [TrainingPoint(tmp_path, step, 1000.0 * step) for step in (1, 2)]
    reports = [{"items": 12, "seed": 0, "rows": {}, "summary": {"ask": share}} for share in (0.25, 0.5)]
    curves = ability_curves(points, reports)
    (folder / "curves.json").write_text(json.dumps(curves))
    (folder / "curves.svg").write_text("<svg/>")
    for path in write_report(folder)[0]:
        page = path.read_text(encoding="utf-8")
        assert "Abilities over training tokens" in page
        assert "curves.svg" in page
    assert "| 2,000 | 2 | 0.500 |" in page
    assert "| 85% of the last at |  | 1,700 |" in page

"""Recorded scores of benchmarks: the copy in the tests agrees, a spoiled one does not, and a strange one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bagel_mot.cli import app
from bagel_mot.errors import DataError
from bagel_mot.verify import verify
from bagel_mot.verify.golden_eval import CHECKS, verify_benchmark, verify_golden_eval
from bagel_mot.verify.golden_eval.recorded import BENCHMARKS, JUDGED

pytest.importorskip("pyarrow")
pytest.importorskip("openpyxl")

GOLDEN = Path(__file__).parents[1] / "golden-eval"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies one benchmark's records; its data are linked."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for entry in (GOLDEN / name).iterdir():
            if entry.suffix == ".json":
                shutil.copy(entry, folder)
            else:
                (folder / entry.name).symlink_to(entry, target_is_directory=True)
        return folder

    return make


def rewrite(folder: Path, document: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"{document}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "x"]
    return f"{value}x" if isinstance(value, str) or value is None else value + 1


def spoil(content: dict[str, Any], *keys: str) -> None:
    """Changes the value at a place. A `*` is the first key there."""
    for key in keys[:-1]:
        content = content[next(iter(content)) if key == "*" else key]
    last = next(iter(content)) if keys[-1] == "*" else keys[-1]
    content[last] = other(content[last])


def spoil_prompt(name: str) -> Callable[[dict[str, Any]], None]:
    outer = {"mmbench": ("*",), "mmmu": ("cot",), "mathvista": ("cot",), "pope": ("plain",)}.get(name, ())
    return lambda content: spoil(content, *outer, "items", "*", "rewritten" if name == "geneval" else "prompt")


def spoil_answers(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        if name == "geneval":
            content["detections"]["00000/samples/00000.png"] = {}
        elif "runs" in content:
            run = next(iter(content["runs"].values()))
            run.update(dict.fromkeys(run, "zzz"))
        else:
            run = content["judge"]["main"]
            first = next(iter(run))
            run[first] = {call: [None] * 3 for call in run[first]} if isinstance(run[first], dict) else [None] * 3

    return change


def spoil_score(name: str) -> Callable[[dict[str, Any]], None]:
    if name == "geneval":
        return lambda content: spoil(content, "items", "*", "correct")
    ends = () if name == "imgedit" else ("*",)
    return lambda content: spoil(content, "runs", "*", "items", "*", *ends)


def spoil_mean(name: str) -> Callable[[dict[str, Any]], None]:
    places = {
        "mmbench": ("runs", "*", "local_score_derived", "fixed_parse", "circular"),
        "mmmu": ("runs", "main", "fixed", "Overall", "accuracy"),
        "mmvet": ("runs", "main", "fixed", "by_ability", "Overall", "score"),
        "mathvista": ("runs", "main", "fixed", "average"),
        "mmvp": ("runs", "main", "fixed", "questions"),
        "pope": ("runs", "cot", "as_published", "mean_f1"),
        "geneval": ("fixed", "overall"),
        "gedit": ("runs", "main", "fixed", "cn", "G_O"),
        "intelligentbench": ("runs", "main", "fixed", "percent"),
        "kris": ("runs", "main", "fixed", "overall"),
        "rise": ("runs", "odd", "fixed", "Overall", "accuracy"),
        "imgedit": ("runs", "main", "as_published", "overall"),
        "wise_verified": ("runs", "odd", "fixed", "Overall"),
    }
    return lambda content: spoil(content, *places.get(name, ("runs", "odd", "fixed", "*")))


def spoil_setting(name: str) -> Callable[[dict[str, Any]], None]:
    if name == "mmvet":
        return lambda content: spoil(content, "settings", "tries")
    return lambda content: spoil(content, "settings", "model")


def spoil_request(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        if name in ("wise", "wise_verified"):
            spoil(content, "user_template_sha256")
        elif name == "mmvet":
            first = next(iter(content["items"].values()))
            first[0]["last_row"] += "x"
        elif name == "mathvista":
            spoil(content, "items", "*", "text_sha256")
        else:
            message = next(iter(content["requests"].values()))[-1]
            picture = next(part["picture"] for part in message["content"] if "picture" in part)
            picture["size"][0] += 1

    return change


SPOILED = [
    *(("prompts", name, spoil_prompt(name)) for name in BENCHMARKS),
    *(("answers", name, spoil_answers(name)) for name in BENCHMARKS),
    *(("expected", name, spoil_score(name)) for name in BENCHMARKS),
    *(("expected", name, spoil_mean(name)) for name in BENCHMARKS),
    *(("requests", name, spoil_setting(name)) for name in JUDGED),
    *(("requests", name, spoil_request(name)) for name in JUDGED),
]


def test_every_benchmark_has_its_comparison() -> None:
    assert tuple(CHECKS) == BENCHMARKS
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(BENCHMARKS)


@pytest.mark.parametrize("name", ["mmvp", "imgedit"])
def test_two_benchmarks_agree(name: str) -> None:
    rows = verify_benchmark(GOLDEN / name)
    assert len(rows) > 200
    assert not [row for row in rows if not row.passed]


@pytest.mark.slow
def test_all_benchmarks_agree() -> None:
    report = verify(GOLDEN)
    assert report.passed, report.failed[:5]
    assert {name.split()[0] for name in report.by_part} == set(BENCHMARKS)
    for name in BENCHMARKS:
        assert {"prompts", "scores"} <= {part.split()[1] for part in report.by_part if part.split()[0] == name}
    assert {part.split()[0] for part in report.by_part if part.endswith("requests")} == set(JUDGED)
    result = CliRunner().invoke(app, ["verify", str(GOLDEN), "--failed"])
    assert result.exit_code == 0
    assert "mme prompts: " in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("document", "name", "change"), SPOILED, ids=[f"{one[1]}-{one[0]}" for one in SPOILED])
def test_a_spoiled_record_fails(
    copy: Callable[[str], Path], document: str, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = copy(name)
    rewrite(folder, document, change)
    assert [row for row in verify_benchmark(folder) if not row.passed]


@pytest.mark.parametrize(
    ("document", "change"),
    [(one[0], one[2]) for one in SPOILED if one[1] == "mmvp"],
    ids=["prompt", "answer", "item", "mean"],
)
def test_a_spoiled_record_of_the_smallest_set_fails(
    copy: Callable[[str], Path], document: str, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = copy("mmvp")
    rewrite(folder, document, change)
    assert [row for row in verify_benchmark(folder) if not row.passed]


def test_what_nothing_compares_fails(copy: Callable[[str], Path]) -> None:
    folder = copy("mmvp")
    rewrite(folder, "expected", lambda content: content["runs"].update(third={"pairs": 0.5}))
    [row] = [row for row in verify_benchmark(folder) if not row.passed]
    assert "nothing compares 1 values: expected/runs/third/pairs" in row.note


def test_what_is_not_known_is_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("mmvp")
    (folder / "more.json").write_text("{}")
    with pytest.raises(DataError, match=r"more\.json is not known"):
        verify_benchmark(folder)
    (folder / "more.json").unlink()
    rewrite(folder, "expected", lambda content: content.update(source="somewhere"))
    with pytest.raises(DataError, match="source is 'somewhere': it must say that scores are recorded or derived"):
        verify_benchmark(folder)
    rewrite(folder, "expected", lambda content: content.update(source="recorded", fixed_twice={"pairs": 1}))
    with pytest.raises(DataError, match="the mark fixed_twice is not known"):
        verify_benchmark(folder)
    (folder / "answers.json").unlink()
    with pytest.raises(DataError, match=r"answers\.json"):
        verify_benchmark(folder)


def test_unknown_and_missing_benchmarks_are_refused(tmp_path: Path) -> None:
    for name in BENCHMARKS:
        (tmp_path / name).symlink_to(GOLDEN / name, target_is_directory=True)
    (tmp_path / "mmx").mkdir()
    with pytest.raises(DataError, match="mmx is not known as a benchmark: did you mean mme"):
        verify_golden_eval(tmp_path)
    (tmp_path / "mmx").rmdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt is not known"):
        verify_golden_eval(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "rise").unlink()
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 2
    assert "lacks rise: a set has 15 benchmarks" in result.stderr

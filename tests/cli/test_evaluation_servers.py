"""`bagel eval --judge` and `--server` on the command line: a server that is not there, goes away or has no quota ends
the run with one sentence, and the same command finishes it without asking again for what it has."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bagel_mot.cli import app
from bagel_mot.evaluation.base import Item
from bagel_mot.evaluation.benchmarks.gedit import TASKS
from bagel_mot.evaluation.http import ModelServer
from bagel_mot.evaluation.judges.chat import ChatJudge
from bagel_mot.inference.api import Bagel
from bagel_mot.serving.options import ServerOptions
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.items import edit_items
from tests.evaluation.judges.scripted import Script, error, serving
from tests.evaluation.scripted import Knowing, Sums
from tests.evaluation.test_miniatures import png
from tests.serving.conftest import running

NO_QUOTA = error(429, "You exceeded your current quota", code="insufficient_quota")


class JudgedSums(Sums):
    info = replace(Sums.info, needs="a judge")


class AskedSums(Sums):
    """The sums that draw nothing."""

    def items(self) -> list[Item]:
        return [item for item in super().items() if item.kind == "ask"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def one_sentence(result: Result) -> str:
    assert result.exit_code == 2, result.output
    [line] = result.stderr.strip().splitlines()
    return line


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for waits in (ChatJudge, ModelServer):
        monkeypatch.setitem(waits.__init__.__kwdefaults__, "sleep", lambda seconds: None)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> Knowing:
    respondent = Knowing()
    monkeypatch.setattr("bagel_mot.evaluation.registry.all_benchmarks", lambda: {"sums": JudgedSums})
    monkeypatch.setattr("bagel_mot.cli.evaluation.command.open_respondent", lambda *args: respondent)
    return respondent


def judged(url: str, *more: object) -> Result:
    return run(
        "sums", "--variant", "judged", "--data", ".", "--judge", url, "--judge-model", "m", "--json", "r.json", *more
    )


def texts(script: Script) -> list[str]:
    """The questions that a judge or server was asked, in order."""
    return [json.dumps(body["messages"], ensure_ascii=False) for _, _, body in script.asked]


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://"])
def test_an_address_that_cannot_be_one_is_refused_before_anything_runs(knowing: Knowing, url: str) -> None:
    assert f"the judge's address is {url!r}: write http://HOST:PORT/v1." in one_sentence(judged(url))
    assert knowing.asked == []
    assert "sums needs a judge: give --judge URL" in one_sentence(run("sums", "--data", "."))
    assert knowing.asked == []


def test_a_judge_that_was_never_there_leaves_the_answers(knowing: Knowing) -> None:
    with serving() as script:
        port = int(script.url.rpartition(":")[2])
    assert "cannot be reached" in one_sentence(judged(script.url))
    assert len(knowing.asked) >= 8  # a batch at least
    before = list(knowing.asked)
    with serving("1", port=port):
        assert judged(script.url).exit_code == 0
    assert Counter(knowing.asked).most_common(1)[0][1] == 1
    assert knowing.asked[: len(before)] == before
    assert json.loads(Path("r.json").read_text())["rows"]["all"]["value"] == 1.0


@pytest.mark.parametrize(
    ("last", "sentence"),
    [(NO_QUOTA, "is out of quota"), (error(402, "pay"), "is out of quota"), (None, "reached")],
)
def test_a_judge_that_goes_away_is_not_asked_again_for_what_it_said(knowing: Knowing, last: Any, sentence: str) -> None:
    with serving("1", "0", "1", "0.5", "1", *([last] if last else [])) as script:
        script.stops_after = None if last else 5
        port = int(script.url.rpartition(":")[2])
        first = judged(script.url)
    assert sentence in one_sentence(first)
    had = texts(script)[:5]
    with serving("1", port=port) as again:
        second = judged(script.url)
        assert second.exit_code == 0, second.output
        assert sorted(had + texts(again)) == sorted(set(had + texts(again)))
        assert len(had + texts(again)) == 12
        report = json.loads(Path("r.json").read_text())
        assert (report["scored"], report["failed"], report["unscored"]) == (12, {}, [])
        assert report["rows"]["all"]["value"] == pytest.approx((3 + 0.5 + 7) / 12)
        for scores in Path("evaluations/mini").rglob("scores@m.jsonl"):
            scores.unlink()
        again.asked.clear()
        assert judged(script.url).exit_code == 0  # all replies are kept beside the scores
        assert again.asked == []
        assert json.loads(Path("r.json").read_text())["rows"] == report["rows"]
    assert Counter(knowing.asked).most_common(1)[0][1] == 1


def test_what_a_server_answered_before_its_quota_ended_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.evaluation.registry.all_benchmarks", lambda: {"sums": AskedSums})
    ids = [item.id for item in AskedSums.items(AskedSums.__new__(AskedSums))]
    for out, last in (("a", NO_QUOTA), ("b", error(402, "pay"))):
        with serving("1", "1", "1", "1", "1", last) as script:
            command = ("sums", "--data", ".", "--out", out, "--batch", 4, "--server-model", "m", "--json", "r.json")
            first = run(*command, "--server", script.url)
            assert "is out of quota" in one_sentence(first)
            had = texts(script)[:5]
            lines = (Path(out) / "sums" / "items.jsonl").read_text().splitlines()[1:]
            assert len(lines) == 5
            script.asked.clear()
            script.answers = ["1"]
            assert run(*command, "--server", script.url).exit_code == 0
            assert len(set(had + texts(script))) == len(had + texts(script)) == len(ids)
        assert json.loads(Path("r.json").read_text())["scored"] == len(ids)
        lines = (Path(out) / "sums" / "items.jsonl").read_text().splitlines()[1:]
        assert sorted(json.loads(line)["id"] for line in lines) == sorted(ids)


def whole_gedit(folder: Path) -> None:
    """GEdit-Bench with as many edits of each task as it has, all of them one of two edits of mini's world."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    edits = edit_items("recolour", 2)
    images = [{"bytes": png(draw(edit.scene)), "path": None} for edit in edits]
    rows = [
        {
            "key": f"{language}-{task}-{number}", "task_type": task, "instruction": edits[number % 2].instruction,
            "instruction_language": language, "input_image": images[number % 2],
            "input_image_raw": images[number % 2], "Intersection_exist": True,
        }
        for language in ("en", "cn")
        for task, count in TASKS.items()
        for number in range(count)
    ]  # fmt: skip
    (folder / "data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")


@pytest.mark.slow
def test_mini_is_judged_by_a_script_and_by_our_own_server() -> None:
    whole_gedit(Path("GEdit"))
    command = ("gedit", "--variant", "en", "--data", "GEdit", "--limit", 2, "--threads", 1, "--json", "r.json")
    said = json.dumps({"score": [4, 9], "reasoning": "so it is"})
    with serving(said, said, NO_QUOTA) as script:
        judge = ("--judge", script.url, "--judge-model", "scripted")
        assert "is out of quota" in one_sentence(run(*command, *judge))
        script.answers = [said]
        second = run(*command, *judge)
        assert second.exit_code == 0, second.output
        answered = [body for _, _, body in script.asked]
        images = [part for body in answered for m in body["messages"] for part in m["content"] if "image_url" in part]
        assert len({json.dumps(body) for body in answered}) == 2 * 2  # two requests for each of two edits
        assert images
    report = json.loads(Path("r.json").read_text())
    assert (report["scored"], report["unscored"], report["judge"]["model"]) == (2, [], "scripted")
    assert report["rows"]["en/G_O"]["value"] == pytest.approx(4.0)
    with Bagel.from_pretrained("mini", threads=1) as bagel, running(bagel, ServerOptions(model_name="mini")) as live:
        ours = run(*command, "--judge", f"{live.url}/v1", "--judge-model", "mini")
        assert ours.exit_code == 1, ours.output  # mini answers, but knows nothing of JSON
        report = json.loads(Path("r.json").read_text())
        assert (report["judge"]["model"], report["failed"]) == ("mini", {})
        assert (len(report["unscored"]), report["unparsable"] > 0) == (2, True)
        assert "2 items have no score" in ours.stdout
        wrong = run(*command, "--judge", f"{live.url}/v1", "--judge-model", "maxi")
        assert "does not know the model" in one_sentence(wrong)
    drawn = [path for path in Path("evaluations/mini").rglob("*.png") if "SRCIMG" not in path.name]
    assert len(drawn) == 2  # drawn once, judged by two

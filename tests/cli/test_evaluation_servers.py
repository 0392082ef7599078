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
from bagel_mot.evaluation.http import ModelServer
from bagel_mot.evaluation.judges.chat import ChatJudge
from tests.evaluation.judges.scripted import Script, error, serving
from tests.evaluation.scripted import Knowing, Sums

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
    ("last", "sentence"), [(NO_QUOTA, "is out of quota"), (error(402, "pay"), "is out of quota"), (None, "reached")]
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
            assert "has no quota left" in one_sentence(first)
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

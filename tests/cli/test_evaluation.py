"""`bagel eval` of benchmarks: what is listed, refused, written and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bagel_mot.cli import app
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.evaluation.runs import file_name, opened
from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.base import Item, PublishedScore
from bagel_mot.evaluation.benchmarks.geneval import TAGS
from bagel_mot.evaluation.registry import all_benchmarks
from tests.evaluation.scripted import Knowing, Sums


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> Knowing:
    """A benchmark of sums, and a respondent in place of a model."""
    respondent = Knowing()
    monkeypatch.setattr("bagel_mot.evaluation.registry.all_benchmarks", lambda: {"sums": Sums})
    monkeypatch.setattr("bagel_mot.cli.evaluation.command.open_respondent", lambda *args: respondent)
    return respondent


def test_every_benchmark_is_listed() -> None:
    listed = json.loads(run("--list", "--json", "-").stdout)
    assert [one["name"] for one in listed] == list(all_benchmarks())
    assert {"mini"} <= {one["name"] for one in listed}
    for one in listed:
        assert one["items"] > 0 or one["name"] == "ocrvqa", one  # whose size no source at hand tells
        assert all(one[key] for key in ("title", "ability", "source", "licence")), one
        assert one["needs"] in ("", "a judge", "a detector") or "judge" in one["needs"]


def test_a_benchmark_is_run_reported_and_compared(knowing: Knowing) -> None:
    knowing.broken = ("4+1",)
    first = run("sums", "--data", ".", "--json", "sums.json", "--limit", 9)
    assert first.exit_code == 1, first.output
    assert "1 items could not be answered or scored: 4+1" in first.stdout
    assert json.loads(Path("sums.json").read_text())["failed"] == {"4+1": "the image of 4+1 cannot be read."}
    knowing.broken = ()
    knowing.asked.clear()
    assert run("sums", "--data", ".", "--json", "sums.json").exit_code == 0
    assert knowing.asked == ["4+1", "9+1", "10+1", "11+1"]
    report = json.loads(Path("sums.json").read_text())
    assert (report["rows"]["all"]["value"], report["scored"], report["of"]) == (1.0, 12, 12)
    assert json.loads(Path("evaluations/mini/sums/summary.json").read_text()) == report
    knowing.wrong = ("1+1",)
    assert run("sums", "--data", ".", "--out", "other").exit_code == 0
    shown = run("report", "evaluations/mini", "other", "--json", "both.json")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.split() == ["evaluations/mini/report.html", "evaluations/mini/report.md"]
    [row] = json.loads(Path("both.json").read_text())["differences"][0]["rows"]
    assert (row["only_first"], row["only_second"]) == (1, 0)


def test_texts_for_the_judge_are_looked_for_before_a_model_is_loaded(
    knowing: Knowing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(self: Sums) -> None:
        raise EvaluationError("the judge's texts are missing.")

    monkeypatch.setattr(Sums, "check_judging", lacking)
    refused = run("sums", "--data", ".", "--judge", "http://localhost:9/v1")
    assert (refused.exit_code, knowing.asked) == (2, [])
    assert "the judge's texts are missing." in refused.stderr
    assert run("sums", "--data", ".").exit_code == 0  # nobody judges


def test_all_that_is_published_of_a_row_is_shown(knowing: Knowing, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tuple(
        PublishedScore("all", value, model, "a table") for value, model in ((0.5, "X"), (0.75, "X, [think]"))
    )
    monkeypatch.setattr(Sums, "info", replace(Sums.info, published=published))
    shown = run("sums", "--data", ".").stdout
    assert "0.5 (X)" in shown
    assert "0.75 (X, [think])" in shown


def test_scores_of_the_official_scorer_are_reported_without_a_model() -> None:
    lines = [
        {"tag": tag, "include": [{"class": "kite", "count": 1}], "prompt": f"{tag} {number}"}
        for tag, count in TAGS.items()
        for number in range(count)
    ]
    Path("evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = [
        {"filename": f"x/{n:05d}/samples/0000.png", "correct": n % 2 == 0, "tag": line["tag"], "prompt": line["prompt"]}
        for n, line in enumerate(lines)
    ]
    Path("results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    shown = run("geneval", "--data", ".", "--scores", "results.jsonl", "--json", "report.json", "--out", "out")
    assert shown.exit_code == 0, shown.output
    report = json.loads(Path("report.json").read_text())
    assert report["rows"]["single_object"]["value"] == 0.5
    assert (report["scored"], report["of"]) == (553, 553)
    assert "GenEval: results.jsonl, protocol published" in shown.stdout
    assert [json.loads(path.read_text()) for path in Path("out").glob("summary*.json")] == [report]
    more = {**results[0], "filename": "x/00000/samples/0001.png"}
    for half, lacking in ((results[:300], "253 of 553"), ([*results, more], "552 of 553")):
        Path("results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in half))
        refused = run("geneval", "--data", ".", "--scores", "results.jsonl")
        assert (refused.exit_code, f"lacks images of {lacking} prompts" in refused.stderr) == (2, True), refused.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the name of a benchmark is missing"),
        (("sum",), "there is no benchmark 'sum': did you mean sums?"),
        (("sums",), "--data is missing: sums needs the folder of its data"),
        (("sums", "--data", ".", "--protocol", "best"), "protocol is 'best': it must be published, fixed, upstream."),
        (("sums", "--data", ".", "--variant", "cn"), "sums has no variant 'cn': there are plain, judged."),
        (("sums", "--data", ".", "--items", "4"), "--rows, --items and --seed belong to mini"),
        (("sums", "--data", ".", "--server", "http://x"), "--server and --server-model belong together"),
        (("sums", "--data", ".", "--judge-model", "x"), "--judge-model is given without --judge"),
        (("sums", "--data", ".", "--scores", "x"), "sums has no scorer of its own whose results are read"),
        (("sums", "sums", "--scores", "x"), "--scores is the file of one benchmark's own scorer"),
        (("sums", "sums", "--predictions", "x"), "--predictions is a table of one benchmark's answers"),
        (("sums", "--predictions", "x.tsv", "--workers", "2"), "--predictions has the answers already"),
        (("sums", "--data", ".", "--predictions", "x.tsv"), "--predictions is for benchmarks of questions: sums has"),
        (("sums", "--data", ".", "--vlmevalkit", "x"), "--vlmevalkit is for benchmarks of questions: sums has images"),
        (("sums", "--every-checkpoint", "."), "--every-checkpoint belongs to mini"),
        (("mini", "--every-checkpoint", "."), "holds no checkpoints"),
        (
            ("mini", "--every-checkpoint", ".", "--think"),
            "--think says nothing about --every-checkpoint: leave it",
        ),
        (("mini", "--every-checkpoint", ".", "--workers", "2"), "--workers says nothing about --every-checkpoint"),
        (("sums", "--scores", "x", "--limit", "3"), "--limit says nothing about scores that there are: leave it out."),
        (
            ("report", ".", "--server", "x"),
            "--server says nothing about a report of runs that there are",
        ),
        (("--list", "--rows", "draw"), "--rows says nothing about the list of benchmarks: leave it out."),
        (("fetch", "sums", "--out", "x"), "--out says nothing about fetching: leave it out."),
        (("fetch",), "the name of a benchmark to fetch is missing"),
        (("fetch", "sums"), "sums is not on the hub: made here."),
        (("report",), "bagel eval report takes the folder of a run"),
        (("report", "."), "holds no summary of an evaluation"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    knowing: Knowing, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [("--think",), ("--judge", "http://x"), ("--data", "."), ("--protocol", "fixed"), ("--predictions", "x.tsv")],
)
def test_options_that_say_nothing_about_mini_are_refused(option: tuple[str, ...]) -> None:
    result = run("mini", *option)
    assert (result.exit_code, f"{option[0]} says nothing about mini" in result.stderr) == (2, True), result.output


def test_items_of_the_same_id_are_refused(knowing: Knowing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "items", lambda self: [Item(id, "ask", "?") for id in ("a", "b", "a")])
    result = run("sums", "--data", ".")
    assert (result.exit_code, knowing.asked) == (2, [])
    assert "Sums has several items with the id a: each may have one." in result.stderr


def test_no_model_is_called_like_the_folder_above() -> None:
    assert [file_name(name) for name in ("a/b 7.5", "..", ".")] == ["a-b-7.5", "--", "-"]


def test_the_folder_of_judges_texts_may_be_below_the_users_own(
    knowing: Knowing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    benchmark = opened("sums", How(data=Path(), judge_texts=Path("~/texts")), 1)
    assert benchmark.options.judge_texts == Path("/home/somebody/texts")


def test_minis_images_have_no_table() -> None:
    result = run("mini", "--vlmevalkit", "x")
    assert result.exit_code == 2
    assert "--vlmevalkit is for benchmarks of questions: mini has images" in result.stderr


class Questions(Sums):
    """The sums that are answered by a text."""

    info = replace(Sums.info, vlmevalkit={"plain": "Sums_VAL"})

    def items(self) -> list[Item]:
        return [item for item in super().items() if item.kind == "ask"]


def test_answers_go_to_vlmevalkit_and_are_scored_from_there(knowing: Knowing, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl")
    monkeypatch.setattr("bagel_mot.evaluation.registry.all_benchmarks", lambda: {"sums": Questions})
    knowing.wrong, knowing.broken = ("4+1",), ("0+1",)
    assert run("sums", "--data", ".", "--vlmevalkit", "kit", "--json", "ours.json").exit_code == 1
    written = Path("kit/knowing_Sums_VAL.xlsx")
    assert written.is_file()
    incomplete = run("sums", "--data", ".", "--predictions", written)
    assert incomplete.exit_code == 2
    assert "knowing_Sums_VAL.xlsx lacks 1 of 8 items of Sums (index 0+1): it would not be" in incomplete.stderr
    knowing.broken = ()
    assert run("sums", "--data", ".", "--vlmevalkit", "kit", "--json", "ours.json").exit_code == 0
    monkeypatch.setattr(
        "bagel_mot.cli.evaluation.command.open_respondent", lambda *args: pytest.fail("a model is loaded")
    )
    for table in (written, written.with_suffix(".tsv")):
        scored = run("sums", "--data", ".", "--predictions", table, "--out", table.suffix[1:], "--json", "theirs.json")
        assert scored.exit_code == 0, scored.output
        ours, theirs = (json.loads(Path(name).read_text()) for name in ("ours.json", "theirs.json"))
        assert theirs["rows"] == ours["rows"]
        assert theirs["rows"]["all"]["value"] == 7 / 8
        assert theirs["model"] == "knowing"
        assert theirs["predictions"].startswith(f"{table.name}, sha256 ")
    again = run("sums", "--data", ".", "--predictions", written, "--out", "tsv")
    assert again.exit_code == 2
    assert "holds another run: its predictions is" in again.stderr


def test_the_set_of_the_hub_is_fetched_into_a_folder_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(repo: str, *, repo_type: str, local_dir: Path) -> str:
        asked.append((repo, repo_type))
        if len(asked) == 2:
            raise OSError("the network is down")
        return str(local_dir)

    kind = type("OnHub", (Sums,), {"info": Sums.info.__class__(**{**vars(Sums.info), "hub": "someone/sums"})})
    monkeypatch.setattr("bagel_mot.evaluation.registry.all_benchmarks", lambda: {"sums": kind})
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert run("fetch", "sums", "--data", "sets").stdout.split() == ["sets/sums"]
    assert asked == [("someone/sums", "dataset")]
    failed = run("fetch", "sums")
    assert failed.exit_code == 2
    assert "someone/sums could not be fetched (the network is down)" in failed.stderr


@pytest.mark.parametrize("name", [name for name in all_benchmarks() if name != "mini"])
def test_data_are_read_before_a_model_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incomplete set is refused at once, not after minutes of loading; where VLMEvalKit has the set, it is named."""
    monkeypatch.setattr(
        "bagel_mot.cli.evaluation.command.open_respondent", lambda *_: pytest.fail("a model was loaded")
    )
    (tmp_path / "empty").mkdir()
    refused = run(name, "--data", "empty", "--results-only")
    assert refused.exit_code == 2, refused.output
    table = next(iter(all_benchmarks()[name].info.vlmevalkit.values()), None)
    assert table is None or f"{table}.tsv in that folder" in refused.output, refused.output

"""Runs of benchmarks whose data are on disk, and scores that their own scorers have made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagel_mot.cli.evaluation.folders import bars, owned
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.evaluation.tables import print_report
from bagel_mot.cli.options import notes, write_json
from bagel_mot.errors import SettingError
from bagel_mot.files import user_path, writing

if TYPE_CHECKING:
    from bagel_mot.evaluation.base import Benchmark, Item, ItemResult
    from bagel_mot.evaluation.judges.base import Judges
    from bagel_mot.evaluation.respondents.base import Respondent
    from bagel_mot.parallel.launch import Launch


def opened(name: str, how: How, count: int) -> Benchmark:
    """A benchmark with its items, which are read and checked now, before a model is loaded for them."""
    from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
    from bagel_mot.evaluation.data import MissingFileError, require_distinct
    from bagel_mot.evaluation.registry import benchmark_named
    from bagel_mot.evaluation.vlmevalkit import kit_name

    if how.data is None:
        raise SettingError(
            f"--data is missing: {name} needs the folder of its data; bagel eval --list says from where."
        )
    own = user_path(how.data) / name
    data = own if count > 1 or own.is_dir() else user_path(how.data)
    options = BenchmarkOptions(
        data,
        Protocol(how.protocol),
        think=how.think,
        variant=how.variant,
        judge_texts=None if how.judge_texts is None else user_path(how.judge_texts),
    )
    kind = benchmark_named(name)
    if how.variant is not None and how.variant not in kind.info.variants:
        known = ", ".join(kind.info.variants) or "none"
        raise SettingError(f"{name} has no variant {how.variant!r}: there are {known}.")
    try:
        benchmark = kind(options)
        require_distinct(kind.info.title, [item.id for item in benchmark.items()])
    except MissingFileError as error:
        table = kit_name(kind.info, how.variant)
        if table is None:
            raise
        raise MissingFileError(f"{error} VLMEvalKit's {table}.tsv in that folder would do as well.") from None
    if how.judge is not None:
        benchmark.check_judging()
    return benchmark


def run_benchmark(
    benchmark: Benchmark,
    how: How,
    respondent: Respondent,
    out: Path,
    launch: Launch,
    judging: tuple[Judges, dict[str, Any]] | None,
) -> dict[str, Any]:
    """Runs a benchmark; the first process writes and returns its summary.

    Args:
        benchmark: the benchmark.
        how: the options of the run.
        respondent: the model or server that answers.
        out: the folder in which that of the benchmark is made.
        launch: this process among those of the run.
        judging: the judges and the facts about them; None leaves the results without scores.
    """
    from bagel_mot.evaluation.run_summary import summarize, write_summary
    from bagel_mot.evaluation.runner import ItemRunner
    from bagel_mot.evaluation.team import Team

    folder = out / _folder_name(benchmark)
    everything = list(benchmark.items())
    items: list[Item] = everything[: how.limit]
    judges, judge = judging or (None, {})
    with owned(folder, launch), bars(launch.rank == 0) as progress:
        team = Team(launch, folder.name)
        runner = ItemRunner(benchmark, respondent, folder, judges, judge=judge, batch=how.batch or 8, team=team)
        bar = progress.add_task(benchmark.info.title, total=len(items))
        runner.run(
            items,
            lambda done, total: progress.update(bar, completed=done, total=total),
            score=judging is not None,
            retry=how.retry,
        )
        runner.team.wait()
        if launch.rank:
            return {"failed": {}, "unscored": []}
        runner.read_again()
        report = summarize(runner, items, len(everything))
        write_summary(folder, report)
        found = runner.outcomes(items)
        files = benchmark.write_submission(folder, found.results, found.scores)
        if how.vlmevalkit is not None:
            model = file_name(respondent.facts["model"])
            files += _write_table(user_path(how.vlmevalkit), model, benchmark, items, found.results)
    for path in files:
        notes().print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    return report


def check_tables(benchmarks: Iterable[Benchmark], folder: Path) -> None:
    """Checks, before a long run, that its answers can be written as VLMEvalKit's tables."""
    from bagel_mot.evaluation.data import load_openpyxl
    from bagel_mot.evaluation.respondents.predictions import check_questions

    load_openpyxl(folder)
    for benchmark in benchmarks:
        check_questions(benchmark, "--vlmevalkit")


def _write_table(
    folder: Path, model: str, benchmark: Benchmark, items: list[Item], results: Mapping[str, ItemResult]
) -> list[Path]:
    """Writes the answers as VLMEvalKit keeps predictions; returns the files."""
    from bagel_mot.evaluation.vlmevalkit import kit_name, write_predictions

    dataset = kit_name(benchmark.info, benchmark.options.variant) or _folder_name(benchmark)
    answers = {id: result.texts[0] for id, result in results.items()}
    with writing(folder, "give another folder as --vlmevalkit"):
        return write_predictions(folder, f"{model}_{dataset}", items, answers)


def file_name(text: str) -> str:
    """A name as a file or folder may have it."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in text)
    return name if name.strip(".") else "-" * len(name)  # ".." is the folder above


def _folder_name(benchmark: Benchmark) -> str:
    options = benchmark.options
    parts = [benchmark.info.name, options.variant, "think" if options.think else None]
    parts.append(None if options.protocol == "published" else str(options.protocol))
    return "-".join(part for part in parts if part)


def report_scores(names: list[str], how: How, path: Path, json: str | None) -> None:
    """Reports the scores that the benchmark's own scorer has written into a file."""
    from bagel_mot.evaluation.run_summary import summarize_scores, write_summary

    if len(names) != 1 or names[0] == "mini":
        raise SettingError("--scores is the file of one benchmark's own scorer: name one benchmark, which is not mini.")
    benchmark = opened(names[0], how, 1)
    file = user_path(path)
    report = summarize_scores(benchmark, benchmark.read_scores(file), file.name)
    if how.out is not None:
        write_summary(user_path(how.out), report)
    write_json(json, report)
    if json != "-":
        print_report(report)

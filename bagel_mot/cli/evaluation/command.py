"""`bagel eval`: the command, and what it refuses before anything is loaded."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bagel_mot.cli.evaluation.curves import run_curves
from bagel_mot.cli.evaluation.mini import run_mini
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.evaluation.respondents import model_name, open_predictions, open_respondent
from bagel_mot.cli.evaluation.runs import check_tables, file_name, opened, report_scores, run_benchmark
from bagel_mot.cli.evaluation.sets import fetch_sets, list_sets, report_runs
from bagel_mot.cli.evaluation.tables import print_report
from bagel_mot.cli.options import JsonOption, command, with_options, write_json
from bagel_mot.cli.weights import Weights, with_weights
from bagel_mot.errors import SettingError

if TYPE_CHECKING:
    from bagel_mot.parallel.launch import Launch

_OUT = Path("evaluations")
INCOMPLETE = 1
_OF_MINI = ("rows", "items", "seed", "limit", "batch", "out")
_OF_RUNS = ("server", "server_model", "workers", "vlmevalkit", "judge_model")
_OF_SCORES = ("scores", "data", "variant", "protocol", "think", "out")


@command
@with_options(How, "how")
@with_weights
def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="Benchmarks, such as mini or mme; or: fetch NAME; or: report DIR [OTHER]."
        ),
    ] = None,
    list_benchmarks: Annotated[bool, typer.Option("--list", help="List the benchmarks and end.")] = False,
    json: JsonOption = None,
    *,
    how: How,
    weights: Weights,
) -> None:
    """Run benchmarks on a model or a server, item by item; the same command goes on where it was stopped.

    bagel eval mini · bagel eval mme --checkpoint C --data DIR · bagel eval fetch mmvp · bagel eval report DIR

    Status 1: some items could not be answered or scored; they are named, and tried again by the same command.
    """
    if list_benchmarks:
        _refuse_others(how, "the list of benchmarks")
        list_sets(json)
        return
    if not names:
        raise SettingError("the name of a benchmark is missing; bagel eval --list names them.")
    if names[0] == "fetch":
        _refuse_others(how, "fetching", "data")
        fetch_sets(names[1:], how.data)
        return
    if names[0] == "report":
        _refuse_others(how, "a report of runs that there are")
        report_runs(names[1:], json)
        return
    if how.every_checkpoint is not None:
        _refuse_others(how, "--every-checkpoint", "every_checkpoint", *_OF_MINI)
        run_curves(names, how, weights, json)
        return
    _check(names, how)
    if how.scores is not None:
        _refuse_others(how, "scores that there are", *_OF_SCORES)
        report_scores(names, how, how.scores, json)
        return
    from bagel_mot.evaluation.workers import end_with_parent, is_worker, run_workers

    end_with_parent()
    if how.workers > 1 and not is_worker():
        status = run_workers(sys.argv[1:], how.workers)
        if status:
            raise typer.Exit(status)
        return
    from bagel_mot.parallel.launch import launched

    with launched() as launch:
        reports, whole = _run(names, how, weights, json, launch)
    if launch.rank == 0:
        write_json(json, reports[names[0]] if len(names) == 1 else reports)
        if not whole:
            raise typer.Exit(INCOMPLETE)


def _check(names: list[str], how: How) -> None:
    """Checks, before a model is loaded, that everything is known that is asked for."""
    from bagel_mot.evaluation.base import Protocol
    from bagel_mot.evaluation.benchmarks.mini import pick_rows
    from bagel_mot.evaluation.registry import benchmark_named

    for name in names:
        benchmark_named(name)
    pick_rows(how.rows)
    if how.protocol not in tuple(Protocol):
        raise SettingError(f"protocol is {how.protocol!r}: it must be {', '.join(Protocol)}.")
    if "mini" not in names and (how.rows or how.items is not None or how.seed is not None):
        raise SettingError("--rows, --items and --seed belong to mini: other benchmarks have their own.")
    if names == ["mini"]:
        _refuse_others(how, "mini, which makes its items and scores them itself", *_OF_MINI, *_OF_RUNS)
    if how.judge_model is not None and how.judge is None:
        raise SettingError("--judge-model is given without --judge: give the address of the judge's server.")
    if how.predictions is not None:
        if len(names) != 1:
            raise SettingError("--predictions is a table of one benchmark's answers: name one benchmark.")
        if how.server is not None or how.workers > 1:
            raise SettingError("--predictions has the answers already: it goes without --server and --workers.")
    if how.vlmevalkit is not None and "mini" in names:
        raise SettingError("--vlmevalkit is for benchmarks of questions: mini has images drawn.")
    if (how.server is None) != (how.server_model is None):
        raise SettingError("--server and --server-model belong together: give the address and the model's name there.")


def _refuse_others(how: How, about: str, *used: str) -> None:
    """Refuses options that say nothing about what is done, so that none is passed over in silence."""
    for option in dataclasses.fields(how):
        if option.name not in used and getattr(how, option.name) not in (option.default, []):
            raise SettingError(f"--{option.name.replace('_', '-')} says nothing about {about}: leave it out.")


def _run(names: list[str], how: How, weights: Weights, json: str | None, launch: Launch) -> tuple[dict[str, Any], bool]:
    """The reports by benchmark, and whether every item was answered and scored."""
    from bagel_mot.evaluation.judging import open_judges

    made = {name: opened(name, how, len(names)) for name in names if name != "mini"}
    if how.vlmevalkit is not None:
        check_tables(made.values(), how.vlmevalkit)
    given = None if how.predictions is None else open_predictions(how, how.predictions, made[names[0]])
    out = how.out or _OUT / file_name(given.facts["model"] if given is not None else model_name(how, weights))
    judging = {} if how.results_only else {
        name: open_judges(benchmark.info, how.judge, how.judge_model, out / "replies")
        for name, benchmark in made.items()
    }  # fmt: skip
    respondent = given or open_respondent(how, weights, launch)
    reports, whole = {}, True
    for name in names:
        if name == "mini":
            folder = out if how.out is not None or launch.world > 1 or len(names) > 1 else None
            reports[name] = run_mini(how, respondent, folder, json if len(names) == 1 else None, launch)
            continue
        report = run_benchmark(made[name], how, respondent, out, launch, judging.get(name))
        reports[name] = report
        whole = whole and not report["failed"] and (how.results_only or not report["unscored"])
        if launch.rank == 0 and json != "-":
            print_report(report)
    return reports, whole

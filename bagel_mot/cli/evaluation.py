"""`bagel eval`: benchmarks are listed, fetched, run and reported."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bagel_mot.cli.options import JsonOption, command, new_table, notes, tables, with_options, write_json
from bagel_mot.cli.weights import Weights, load, with_weights
from bagel_mot.errors import DataError, SettingError
from bagel_mot.files import locked, read_json, user_path

if TYPE_CHECKING:
    from bagel_mot.evaluation.base import Benchmark, Item
    from bagel_mot.evaluation.benchmarks.mini import Mini
    from bagel_mot.evaluation.respondents.base import Respondent
    from bagel_mot.parallel.launch import Launch

_OUT = Path("evaluations")
_KEY = "BAGEL_SERVER_KEY"
INCOMPLETE = 1
_PROTOCOL = "Protocol and judge"
_MINI = "Of mini alone"
_RUN = "Run"


def _option(panel: str, *names: str, about: str, **more: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel=panel, **more)


@dataclasses.dataclass(frozen=True)
class How:
    """The options of a run beside those of the model."""

    # fmt: off
    data: Annotated[Path | None, _option(_PROTOCOL, "--data", about="The folder of the benchmark's data, as its authors publish it; of several benchmarks, the folder that holds theirs by name.", metavar="DIR")] = None  # noqa: E501
    protocol: Annotated[str, _option(_PROTOCOL, "--protocol", about="published: as the published scripts do, faults included; fixed: their faults mended; upstream: as the benchmark's own authors do.", metavar="NAME")] = "published"  # noqa: E501
    variant: Annotated[str | None, _option(_PROTOCOL, "--variant", about="A split or language, such as cn.", metavar="NAME")] = None  # noqa: E501
    think: Annotated[bool, _option(_PROTOCOL, "--think", about="Let the model think first.")] = False
    judge: Annotated[str | None, _option(_PROTOCOL, "--judge", about="The address of an OpenAI-compatible server with the judge; the key is taken from BAGEL_JUDGE_KEY.", metavar="URL")] = None  # noqa: E501
    judge_model: Annotated[str | None, _option(_PROTOCOL, "--judge-model", about="The judge's name there; by default the one that the benchmark names.", metavar="NAME")] = None  # noqa: E501
    judge_texts: Annotated[Path | None, _option(_PROTOCOL, "--judge-texts", about="Your copy of criterion texts that cannot be shipped, where they are not with the data.", metavar="DIR")] = None  # noqa: E501
    limit: Annotated[int | None, _option(_PROTOCOL, "--limit", about="Only the first items.", min=1, metavar="N")] = None  # noqa: E501
    server: Annotated[str | None, _option(_RUN, "--server", about=f"Ask this OpenAI-compatible server instead of a local model; the key is taken from {_KEY}.", metavar="URL")] = None  # noqa: E501
    server_model: Annotated[str | None, _option(_RUN, "--server-model", about="The model's name on the server.", metavar="NAME")] = None  # noqa: E501
    out: Annotated[Path | None, _option(_RUN, "--out", about="The folder of results, scores and images; the same command goes on where it was. By default evaluations/MODEL.", metavar="DIR")] = None  # noqa: E501
    workers: Annotated[int, _option(_RUN, "--workers", about="Processes that share the items, each with a model of its own (torchrun does the same).", min=1, metavar="N")] = 1  # noqa: E501
    batch: Annotated[int | None, _option(_RUN, "--batch", about="Requests that run together: 25 of mini, 8 of others.", min=1)] = None  # noqa: E501
    retry: Annotated[bool, _option(_RUN, "--retry", about="Score again what the judge gave no number for.")] = False
    scores: Annotated[Path | None, _option(_RUN, "--scores", about="Report the scores in this file of the benchmark's own scorer, such as GenEval's results.jsonl; no model is loaded.", metavar="FILE")] = None  # noqa: E501
    results_only: Annotated[bool, _option(_RUN, "--results-only", about="Answer and draw, but do not score.")] = False
    every_checkpoint: Annotated[Path | None, _option(_MINI, "--every-checkpoint", about="Score every checkpoint of this training run, and plot the abilities over training tokens.", metavar="RUN")] = None  # noqa: E501
    rows: Annotated[list[str] | None, _option(_MINI, "--rows", about="Only this row, such as draw/counting, or group, such as edit; repeatable.", metavar="ROW")] = None  # noqa: E501
    items: Annotated[int | None, _option(_MINI, "--items", about="Items in each row: 200.", min=1)] = None
    seed: Annotated[int | None, _option(_MINI, "--seed", about="Seed of the items: 0.", min=0)] = None
    # fmt: on


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
        _list(json)
        return
    if not names:
        raise SettingError("the name of a benchmark is missing; bagel eval --list names them.")
    if names[0] == "fetch":
        _fetch(names[1:], how.data)
        return
    if names[0] == "report":
        _write_report(names[1:], json)
        return
    if how.every_checkpoint is not None:
        _curves(names, how, weights, json)
        return
    _check(names, how)
    if how.scores is not None:
        _scored_elsewhere(names, how, how.scores, json)
        return
    from bagel_mot.evaluation.workers import is_worker, run_workers

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
    if how.judge_model is not None and how.judge is None:
        raise SettingError("--judge-model is given without --judge: give the address of the judge's server.")
    if (how.server is None) != (how.server_model is None):
        raise SettingError("--server and --server-model belong together: give the address and the model's name there.")


def _run(names: list[str], how: How, weights: Weights, json: str | None, launch: Launch) -> tuple[dict[str, Any], bool]:
    """The reports by benchmark, and whether every item was answered and scored."""
    made = {name: _opened(name, how, len(names)) for name in names if name != "mini"}
    respondent = _respondent(how, weights, launch)
    out = how.out or _OUT / "".join(c if c.isalnum() or c in "-_." else "-" for c in respondent.facts["model"])
    reports, whole = {}, True
    for name in names:
        if name == "mini":
            folder = out if how.out is not None or launch.world > 1 or len(names) > 1 else None
            reports[name] = _mini(how, respondent, folder, json if len(names) == 1 else None, launch)
            continue
        report = _benchmark(made[name], how, respondent, out, launch)
        reports[name] = report
        whole = whole and not report["failed"] and (how.results_only or not report["unscored"])
        if launch.rank == 0 and json != "-":
            _print_report(report)
    return reports, whole


def _scored_elsewhere(names: list[str], how: How, path: Path, json: str | None) -> None:
    """Reports the scores that the benchmark's own scorer has written into a file."""
    from bagel_mot.evaluation.run_summary import summarize_scores, write_summary

    if len(names) != 1 or names[0] == "mini":
        raise SettingError("--scores is the file of one benchmark's own scorer: name one benchmark, which is not mini.")
    benchmark = _opened(names[0], how, 1)
    file = user_path(path)
    report = summarize_scores(benchmark, benchmark.read_scores(file), file.name)
    if how.out is not None:
        write_summary(user_path(how.out), report)
    write_json(json, report)
    if json != "-":
        _print_report(report)


def _opened(name: str, how: How, count: int) -> Benchmark:
    """A benchmark with its data, which are checked now."""
    from bagel_mot.evaluation.base import BenchmarkOptions, Protocol
    from bagel_mot.evaluation.registry import benchmark_named

    if how.data is None:
        raise SettingError(
            f"--data is missing: {name} needs the folder of its data; bagel eval --list says from where."
        )
    own = user_path(how.data) / name
    data = own if count > 1 or own.is_dir() else user_path(how.data)
    options = BenchmarkOptions(
        data, Protocol(how.protocol), think=how.think, variant=how.variant, judge_texts=how.judge_texts
    )
    kind = benchmark_named(name)
    if how.variant is not None and how.variant not in kind.info.variants:
        known = ", ".join(kind.info.variants) or "none"
        raise SettingError(f"{name} has no variant {how.variant!r}: there are {known}.")
    return kind(options)


def _respondent(how: How, weights: Weights, launch: Launch) -> Respondent:
    if how.server is not None and how.server_model is not None:
        from bagel_mot.evaluation.http import ModelServer
        from bagel_mot.evaluation.respondents.server import ServerRespondent

        return ServerRespondent(ModelServer(how.server, os.environ.get(_KEY)), how.server_model)
    from bagel_mot.checkpoint.official import fingerprint, folder_of
    from bagel_mot.evaluation.respondents.local import LocalRespondent
    from bagel_mot.inference.loading import find_checkpoint

    if launch.world > 1 and weights.device == "auto":
        import torch

        if torch.cuda.is_available():
            weights = dataclasses.replace(weights, device=f"cuda:{launch.local_rank % torch.cuda.device_count()}")
    bagel = load(weights)
    facts = {
        "model": Path(weights.checkpoint).name or weights.checkpoint,
        "checkpoint": weights.checkpoint,
        "fingerprint": fingerprint(folder_of(find_checkpoint(weights.checkpoint))),
        "precision": bagel.checkpoint.precision.name,
        **({"adapters": weights.adapter} if weights.adapter else {}),
    }
    return LocalRespondent(bagel, facts)


@contextmanager
def _owned(folder: Path, launch: Launch) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made."""
    from bagel_mot.files import writing

    with writing(folder, "give another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if launch.rank:
            yield
            return
        with locked(folder, folder):
            yield


@contextmanager
def _bars(wanted: bool) -> Iterator[Progress]:
    console = notes()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not wanted or not console.is_terminal) as progress:
        yield progress


def _benchmark(benchmark: Benchmark, how: How, respondent: Respondent, out: Path, launch: Launch) -> dict[str, Any]:
    """Runs a benchmark; the first process writes and returns its summary."""
    from bagel_mot.evaluation.judges.base import Judges
    from bagel_mot.evaluation.judging import open_judges
    from bagel_mot.evaluation.run_summary import summarize, write_summary
    from bagel_mot.evaluation.runner import ItemRunner
    from bagel_mot.evaluation.team import Team

    folder = out / _folder_name(benchmark)
    everything = list(benchmark.items())
    items: list[Item] = everything[: how.limit]
    judges, judge = Judges(), dict[str, Any]()
    if not how.results_only:
        judges, judge = open_judges(benchmark.info, how.judge, how.judge_model, out / "replies")
    with _owned(folder, launch), _bars(launch.rank == 0) as progress:
        team = Team(launch, folder.name)
        runner = ItemRunner(benchmark, respondent, folder, judges, judge=judge, batch=how.batch or 8, team=team)
        bar = progress.add_task(benchmark.info.title, total=len(items))
        runner.run(
            items,
            lambda done, total: progress.update(bar, completed=done, total=total),
            score=not how.results_only,
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
    for path in files:
        notes().print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    return report


def _folder_name(benchmark: Benchmark) -> str:
    options = benchmark.options
    parts = [benchmark.info.name, options.variant, "think" if options.think else None]
    parts.append(None if options.protocol == "published" else str(options.protocol))
    return "-".join(part for part in parts if part)


def _mini(how: How, respondent: Respondent, folder: Path | None, json: str | None, launch: Launch) -> dict[str, Any]:
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, Mini, pick_rows
    from bagel_mot.evaluation.benchmarks.mini_report import BATCH, side_of
    from bagel_mot.evaluation.benchmarks.mini_report import evaluate as run

    items, seed = how.items or ITEMS, how.seed or 0
    bagel = getattr(respondent, "bagel", None)
    head = {key: value for key, value in respondent.facts.items() if key != "model" or bagel is None}
    known = _known_rows(json, {**head, "items": items, "seed": seed})
    chosen = pick_rows(how.rows)
    options: dict[str, Any] = {} if bagel is None else {"side": side_of(bagel)}
    names = [name for name in pick_rows(None) if name in chosen or name in known]
    mini = Mini(rows=names, count=items, seed=seed, **options)
    with _bars(launch.rank == 0) as progress:
        bars: dict[str, Any] = {}

        def tell(row: str, done: int, total: int) -> None:
            if row not in bars:
                bars[row] = progress.add_task(row, total=total)
            progress.update(bars[row], completed=done)

        def go(folder: Path | None) -> dict[str, Any]:
            return run(
                mini,
                respondent,
                batch=how.batch or BATCH,
                folder=folder,
                launch=launch,
                progress=tell,
                known=known,
                on_row=lambda so_far: write_json(json, {**head, **so_far}) if json != "-" else None,
            )

        if folder is None:
            report = go(None)
        else:
            place = folder / "mini"
            with _owned(place, launch):
                report = go(place)
                if launch.rank == 0:
                    _summarize_mini(mini, respondent, place)
    report = {**head, **report}
    if json != "-" and launch.rank == 0:
        _print_scores(report)
    return report


def _summarize_mini(mini: Mini, respondent: Respondent, folder: Path) -> None:
    """Writes the summary of a run of mini that is kept in a folder, for its report."""
    from bagel_mot.evaluation.run_summary import summarize, write_summary
    from bagel_mot.evaluation.runner import ItemRunner

    items = mini.items()
    write_summary(folder, summarize(ItemRunner(mini, respondent, folder), items, len(items)))


def _counting_rows(progress: Progress, bar: TaskID) -> Callable[[object], None]:
    """A callback that moves a bar on by one."""
    done = count(1)
    return lambda so_far: progress.update(bar, completed=next(done))


def _known_rows(json: str | None, head: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier, interrupted evaluation with the same settings, read from the file of --json."""
    from bagel_mot.evaluation.benchmarks.mini_report import rows_of

    if json is None or json == "-" or not user_path(json).is_file():
        return {}
    try:
        report = read_json(user_path(json), DataError)
        same = all(report[key] == value for key, value in head.items())
        return rows_of(report) if same else {}
    except (DataError, KeyError, TypeError):
        return {}  # not a report, so it is overwritten


def _print_scores(report: dict[str, Any]) -> None:
    console = tables()
    title = f"{report.get('checkpoint') or report['model']}, {report['items']} items a row"
    table = new_table(title, "row", "right", "of", "share", "95% interval", "seconds")
    for name, row in report["rows"].items():
        low, high = row["interval"]
        table.add_row(
            name,
            str(row["right"]),
            str(row["total"]),
            f"{row['share']:.3f}",
            f"{low:.3f} – {high:.3f}",
            f"{row['seconds']:.0f}",
        )
    console.print(table)
    for name, value in report["summary"].items():
        console.print(f"{name}: [bold]{value:.3f}[/bold]")


def _print_report(report: dict[str, Any]) -> None:
    console = tables()
    part = "" if report["items"] == report["of"] else f", the first {report['items']} of {report['of']} items"
    title = f"{report['title']}: {report['model']}, protocol {report['protocol']}{part}"
    published = {one["row"]: one for one in reversed(report["published"])}
    table = new_table(title, "row", "score", "95% interval", "items", "published")
    for name, row in report["rows"].items():
        interval = row["interval"]
        other = published.get(name)
        table.add_row(
            f"[bold]{escape(name)}[/bold]" if name in report["headline"] else escape(name),
            "–" if row["value"] is None else f"{row['value']:.4g}",
            f"{interval[0]:.4g} – {interval[1]:.4g}" if interval else "",
            str(row["count"]),
            f"{other['value']:g} ({escape(other['model'])})" if other else "",
        )
    console.print(table)
    for what, ids in (("could not be answered or scored", report["failed"]), ("have no score", report["unscored"])):
        if ids:
            named = ", ".join(list(ids)[:5]) + (", …" if len(ids) > 5 else "")
            console.print(
                f"{len(ids)} items {what}: {escape(named)}; the same command tries them again.", style="yellow"
            )
    for id, sentence in list(report["failed"].items())[:3]:
        console.print(f"  {escape(id)}: {escape(sentence)}", style="dim")
    if report["unparsable"]:
        console.print(f"{report['unparsable']} answers or replies could not be read.", style="yellow")


def _list(json: str | None) -> None:
    from bagel_mot.evaluation.registry import all_benchmarks

    infos = [kind.info for kind in all_benchmarks().values()]
    write_json(json, [dataclasses.asdict(info) for info in infos])
    if json == "-":
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "measures", "items", "needs", "where to get it", "licence", "variants"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for info in infos:
        source = f"{info.source} (bagel eval fetch {info.name})" if info.hub else info.source
        row = (
            info.name,
            info.ability,
            f"{info.items:,}" if info.items else "?",
            info.needs,
            source,
            info.licence,
            ", ".join(info.variants),
        )
        table.add_row(*map(escape, row))
    tables().print(table)


def _fetch(names: list[str], data: Path | None) -> None:
    """Downloads the data sets of benchmarks from the hub, each into a folder of its name."""
    from bagel_mot.evaluation.fetch import fetch
    from bagel_mot.evaluation.registry import benchmark_named

    if not names:
        raise SettingError("the name of a benchmark to fetch is missing, as in: bagel eval fetch mmvp.")
    kinds = [benchmark_named(name) for name in names]
    for kind in kinds:
        print(fetch(kind.info, user_path(data or Path("benchmarks-data")) / kind.info.name))


def _write_report(folders: list[str], json: str | None) -> None:
    """Writes the pages about a run, or about two and how they differ."""
    from bagel_mot.evaluation.report.pages import write_report

    if not 1 <= len(folders) <= 2:
        raise SettingError("bagel eval report takes the folder of a run, and that of another one to compare it with.")
    first, *other = map(user_path, folders)
    written, content = write_report(first, other[0] if other else None)
    write_json(json, content)
    if json != "-":
        for path in written:
            print(path)


def _curves(names: list[str], how: How, weights: Weights, json: str | None) -> None:
    """Scores every checkpoint of a training run."""
    from bagel_mot.checkpoint.official import fingerprint
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, Mini, pick_rows
    from bagel_mot.evaluation.benchmarks.mini_report import BATCH, evaluate, side_of
    from bagel_mot.evaluation.curves import run_points, write_curves
    from bagel_mot.evaluation.respondents.local import LocalRespondent
    from bagel_mot.parallel.launch import Launch

    if names != ["mini"]:
        raise SettingError("--every-checkpoint belongs to mini: bagel eval mini --every-checkpoint RUN.")
    assert how.every_checkpoint is not None
    pick_rows(how.rows)
    run = user_path(how.every_checkpoint)
    out = user_path(how.out or run / "evaluation")
    items, seed = how.items or ITEMS, how.seed or 0
    points = run_points(run)
    reports = []
    for number, point in enumerate(points, 1):
        bagel = load(dataclasses.replace(weights, checkpoint=str(point.folder)))
        mini = Mini(rows=how.rows, count=items, seed=seed, side=side_of(bagel))
        facts = {
            "model": point.folder.name,
            "fingerprint": fingerprint(point.folder),
            "precision": bagel.checkpoint.precision.name,
        }
        with _owned(out / point.folder.name, Launch()), _bars(True) as progress:
            bar = progress.add_task(f"{point.folder.name} ({number} of {len(points)})", total=len(mini.rows))
            respondent, folder = LocalRespondent(bagel, facts), out / point.folder.name
            on_row = _counting_rows(progress, bar)
            reports.append(evaluate(mini, respondent, batch=how.batch or BATCH, folder=folder, on_row=on_row))
            _summarize_mini(mini, respondent, folder)
        bagel.close()
    content, written = write_curves(out, points, reports)
    if json != "-":
        table = new_table("tokens at which an ability reaches 85% of its last value", "ability", "last", "tokens")
        for name, ability in content["abilities"].items():
            reached = ability["reached"]
            table.add_row(name, f"{ability['shares'][-1]:.3f}", "–" if reached is None else f"{reached:,.0f}")
        tables().print(table)
        for path in written:
            print(path)
    write_json(json, content)

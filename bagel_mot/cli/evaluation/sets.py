"""The benchmarks that there are, their data from the hub, and pages about runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from bagel_mot.cli.options import tables, write_json
from bagel_mot.errors import SettingError
from bagel_mot.files import user_path


def list_sets(json: str | None) -> None:
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


def fetch_sets(names: list[str], data: Path | None) -> None:
    """Downloads the data sets of benchmarks from the hub, each into a folder of its name."""
    from bagel_mot.evaluation.fetch import fetch
    from bagel_mot.evaluation.registry import benchmark_named

    if not names:
        raise SettingError("the name of a benchmark to fetch is missing, as in: bagel eval fetch mmvp.")
    kinds = [benchmark_named(name) for name in names]
    for kind in kinds:
        print(fetch(kind.info, user_path(data or Path("benchmarks-data")) / kind.info.name))


def report_runs(folders: list[str], json: str | None) -> None:
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

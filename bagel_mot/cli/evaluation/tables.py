"""Scores as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from bagel_mot.cli.options import new_table, tables


def print_scores(report: dict[str, Any]) -> None:
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


def print_report(report: dict[str, Any]) -> None:
    from bagel_mot.evaluation.run_summary import published_by_row

    console = tables()
    part = "" if report["items"] == report["of"] else f", the first {report['items']} of {report['of']} items"
    title = f"{report['title']}: {report['model']}, protocol {report['protocol']}{part}"
    published, scale = published_by_row(report), report["scale"]
    table = new_table(title, "row", "score", "95% interval", "items", "published")
    for name, row in report["rows"].items():
        interval = row["interval"]
        table.add_row(
            f"[bold]{escape(name)}[/bold]" if name in report["headline"] else escape(name),
            "–" if row["value"] is None else f"{scale * row['value']:.4g}",
            f"{scale * interval[0]:.4g} – {scale * interval[1]:.4g}" if interval else "",
            str(row["count"]),
            escape("\n".join(published.get(name, ()))),
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

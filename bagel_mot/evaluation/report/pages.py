"""`bagel eval report`: one page in HTML and one in Markdown, from the same content."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import DataError, EvaluationError, ImageError
from bagel_mot.evaluation.curves import curve_table
from bagel_mot.evaluation.report.content import ReportedRun, ShownItem, compare, read_runs
from bagel_mot.evaluation.run_summary import published_by_row, scale_of
from bagel_mot.files import read_json, write_text, writing
from bagel_mot.images import open_image

_SIDE = 192  # pixels of the longer side of a shown image
_TEXT = 600  # characters of a shown text
_FACTS = (
    "model",
    "checkpoint",
    "fingerprint",
    "precision",
    "adapters",
    "server",
    "predictions",
    "protocol",
    "variant",
    "think",
    "data",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .25rem .7rem; text-align: left; }
th { border-bottom: 2px solid #999; } tr + tr td { border-top: 1px solid #ddd; } td.n { text-align: right; }
figure { display: inline-block; width: 15rem; vertical-align: top; margin: .5rem; padding: .5rem; background: #f5f3f0; }
figure img { max-width: 100%; } figcaption { font-size: 12px; overflow-wrap: anywhere; } .warn { color: #a33; }
@media (prefers-color-scheme: dark) { body { background: #191919; color: #ddd; } figure { background: #262626; }
tr + tr td { border-color: #444; } .warn { color: #f88; } }
"""


class Page:
    """A page that is written in HTML and in Markdown at once."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._html = [f"<h1>{html.escape(title)}</h1>"]
        self._markdown = [f"# {title}"]

    def heading(self, text: str, level: int = 2) -> None:
        """Adds a heading."""
        self._html.append(f"<h{level}>{html.escape(text)}</h{level}>")
        self._markdown.append(f"{'#' * level} {text}")

    def sentence(self, text: str, *, warns: bool = False) -> None:
        """Adds a paragraph."""
        self._html.append(f"<p{' class=warn' if warns else ''}>{html.escape(text)}</p>")
        self._markdown.append(f"**{_cell(text)}**" if warns else _cell(text))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table; numbers are aligned to the right."""
        if not rows:
            return
        cells = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
        lines = [f"<table><tr>{cells}</tr>"]
        for row in rows:
            tds = (f"<td{' class=n' if _is_number(cell) else ''}>{html.escape(cell)}</td>" for cell in row)
            lines.append(f"<tr>{''.join(tds)}</tr>")
        self._html.append("\n".join(lines) + "</table>")
        table = [headings, ["---"] * len(headings), *rows]
        self._markdown.append("\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table))

    def item(self, item: ShownItem, folder: Path) -> None:
        """Adds an item with its images, small."""
        values = ", ".join(f"{name} {_number(value)}" for name, value in item.values.items())
        lines = [f"<b>{html.escape(item.id)}</b>", html.escape(_short(item.prompt))]
        lines += [f"<i>{html.escape(_short(text))}</i>" for text in item.texts if text]
        lines.append(html.escape(values))
        images = "".join(filter(None, map(_thumbnail, item.images)))
        self._html.append(f"<figure>{images}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
        texts = "; ".join(_cell(_short(text)) for text in item.texts if text)
        links = " ".join(f"![]({_link(path, folder)})" for path in item.images)
        said = [f"`{item.id}`", _cell(_short(item.prompt)), f"→ {texts}" if texts else "", f"({values})", links]
        self._markdown.append("- " + " ".join(filter(None, said)))

    def picture(self, path: Path, folder: Path) -> None:
        """Adds an SVG or PNG file, whole."""
        kind = "svg+xml" if path.suffix == ".svg" else "png"
        data = base64.b64encode(path.read_bytes()).decode()
        self._html.append(
            f'<p><img style="max-width: 100%" alt="{path.name}" src="data:image/{kind};base64,{data}"></p>'
        )
        self._markdown.append(f"![{path.name}]({_link(path, folder)})")

    def write(self, folder: Path) -> list[Path]:
        """Writes report.html and report.md; returns both."""
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        pages = {
            folder / "report.html": f"{head}<style>{_STYLE}</style><body>\n"
            + "\n".join(self._html)
            + "\n</body></html>\n",
            folder / "report.md": "\n\n".join(self._markdown) + "\n",
        }
        for path, text in pages.items():
            with writing(path, "give a folder that can be written to"):
                write_text(path, text)
        return list(pages)


def write_report(first: Path, second: Path | None = None) -> tuple[list[Path], dict[str, Any]]:
    """Writes the report of the runs below a folder, compared with those below another one.

    Returns: the files, which are in the first folder; and the content as JSON: {"runs", "differences"}.

    Raises: EvaluationError if a folder holds no runs, or none that may be compared.
    """
    runs = read_runs(first)
    page = Page("Evaluation")
    for run in runs:
        _add_run(page, run, first)
    for figure in sorted(first.rglob("curves.svg")):
        page.heading("Abilities over training tokens")
        page.picture(figure, first)
        page.table(*curve_table(read_json(figure.with_suffix(".json"), DataError)))
    differences: list[dict[str, Any]] = []
    if second is not None:
        others = {other.key: other for other in read_runs(second)}
        pairs = [(run, others[run.key]) for run in runs if run.key in others]
        if not pairs:
            raise EvaluationError(
                f"{first} and {second} share no benchmark with the same data, variant, protocol and judge: nothing is "
                "compared."
            )
        for run, other in pairs:
            differences.append(_add_comparison(page, run, other))
    return page.write(first), {"runs": [run.summary for run in runs], "differences": differences}


def _add_run(page: Page, run: ReportedRun, folder: Path) -> None:
    summary = run.summary
    page.heading(f"{summary['title']}: {summary['model']}")
    if summary["items"] < summary["of"]:
        page.sentence(f"Only the first {summary['items']} of {summary['of']} items were run.", warns=True)
    if summary["failed"]:
        named = "; ".join(f"{id}: {sentence}" for id, sentence in list(summary["failed"].items())[:5])
        page.sentence(f"{len(summary['failed'])} items could not be answered or scored: {named}", warns=True)
    if summary["unscored"]:
        page.sentence(
            f"{len(summary['unscored'])} items have no score: {', '.join(summary['unscored'][:10])}", warns=True
        )
    if summary["unparsable"]:
        page.sentence(f"{summary['unparsable']} answers or replies could not be read.", warns=True)
    if summary["truncated"]:
        page.sentence(f"{summary['truncated']} texts ended by their limit of tokens.")
    page.table(("row", "score", "95% interval", "items", "published"), _score_rows(summary))
    page.table(
        ("published row", "value", "model", "source", "note"),
        [
            (p["row"], f"{scale_of(summary) * p['value']:g}", p["model"], p["source"], p["note"])
            for p in summary["published"]
        ],
    )
    facts = [(name, str(summary[name])) for name in _FACTS if summary.get(name) not in (None, "")]
    judge = summary["judge"] or {"judge": "none: rules alone"}
    facts += [(f"judge: {name}", str(value)) for name, value in judge.items()]
    facts += [(f"settings of {kind}", json.dumps(settings)) for kind, settings in summary["settings"].items()]
    facts += [(name, json.dumps(value, ensure_ascii=False)) for name, value in summary["extra"].items()]
    page.table(("fact", "value"), facts)
    page.heading("Items to look at", 3)
    for item in run.shown():
        page.item(item, folder)


def _score_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    published, scale = published_by_row(summary), scale_of(summary)
    rows: list[tuple[str, ...]] = []
    for name, row in summary["rows"].items():
        interval = row["interval"]
        between = f"{scale * interval[0]:.4g} – {scale * interval[1]:.4g}" if interval else ""
        shown = f"{name} ★" if name in summary["headline"] and len(summary["headline"]) < len(summary["rows"]) else name
        value = None if row["value"] is None else scale * row["value"]
        rows.append((shown, _number(value), between, str(row["count"]), "; ".join(published.get(name, []))))
    return rows


def _add_comparison(page: Page, run: ReportedRun, other: ReportedRun) -> dict[str, Any]:
    names = f"{run.summary['model']} and {other.summary['model']}"
    page.heading(f"{run.summary['title']}: how {names} differ")
    found = compare(run, other)
    page.table(
        ("number", "items of both", "first", "second", "difference", "first higher", "second higher", "test", "p"),
        [
            (
                one["name"], str(one["items"]), _number(one["first"]), _number(one["second"]),
                f"{one['difference']:+.4g}", str(one["only_first"]), str(one["only_second"]), one["test"],
                f"{one['p']:.3g}",
            )
            for one in found
        ],
    )  # fmt: skip
    for one in found:
        page.table(
            (f"items with the largest differences in {one['name']}", "first", "second"),
            [(id, _number(a), _number(b)) for id, a, b in one["most"]],
        )
    return {"benchmark": run.summary["benchmark"], "first": str(run.folder), "second": str(other.folder), "rows": found}


def _thumbnail(path: Path) -> str:
    """An image as an element of HTML; an empty text if it cannot be read any more."""
    try:
        image = open_image(path)
    except ImageError:
        return ""
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _link(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().replace(" ", "%20")


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _cell(text: str) -> str:
    """A text in one line of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

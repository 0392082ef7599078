"""The figure of emerging abilities, in SVG and PNG, whose colours are legible on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagel_mot.errors import EvaluationError
from bagel_mot.files import write_atomically, writing
from bagel_mot.installation import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "draw": "drawing",
    "draw, the rows that have held-out combinations": "drawing, rows with held-out twins",
    "draw held out": "drawing held out",
    "edit": "editing",
    "chains": "chains of edits",
    "ask": "questions",
    "riddles thinking": "riddles, thinking",
    "riddles not thinking": "riddles, not thinking",
    "mean of all rows": "mean of all rows",
}
"""The names of the abilities in figures and tables."""

_PANELS = {
    "images": ("draw", "draw, the rows that have held-out combinations", "draw held out", "edit", "chains"),
    "answers and riddles": ("ask", "riddles thinking", "riddles not thinking"),
}
_MEAN = "mean of all rows"
_GREY = "#7d7d7d"  # as far from white as from black
_COLOURS = ("#3f86d8", "#2aa0a8", "#8a78d6", "#d9822b", "#cf5a5a")
_MARKERS = "osv^P"
_APART = 0.062  # between two labels, in heights of a panel
_LOG_BELOW = 0.25  # of the last point's tokens: where half of the points are below it, the axis is logarithmic


def check_figures() -> None:
    """Checks that figures can be drawn. Raises: EvaluationError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise EvaluationError(f"figures need matplotlib: {install_command('eval')}") from error


def draw_curves(curves: Mapping[str, Any], out: Path, reached_at: float) -> list[Path]:
    """Draws the curves of the abilities into curves.svg and curves.png; returns both. Equal curves make equal files.

    Args:
        curves: the abilities over tokens, as `ability_curves` gives them.
        out: the folder.
        reached_at: the part of an ability's last value at which it is marked.

    Raises: EvaluationError if matplotlib is not installed.
    """
    check_figures()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    abilities = curves["abilities"]
    panels = {title: [name for name in names if name in abilities] for title, names in _PANELS.items()}
    panels = {title: names for title, names in panels.items() if names} or {"all rows": []}
    style: Any = {"font.size": 9, "text.color": _GREY, "axes.edgecolor": _GREY, "axes.labelcolor": _GREY,
             "xtick.color": _GREY, "ytick.color": _GREY, "svg.hashsalt": "bagel"}  # fmt: skip
    paths = [out / "curves.svg", out / "curves.png"]
    with rc_context(style):
        figure = Figure(figsize=(1.2 + 5.2 * len(panels), 4.4), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            shown = [*names, *([_MEAN] if _MEAN in abilities else [])]
            _draw_panel(axes, curves, shown, reached_at)
            axes.set_title(title, loc="left", fontsize=10)
        figure.supxlabel(f"training tokens; ◇ {reached_at:.0%} of the last value", fontsize=9)
        figure.supylabel(f"share right of {curves['items']} items a row", fontsize=9)
        for path in paths:

            def save(file: Path) -> None:
                figure.savefig(
                    file, dpi=150, transparent=True, metadata={"Date": None} if file.suffix == ".svg" else {}
                )

            with writing(path, "give another --out"):
                write_atomically(path, save)
    return paths


def _draw_panel(axes: Axes, curves: Mapping[str, Any], names: Sequence[str], reached_at: float) -> None:
    from matplotlib.ticker import EngFormatter

    tokens, abilities = curves["tokens"], curves["abilities"]
    highest = max((max(ability["shares"]) for ability in abilities.values()), default=1.0)
    top = min(math.ceil(max(highest, 0.05) * 11) / 10, 1.0)
    for number, name in enumerate(names):
        shares, at = abilities[name]["shares"], abilities[name]["reached"]
        is_mean = name == _MEAN
        colour = _GREY if is_mean else _COLOURS[number]
        axes.plot(
            tokens, shares, "--" if is_mean else "-", color=colour, linewidth=1.6,
            marker=None if is_mean else _MARKERS[number], markersize=3.5, clip_on=False, zorder=3,
        )  # fmt: skip
        if at is not None:
            axes.plot(
                [at], [reached_at * shares[-1]], "D", markersize=8, markerfacecolor="none", markeredgecolor=colour,
                markeredgewidth=1.5, clip_on=False, zorder=4,
            )  # fmt: skip
    if is_uneven(tokens):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(tokens) > 1:
        axes.set_xlim(tokens[0], tokens[-1])
    bottom = -0.02 * top
    axes.set_ylim(bottom, top)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    ends = [(abilities[name]["shares"][-1] - bottom) / (top - bottom) for name in names]
    for number, (name, end, place) in enumerate(zip(names, ends, spread(ends, _APART, 0.0), strict=True)):
        colour = _GREY if name == _MEAN else _COLOURS[number]
        label = f"{LABELS.get(name, name)} {abilities[name]['shares'][-1]:.2f}"
        # The line from the curve's end to its label, beside the panel.
        axes.annotate(
            label, (1.0, end), (1.05, place), xycoords="axes fraction",
            textcoords="axes fraction", color=colour, va="center", fontsize=9, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1,
                        "shrinkB": 2},
        )  # fmt: skip


def is_uneven(tokens: Sequence[float]) -> bool:
    """Whether the points lie so close together at the beginning that a logarithmic axis shows them better."""
    return len(tokens) > 3 and tokens[0] > 0 and tokens[len(tokens) // 2] < _LOG_BELOW * tokens[-1]


def spread(places: Sequence[float], apart: float, least: float = -math.inf) -> list[float]:
    """Places near those given, in the same order, at least `apart` from one another; groups keep their middle
    where that puts none of them below `least`.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[tuple[float, list[int]]] = []  # the middle of a group, and its members from below
    for i in order:
        groups.append((places[i], [i]))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= apart * (len(below) + len(above)) / 2:
                break
            members = below + above
            middle = (low * len(below) + high * len(above)) / len(members)
            groups[-2:] = [(middle, members)]
    found = [0.0] * len(places)
    for middle, members in groups:
        for number, i in enumerate(members):
            found[i] = max(middle + apart * (number - (len(members) - 1) / 2), least)
            least = found[i] + apart
    return found

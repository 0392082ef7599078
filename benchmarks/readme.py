"""Puts the measured figures of `benchmarks/results/` into README.md: `python benchmarks/readme.py`.

bagel eval mini --json benchmarks/results/eval-mini.json
bagel bench --config 0.5b --dtype float32 --json benchmarks/results/bench-0.5b-cpu-float32.json
bagel bench --config 0.5b --dtype bfloat16 --json benchmarks/results/bench-0.5b-cpu-bfloat16.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bagel.files import write_text
from bagel.mini.evaluate import ROWS, wilson

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = RESULTS / "eval-mini.json"
BENCHES = {dtype: RESULTS / f"bench-0.5b-cpu-{dtype}.json" for dtype in ("float32", "bfloat16")}
# (label, rows by the beginning of their names, aim)
GROUPS: tuple[tuple[str, str, str], ...] = (
    ("text to image", "draw/", "0.80"),
    ("text to image, combinations never trained on", "draw held out/", "within 0.15"),
    ("questions", "ask/", "0.90"),
    ("edits", "edit/", "0.70"),
    ("chains of three edits in one session", "edit/chain", "0.45"),
    ("riddles, thinking", "riddle/", ""),
    ("riddles, not thinking", "riddle/", ""),
    ("the judge: scene recovered", "judge/", "0.99; 0.97"),
)


def abilities(report: dict[str, Any]) -> str:
    """The evaluation as a Markdown table: each group's mean, then its rows."""
    lines = ["| ability | share right | 95% interval | aim |", "|---|---|---|---|"]
    for label, beginning, aim in GROUPS:
        names = [name for name in ROWS if name.startswith(beginning) and name in report["rows"]]
        if label == "edits":
            names = [name for name in names if "chain" not in name]
        if "thinking" in label:
            names = [name for name in names if name.endswith(" not thinking") == ("not thinking" in label)]
        if not names:
            continue
        lines.append(_line(f"**{label}**", [report["rows"][name] for name in names], aim))
        if len(names) > 1:
            lines += [_line(f"· {_short(name)}", [report["rows"][name]], "") for name in names]
    gain = report["summary"].get("gain of thinking")
    if gain is not None:
        lines.append(f"| **what thinking adds** | {gain:+.3f} | | +0.30 |")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name.partition("/")[2].removesuffix(" not thinking").removesuffix(" thinking").replace("_", " ")


def _line(label: str, rows: Sequence[dict[str, Any]], aim: str) -> str:
    right, total = sum(row["right"] for row in rows), sum(row["total"] for row in rows)
    low, high = wilson(right, total)
    return f"| {label} | {right / total:.3f} | {low:.3f} – {high:.3f} | {aim} |"


def speed(reports: dict[str, dict[str, Any]]) -> str:
    """The benchmarks side by side as a Markdown table."""
    lines = [
        "| quantity | " + " | ".join(f"{dtype}: seconds | of the matmul rate | plain loop" for dtype in reports) + " |",
        "|---|" + "---|---|---|" * len(reports),
    ]
    columns = [{_quantity(r["name"]): r for r in report["results"]} for report in reports.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [cell for column in columns for cell in (_cells(column[name]) if name in column else ("", "", ""))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for dtype, report in reports.items():
        lines += [
            "",
            f"{dtype}: " + "; ".join(f"{name}: {value:.2f}" for name, value in report["summary"].items()) + ".",
        ]
    return "\n".join(lines)


def _quantity(name: str) -> str:
    return name.rpartition(",")[0] if name.startswith("training") else name  # without the number of layers


def _cells(result: dict[str, Any]) -> tuple[str, str, str]:
    speedup = f"{result['speedup']:.2f}×" if "speedup" in result else ""
    seconds = result.get("full_depth_seconds", result["seconds"]["ours"])
    return f"{seconds:.3g}", f"{result['share']:.0%}", speedup


def tables() -> dict[str, str]:
    """What stands between which marks of the README."""
    found: dict[str, str] = {}
    if EVALUATION.exists():
        found["abilities"] = abilities(json.loads(EVALUATION.read_text(encoding="utf-8")))
    reports = {d: json.loads(path.read_text(encoding="utf-8")) for d, path in BENCHES.items() if path.exists()}
    if reports:
        found["speed"] = speed(reports)
    return found


def filled(text: str) -> str:
    """The README's text with the tables as they are now."""
    for mark, table in tables().items():
        before, opening, rest = text.partition(f"<!-- {mark} -->\n")
        _, closing, after = rest.partition(f"\n<!-- end of {mark} -->")
        if not opening or not closing:
            raise SystemExit(f"README.md lacks the marks <!-- {mark} --> and <!-- end of {mark} -->")
        text = before + opening + table + closing + after
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    write_text(readme, filled(readme.read_text(encoding="utf-8")))

"""How well mini learns what it does not know, by the commands that a user would type: `python benchmarks/teach.py`.

For each of the lessons in examples/teach it writes the data, trains an adapter with `bagel train`, judges fresh items
with it, and scores the abilities that mini had before. benchmarks/results/teach.json holds what came out. A run that
was interrupted goes on where it was. `--smoke` does the same in a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bagel_mot import Bagel
from bagel_mot.bench.machine import processor
from bagel_mot.files import write_text
from bagel_mot.training.checkpoints import latest

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "teach.json"
BEFORE = ROOT / "benchmarks" / "results" / "eval-mini.json"
BAGEL = [sys.executable, "-m", "bagel_mot"]
LESSONS: dict[str, tuple[str, int, list[str]]] = {  # recipe, number of examples, further values
    "new_thing": ("finetune/t2i", 200, ["data.target_copies=4"]),
    "new_edit": ("finetune/edit", 400, []),
    "new_question": ("finetune/chat", 400, []),
}


def lesson(name: str) -> ModuleType:
    """The module of a lesson, which lies in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "teach" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def teach(name: str, output: Path, smoke: bool, old_items: int, changes: list[str]) -> dict[str, Any]:
    """Trains and judges one lesson. The old abilities are scored on so many items a row."""
    recipe, examples, values = LESSONS[name]
    module, data, run = lesson(name), output / name / "data", output / name / "run"
    examples, items, old_items = (8, 4, 2) if smoke else (examples, 100, old_items)
    module.write_data(data, examples)
    given = ["train", recipe, "--checkpoint", "mini", f"data.path={data}", f"output={run}", *values, *changes]
    subprocess.run([*BAGEL, *given], check=True)
    adapter = latest(run)
    with Bagel.from_pretrained("mini") as bagel:
        before = module.share_right(bagel, items)
    with Bagel.from_pretrained("mini", adapters=[adapter]) as bagel:
        after = module.share_right(bagel, items)
    rows = ["--rows", "draw/one_thing"] if smoke else []
    old = [*BAGEL, "eval", "mini", "--items", str(old_items), *rows]
    scores, first = output / name / "eval.json", output / f"before-{old_items}.json"
    subprocess.run([*old, "--adapter", str(adapter), "--json", str(scores)], check=True)
    if json.loads(BEFORE.read_text())["items"] == old_items:
        first = BEFORE
    elif not first.exists():  # other numbers of items are other samples
        subprocess.run([*old, "--json", str(first)], check=True)
    return {
        "machine": {
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "command": " ".join(["bagel", *given]),
        "examples": examples,
        "training_seconds": round(training_seconds(run)),
        "items": items,
        "right_before": before,
        "right_after": after,
        "old_items": old_items,
        "old": compare(json.loads(first.read_text())["rows"], json.loads(scores.read_text())["rows"]),
    }


def training_seconds(run: Path) -> float:
    """The time of all steps of a run, those before an interruption among them, from its own log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["steps_per_second"] for line in lines if "steps_per_second" in line}
    steps = sorted(logged)
    return sum((step - before) / logged[step] for before, step in zip([0, *steps], steps, strict=False))


def compare(first: dict[str, dict[str, Any]], rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean share right of each group of rows, before and after, by the same items."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.split("/")[0], []).append(row)
    return {
        group: {
            "before": sum(first[row]["share"] for row in names) / len(names),
            "after": sum(rows[row]["share"] for row in names) / len(names),
        }
        for group, names in groups.items()
        if group != "judge"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", help="by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/teach"))
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--old-items", type=int, default=200, help="items a row of the abilities from before")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    options = parser.parse_args()
    small = ["steps=2", "pack.latents=16", "save_every=2", "sample_every=2", "compile=false"] if options.smoke else []
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for name in options.lessons or LESSONS:
        found[name] = teach(name, options.output, options.smoke, options.old_items, [*small, *options.changes])
        write_text(options.json, json.dumps(found, indent=1) + "\n")
        told = found[name]
        print(f"{name}: {told['right_before']:.2f} before, {told['right_after']:.2f} after")
        for group, shares in told["old"].items():
            print(f"  {group}: {shares['before']:.3f} before, {shares['after']:.3f} after")


if __name__ == "__main__":
    main()

"""The official size with random weights, built on the device: drawing, editing, answering; beside it a plain loop.

There is less time than measurements. Each precision is visited once, because weights are made and code is compiled anew
for each, and has an equal share of what time is left when its turn comes. Within it the most important comes first.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bagel_mot import Bagel
from bagel_mot.bench import random_model
from bagel_mot.bench.machine import machine
from bagel_mot.checkpoint.load_weights import quantise
from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.checkpoint.precision import Precision, check_hardware, parse_precision
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder
from bagel_mot.tokenizer import Tokenizer
from gpu_parts import beside, targets, tasks
from gpu_parts.common import FULL, Keep, Scale, attempt, failure, free, smoke_scale

PRECISIONS = ("bfloat16", "fp8-dynamic", "fp8", "int8", "nf4")
"""The most important first. NF4 last: the code that is compiled for it is longest, if bitsandbytes is not there."""
Task = Callable[[Bagel, Scale, torch.device, int], dict[str, Any]]
TASKS: dict[str, Task] = {
    "generate": tasks.draw,
    "small": tasks.draw_small,
    "write": tasks.write,
    "edit": tasks.edit,
    "ask": tasks.ask,
}
"""The most important first."""
WAYS = ("graphs", "compiled", "eager")
"""With recorded passes, with compiled layers as well, and with neither; the most important first."""


@dataclass(frozen=True)
class Cell:
    """One measurement of a precision."""

    task: str
    way: str
    batch: int

    @property
    def headline(self) -> bool:
        return self.task == "generate" and self.batch == 1


def cells(batches: tuple[int, ...], texts: tuple[int, ...]) -> list[Cell]:
    """The measurements of a precision, the most important first: one request alone, then many texts, then batches,
    which matter most where they are quickest.

    Args:
        batches: numbers of requests of any kind, each twice the one before.
        texts: further numbers of texts that are written, likewise.
    """
    alone = [Cell(task, way, 1) for task in TASKS for way in WAYS]
    written = [Cell("write", "graphs", n) for n in (*batches, *texts) if n > 1]
    more = [Cell(task, way, n) for way in ("compiled", "graphs", "eager") for n in batches if n > 1 for task in TASKS]
    return list(dict.fromkeys(alone + written + more))


def measure(
    device: torch.device, *, smoke: bool, budget: float, say: Callable[[str], None], keep: Keep
) -> dict[str, Any]:
    """
    Args:
        device: where.
        smoke: in miniature.
        budget: seconds; what finds no time is named as left out.
        say: told what is being measured.
        keep: given the report after each measurement.
    """
    end = time.perf_counter() + budget
    report: dict[str, Any] = {"machine": machine(device), "config": "miniature" if smoke else "7b-mot"}
    visit = _Visit(smoke_scale() if smoke else FULL, device, end, report, say, keep)
    report |= {"size": visit.scale.side, "rows": [], "left_out": [], "targets": targets.reached(()), "summary": {}}
    for index, precision in enumerate(PRECISIONS):
        now = time.perf_counter()
        if now > end:
            report["left_out"].append(f"{precision}: no time left")
            continue
        # On a CPU a compiler takes minutes for each size: in miniature what would be compiled is computed as it is.
        stance = "force_eager" if smoke else "default"
        try:
            with torch.compiler.set_stance(stance):
                visit.measure(precision, now + (end - now) / (len(PRECISIONS) - index))
        except Exception as error:  # while weights were made
            report["left_out"].append(f"{precision}: {failure(error)}")
        # Compiled code of all precisions counts against one limit, beyond which nothing is compiled any more.
        torch.compiler.reset()
        free(device)
        keep(report)
    return report


@dataclass(frozen=True)
class _Visit:
    """What the measurements of all precisions share."""

    scale: Scale
    device: torch.device
    end: float  # of the time for all
    report: dict[str, Any]
    say: Callable[[str], None]
    keep: Keep

    def measure(self, precision: str, until: float) -> None:
        """All measurements of a precision.

        Args:
            precision: as it would be typed.
            until: when its share of the time is over.
        """
        kind = parse_precision(precision)
        check_hardware(kind, self.device)
        self.say(f"weights, {precision}")
        model = random_model(self.scale.config, torch.bfloat16, self.device, vision=True)
        if precision == "bfloat16":
            for name, run in (
                ("matmul", beside.matmul),
                ("attention", beside.attention),
                ("plain", beside.plain),
            ):
                self.say(name)
                self.report[name] = attempt(partial(run, model, self.scale, self.device), self.device)
                self.keep(self.report)
        quantise(model, kind)
        bagels = _ways(model, self.scale, self.device, kind)
        measured: dict[Cell, float] = {}
        for cell in cells(self.scale.batches, self.scale.texts):
            name = f"{cell.task}, {precision}, {cell.way}, batch {cell.batch}"
            if reason := self._against(cell, measured, until):
                self.report["left_out"].append(f"{name}: {reason}")
                continue
            self.say(name)
            began = time.perf_counter()
            bagel = bagels[cell.way]
            before = bagel.engine.runner.graphs.recorded
            found = attempt(partial(TASKS[cell.task], bagel, self.scale, self.device, cell.batch), self.device)
            found["took_seconds"] = time.perf_counter() - began  # compiling and all
            if "error" not in found:
                measured[cell] = found["measured_seconds"]
                found |= _share(found, cell.batch, self.report)
            graphs = bagel.engine.runner.graphs
            row = {"task": cell.task, "precision": precision, "way": cell.way, "batch": cell.batch}
            row |= {"graphs_on": graphs.on, "graphs_recorded": graphs.recorded - before, **found}
            self.report["rows"].append(row | targets.of_row(row))
            self.report["targets"] = targets.reached(self.report["rows"])
            graphs.clear()  # their memory is not the next measurement's
            self.report["summary"] = summary(self.report)
            self.keep(self.report)

    def _against(self, cell: Cell, measured: dict[Cell, float], until: float) -> str:
        """Why a measurement is left out, if it is.

        Args:
            cell: the measurement.
            measured: seconds of the measured runs of those of this precision that succeeded.
            until: when its share of the time is over; the headline may take of the others'.
        """
        half = replace(cell, batch=cell.batch // 2)
        if half.batch and half not in measured:
            return f"batch {half.batch} was not measured"
        # What would not end in time is not begun: twice the batch takes twice the time, the brief run before it half.
        if time.perf_counter() + 3 * measured.get(half, 0.0) > (self.end if cell.headline else until):
            return "no time left"
        return ""


def _ways(model: BagelModel, scale: Scale, device: torch.device, precision: Precision) -> dict[str, Bagel]:
    """A model for each of `WAYS`. The same weights are there twice, since what is compiled stays so."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights)
    with torch.device(device):
        autoencoder = Autoencoder(scale.config.vae).eval().requires_grad_(False)
    tokenizer = Tokenizer.from_folder(MINI_FOLDER)
    return {
        way: Bagel(
            Checkpoint(scale.config, twin if way == "compiled" else model, autoencoder, tokenizer, precision=precision),
            compile=way == "compiled",
            graphs=way != "eager",
        )
        for way in WAYS
    }


def _share(found: dict[str, Any], batch: int, report: dict[str, Any]) -> dict[str, float]:
    """The rate of arithmetic of a step of drawing as a share of that of the matmuls alone."""
    rate = report.get("matmul", {})
    if "seconds_per_step" not in found or "flops_per_second" not in rate or found["side"] != report["size"]:
        return {}
    branches, seconds = max((int(branches), seconds) for branches, seconds in found["seconds_per_step"].items())
    flops = rate["flops_per_branch"] * branches * batch
    return {"share_of_matmul_rate": flops / seconds / rate["flops_per_second"]}


def _alone(report: dict[str, Any], task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in report["rows"]:
        if row["task"] == task and row["batch"] == 1 and "error" not in row:
            yield f"{row['precision']}, {row['way']}", row


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Targets, met or not, and headline ratios: a guided text-to-image step, and a token, of the plain loop over ours,
    for one request alone.
    """
    found: dict[str, Any] = {f"met: {name}": entry["met"] for name, entry in report["targets"].items()}
    plain = report.get("plain", {})
    for way, row in _alone(report, "generate"):
        if "seconds_per_step" in plain:
            ours = max(row["seconds_per_step"].values())
            found[f"text to image: plain loop / ours, {way}"] = plain["seconds_per_step"] / ours
        if "share_of_matmul_rate" in row:
            found[f"text to image: share of the matmul rate, {way}"] = row["share_of_matmul_rate"]
    for way, row in _alone(report, "write"):
        if "seconds_per_token" in plain and row["seconds_per_token"]:
            found[f"text: plain loop / ours per token, {way}"] = plain["seconds_per_token"] / row["seconds_per_token"]
    return found

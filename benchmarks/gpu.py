"""Everything that needs a GPU, each part one command (docs/gpu-worklist.md lists them with their results).

    python benchmarks/gpu.py right                   recorded cases, batches, attention, precisions, seeds
    python benchmarks/gpu.py learn                   mini at 128×128 pictures, in calls of some minutes, again till done
    python benchmarks/gpu.py fast                    full size, random weights: drawing, editing, answering, plain loop
    python benchmarks/gpu.py limits                  full size on cards of 12, 16 and 24 GB: plans, memory, predictions
    python benchmarks/gpu.py fast --smoke            the same in miniature, on any machine: does it still run?

Each writes its JSON into benchmarks/results/ (or to --json FILE), whole or not at all; `fast` and `limits` after each
measurement, so that what ends them early leaves what they had, marked as not complete. Training: benchmarks/train.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

if TYPE_CHECKING:
    from gpu_parts.common import Keep

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parent.parent / "runs"
console = Console(stderr=True, highlight=False)
app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True, rich_markup_mode=None)

DeviceOption = Annotated[str, typer.Option(help="cuda, cuda:1, mps or cpu.")]
SmokeOption = Annotated[bool, typer.Option("--smoke", help="In miniature: shows that it runs, measures nothing.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File to write; by default in benchmarks/results/.")]


def report(name: str, smoke: bool, target: Path | None, measure: Callable[[Keep], dict[str, Any]]) -> None:
    """Runs a measurement and writes what it found. What was run in miniature is written only where asked for.

    Args:
        name: of the measurement.
        smoke: whether it is in miniature.
        target: file to write.
        measure: the measurement; it may hand over what it has so far, to be written too.
    """
    began = time.perf_counter()
    path = target or (None if smoke else RESULTS / f"gpu-{name}.json")

    def write(found: dict[str, Any], complete: bool = False) -> None:
        if path is None:
            return
        facts = {"seconds": time.perf_counter() - began, "date": time.strftime("%Y-%m-%d"), "smoke": smoke}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**found, **facts, "complete": complete}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    found = measure(write)
    write(found, complete=True)
    if path is not None:
        console.print(f"written: {path}")
    print(json.dumps(found.get("summary", {}), indent=2))


def device_named(name: str, smoke: bool) -> torch.device:
    """The device; a run in miniature takes the CPU where there is no other."""
    if name == "cuda" and not torch.cuda.is_available():
        if smoke:
            return torch.device("cpu")
        console.print("there is no CUDA device here: give --device, or --smoke for a run in miniature")
        raise typer.Exit(2)
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:  # some of PyTorch's functions take no other
        device = torch.device("cuda", torch.cuda.current_device())
    return device


@app.command()
def right(device: DeviceOption = "cuda", smoke: SmokeOption = False, target: JsonOption = None) -> None:
    """Recorded cases in float32 (TF32 off) and bfloat16, batches, attention, precisions, seeds."""
    from gpu_parts.right import measure

    where = device_named(device, smoke)
    report("right", smoke, target, lambda _: measure(where, smoke=smoke, say=console.print))


@app.command()
def learn(
    device: DeviceOption = "cuda",
    smoke: SmokeOption = False,
    seconds: Annotated[float, typer.Option(help="Of this call; the next one goes on.", min=1)] = 540,
    work: Annotated[Path, typer.Option(help="Folder of the work.")] = RUNS / "gpu-learn",
    export: Annotated[Path | None, typer.Option(help="Folder for the newest weights, in files of 15 MiB.")] = None,
    target: JsonOption = None,
) -> None:
    """Train mini at 128×128 pictures: sizes, autoencoder, model, evaluation."""
    from gpu_parts.learn import measure

    where = device_named(device, smoke)
    run = partial(measure, where, smoke=smoke, seconds=seconds, work=work, export=export, say=console.print)
    report("learn", smoke, target, lambda _: run())


@app.command()
def fast(
    device: DeviceOption = "cuda",
    smoke: SmokeOption = False,
    budget: Annotated[float, typer.Option(help="Seconds that it may take.", min=1)] = 500,
    target: JsonOption = None,
) -> None:
    """The official size: seconds, memory and share of the matmul rate, beside a plain loop in the same run."""
    from gpu_parts.fast import measure

    where = device_named(device, smoke)
    run = partial(measure, where, smoke=smoke, budget=budget, say=console.print)
    report("fast", smoke, target, lambda keep: run(keep=keep))


@app.command()
def limits(
    device: DeviceOption = "cuda",
    smoke: SmokeOption = False,
    budget: Annotated[float, typer.Option(help="Seconds that it may take, with writing weights.", min=1)] = 520,
    checkpoint: Annotated[Path, typer.Option(help="Folder of random weights; written if missing.")] = RUNS / "full",
    target: JsonOption = None,
) -> None:
    """The official size on cards of 12, 16 and 24 GB: what is chosen, whether it completes, memory and predictions."""
    from gpu_parts.limits import measure

    where = device_named(device, smoke)
    run = partial(measure, where, smoke=smoke, budget=budget, checkpoint=checkpoint, say=console.print)
    report("limits", smoke, target, lambda keep: run(keep=keep))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    app()

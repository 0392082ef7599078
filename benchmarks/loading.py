"""How fast weights are loaded in few bits, against what bounds it: `python benchmarks/loading.py [--layers 3]`.

Writes layers of the official widths with random weights into runs/loading (0.93 GB a layer), loads them in each
precision, each in a process of its own, and prints bytes of the file a second: from the disk, whose rate is measured
with the same file; from the system's cache, where nothing but copying and rounding takes time; and as from a disk of a
given rate, to which reads from the cache are delayed. Beside them stands the rate of rounding alone, by compiled passes
and by PyTorch's operations. Writes benchmarks/results/loading.json. The machine should be quiet; `--allow-busy` stores
figures from one that is not, marked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

RESULT = Path(__file__).parent / "results" / "loading.json"
PRECISIONS = ("int8", "int4", "nf4")
WEIGHTS = "ema.safetensors"


def write(folder: Path, layers: int) -> None:
    """A checkpoint with layers of the official widths, and little else."""
    from bagel_mot.checkpoint.random_weights import write_random_checkpoint
    from bagel_mot.config import NAMED_CONFIGS
    from bagel_mot.inference.loading import MINI_FOLDER
    from bagel_mot.tokenizer import Tokenizer

    official, tokenizer = NAMED_CONFIGS["7b-mot"], Tokenizer.from_folder(MINI_FOLDER)
    config = replace(
        official,
        decoder=replace(official.decoder, num_layers=layers, vocab_size=tokenizer.vocab_size),
        vit=replace(official.vit, num_layers=1),
        vae=replace(official.vae, ch=32),
    )
    write_random_checkpoint(folder, config, tokenizer)


def forget(folder: Path) -> None:
    """Lets the system drop what it has of the file in memory, so that reading it reads the disk."""
    with open(folder / WEIGHTS, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(folder: Path) -> float:
    """Bytes a second of reading the file into memory that is used again."""
    buffer, read, began = bytearray(16 << 20), 0, time.perf_counter()
    with open(folder / WEIGHTS, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            read += count
    return read / (time.perf_counter() - began)


def load(folder: Path, precision: str, rate: float) -> float:
    """Bytes a second of loading all of it, from a disk that gives `rate` bytes a second (0: as fast as it does)."""
    from bagel_mot.checkpoint.official import load_checkpoint
    from bagel_mot.checkpoint.opening import open_checkpoint
    from bagel_mot.checkpoint.precision import parse_precision

    began = time.perf_counter()
    source = open_checkpoint(folder)
    read, size = source.read, source.stored_bytes

    def delayed(name: str, buffer: Any = None) -> Any:
        until = time.perf_counter() + (size(name) / rate if rate else 0)
        found = read(name, buffer)
        time.sleep(max(0.0, until - time.perf_counter()))
        return found

    source.read = delayed  # type: ignore[method-assign]
    load_checkpoint(source, precision=parse_precision(precision), prepack=True)
    return (folder / WEIGHTS).stat().st_size / (time.perf_counter() - began)


def rounding(precision: str, compiled: bool) -> float:
    """Bytes a second of rounding a matrix of the widest kind, bfloat16."""
    from bagel_mot.model.quant import FORMATS
    from bagel_mot.model.quant import rounding as passes

    if not compiled:
        passes._chosen = lambda *_: None  # type: ignore[assignment]
    weight = (0.05 * torch.randn(4736, 3584)).to(torch.bfloat16)
    FORMATS[precision].quantise(weight)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        FORMATS[precision].quantise(weight)
        seconds.append(time.perf_counter() - began)
    return weight.nbytes / min(seconds)


def measured(folder: Path, precision: str, rate: float) -> dict[str, float]:
    """The rates of one precision in bytes a second."""
    forget(folder)
    return {
        "disk": load(folder, precision, 0),
        "cache": load(folder, precision, 0),
        "delayed": load(folder, precision, rate),
        "rounding": rounding(precision, True),
        "pytorch": rounding(precision, False),
    }


def apart(folder: Path, precision: str, rate: float) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--rate", str(rate / 1e9), "--precision", precision]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main(
    folder: Annotated[Path, typer.Option(help="Folder of the checkpoint; written where it is missing.")] = Path(
        "runs/loading"
    ),
    layers: Annotated[int, typer.Option(help="Layers of the official widths.", min=1)] = 3,
    rate: Annotated[float, typer.Option(help="Rate of a disk that reads are delayed to, GB/s.", min=0.01)] = 1.3,
    allow_busy: Annotated[bool, typer.Option(help="Store figures although other processes work, marked.")] = False,
    precision: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the rate of loading."""
    if precision is not None:
        typer.echo(json.dumps(measured(folder, precision, rate * 1e9)))
        return
    if not (folder / WEIGHTS).exists():
        write(folder, layers)
        os.sync()  # or what the system has not written yet cannot be dropped from its memory
    from bagel_mot.bench.busy import OtherProcesses
    from bagel_mot.bench.machine import machine

    others = OtherProcesses()
    forget(folder)
    disk = reading(folder)
    rows: dict[str, dict[str, float]] = {}
    for name in PRECISIONS:
        rows[name] = apart(folder, name, rate * 1e9)
        shown = "".join(f"  {what} {value / 1e9:.2f}" for what, value in rows[name].items())
        typer.echo(f"{name:<5}{shown} GB/s")
    report = {
        "machine": machine(torch.device("cpu")) | others.facts(),
        "date": time.strftime("%Y-%m-%d"),
        "layers": layers,
        "disk": disk,
        "cache": reading(folder),
        "rate": rate * 1e9,
        "rows": rows,
    }
    typer.echo(f"the disk gives {disk / 1e9:.2f} GB/s, the cache {report['cache'] / 1e9:.2f}")
    for name, row in rows.items():
        typer.echo(f"{name:<5} {row['disk'] / disk:.0%} of the disk, {row['delayed'] / rate / 1e9:.0%} of {rate} GB/s")
    if others.facts()["busy"] and not allow_busy:
        typer.echo("not stored: other processes are at work (--allow-busy stores figures all the same, marked)")
        raise typer.Exit(1)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""How long rows take that are multiplied with a quantised matrix on the CPU: `python benchmarks/few_bits.py`.

A matrix of the official widths, half of gate and up of a layer (9472×3584), in each format, multiplied with 1, 8, 64
and 512 rows in bfloat16 and in float32: by what is chosen here, and by PyTorch's operations alone, which serve where
there is no compiler. Least of a few calls in turn, milliseconds. Writes benchmarks/results/few-bits.json. The machine
should be quiet; `--allow-busy` stores figures from one that is not, marked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import torch
import typer

RESULT = Path(__file__).parent / "results" / "few-bits.json"
ROWS = (1, 8, 64, 512)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@contextmanager
def without_passes() -> Iterator[None]:
    """PyTorch's operations alone."""
    from bagel_mot.model.quant import base

    def never(*_: object) -> bool:
        return False

    with mock.patch.multiple(base, _multiplies=never, _restores=never):
        yield


def milliseconds(multiply: Callable[[], object], turns: int) -> tuple[float, float]:
    """By what is chosen, and by PyTorch's operations."""
    from bagel_mot.model.measuring import shortest

    def plainly() -> None:
        with without_passes():
            multiply()

    seconds = shortest({"chosen": multiply, "plain": plainly}, turns=turns)
    return 1000 * seconds["chosen"], 1000 * seconds["plain"]


def main(
    out: Annotated[int, typer.Option(help="Rows of the matrix.", min=64)] = 9472,
    inner: Annotated[int, typer.Option(help="Its width.", min=64)] = 3584,
    threads: Annotated[int | None, typer.Option(help="Threads that compute; by default PyTorch's number.")] = None,
    turns: Annotated[int, typer.Option(help="How often each call is timed.", min=1)] = 3,
    result: Annotated[Path, typer.Option("--json", help="Where the figures are stored.")] = RESULT,
    allow_busy: Annotated[bool, typer.Option(help="Store figures although other processes work, marked.")] = False,
) -> None:
    """Measure products of a few and of many rows with quantised matrices."""
    from bagel_mot.bench.busy import OtherProcesses
    from bagel_mot.bench.machine import machine
    from bagel_mot.model.quant import FORMATS

    if threads is not None:
        torch.set_num_threads(threads)
    others = OtherProcesses()
    weight = (0.02 * torch.randn(out, inner, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for name, kind in FORMATS.items():
            matrix = kind.quantise(weight)
            for type_, dtype in DTYPES.items():
                for rows in ROWS:
                    x = torch.randn(rows, inner).to(dtype)
                    mine, plain = milliseconds(partial(matrix.multiply, x), turns)
                    found[f"{name}, {type_}, {rows}"] = {"chosen": mine, "plain": plain}
                    typer.echo(f"{name:5} {type_:9} {rows:4} rows  {mine:8.1f} ms  by PyTorch {plain:8.1f} ms")
    facts = others.facts()
    if facts["busy"] and not allow_busy:
        typer.echo("not stored: other processes are at work (--allow-busy stores figures all the same, marked)")
        raise typer.Exit(1)
    report = {
        "machine": machine(torch.device("cpu")) | facts,
        "date": time.strftime("%Y-%m-%d"),
        "matrix": [out, inner],
        "threads": torch.get_num_threads(),
        "milliseconds": found,
    }
    result.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

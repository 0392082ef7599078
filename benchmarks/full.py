"""The official size on one machine, with random weights: loading, memory, decoding, drawing, precision.

    make bench-full                                       all of it, into benchmarks/results/full-7b-mot-cpu.json
    python benchmarks/full.py --only machine --only int8   some parts; others stay as they are in the file

Every part runs in a process of its own, so that its peak memory is its own. The checkpoint (29.6 GB) is written once,
into runs/full; what has been measured is not measured again unless it is named or `--again` is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from bagel_mot.checkpoint.official import read_config
from bagel_mot.checkpoint.opening import StoredWeights, open_checkpoint, open_source
from bagel_mot.config import BagelConfig

RESULTS = Path(__file__).parent / "results" / "full-7b-mot-cpu.json"
CONFIG = "7b-mot"
PROMPT = "a red car under a yellow sun"
QUESTION = "What is in the picture?"
ANSWER_TOKENS = 17
LARGEST_SIDE, TIMESTEPS = 256, 8
IMAGE = 448

console = Console(stderr=True, highlight=False)


# ---------------------------------------------------------------------------------------------------- what is measured


def machine_rates(folder: Path) -> dict[str, Any]:
    """Sequential reading from the disk, reading memory, and bfloat16 matmuls of the shapes of a drawing step."""
    from bagel_mot.bench.machine import machine

    forget_cached(folder)
    buffer = bytearray(16 << 20)
    began, read = time.perf_counter(), 0
    with open(folder / "ema.safetensors", "rb", buffering=0) as file:
        # All of it, as loading does: what stands behind a virtual disk may have a part of the file in memory.
        while count := file.readinto(buffer):
            read += count
    disk = read / (time.perf_counter() - began)
    block = torch.ones(1 << 29, dtype=torch.int64)
    memory = max(block.nbytes / seconds_of(block.sum) for _ in range(3))
    config = read_config(open_checkpoint(folder))
    rows = drawing_rows(config)
    return {
        "machine": machine(torch.device("cpu")),
        "disk_bytes_per_second": disk,
        "memory_bytes_per_second": memory,
        "matmul_rows": rows,
        "matmul_flops_per_second": matmul_rate(config, rows),
    }


def load(folder: Path, precision: str, tasks: tuple[str, ...] | None = None) -> tuple[Any, dict[str, Any]]:
    """A model from the disk: seconds, bytes read, and memory."""
    from bagel_mot import Bagel
    from bagel_mot.checkpoint.names import official_name
    from bagel_mot.checkpoint.opening import EMBEDDING, embedding_dtype

    forget_cached(folder)
    began = time.perf_counter()
    chosen = {} if tasks is None else {"tasks": tasks}
    bagel = Bagel.from_pretrained(folder, precision=precision, device="cpu", offload="none", **chosen)
    seconds = time.perf_counter() - began
    source, autoencoder = open_source(folder / "ema.safetensors"), open_source(folder / "ae.safetensors")
    read = sum(source.stored_bytes(name) for name in wanted_names(bagel))
    # The token embedding stays in its file; the autoencoder is read where pictures are drawn.
    read -= source.stored_bytes(official_name(EMBEDDING)) if embedding_dtype(source) == torch.bfloat16 else 0
    if bagel.checkpoint.model.latent_in is not None:
        read += sum(autoencoder.stored_bytes(name) for name in autoencoder.names())
    return bagel, {
        "seconds": seconds,
        "bytes_read": read,
        "bytes_per_second": read / seconds,
        "peak_resident_bytes": resident("VmHWM"),
        "resident_bytes": resident("VmRSS"),
    }


def load_only(precision: str, tasks: tuple[str, ...] | None = None) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: load(folder, precision, tasks)[1]


def ask(folder: Path) -> dict[str, Any]:
    """First token and tokens per second, one request alone."""
    bagel, _ = load(folder, "int8", ("understand",))
    times: list[float] = []
    began = time.perf_counter()
    noted = {"on_text": lambda piece: times.append(time.perf_counter()), "max_new_tokens": ANSWER_TOKENS}
    run(bagel, [image(), QUESTION], "text", **noted)
    each = (times[-1] - times[0]) / (len(times) - 1)
    decoder = bagel.checkpoint.model.decoder
    weights = sum(t.nbytes for layer in decoder.layers for t in (*layer.und.parameters(), *layer.und.buffers()))
    head = decoder.lm_head
    weights += head.out_features * head.in_features * 2
    return {
        "tokens": len(times),
        "first_token_seconds": times[0] - began,
        "seconds_per_token": each,
        "weight_bytes_per_token": weights,
        "bytes_per_second": weights / each,
        "peak_resident_bytes": resident("VmHWM"),
    }


def generate(folder: Path) -> dict[str, Any]:
    """Seconds of an evaluation at 256×256, text to image with its two branches, and their rate of matmuls."""
    bagel, _ = load(folder, "int8", ("generate",))
    times: list[float] = []
    began = time.perf_counter()
    bagel.submit(
        [PROMPT],
        size=size(bagel.config),
        num_timesteps=TIMESTEPS,
        seed=0,
        on_step=lambda done, total: times.append(time.perf_counter()),
    ).result()
    # Guidance is on while t > 0.4, the first steps: those have two branches.
    each = min(b - a for a, b in pairwise(times[:4]))
    rows = drawing_rows(bagel.config)
    return {
        "seconds": time.perf_counter() - began,
        "evaluations": len(times),
        "seconds_per_evaluation_of_two_branches": each,
        "matmul_flops_per_second": matmul_flops(bagel.config, rows) / each,
        "peak_resident_bytes": resident("VmHWM"),
    }


def first_outputs(folder: Path, precision: str, **place: Any) -> dict[str, Tensor]:
    """The first velocity, without guidance, and the first logits of an answer."""
    from bagel_mot import Bagel
    from bagel_mot.inference.request import Recorder
    from bagel_mot.inference.steps.draw import noises_of

    bagel = Bagel.from_pretrained(folder, precision=precision, device="cpu", **{"offload": "none", **place})
    drawn, said = Recorder(), Recorder()
    # One step from t = 1 to 0: what is drawn is the noise less the velocity.
    step = {"size": size(bagel.config), "num_timesteps": 2, "seed": 0, "cfg_text_scale": 1.0, "cfg_image_scale": 1.0}
    run(bagel, [PROMPT], "image", recorder=drawn, **step)
    run(bagel, [image(), QUESTION], "text", recorder=said, max_new_tokens=1)
    assert drawn.latent is not None
    return {"velocity": next(noises_of(bagel.config, size(bagel.config), 0)) - drawn.latent, "logits": said.logits[0]}


def reference(folder: Path) -> dict[str, Any]:
    """bfloat16, layer by layer from the disk."""
    began = time.perf_counter()
    torch.save(first_outputs(folder, "bfloat16", offload="disk"), folder / "reference.pt")
    return {"seconds": time.perf_counter() - began, "peak_resident_bytes": resident("VmHWM")}


def compare(precision: str) -> Callable[[Path], dict[str, Any]]:
    def measure(folder: Path) -> dict[str, Any]:
        wanted = torch.load(folder / "reference.pt")
        found = first_outputs(folder, precision)
        errors = {
            f"{name}_relative_error": ((found[name].double() - t.double()).norm() / t.double().norm()).item()
            for name, t in wanted.items()
        }
        return {**errors, "peak_resident_bytes": resident("VmHWM")}

    return measure


def memory(place: int) -> Callable[[Path], dict[str, Any]]:
    """One of the workloads of `bagel info --plan` in INT4: its measured and its predicted peak. A picture has
    one evaluation and an answer two tokens; later ones take no more.
    """

    def measure(folder: Path) -> dict[str, Any]:
        from PIL import Image

        from bagel_mot import Bagel
        from bagel_mot.placement.estimate import reference_workloads
        from bagel_mot.placement.plan import Machine, plans

        cpu = torch.device("cpu")
        bagel = Bagel.from_pretrained(folder, precision="int4", device="cpu", offload="none")
        workload = reference_workloads(bagel.config)[place]
        inputs = [*(Image.new("RGB", size, "red") for size in workload.images), "x " * 60]
        began = time.perf_counter()
        if workload.drawn is None:
            run(bagel, inputs, "text", max_new_tokens=2)
        else:
            run(bagel, inputs, "image", size=workload.drawn, num_timesteps=2, seed=0)
        seconds = time.perf_counter() - began
        every = Machine(((cpu, sys.maxsize),), sys.maxsize)
        stored = StoredWeights(embedding=torch.bfloat16)
        [plan] = plans(bagel.config, every, ("generate", "edit", "understand"), precisions=("int4",), stored=stored)
        return {
            "job": workload.name,
            "seconds": seconds,
            "peak_resident_bytes": resident("VmHWM"),
            "predicted_bytes": plan.host_bytes[workload.name],
        }

    return measure


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "machine": machine_rates,
    "load int8": load_only("int8"),
    "load int4": load_only("int4"),
    "load nf4": load_only("nf4"),
    "load int8, understanding": load_only("int8", ("understand",)),
    "ask int8": ask,
    "generate int8": generate,
    "reference bfloat16 from the disk": reference,
    "compare int8": compare("int8"),
    "compare int8-dynamic": compare("int8-dynamic"),
    "compare fp8": compare("fp8"),
    "compare int4": compare("int4"),
    "compare nf4": compare("nf4"),
    "memory of drawing": memory(0),
    "memory of editing": memory(1),
    "memory of answering": memory(2),
}


# ---------------------------------------------------------------------------------------------------------- measuring


def image() -> Any:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (14, 14, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((IMAGE, IMAGE))


def wanted_names(bagel: Any) -> list[str]:
    """Official names of all tensors that a model was made from."""
    from bagel_mot.checkpoint.names import official_name
    from bagel_mot.checkpoint.shapes import model_shapes

    reads, draws = bagel.checkpoint.model.vit is not None, bagel.checkpoint.model.latent_in is not None
    return [official_name(name) for name in model_shapes(bagel.config, reads=reads, draws=draws)]


def run(
    bagel: Any, inputs: list[Any], output: str, *, recorder: Any = None, on_text: Any = None, **settings: Any
) -> None:
    bagel.submit(inputs, output=output, recorder=recorder, on_text=on_text, **settings).result()


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def size(config: BagelConfig) -> tuple[int, int]:
    """Of the pictures that are drawn."""
    side = min(LARGEST_SIDE, config.max_latent_size * config.latent_stride)
    return side, side


def drawing_rows(config: BagelConfig) -> int:
    """Latent tokens of two branches."""
    return 2 * (size(config)[0] // config.latent_stride) ** 2


def shapes(config: BagelConfig) -> list[tuple[int, int]]:
    """Of the matrices of one layer's expert, (out, in)."""
    d = config.decoder
    hidden, kv, mlp = d.hidden_size, d.num_kv_heads * d.head_dim, d.intermediate_size
    return [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (mlp, hidden), (mlp, hidden), (hidden, mlp)]


def matmul_flops(config: BagelConfig, rows: int) -> float:
    return sum(2.0 * rows * out * inner for out, inner in shapes(config)) * config.decoder.num_layers


def matmul_rate(config: BagelConfig, rows: int) -> float:
    """Operations per second of one layer's matmuls in bfloat16, weights packed for the processor."""
    from bagel_mot.model.kernels import can_prepack
    from bagel_mot.model.prepacked import PrepackedLinear

    flops = seconds = 0.0
    for out, inner in shapes(config):
        linear: Any = torch.nn.Linear(inner, out, bias=False, dtype=torch.bfloat16)
        linear = PrepackedLinear(linear.weight, linear.bias) if can_prepack(torch.bfloat16) else linear
        x = torch.randn(rows, inner, dtype=torch.bfloat16)
        with torch.inference_mode():
            linear(x)
            seconds += min(seconds_of(lambda linear=linear, x=x: linear(x)) for _ in range(5))
        flops += 2.0 * rows * out * inner
    return flops / seconds


def resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at the most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def forget_cached(folder: Path) -> None:
    """Lets the system drop what it has of the folder's files in memory, so that reading them reads the disk."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------- running


def in_process(part: str, folder: Path) -> dict[str, Any]:
    """Measures a part in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--worker", part]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise typer.Exit(ran.returncode)
    return json.loads(ran.stdout.splitlines()[-1])


def summary(parts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures against the machine's own rates."""
    rates = parts.get("machine", {})
    found: dict[str, float] = {}
    for name, part in parts.items():
        if name.startswith("load") and "disk_bytes_per_second" in part:
            found[f"{name}: share of the disk's rate"] = part["bytes_per_second"] / part["disk_bytes_per_second"]
        if "peak_resident_bytes" in part:
            found[f"{name}: peak GB"] = part["peak_resident_bytes"] / 1e9
        if "predicted_bytes" in part:
            found[f"{name}: predicted of measured"] = part["predicted_bytes"] / part["peak_resident_bytes"]
    if {"machine", "ask int8"} <= parts.keys():
        found["ask int8: share of the memory's rate"] = (
            parts["ask int8"]["bytes_per_second"] / rates["memory_bytes_per_second"]
        )
    if {"machine", "generate int8"} <= parts.keys():
        found["generate int8: share of the bfloat16 matmul rate"] = (
            parts["generate int8"]["matmul_flops_per_second"] / rates["matmul_flops_per_second"]
        )
    return found


def main(
    folder: Annotated[Path, typer.Option(help="Where the checkpoint is, or is to be written.")] = Path("runs/full"),
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the vocabulary to put in; that of `mini` if not given.")
    ] = None,
    target: Annotated[Path, typer.Option("--json", help="File with the results, read and completed.")] = RESULTS,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to measure: {', '.join(PARTS)}.")] = None,
    again: Annotated[bool, typer.Option(help="Also measure what the file has already.")] = False,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the official size on this machine."""
    if worker is not None:
        print(json.dumps(PARTS[worker](folder)))
        return
    unknown = sorted(set(only or ()) - PARTS.keys())
    if unknown:
        console.print(f"there is no part {unknown[0]!r}: give {', '.join(PARTS)}")
        raise typer.Exit(2)
    if not (folder / "ema.safetensors").exists():
        more = ["--tokenizer", str(tokenizer)] if tokenizer else []
        command = [sys.executable, "-m", "bagel_mot", "init", "--config", CONFIG, "--random", str(folder), *more]
        subprocess.run(command, check=True)
    report = json.loads(target.read_text()) if target.exists() else {"config": CONFIG, "parts": {}}
    for part in only or PARTS:
        if part in report["parts"] and not (again or only):
            continue
        console.print(f"[bold]{part}[/bold]")
        report["parts"][part] = {**in_process(part, folder), "date": time.strftime("%Y-%m-%d")}
        if part.startswith("load") and "machine" in report["parts"]:  # a share is of the rate of that time
            rate = report["parts"]["machine"]["disk_bytes_per_second"]
            report["parts"][part]["disk_bytes_per_second"] = rate
        report["summary"] = summary(report["parts"])
        # After every part, so that what was measured is kept if the next one is interrupted.
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        temporary.replace(target)
        console.print_json(data=report["parts"][part])
    console.print_json(data=report["summary"])


if __name__ == "__main__":
    typer.run(main)

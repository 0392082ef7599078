"""A training step at true widths with and without each switch: tokens per second, MFU, HFU, memory and its prediction.

    python benchmarks/train.py                                  all cases on one GPU, the most important first
    python benchmarks/train.py --only lora --only float8        some of them
    torchrun --nproc_per_node 8 benchmarks/train.py --layers 28 what is sharded, over so many GPUs
    python benchmarks/train.py --smoke                          in miniature, on any machine: does it still run?

Weights are random, packs are full: a caption and an image to be drawn in each sample, one row. The step is the one that
recipes run: losses, backward pass, clipping, optimiser, averaged weights. The file is written after each case, so that
what ends it early leaves what it had. Aim: an MFU of 45% and more on one H200 in the best case. For comparison, on 32
H100: 17.9% for the published code and 23.7% for Megatron-Bridge, by the published formula, which `mfu_published` is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from bagel_mot.bench import random_model
from bagel_mot.bench.machine import machine, peak_allocated
from bagel_mot.bench.settings import SPECIAL, grid_of, random_ids
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.parallel.apply import parallelise
from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.parallel.launch import launched
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.placement.peaks import device_peak
from bagel_mot.placement.rates import synchronize
from bagel_mot.placement.training_memory import TrainingWeights, TrainingWork, training_memory
from bagel_mot.sequence import PackSpec, Sample, TextSegment, TrainingLayout, VaeSegment, Values, pack
from bagel_mot.training.flops import FlopCounter
from bagel_mot.training.lora import AdapterConfig, add_adapters
from bagel_mot.training.objective import CE_CHUNK, add_noise, attention_of, compute_losses
from bagel_mot.training.optimizer import Ema, OptimizerConfig, Optimizers

RESULTS = Path(__file__).parent / "results"
_TARGET_MFU = 0.45
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Case:
    """One way of training.

    Attributes:
        name: its name.
        attention: "sdpa" or "flex".
        parallel: the recipe's section.
        compile: whether each layer is compiled.
        trains: "all", or "lora" for adapters on the gen expert.
        base: the format of the frozen matrices beside adapters; None for bfloat16.
        processes: processes that it needs; 0 for any number above one.
    """

    name: str
    attention: str = "flex"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    compile: bool = True
    trains: str = "all"
    base: str | None = None
    processes: int = 1


def cases() -> Iterator[Case]:
    """All cases, the most important first."""
    selective, full = (ParallelConfig(activation_checkpoint=kind) for kind in ("selective", "full"))
    yield Case("flex, compiled")
    yield Case("flex, compiled, selective checkpointing", parallel=selective)
    yield Case("flex, compiled, full checkpointing", parallel=full)
    yield Case("lora, flex, compiled, full checkpointing", trains="lora", parallel=full)
    yield Case("qlora, flex, full checkpointing", trains="lora", base="nf4", parallel=full, compile=False)
    yield Case("float8, flex, compiled", parallel=ParallelConfig(enable_float8=True))
    yield Case("flex, eager", compile=False)
    yield Case("sdpa, compiled", attention="sdpa")
    yield Case("sdpa, eager", attention="sdpa", compile=False)
    yield Case("lora, flex, eager, full checkpointing", trains="lora", parallel=full, compile=False)
    yield Case("optimiser in main memory", parallel=ParallelConfig(offload_optimizer=True))
    yield Case("fsdp, flex, compiled, full checkpointing", parallel=full, processes=0)
    yield Case("fsdp, flex, compiled, selective checkpointing", parallel=selective, processes=0)
    yield Case(
        "tensor parallel 2, flex, full checkpointing", parallel=replace(full, tensor_parallel_degree=2), processes=0
    )
    yield Case(
        "context parallel 2, flex, full checkpointing", parallel=replace(full, context_parallel_degree=2), processes=0
    )
    yield Case(
        "two replicas, flex, full checkpointing", parallel=replace(full, data_parallel_replicate_degree=2), processes=0
    )


def miniature(config: BagelConfig) -> BagelConfig:
    """The same with two narrow layers."""
    decoder = replace(
        config.decoder, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=256,
        vocab_size=2048, head_dim=32,
    )  # fmt: skip
    return replace(config, decoder=decoder)


def full_pack(config: BagelConfig, samples: int, text: int, image: int) -> tuple[TrainingLayout, Values]:
    """Captions and images to be drawn, all in one row."""
    grid = grid_of(image, config.max_latent_size)
    row = []
    for _ in range(samples):
        ids = random_ids(text - 2, config.decoder.vocab_size).tolist()
        segment = VaeSegment(torch.randn(image, config.latent_dim), grid, noised=True)
        row.append(Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment)))
    spec = PackSpec.of(config, SPECIAL)
    # Whole blocks of attention, and numbers that context parallelism can divide.
    und, gen = (-(-n // 128) * 128 for n in (samples * (text + 2), samples * image))
    return pack([row], spec, und_len=und, gen_len=gen), Values.of(row, spec)


def built(case: Case, config: BagelConfig, device: torch.device) -> BagelModel:
    """The network of a case with random weights, ready to train."""
    if case.trains == "all":
        return random_model(config, torch.float32, device).requires_grad_(True).train()
    model = random_model(config, torch.bfloat16, device)
    if case.base is not None:
        kind = FORMATS[case.base]
        for layer in model.decoder.layers:
            for expert in (layer.und, layer.gen):
                for name, linear in list(expert.named_children()):
                    if isinstance(linear, nn.Linear) and kind.fits((linear.out_features, linear.in_features)):
                        bias = None if linear.bias is None else linear.bias.data
                        quantised = QuantisedLinear(kind.quantise(linear.weight.data), bias, torch.bfloat16)
                        setattr(expert, name, quantised)
    model.train()
    add_adapters(model, AdapterConfig(experts=("gen",), rank=64, alpha=128.0))
    return model


def measure(
    case: Case, config: BagelConfig, device: torch.device, ranks: Ranks, packed: tuple[TrainingLayout, Values]
) -> dict[str, Any]:
    """The figures of a case."""
    layout, values = packed
    model = built(case, config, device)
    counter = FlopCounter(model, recomputes_layers=case.parallel.activation_checkpoint == "full", chunk=CE_CHUNK)
    work = counter.count(layout)
    predicted = _predicted(case, model, layout, ranks, device)
    compiled = partial(torch.compile, dynamic=False) if case.compile else None
    parallelise(model, ranks, case.parallel, precision="bfloat16", device=device, compiled=compiled)
    attend = attention_of(case.attention, device, torch.bfloat16)
    times = torch.full((len(layout.latent_grids),), 0.5)
    noised = add_noise(layout, values, times, torch.randn_like(values.latents)).to(device)
    optimizers = Optimizers(
        model.named_parameters(), OptimizerConfig(lr=1e-6), ranks=ranks, offload=case.parallel.offload_optimizer
    )
    ema = Ema(model, 0.9999)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            losses = compute_losses(model, noised, attend(noised.layout))
            loss = losses.ce.mean() + losses.mse.mean()
        loss.backward()
        optimizers.step(1.0)
        ema.update()

    def timed() -> float:
        synchronize(device)
        began = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - began

    step()
    step()
    seconds = sorted(timed() for _ in range(5))[2]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        held = torch.cuda.max_memory_allocated(device)
    else:
        held = peak_allocated(device, step) + sum(p.nbytes for p in model.parameters())
    shares = ranks.degrees.context * ranks.degrees.tensor  # processes that compute one pack
    found = {
        "seconds": seconds,
        "tokens_per_second_per_device": layout.num_tokens / shares / seconds,
        "flops_per_second_per_device": work.useful / shares / seconds,
        "peak_memory_bytes": held,
        "predicted_memory_bytes": predicted,
    }
    if (peak := device_peak(device)) is not None:
        found |= {
            "mfu": work.useful / shares / seconds / peak,
            "hfu": (work.useful + work.recomputed) / shares / seconds / peak,
            "mfu_published": work.published / shares / seconds / peak,
        }
    return found


def _predicted(case: Case, model: BagelModel, layout: TrainingLayout, ranks: Ranks, device: torch.device) -> int:
    """The predicted peak, without the context of the device, the autoencoder, which is not here, and its work."""
    degrees, adapted = ranks.degrees, case.trains == "lora"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in (*model.parameters(), *model.buffers()) if not p.requires_grad)
    layer = sum(p.numel() for p in model.decoder.layers[0].parameters())
    outside = sum(p.numel() for p in model.parameters()) - layer * len(model.decoder.layers)
    gathered, shared = degrees.shard > 1, degrees.shard * degrees.tensor
    matrices = sum(p.numel() for p in model.decoder.layers[0].parameters() if p.ndim == 2)
    decoder = model.config.decoder
    work = TrainingWork(
        rows=layout.rows,
        und=layout.rows * layout.und_len // degrees.context,
        gen=layout.rows * layout.gen_len // degrees.context,
        patches=0,
        targets=layout.ce_labels.numel(),
        encoded_pixels=0,
        dtype=torch.bfloat16,
        chunk=CE_CHUNK,
        checkpointing=case.parallel.activation_checkpoint,
        masked=case.attention == "sdpa",
        vit_trains=False,
        stream=torch.bfloat16 if adapted else torch.float32,
        on_cpu=device.type == "cpu",
    )
    weights = TrainingWeights(
        trained=-(-trained // shared),
        frozen_bytes=frozen // shared,
        layer_parameters=layer // degrees.tensor if gathered else 0,
        outside_parameters=outside if gathered else 0,
        cast_parameters=0 if gathered or adapted else matrices // degrees.tensor,
        dequantised_bytes=decoder.hidden_size * decoder.intermediate_size * 2 if case.base else 0,
        optimizer_in_host=case.parallel.offload_optimizer,
    )
    memory = training_memory(model.config, work, weights)
    return memory.total - memory.context


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    layers: Annotated[
        int | None, typer.Option(help="Decoder layers of 28; by default as many as float32 states leave room for.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of a pack.", min=1)] = 8,
    text: Annotated[int, typer.Option(help="Text tokens of a sample.", min=8)] = 256,
    image: Annotated[int, typer.Option(help="Image tokens of a sample: 1,024 are 512×512 pixels.", min=4)] = 1024,
    only: Annotated[list[str] | None, typer.Option(help="Only cases whose name has these words.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which no case is begun.", min=1)] = 500,
    smoke: Annotated[bool, typer.Option("--smoke", help="In miniature: shows that it runs, measures nothing.")] = False,
    target: Annotated[Path | None, typer.Option("--json", help="The file to write.")] = None,
) -> None:
    """Measures training steps; see the top of the file."""
    if device == "cuda" and not torch.cuda.is_available():
        if not smoke:
            console.print("there is no CUDA device here: give --device cpu, or --smoke for a run in miniature")
            raise typer.Exit(2)
        device = "cpu"
    with launched() as launch:
        where = torch.device("cuda", launch.local_rank) if device == "cuda" else torch.device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        config = NAMED_CONFIGS["7b-mot"]
        if smoke:
            config, samples, text, image = miniature(config), 2, 16, 16
        first = launch.rank == 0
        path = target or (None if smoke else RESULTS / "gpu-train.json")
        report: dict[str, Any] = {"machine": machine(where), "processes": launch.world, "rows": [], "left_out": []}
        report |= {"samples": samples, "text_tokens": text, "image_tokens": image, "smoke": smoke}
        end = time.perf_counter() + budget
        for case in cases():
            if (case.processes or launch.world) != launch.world or (case.processes == 0 and launch.world == 1):
                continue
            if where.type != "cuda":  # where FlexAttention has no gradients
                case = replace(case, attention="sdpa")
            if only and not any(words in case.name for words in only):
                continue
            row = _attempt(case, _fitting(config, case, where, layers, smoke), where, (samples, text, image), end)
            (report["left_out"] if "error" in row else report["rows"]).append(row)
            if first:
                console.print(f"{case.name}: {row.get('error') or _line(row)}")
                report["summary"] = _summary(report["rows"])
                _write(path, report, complete=False)
        if first:
            _write(path, report, complete=True)
            print(json.dumps(report["summary"], indent=2))


def _fitting(config: BagelConfig, case: Case, device: torch.device, layers: int | None, smoke: bool) -> BagelConfig:
    """The configuration with as many layers as are asked for, or fit: all beside adapters, else what 20 bytes for each
    parameter leave of two thirds of the memory.
    """
    if smoke or (layers is None and (case.trains == "lora" or case.processes != 1)):
        return config
    if layers is None:
        decoder = config.decoder
        expert = decoder.hidden_size * (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
        layer = 2 * (expert + 3 * decoder.hidden_size * decoder.intermediate_size)
        outside = 2 * decoder.vocab_size * decoder.hidden_size
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 16 << 30
        layers = max(1, int((free * 2 / 3 / 20 - outside) / layer))
    return replace(config, decoder=replace(config.decoder, num_layers=min(layers, config.decoder.num_layers)))


def _attempt(
    case: Case, config: BagelConfig, device: torch.device, sizes: tuple[int, int, int], end: float
) -> dict[str, Any]:
    """What a case finds; if it fails, however that is, its `error`: one case must not end the others."""
    row: dict[str, Any] = {"case": case.name, "layers": config.decoder.num_layers}
    if time.perf_counter() > end:
        return row | {"error": "no time left"}
    try:
        torch.compiler.reset()
        return row | measure(case, config, device, Ranks(case.parallel, device), full_pack(config, *sizes))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if device.type == "cuda":  # only here, where the error is gone: its traceback held the tensors
        torch.cuda.empty_cache()
    return row


def _line(row: dict[str, Any]) -> str:
    share = f", MFU {row['mfu']:.1%}, HFU {row['hfu']:.1%}" if "mfu" in row else ""
    memory = f"{row['peak_memory_bytes'] / 2**30:.1f} GiB (predicted {row['predicted_memory_bytes'] / 2**30:.1f})"
    return f"{row['tokens_per_second_per_device']:,.0f} tokens/s{share}, {memory}"


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest case, and how far predicted memory was off."""
    if not rows:
        return {}
    best = max(rows, key=lambda row: row["flops_per_second_per_device"])
    ratios = {row["case"]: round(row["predicted_memory_bytes"] / row["peak_memory_bytes"], 3) for row in rows}
    shown = {key: best[key] for key in ("case", "tokens_per_second_per_device", "mfu", "hfu") if key in best}
    met = best["mfu"] >= _TARGET_MFU if "mfu" in best else None
    return {"best": shown, "target": f"mfu ≥ {_TARGET_MFU}", "met": met, "predicted / measured memory": ratios}


def _write(path: Path | None, report: dict[str, Any], *, complete: bool) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    content = {**report, "date": time.strftime("%Y-%m-%d"), "complete": complete}
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    typer.run(main)

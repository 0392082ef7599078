"""A training step at the official widths, in as many layers as are asked for: attention, checkpointing, compilation."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bagel_mot.bench import random_model
from bagel_mot.bench.machine import machine, peak_allocated
from bagel_mot.bench.roofline import ForwardTokens, flops, roofline
from bagel_mot.bench.settings import SPECIAL, grid_of, random_ids
from bagel_mot.model.bagel import BagelModel
from bagel_mot.parallel.activations import checkpoint_activations
from bagel_mot.sequence import PackSpec, Sample, TextSegment, TrainingLayout, VaeSegment, Values, pack
from bagel_mot.training.objective import add_noise, attention_of, compute_losses
from bagel_mot.training.optimizer import Ema, OptimizerConfig, Optimizers
from gpu_parts.common import FULL, Keep, Scale, attempt, free, seconds_of, smoke_scale


def measure(
    device: torch.device, *, smoke: bool, layers: int, budget: float, say: Callable[[str], None], keep: Keep
) -> dict[str, Any]:
    """
    Args:
        device: where.
        smoke: in miniature.
        layers: of the official 28, so many that weights, gradients, moments and averages in float32 find room.
        budget: seconds; what finds no time is named as left out.
        say: told what is being measured.
        keep: given the report after each measurement.
    """
    end = time.perf_counter() + budget
    scale = smoke_scale() if smoke else FULL
    config = replace(scale.config, decoder=replace(scale.config.decoder, num_layers=1 if smoke else layers))
    scale = replace(scale, config=config)
    samples, text, image = (2, 16, 16) if smoke else (4, 512, 1024)
    report: dict[str, Any] = {"machine": machine(device), "layers": config.decoder.num_layers, "of_layers": 28}
    report |= {"samples": samples, "text_tokens": text, "image_tokens": image, "rows": [], "left_out": []}
    for attention, checkpointing, compiled in itertools.product(("sdpa", "flex"), (False, True), (False, True)):
        cell = f"{attention}{', checkpointing' if checkpointing else ''}{', compiled' if compiled else ''}"
        if time.perf_counter() > end:
            report["left_out"].append(f"{cell}: no time left")
            continue
        say(cell)
        one = partial(_measure, scale, device, samples, text, image, attention, checkpointing, compiled)
        numbers = attempt(one, device)
        free(device)
        if "error" in numbers:
            report["left_out"].append(f"{cell}: {numbers['error']}")
        else:
            row = {"attention": attention, "activation_checkpointing": checkpointing, "compiled": compiled}
            report["rows"].append({**row, **numbers})
            report["summary"] = summary(report["rows"])
        keep(report)
    return report


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest."""
    best = max(rows, key=lambda row: row["tokens_per_second"])
    return {
        "tokens per second": best["tokens_per_second"],
        "share of the matmul rate": best["share_of_matmul_rate"],
        "with": ", ".join(str(best[key]) for key in ("attention", "activation_checkpointing", "compiled")),
    }


def _pack(scale: Scale, samples: int, text: int, image: int) -> tuple[TrainingLayout, Values]:
    """Captions and their pictures, all in one row."""
    config = scale.config
    grid = grid_of(image, config.max_latent_size)
    row = []
    for _ in range(samples):
        ids = random_ids(text - 2, config.decoder.vocab_size).tolist()
        segment = VaeSegment(torch.randn(image, config.latent_dim), grid, noised=True)
        row.append(Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment)))
    spec = PackSpec.of(config, SPECIAL)
    return pack([row], spec), Values.of(row, spec)


def _measure(
    scale: Scale,
    device: torch.device,
    samples: int,
    text: int,
    image: int,
    attention: str,
    checkpointing: bool,
    compiled: bool,
) -> dict[str, Any]:
    length = text + image + 2
    work = ForwardTokens(
        und=samples * (text + 2),
        gen=samples * image,
        logits=samples * (text - 1),
        latents=samples * image,
        attended=samples * (text * (text + 1) // 2 + (image + 2) * length),
        backward=True,
    )
    packed = _pack(scale, samples, text, image)
    seconds, peak = _time(scale, device, packed, attention, checkpointing, compiled)
    plain = random_model(scale.config, torch.bfloat16, device)
    matmuls = replace(work, attended=0)
    run = roofline(plain, matmuls)
    run()
    rate = flops(plain, matmuls) / min(seconds_of(run, device) for _ in range(3))
    done = flops(plain, work)
    return {
        "seconds": seconds,
        "tokens_per_second": samples * length / seconds,
        "flops_per_second": done / seconds,
        "share_of_matmul_rate": done / seconds / rate,
        "peak_memory_bytes": peak,
    }


def _time(
    scale: Scale,
    device: torch.device,
    packed: tuple[TrainingLayout, Values],
    attention: str,
    checkpointing: bool,
    compiled: bool,
) -> tuple[float, int]:
    """Seconds of a whole step, and the most memory that it holds."""
    attend = attention_of(attention, device, torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model: BagelModel = random_model(scale.config, torch.float32, device).requires_grad_(True).train()
    if checkpointing:
        checkpoint_activations(model.decoder.layers, "full")
    if compiled:
        for layer in model.decoder.layers:
            layer.compile(dynamic=False)
    layout, values = packed
    times = torch.full((len(layout.latent_grids),), 0.5)
    noised = add_noise(layout, values, times, torch.randn_like(values.latents)).to(device)
    optimizers = Optimizers(model.named_parameters(), OptimizerConfig(lr=1e-6))
    ema = Ema(model, 0.9999)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            losses = compute_losses(model, noised, attend(noised.layout))
        (losses.ce.mean() + losses.mse.mean()).backward()
        optimizers.step(1.0)
        ema.update()

    step()
    seconds = min(seconds_of(step, device) for _ in range(3))
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device)
    return seconds, peak_allocated(device, step)

"""The official size with random weights, built on the device: drawing, editing, answering; beside it a plain loop."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from PIL import Image

from bagel import Bagel
from bagel.bench import random_model
from bagel.bench.floor import Work, floor, matmul_flops
from bagel.bench.machine import machine, synchronize
from bagel.bench.plain import PlainCache, plain_text, plain_velocity
from bagel.checkpoint.filling import quantise
from bagel.checkpoint.official import Checkpoint
from bagel.checkpoint.precision import check_hardware, parse_precision
from bagel.config import NAMED_CONFIGS, BagelConfig
from bagel.errors import BagelError
from bagel.inference import flow
from bagel.inference.loading import MINI_FOLDER
from bagel.model.bagel import BagelModel
from bagel.model.vae import Autoencoder
from bagel.tokenizer import Tokenizer

PROMPT = "a red car under a yellow sun, in the style of an old postcard"
INSTRUCTION = "make it night"
QUESTION = "What is in the picture?"
PRECISIONS = ("bfloat16", "fp8-dynamic", "fp8", "int8", "nf4")


@dataclass(frozen=True)
class Scale:
    """How large the measurement is."""

    config: BagelConfig
    side: int
    picture: int  # pixels a side of what is edited and asked about
    steps: int  # of the denoising runs that are measured
    tokens: int  # of the answers
    batches: tuple[int, ...]


FULL = Scale(NAMED_CONFIGS["7b-mot"], 1024, 1024, 8, 32, (1, 2, 4, 8))


def smoke_scale() -> Scale:
    """The same in miniature: one layer of narrow widths."""
    config = NAMED_CONFIGS["7b-mot"]
    decoder = replace(
        config.decoder, hidden_size=128, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=256,
        vocab_size=2048,
    )  # fmt: skip
    vit = replace(config.vit, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
    return Scale(replace(config, decoder=decoder, vit=vit, vae=replace(config.vae, ch=32)), 64, 64, 5, 4, (1, 2))


def measure(device: torch.device, *, smoke: bool, budget: float, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Args:
        device: where.
        smoke: in miniature.
        budget: seconds; each precision gets an equal share, and what finds no time is named as left out.
        say: told what is being measured.
    """
    scale = smoke_scale() if smoke else FULL
    began = time.perf_counter()
    report: dict[str, Any] = {"machine": machine(device), "config": "miniature" if smoke else "7b-mot"}
    report |= {"size": scale.side, "rows": [], "left_out": []}
    for index, precision in enumerate(PRECISIONS):
        until = began + budget * (index + 1) / len(PRECISIONS)
        try:
            check_hardware(parse_precision(precision), device)
        except BagelError as error:
            report["left_out"].append(f"{precision}: {error}")
            continue
        _measure_precision(precision, scale, device, until, report, say)
    report["summary"] = _summary(report)
    return report


def _measure_precision(
    precision: str,
    scale: Scale,
    device: torch.device,
    until: float,
    report: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    model = random_model(scale.config, torch.bfloat16, device, vision=True)
    if precision == "bfloat16":
        report["matmul"] = _matmul(model, scale, device)
        report["plain"] = _plain(model, scale, device, say)
    quantise(model, parse_precision(precision))
    for compiled in (False, True):
        bagel = _bagel(model, scale, device, precision, compiled)
        for batch in scale.batches if compiled or precision == "bfloat16" else scale.batches[:1]:
            for task, run in (("generate", _draw), ("edit", _edit), ("ask", _ask)):
                cell = f"{task}, {precision}, {'compiled' if compiled else 'eager'}, batch {batch}"
                if time.perf_counter() > until:
                    report["left_out"].append(f"{cell}: no time left")
                    continue
                say(cell)
                try:
                    numbers = run(bagel, scale, device, batch, report)
                except (torch.OutOfMemoryError, BagelError) as error:
                    report["left_out"].append(f"{cell}: {str(error).splitlines()[0]}")
                    continue
                row = {"task": task, "precision": precision, "compiled": compiled, "batch": batch}
                report["rows"].append({**row, **numbers})
        del bagel
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _bagel(model: BagelModel, scale: Scale, device: torch.device, precision: str, compiled: bool) -> Bagel:
    with torch.device(device):
        autoencoder = Autoencoder(scale.config.vae).eval().requires_grad_(False)
    checkpoint = Checkpoint(
        scale.config, model, autoencoder, Tokenizer.from_folder(MINI_FOLDER), precision=parse_precision(precision)
    )
    return Bagel(checkpoint, compile=compiled)


def _picture(scale: Scale) -> Image.Image:
    return Image.linear_gradient("L").resize((scale.picture, scale.picture)).convert("RGB")


# ----------------------------------------------------------------------------------------------------------- the tasks


def _draw(bagel: Bagel, scale: Scale, device: torch.device, batch: int, report: dict[str, Any]) -> dict[str, Any]:
    return _denoise(bagel, [PROMPT], scale, device, batch, report)


def _edit(bagel: Bagel, scale: Scale, device: torch.device, batch: int, report: dict[str, Any]) -> dict[str, Any]:
    return _denoise(bagel, [_picture(scale), INSTRUCTION], scale, device, batch, report)


def _denoise(
    bagel: Bagel, inputs: list[Any], scale: Scale, device: torch.device, batch: int, report: dict[str, Any]
) -> dict[str, Any]:
    """A few timesteps are run; from the time of a step with so many branches follows that of the default's many."""
    ended: list[float] = []

    def note(done: int, total: int) -> None:
        synchronize(device)
        ended.append(time.perf_counter())

    for _ in range(2):  # once unmeasured: kernels are compiled and chosen
        ended.clear()
        with _peak(device) as peak:
            began = time.perf_counter()
            handles = []
            for i in range(batch):
                settings = {"size": (scale.side, scale.side), "num_timesteps": scale.steps, "seed": i}
                callback = {"on_step": note} if i == 0 else {}
                items, order = bagel.prepare(inputs, "image", settings, **callback)
                handles.append(bagel.submit_order(items, "image", order))
            bagel.engine.run_until(handles)
            for handle in handles:
                handle.result()
            synchronize(device)
            seconds = time.perf_counter() - began
    settings = order.settings
    by_branches: dict[int, list[float]] = defaultdict(list)
    times = flow.timesteps(scale.steps, settings.timestep_shift)[1:-1].tolist()  # the first one's start is not noted
    for t, (start, stop) in zip(times, pairwise(ended), strict=True):
        by_branches[len(flow.roles(t, settings))].append(stop - start)
    step = {branches: statistics.median(found) for branches, found in by_branches.items()}
    default = bagel.order("edit" if len(inputs) > 1 else "generate", {}, items).settings
    needed = [
        len(flow.roles(t, default)) for t in flow.timesteps(default.num_timesteps, default.timestep_shift)[:-1].tolist()
    ]
    rest = seconds - sum(stop - start for start, stop in pairwise(ended)) - step.get(max(step), 0.0)
    whole = rest + sum(step.get(branches, step[max(step)]) for branches in needed)
    most = max(step)
    flops = report["matmul"]["flops_per_branch"] * most * batch / step[most]
    return {
        "seconds_per_step": {str(branches): found for branches, found in sorted(step.items())},
        "seconds": whole,
        "timesteps": default.num_timesteps,
        "images_per_second": batch / whole,
        "peak_memory_bytes": peak[0],
        "share_of_matmul_rate": flops / report["matmul"]["flops_per_second"],
    }


def _ask(bagel: Bagel, scale: Scale, device: torch.device, batch: int, report: dict[str, Any]) -> dict[str, Any]:
    arrived: list[float] = []

    def note(piece: str) -> None:
        synchronize(device)
        arrived.append(time.perf_counter())

    for _ in range(2):
        arrived.clear()
        with _peak(device) as peak:
            began = time.perf_counter()
            handles = []
            for i in range(batch):
                callback = {"on_text": note} if i == 0 else {}
                settings = {"max_new_tokens": scale.tokens, "do_sample": True, "temperature": 1.0, "seed": i}
                items, order = bagel.prepare([_picture(scale), QUESTION], "text", settings, **callback)
                handles.append(bagel.submit_order(items, "text", order))
            bagel.engine.run_until(handles)
    results = [handle.result() for handle in handles]
    each = (arrived[-1] - arrived[0]) / max(1, len(arrived) - 1)
    return {
        "first_token_seconds": arrived[0] - began,
        "seconds_per_token": each,
        "tokens_per_second": batch / each if each else 0.0,
        "tokens": [result.written for result in results],
        "peak_memory_bytes": peak[0],
    }


class _peak:
    """The most device memory within a block, as the one number of a list; 0 where the device does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.found = device, [0]

    def __enter__(self) -> list[int]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self.found

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.found[0] = torch.cuda.max_memory_allocated(self.device)


# ------------------------------------------------------------------------------------------------ what they are beside


def _matmul(model: BagelModel, scale: Scale, device: torch.device) -> dict[str, Any]:
    """The matmuls of one branch of a drawing step alone, in bfloat16."""
    tokens = (scale.side // scale.config.latent_stride) ** 2
    work = Work(und=2, gen=tokens, latents=tokens)
    run = floor(model, work)
    run()
    least = min(seconds_of(run, device) for _ in range(5))
    flops = matmul_flops(model, work)
    return {"tokens": tokens, "flops_per_branch": flops, "seconds": least, "flops_per_second": flops / least}


def _plain(model: BagelModel, scale: Scale, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """A text-to-image step as the published code makes it: three branches, one after another."""
    say("plain loop, bfloat16")
    rows = scale.side // scale.config.latent_stride
    tokens = rows * rows
    with torch.inference_mode():
        caches = [PlainCache.empty(len(model.decoder.layers)) for _ in range(3)]
        ids = torch.arange(5, 25, device=device)
        plain_text(model, ids, 0, caches[0])
        plain_text(model, ids, 0, caches[2])
        plain_text(model, ids[:2], 0, caches[1])
        latents = torch.randn(tokens, scale.config.latent_dim, device=device, dtype=model.dtype)
        index = (torch.arange(rows, device=device)[:, None] * scale.config.max_latent_size).add(
            torch.arange(rows, device=device)
        )
        markers = torch.tensor([3, 4], device=device)

        def step() -> None:
            for cache in caches:
                plain_velocity(model, markers, latents, index.flatten(), 0.5, cache.length, cache)

        step()
        least = min(seconds_of(step, device) for _ in range(3))
        cache = caches[0]
        one = torch.tensor([7], device=device)

        def decode() -> None:
            model.logits(plain_text(model, one, cache.length, cache))

        decode()
        token = min(seconds_of(decode, device) for _ in range(5))
    return {"branches": 3, "seconds_per_step": least, "seconds_per_token": token}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def _rows(report: dict[str, Any], task: str) -> Iterator[dict[str, Any]]:
    return (row for row in report["rows"] if row["task"] == task and row["batch"] == 1)


def _summary(report: dict[str, Any]) -> dict[str, float]:
    """Headline ratios: a guided text-to-image step of the plain loop over ours, one picture alone."""
    found: dict[str, float] = {}
    for row in _rows(report, "generate"):
        ours = max(row["seconds_per_step"].values())
        way = f"{row['precision']}, {'compiled' if row['compiled'] else 'eager'}"
        found[f"text to image: plain loop / ours, {way}"] = report["plain"]["seconds_per_step"] / ours
        found[f"text to image: share of the matmul rate, {way}"] = row["share_of_matmul_rate"]
    for row in _rows(report, "ask"):
        way = f"{row['precision']}, {'compiled' if row['compiled'] else 'eager'}"
        if row["seconds_per_token"]:
            found[f"answer: plain loop / ours per token, {way}"] = (
                report["plain"]["seconds_per_token"] / row["seconds_per_token"]
            )
    return found

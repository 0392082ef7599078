"""The official size on cards of 12, 16 and 24 GB: what is chosen, whether it completes, and how near predictions come.

The device is told to hand out no more than such a card has. Weights are random, in a file of the official layout.
Memory is that of the whole device, as predictions count it: tensors, what the allocator holds beside them, and the
context of CUDA with its kernels. Nothing else may run on the device meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bagel_mot import Bagel
from bagel_mot.bench.machine import machine
from bagel_mot.checkpoint.random_weights import write_random_checkpoint
from bagel_mot.files import size_text
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.placement.rates import synchronize
from bagel_mot.tokenizer import Tokenizer
from gpu_parts.common import FULL, INSTRUCTION, PROMPT, QUESTION, Keep, Scale, attempt, free, smoke_scale

LIMITS = (12 * 10**9, 16 * 10**9, 24 * 10**9)
WAYS: tuple[dict[str, Any], ...] = (
    {},  # chosen
    {"precision": "bfloat16", "offload": "cpu"},
    {"precision": "bfloat16", "offload": "disk"},
)
WITHIN = 0.1
"""By how much a prediction may be off."""


def measure(
    device: torch.device, *, smoke: bool, budget: float, checkpoint: Path, say: Callable[[str], None], keep: Keep
) -> dict[str, Any]:
    """
    Args:
        device: where.
        smoke: in miniature.
        budget: seconds, with writing weights; what finds no time is named as left out.
        checkpoint: folder with random weights; written if it is not there, 29 GB.
        say: told what is being measured.
        keep: given the report after each measurement.
    """
    end = time.perf_counter() + budget
    scale = smoke_scale() if smoke else FULL
    report: dict[str, Any] = {"machine": machine(device), "rows": [], "left_out": [], "summary": {}}
    if not checkpoint.exists():
        say(f"writing {checkpoint}")
        write_random_checkpoint(checkpoint, scale.config, Tokenizer.from_folder(MINI_FOLDER))
    for way in WAYS:  # what is chosen comes first, for every limit
        for limit in LIMITS:
            cell = f"{size_text(limit)}, {', '.join(way.values()) or 'chosen'}"
            if time.perf_counter() > end:
                report["left_out"].append(f"{cell}: no time left")
                continue
            say(cell)
            row: dict[str, Any] = {"limit": limit, "asked": way or "auto", "cell": cell, "completed": False}
            report["rows"].append(row)

            def so_far(row: dict[str, Any] = row, cell: str = cell) -> None:
                report["summary"][cell] = outcome(row)
                keep(report)

            row |= attempt(partial(_run, checkpoint, device, limit, way, scale, row, end, so_far), device)
            so_far()
            free(device)
    return report


def outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen or went wrong, and how near predictions came: for each job and for all of them."""
    found = {"plan": row.get("plan", "none was needed"), **({"error": row["error"]} if "error" in row else {})}
    if ratios := row.get("predicted_over_measured", {}):
        found["predicted / measured"] = ratios
        found["within 10%"] = all(abs(ratio - 1) <= WITHIN for ratio in ratios.values())
    return found


def _run(
    checkpoint: Path,
    device: torch.device,
    limit: int,
    way: dict[str, Any],
    scale: Scale,
    row: dict[str, Any],
    end: float,
    so_far: Callable[[], None],
) -> dict[str, Any]:
    """A picture, an edit and an answer, each with the memory that it took beside what was predicted.

    Args:
        checkpoint: folder.
        device: where.
        limit: bytes of the card.
        way: settings of the plan.
        scale: of the work.
        row: is filled while it goes on, so that what comes before a failure stays.
        end: when no further job is begun.
        so_far: is called after each job.
    """
    if device.type == "cuda":
        # A card of that size has the context on it too, which the allocator does not hand out.
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit - _context(device)) / total), device)
    try:
        began = time.perf_counter()
        bagel = Bagel.from_pretrained(checkpoint, device=device, memory=limit, **way)
        row["loading_seconds"] = time.perf_counter() - began
        predicted = {} if bagel.plan is None else bagel.plan.device_bytes
        if bagel.plan is not None:
            row |= {"plan": bagel.plan.sentence(), "predicted_bytes": predicted}
        image = scale.image()
        drawing: dict[str, Any] = {"size": (scale.side, scale.side), "num_timesteps": 4, "seed": 0}
        jobs: dict[str, Callable[[], object]] = {
            "generate": lambda: bagel.generate(PROMPT, **drawing),
            "edit": lambda: bagel.edit([image, image], INSTRUCTION, num_timesteps=4, seed=0),
            "understand": lambda: bagel.ask(image, QUESTION, max_new_tokens=8),
        }
        for name, job in jobs.items():
            if time.perf_counter() > end:
                row.setdefault("left_out", []).append(f"{name}: no time left")
                continue
            row[name] = _measured(job, device)
            row["predicted_over_measured"] = compared(predicted, row)
            so_far()
        return {"completed": "left_out" not in row}
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _measured(job: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Seconds of a job, and the most memory that it takes of the device."""
    free(device)  # else what an earlier job has left with the allocator would count
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    job()
    synchronize(device)
    found: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if device.type == "cuda":
        reserved, context = torch.cuda.max_memory_reserved(device), _context(device)
        found |= {
            "allocated_bytes": torch.cuda.max_memory_allocated(device),
            "reserved_bytes": reserved,
            "context_bytes": context,
            "device_bytes": reserved + context,
        }
    return found


def _context(device: torch.device) -> int:
    """Bytes of the device that are taken, but not by the allocator: the context of CUDA with its kernels."""
    left, total = torch.cuda.mem_get_info(device)
    return total - left - torch.cuda.memory_reserved(device)


def compared(predicted: Mapping[str, int], row: Mapping[str, Any]) -> dict[str, float]:
    """Predicted peaks over measured ones, for each job that has both.

    Args:
        predicted: bytes, by the job's name and size.
        row: what was measured, by the job's name.
    """
    by_job = {name.partition(" ")[0]: bytes_ for name, bytes_ in predicted.items()}
    measured = {job: row.get(job, {}).get("device_bytes") for job in by_job}
    return {job: by_job[job] / bytes_ for job, bytes_ in measured.items() if bytes_}

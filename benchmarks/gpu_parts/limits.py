"""The official size on cards of 12, 16 and 24 GB: what is chosen, whether it completes, and how near predictions come.

The device is told to hand out no more than such a card has. Weights are random, in a file of the official layout.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bagel import Bagel
from bagel.bench.machine import machine, synchronize
from bagel.checkpoint.random_weights import write_random_checkpoint
from bagel.errors import BagelError
from bagel.files import size_text
from bagel.inference.loading import MINI_FOLDER
from bagel.tokenizer import Tokenizer
from gpu_parts.fast import FULL, INSTRUCTION, PROMPT, QUESTION, smoke_scale

LIMITS = (12 * 10**9, 16 * 10**9, 24 * 10**9)
WAYS: tuple[dict[str, str], ...] = (
    {},  # chosen
    {"precision": "bfloat16", "offload": "cpu"},
    {"precision": "bfloat16", "offload": "disk"},
)


def measure(
    device: torch.device, *, smoke: bool, budget: float, checkpoint: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """
    Args:
        device: where.
        smoke: in miniature.
        budget: seconds; what finds no time is named as left out.
        checkpoint: folder with random weights; written if it is not there, 29 GB.
        say: told what is being measured.
    """
    end = time.perf_counter() + budget
    scale = smoke_scale() if smoke else FULL
    report: dict[str, Any] = {"machine": machine(device), "rows": [], "left_out": []}
    if not checkpoint.exists():
        say(f"writing {checkpoint}")
        write_random_checkpoint(checkpoint, scale.config, Tokenizer.from_folder(MINI_FOLDER))
    for limit in LIMITS:
        for way in WAYS:
            cell = f"{size_text(limit)}, {', '.join(way.values()) or 'chosen'}"
            if time.perf_counter() > end:
                report["left_out"].append(f"{cell}: no time left")
                continue
            say(cell)
            asked = {"limit": limit, "asked": way or "auto", "cell": cell}
            try:
                report["rows"].append({**asked, **_run(checkpoint, device, limit, way, scale.side, scale.picture)})
            except (torch.OutOfMemoryError, BagelError) as error:
                report["rows"].append({**asked, "completed": False, "error": str(error).splitlines()[0]})
            finally:
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.set_per_process_memory_fraction(1.0, device)
    report["summary"] = {row["cell"]: _outcome(row) for row in report["rows"]}
    return report


def _outcome(row: dict[str, Any]) -> str:
    return str(row.get("plan", "done, and needed no plan") if row["completed"] else row["error"])


def _run(
    checkpoint: Path, device: torch.device, limit: int, way: dict[str, str], side: int, picture: int
) -> dict[str, Any]:
    """A picture, an edit and an answer, each with the memory that it took and what was predicted."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            limit / torch.cuda.get_device_properties(device).total_memory, device
        )
    began = time.perf_counter()
    bagel = Bagel.from_pretrained(checkpoint, device=device, memory=limit, **way)
    found: dict[str, Any] = {"completed": True, "loading_seconds": time.perf_counter() - began}
    if bagel.plan is not None:
        found |= {"plan": bagel.plan.sentence(), "predicted_bytes": bagel.plan.device_bytes}
    image = Image.linear_gradient("L").resize((picture, picture)).convert("RGB")
    drawing: dict[str, Any] = {"size": (side, side), "num_timesteps": 4, "seed": 0}
    jobs: dict[str, Callable[[], object]] = {
        "generate": lambda: bagel.generate(PROMPT, **drawing),
        "edit": lambda: bagel.edit([image, image], INSTRUCTION, num_timesteps=4, seed=0),
        "understand": lambda: bagel.ask(image, QUESTION, max_new_tokens=8),
    }
    for name, job in jobs.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        job()
        synchronize(device)
        found[name] = {"seconds": time.perf_counter() - began}
        if device.type == "cuda":
            found[name] |= {
                "allocated_bytes": torch.cuda.max_memory_allocated(device),
                "reserved_bytes": torch.cuda.max_memory_reserved(device),
            }
    return found

"""`bagel info --plan`: ways of running a checkpoint, with their predicted memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bagel_mot.checkpoint.official import TASKS
from bagel_mot.checkpoint.opening import StoredWeights
from bagel_mot.cli.options import tables
from bagel_mot.cli.summary import described
from bagel_mot.config import NAMED_CONFIGS
from bagel_mot.errors import DeviceError
from bagel_mot.files import parse_size, size_text
from bagel_mot.inference.loading import AUTOMATIC, automatic_precisions, usable_devices
from bagel_mot.placement.plan import Machine, Plan, choose, plans, this_machine

_SHOWN = 14


def planned(checkpoint: str, memory: str | None, ram: str | None, prefer: str = "quality") -> dict[str, Any]:
    """Plans for this machine, or for one with other memory, ready for JSON.

    Args:
        checkpoint: the name of a checkpoint, or of a configuration, which counts as stored in bfloat16.
        memory: the memory of each accelerator, such as "12GB"; without an accelerator, that of an imagined GPU.
        ram: the free main memory.
        prefer: the order of the plans, "quality", "speed" or "memory".
    """
    if checkpoint in NAMED_CONFIGS and not Path(checkpoint).is_dir():
        config, precisions = NAMED_CONFIGS[checkpoint], list(AUTOMATIC)
        stored = StoredWeights(layers=torch.bfloat16, embedding=torch.bfloat16)
    else:
        config, stored, _ = described(checkpoint)
        precisions = automatic_precisions(stored, usable_devices())
    machine = this_machine(usable_devices())
    host = machine.host if ram is None else parse_size(ram)
    gpus = [(device, free) for device, free in machine.devices if device.type != "cpu"]
    if memory is not None:
        size = parse_size(memory)
        gpus = [(device, size) for device, _ in gpus] or [(torch.device("cuda:0"), size)]
    machine = Machine((*gpus, (torch.device("cpu"), host)), host)
    found = plans(config, machine, TASKS, precisions=precisions, stored=stored, prefer=prefer)
    try:
        chosen, reason = choose(found, machine), None
    except DeviceError as error:
        chosen, reason = None, str(error)
    return {
        "devices": {str(device): free for device, free in machine.devices if device.type != "cpu"},
        "host": host,
        "plans": [_facts(plan, plan is chosen) for plan in found],
        "chosen": None if chosen is None else chosen.sentence(),
        "why": None if chosen is None else _why(found, chosen, prefer),
        "reason": reason,
    }


def _why(found: Sequence[Plan], chosen: Plan, prefer: str) -> str:
    """The reason of a choice in one sentence, with the fastest other plan that fits, if it is faster."""
    order = {
        "quality": "the fastest of those that fit without a loss of accuracy, if there is one",
        "speed": "the fastest of those that fit",
        "memory": "the one that takes the least memory",
    }
    fastest = min((plan for plan in found if plan.fits), key=lambda plan: plan.seconds, default=chosen)
    if fastest.seconds >= chosen.seconds * 0.95:
        return f"{order[prefer]}."
    lossy = ", which loses accuracy" if fastest.lossy else ""
    share = fastest.seconds / chosen.seconds
    return f"{order[prefer]}; {fastest.precision.name} on {fastest.where} would take {share:.2g} of its time{lossy}."


def _facts(plan: Plan, chosen: bool) -> dict[str, Any]:
    return {
        "precision": plan.precision.name,
        "where": plan.where,
        "offload": plan.offload,
        "fits": plan.fits,
        "lossy": plan.lossy,
        "chosen": chosen,
        "relative_seconds": plan.seconds,
        "device_bytes": plan.device_bytes,
        "host_bytes": plan.host_bytes,
    }


def print_plans(facts: dict[str, Any]) -> None:
    """Prints the result of `planned` as a table."""
    console = tables()
    here = [f"{size_text(free)} on {device}" for device, free in facts["devices"].items()]
    title = f"plans with {', '.join([*here, size_text(facts['host']) + ' of main memory'])}"
    table = Table(title=title, title_justify="left")
    workloads = list(facts["plans"][0]["host_bytes"]) if facts["plans"] else []
    for heading in ("", "precision", "where", *workloads, "fits", "relative time"):
        table.add_column(heading)
    fastest = min((plan["relative_seconds"] for plan in facts["plans"]), default=1.0)
    for plan in facts["plans"][:_SHOWN]:
        cells = []
        for workload in workloads:
            device = f"{size_text(plan['device_bytes'][workload])} + " if plan["device_bytes"] else ""
            cells.append(device + size_text(plan["host_bytes"][workload]))
        name = plan["precision"] + (" (lossy)" if plan["lossy"] else "")
        table.add_row(
            "→" if plan["chosen"] else "",
            name,
            plan["where"],
            *cells,
            "yes" if plan["fits"] else "no",
            f"{plan['relative_seconds'] / fastest:.1f}",
            style="bold" if plan["chosen"] else None if plan["fits"] else "dim",
        )
    console.print(table)
    if (left_out := len(facts["plans"]) - _SHOWN) > 0:
        console.print(f"and {left_out} more, which --json lists")
    console.print("peaks of device memory + main memory for each workload; the time is a rough estimate")
    console.print(f"chosen: {facts['chosen']}" if facts["chosen"] else facts["reason"])
    if facts["why"]:
        console.print(f"why: {facts['why']}")

"""`bagel info --plan`: ways of running a checkpoint, with their predicted memory and time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bagel_mot.checkpoint.official import TASKS
from bagel_mot.checkpoint.opening import StoredWeights
from bagel_mot.checkpoint.precision import parse_precision
from bagel_mot.checkpoint.shapes import weight_count
from bagel_mot.cli.options import tables
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.errors import DeviceError
from bagel_mot.files import parse_size, size_text
from bagel_mot.inference.describe import described
from bagel_mot.inference.loading import AUTOMATIC, automatic_precisions, usable_devices
from bagel_mot.placement.estimate import weight_bytes
from bagel_mot.placement.plan import Machine, Plan, check_preference, choose, plans, this_machine
from bagel_mot.placement.rates import DeviceRates, measure_rates
from bagel_mot.placement.speed import STEPS, TOKEN, predictable
from bagel_mot.threads import choose_threads

_SHOWN = 14
_MINUTE, _HOUR = 60, 3600


def planned(
    checkpoint: str, memory: str | None, ram: str | None, prefer: str = "quality", *, measure: bool = True
) -> dict[str, Any]:
    """Plans for this machine, or for one with other memory, ready for JSON. Seconds are predicted for the devices that
    are here, whose rates are measured.

    Args:
        checkpoint: the name of a checkpoint, or of a configuration, which counts as stored in bfloat16.
        memory: the memory of each accelerator, such as "12GB"; without an accelerator, that of an imagined GPU.
        ram: the free main memory.
        prefer: the order of the plans, "quality", "speed" or "memory".
        measure: whether the devices' rates are measured, to predict seconds.
    """
    check_preference(prefer)  # before a checkpoint is looked for
    if checkpoint in NAMED_CONFIGS and not Path(checkpoint).is_dir():
        config, precisions = NAMED_CONFIGS[checkpoint], list(AUTOMATIC)
        stored = StoredWeights(layers=torch.bfloat16, embedding=torch.bfloat16)
    else:
        config, stored, _ = described(checkpoint)
        precisions = automatic_precisions(stored, usable_devices(), prefer)
    machine = this_machine(usable_devices())
    measured = _measure(config, precisions, [device for device, _ in machine.devices]) if measure else {}
    host = machine.host if ram is None else parse_size(ram)
    gpus = [(device, free) for device, free in machine.devices if device.type != "cpu"]
    if memory is not None:
        size = parse_size(memory)
        gpus = [(device, size) for device, _ in gpus] or [(torch.device("cuda:0"), size)]
    machine = Machine((*gpus, (torch.device("cpu"), host)), host)
    found = plans(config, machine, TASKS, precisions=precisions, stored=stored, prefer=prefer, measured=measured)
    try:
        chosen, reason = choose(found, machine), None
    except DeviceError as error:
        chosen, reason = None, str(error)
    return {
        "devices": {str(device): free for device, free in machine.devices if device.type != "cpu"},
        "host": host,
        "measured": {kind: rates.to_json() for kind, rates in measured.items()},
        "plans": [_facts(plan, plan is chosen) for plan in found],
        "chosen": None if chosen is None else chosen.sentence(),
        "why": None if chosen is None else _why(found, chosen, prefer),
        "reason": reason,
    }


def _measure(config: BagelConfig, precisions: Sequence[str], devices: Sequence[torch.device]) -> dict[str, DeviceRates]:
    """The rates of the devices here, one of each kind, within about two seconds; none for models so small that their
    time does not follow from them.
    """
    parsed = [parse_precision(name) for name in precisions]
    if not predictable(weight_bytes(config, parsed[0], TASKS)):
        return {}
    found: dict[str, DeviceRates] = {}
    with choose_threads(weight_count(config)).at_work():
        for device in devices:
            if device.type not in found:
                with contextlib.suppress(DeviceError):  # there is no room to measure in
                    found[device.type] = measure_rates(device, {one.activations for one in parsed})
    return found


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
        "predicted_seconds": None if plan.predicted is None else dict(plan.predicted),
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
    timed = _timed(facts)
    predicted = [f"predicted: {name.partition(' ')[0]}" for name in timed]
    for heading in ("", "precision", "where", *workloads, "fits", *predicted, "relative time"):
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
            *(_duration((plan["predicted_seconds"] or {}).get(name)) for name in timed),
            f"{plan['relative_seconds'] / fastest:.1f}",
            style="bold" if plan["chosen"] else None if plan["fits"] else "dim",
        )
    console.print(table)
    if (left_out := len(facts["plans"]) - _SHOWN) > 0:
        console.print(f"and {left_out} more, which --json lists")
    console.print("peaks of device memory + main memory for each workload; relative times are rough estimates")
    if timed:
        kinds = " and ".join(facts["measured"])
        console.print(
            f"times are predicted from rates of the {kinds} measured just now: drawings with {STEPS + 1} timesteps, "
            f"and each {TOKEN}"
        )
    console.print(f"chosen: {facts['chosen']}" if facts["chosen"] else facts["reason"])
    if facts["why"]:
        console.print(f"why: {facts['why']}")


def _timed(facts: dict[str, Any]) -> list[str]:
    """The work whose predicted times the table shows: drawings, and a token of an answer."""
    timed: list[dict[str, float]] = [plan["predicted_seconds"] for plan in facts["plans"] if plan["predicted_seconds"]]
    return [name for name in (timed[0] if timed else ()) if not name.startswith("understand")]


def _duration(seconds: float | None) -> str:
    """Two digits, in the unit that people would use."""
    if seconds is None:
        return ""
    large = ((unit, name) for unit, name in ((_HOUR, "h"), (_MINUTE, "min")) if seconds >= 2 * unit)
    unit, name = next(large, (1, "s"))
    return f"{float(f'{seconds / unit:.2g}'):g} {name}"

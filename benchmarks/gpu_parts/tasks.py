"""What is measured in each precision: drawing, editing, answering, writing, in batches of requests.

Each runs twice: briefly and unmeasured, so that kernels are compiled and chosen, then as it is measured, which takes
`measured_seconds`.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch

from bagel_mot import Bagel
from bagel_mot.inference import sampler as flow
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import resolve
from bagel_mot.placement.rates import synchronize
from bagel_mot.task import Task
from gpu_parts.common import INSTRUCTION, PROMPT, QUESTION, Scale, seconds_of

# Two steps: by this shift one of them is within the interval of a drawing's guidance, the other beyond it, so that both
# numbers of branches have been run. (An edit is guided throughout.)
_BRIEF_DRAWING: dict[str, Any] = {"num_timesteps": 3, "timestep_shift": 0.5}
_BRIEF_TEXT: dict[str, Any] = {"max_new_tokens": 2}
# The likeliest token of random weights may be that of the end.
_SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0}
_TEXT = "Tell me a story about a red car under a yellow sun."  # about as long as the plain loop's context


def draw(bagel: Bagel, scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    return _image(bagel, [PROMPT], scale, device, batch)


def draw_small(bagel: Bagel, scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    """An image of half the side in 20 points of time."""
    return _image(bagel, [PROMPT], replace(scale, side=scale.side // 2), device, batch, {"num_timesteps": 20})


def edit(bagel: Bagel, scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    return _image(bagel, [scale.image(), INSTRUCTION], scale, device, batch)


def ask(bagel: Bagel, scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    return _text(bagel, [scale.image(), QUESTION], scale, device, batch)


def write(bagel: Bagel, scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    """Decoding behind a short text."""
    return _text(bagel, [_TEXT], scale, device, batch)


def _image(
    bagel: Bagel,
    inputs: list[Any],
    scale: Scale,
    device: torch.device,
    batch: int,
    whole_run: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """A few timesteps are run; from the time of a step with so many branches follows that of a whole run's many.

    Args:
        whole_run: the settings of a whole run that are not default.
    """
    size: dict[str, Any] = {"size": (scale.side, scale.side)}
    _finish(bagel, [bagel.submit(inputs, seed=i, **size, **_BRIEF_DRAWING) for i in range(batch)])
    ended: list[float] = []

    def note(done: int, total: int) -> None:
        synchronize(device)
        ended.append(time.perf_counter())

    with _peak(device) as peak:
        synchronize(device)
        began = time.perf_counter()
        steps = {**size, "num_timesteps": scale.steps}
        _finish(bagel, [bagel.submit(inputs, seed=i, on_step=None if i else note, **steps) for i in range(batch)])
        synchronize(device)
        seconds = time.perf_counter() - began
    task = Task.EDIT if len(inputs) > 1 else Task.GENERATE
    settings, default = (resolve(task, values, bagel.defaults.of(task)) for values in (steps, dict(whole_run)))
    by_branches: dict[int, list[float]] = defaultdict(list)
    times = flow.timesteps(scale.steps, settings.timestep_shift)[1:-1].tolist()  # the first one's start is not noted
    for t, (start, stop) in zip(times, pairwise(ended), strict=True):
        by_branches[len(flow.roles(t, settings))].append(stop - start)
    step = {branches: statistics.median(found) for branches, found in by_branches.items()}
    most = step[max(step)]
    needed = flow.timesteps(default.num_timesteps, default.timestep_shift)[:-1].tolist()
    rest = seconds - sum(stop - start for start, stop in pairwise(ended)) - most
    whole = rest + sum(step.get(len(flow.roles(t, default)), most) for t in needed)
    if scale.whole and batch == 1:  # nothing is waited for but the image
        run = {**size, **whole_run}
        whole = seconds_of(lambda: _finish(bagel, [bagel.submit(inputs, seed=0, **run)]), device)
        seconds += whole
    return {
        "seconds_per_step": {str(branches): found for branches, found in sorted(step.items())},
        "seconds": whole,
        "all_timesteps_were_run": scale.whole and batch == 1,
        "side": scale.side,
        "timesteps": default.num_timesteps,
        "images_per_second": batch / whole,
        "measured_seconds": seconds,
        "peak_memory_bytes": peak[0],
    }


def _text(bagel: Bagel, inputs: list[Any], scale: Scale, device: torch.device, batch: int) -> dict[str, Any]:
    """Timed by steps of the engine, of which the first reads and each of the others writes a token: pieces of text are
    not as many, since what is no whole character waits for more."""

    def submit(settings: dict[str, Any]) -> list[Ticket[Result]]:
        return [bagel.submit(inputs, output="text", seed=i, **_SAMPLED, **settings) for i in range(batch)]

    _finish(bagel, submit(_BRIEF_TEXT))
    ended: list[float] = []

    def note() -> None:
        synchronize(device)
        ended.append(time.perf_counter())

    with _peak(device) as peak:
        synchronize(device)
        began = time.perf_counter()
        results = _finish(bagel, submit({"max_new_tokens": scale.tokens}), note)
    each = (ended[-1] - ended[1]) / max(1, len(ended) - 2)
    return {
        "first_token_seconds": ended[1] - began,
        "seconds_per_token": each,
        "tokens_per_second": batch / each if each else 0.0,
        "tokens": [result.completion_tokens for result in results],
        "measured_seconds": ended[-1] - began,
        "peak_memory_bytes": peak[0],
    }


def _finish(bagel: Bagel, tickets: list[Ticket[Result]], after_step: Callable[[], None] | None = None) -> list[Result]:
    """Steps until all requests are done.

    Raises: what one of them raised.
    """
    try:
        while not all(ticket.done() for ticket in tickets):
            bagel.engine.step()
            if after_step is not None:
                after_step()
    finally:
        for ticket in tickets:  # none may be left to the next measurement
            ticket.cancel()
    return [ticket.result() for ticket in tickets]


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

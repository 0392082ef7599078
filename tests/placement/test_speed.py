"""Predicted times: what is counted, against recorded runs at the official size, and the rates they come from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bagel_mot.checkpoint.precision import parse_precision
from bagel_mot.config import NAMED_CONFIGS
from bagel_mot.errors import DeviceError
from bagel_mot.inference.sampler import roles, timesteps
from bagel_mot.inference.settings import resolve
from bagel_mot.placement import rates as measuring
from bagel_mot.placement.estimate import Workload, reference_workloads, token_counts, weight_bytes
from bagel_mot.placement.plan import Machine, plans
from bagel_mot.placement.rates import NOMINAL, DeviceRates, measure_rates
from bagel_mot.placement.speed import STEPS, TOKEN, times, workload_flops
from bagel_mot.task import Task

CONFIG = NAMED_CONFIGS["7b-mot"]
ALL = ("generate", "edit", "understand")
CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_reference_workload_has_the_evaluations_of_the_default_settings() -> None:
    for workload in reference_workloads(CONFIG)[:2]:
        settings = resolve(Task(workload.task), {})
        times_ = timesteps(settings.num_timesteps, settings.timestep_shift)[:-1].tolist()
        assert len(times_) == STEPS
        assert workload.evaluations == sum(len(roles(t, settings)) for t in times_)
        assert workload.branches == max(len(roles(t, settings)) for t in times_)


def test_operations_are_those_of_the_matmuls_and_of_attention() -> None:
    workload = Workload("generate", drawn=(1024, 1024), branches=2, evaluations=1)
    counts = token_counts(CONFIG, workload)
    assert (counts.noised, counts.latents) == (4096, 0)
    parameters = weight_bytes(CONFIG, parse_precision("bfloat16"), ALL).parameters
    matmuls = 2 * parameters * (counts.und + 4098)
    scores = 4 * 28 * 128 * 28 * (counts.und**2 / 2 + 4098 * (counts.und + 4098))
    assert workload_flops(CONFIG, workload, parameters) == pytest.approx(matmuls + scores)
    three = replace(workload, evaluations=3)
    one_more = workload_flops(CONFIG, replace(workload, evaluations=2), parameters)
    assert workload_flops(CONFIG, three, parameters) - one_more == pytest.approx(
        one_more - workload_flops(CONFIG, workload, parameters)
    )


@pytest.mark.parametrize("name", ["full-7b-mot-cpu", "full-7b-mot-cpu-amx"])
def test_recorded_runs_are_met_within_a_half(name: str) -> None:
    parts = json.loads((RESULTS / f"{name}.json").read_text())["parts"]
    rates = DeviceRates(
        {torch.bfloat16: parts["machine"]["matmul_flops_per_second"]}, parts["machine"]["memory_bytes_per_second"]
    )
    precision = parse_precision("int8")
    weights = weight_bytes(CONFIG, precision, ALL)
    predicted = times(CONFIG, ALL, weights, precision, "cpu", rates).seconds
    measured = parts["ask int8"]["seconds_per_token"]
    assert 1 / 1.5 < predicted[TOKEN] / measured < 1.5
    # The recorded drawing is of 256×256: its operations at the rate that a drawing of 1024×1024 is predicted to have.
    drawn = reference_workloads(CONFIG)[0]
    rate = workload_flops(CONFIG, drawn, weights.parameters) / predicted[drawn.name]
    small = Workload("generate", drawn=(256, 256), branches=2, evaluations=2)
    read = Workload("generate", drawn=(256, 256), branches=2, evaluations=0)
    step = workload_flops(CONFIG, small, weights.parameters) - workload_flops(CONFIG, read, weights.parameters)
    measured = parts["generate int8"]["seconds_per_evaluation_of_two_branches"]
    assert 1 / 1.5 < step / rate / measured < 1.5


def test_only_what_was_measured_is_predicted() -> None:
    gpu = torch.device("cuda", 0)
    here = Machine(((gpu, 24 * 10**9), (CPU, 64 * 10**9)), 64 * 10**9)
    common = {"precisions": ("bfloat16", "int8", "float32"), "offloads": ("none", "cpu")}
    without = plans(CONFIG, here, ALL, **common)  # type: ignore[arg-type]
    assert all(plan.predicted is None for plan in without)
    rates = DeviceRates({torch.bfloat16: 1e12}, 5e10)
    found = plans(CONFIG, here, ALL, measured={"cpu": rates}, **common)  # type: ignore[arg-type]
    assert [(p.precision, p.where) for p in found] == [(p.precision, p.where) for p in without], "the order stays"
    for plan in found:
        known = plan.devices == (CPU,) and plan.precision.activations == torch.bfloat16
        assert (plan.predicted is not None) == known, plan
    on_gpu = plans(CONFIG, here, ALL, measured={"cuda": rates}, **common)  # type: ignore[arg-type]
    assert any(plan.predicted for plan in on_gpu)
    assert all(plan.predicted is None for plan in on_gpu if plan.offload != "none"), "the bus was not measured"
    small = replace(CONFIG, decoder=replace(CONFIG.decoder, hidden_size=256, num_layers=2, intermediate_size=512))
    assert all(plan.predicted is None for plan in plans(small, here, ALL, measured={"cpu": rates}))


def test_twice_the_rates_take_half_the_time() -> None:
    for name in ("bfloat16", "int8", "nf4"):
        precision = parse_precision(name)
        weights = weight_bytes(CONFIG, precision, ALL)
        slow = DeviceRates({torch.bfloat16: 1e12}, 5e10)
        fast = DeviceRates({torch.bfloat16: 2e12}, 1e11)
        slower = times(CONFIG, ALL, weights, precision, "cpu", slow).seconds
        faster = times(CONFIG, ALL, weights, precision, "cpu", fast).seconds
        assert list(slower) == ["generate 1024×1024", "edit 2 of 1024×1024", "understand 980×980", TOKEN]
        for workload, seconds in slower.items():
            assert seconds == pytest.approx(2 * faster[workload])
        assert slower["edit 2 of 1024×1024"] > slower["generate 1024×1024"] > slower[TOKEN]


def test_a_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_BUDGET", 0.0)
    monkeypatch.setattr(measuring, "_BLOCK", 1 << 20)
    monkeypatch.setattr(measuring, "_WIDTH", 64)
    # A second passes with each look at the clock, so every call takes one.
    ticks = iter(range(1000))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(ticks)))
    found = measure_rates(CPU, (torch.float32, torch.bfloat16, torch.float32))
    assert found.memory == 1 << 20
    assert found.matmul == {torch.float32: 2 * 512 * 64 * 64, torch.bfloat16: 2 * 512 * 64 * 64}
    assert found.to_json()["matmul_flops_per_second"].keys() == {"float32", "bfloat16"}
    monkeypatch.setattr(measuring, "free_memory", lambda device: 4 << 20)
    with pytest.raises(DeviceError, match="too little memory is free on cpu"):
        measure_rates(CPU, (torch.float32,))


def test_nominal_rates_are_there_for_every_kind_of_device() -> None:
    for kind in ("cpu", "cuda", "mps"):
        rates = NOMINAL[kind]
        assert all(math.isfinite(value) and value > 0 for value in (*rates.matmul.values(), rates.memory))
        assert set(rates.matmul) == {torch.float32, torch.bfloat16, torch.float16}

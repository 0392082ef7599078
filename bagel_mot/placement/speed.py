"""The time of the reference workloads, from their operations and bytes and a device's rates.

The decoder alone is counted: at the official size the vision transformer and the autoencoder add a few hundredths. The
shares below were measured on two CPUs (`benchmarks/results/full-7b-mot-cpu*.json`, `bench-0.5b-cpu-*.json`); with rates
measured there, recorded times are met within a half of them (`tests/placement/test_speed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bagel_mot.checkpoint.precision import Precision, dtype_name
from bagel_mot.config import BagelConfig
from bagel_mot.placement.estimate import WeightBytes, Workload, reference_workloads, token_counts
from bagel_mot.placement.rates import DeviceRates

TOKEN = "token of an answer"
STEPS = 49
"""Steps of a drawing with the official default of 50 timesteps."""
_REACHED = 0.75  # share of the matmuls' rate that whole passes reach: 0.5 to 0.9
_READ = 0.6  # share of the memory's rate at which the weights for one token are read: 0.56 to 0.84
# A pass unpacks quantised weights, as slowly as if these bytes were moved for each of them.
_MOVED = {"int8": 5.0, "fp8": 5.0, "int4": 5.5, "nf4": 10.0, "int8-dynamic": 2.0, "fp8-dynamic": 2.0}
_AS_STORED_ON_CPU = frozenset(("int8", "int4"))  # kernels for one row unpack nothing
_DYNAMIC = {"fp8-dynamic": 1.7, "int8-dynamic": 1.2}  # matmuls of 8 bits against those of activations
_SMALLEST = 10**8  # parameters of an expert; in smaller models the matmuls are not what takes the time


@dataclass(frozen=True)
class Times:
    """Seconds by workload, and by `TOKEN` those of one token of an answer.

    Attributes:
        seconds: the predicted seconds; drawings take all their steps, answers are counted up to their first token.
    """

    seconds: Mapping[str, float]

    @property
    def usual(self) -> float:
        """Seconds of the first workload and an answer of a hundred tokens, for putting ways of running in order."""
        return next(iter(self.seconds.values())) + 100 * self.seconds[TOKEN]


def predictable(weights: WeightBytes) -> bool:
    """Whether a model is large enough for its time to follow from its operations and bytes."""
    return weights.parameters >= _SMALLEST


def workload_flops(config: BagelConfig, workload: Workload, parameters: int) -> float:
    """Floating-point operations of the decoder: matmuls, and attention's scores and values.

    Args:
        config: the model's configuration.
        workload: the request; a drawing takes all its steps.
        parameters: the number of one expert's parameters in all layers.
    """
    decoder, counts = config.decoder, token_counts(config, workload)
    read = counts.und + counts.latents
    drawn = counts.noised + 2  # with its two markers
    pairs = read * read / 2 + workload.evaluations * drawn * (read + drawn)
    attention = 4.0 * pairs * decoder.num_heads * decoder.head_dim * decoder.num_layers
    return 2.0 * parameters * (read + workload.evaluations * drawn) + attention


def times(
    config: BagelConfig,
    tasks: tuple[str, ...],
    weights: WeightBytes,
    precision: Precision,
    kind: str,
    rates: DeviceRates,
    brought: float = 0.0,
) -> Times:
    """The time of each reference workload of some tasks.

    Args:
        config: the model's configuration.
        tasks: "generate", "edit", "understand".
        weights: the bytes of the weights in this precision.
        precision: the precision of the parts.
        kind: the kind of the device, "cpu", "cuda" or "mps".
        rates: its rates, with that of the type of the activations.
        brought: seconds of every pass spent on bringing layers, while the device computes.
    """
    stored = precision.parts.get("decoder", dtype_name(precision.activations))
    rate = rates.matmul[precision.activations] * _REACHED * _DYNAMIC.get(stored, 1.0)
    unpacked = _MOVED.get(stored, 0.0) * weights.parameters / rates.memory
    found = {}
    for workload in reference_workloads(config):
        if workload.task in tasks:
            passes = 1 + (0 if workload.drawn is None else STEPS)
            computed = workload_flops(config, workload, weights.parameters) / rate + passes * unpacked
            found[workload.name] = max(computed, passes * brought)
    share = 0.5 if {"generate", "edit"} & set(tasks) else 1.0  # a token takes one expert's weights
    head = config.decoder.vocab_size * config.decoder.hidden_size * precision.activations.itemsize
    if stored not in _MOVED or (kind == "cpu" and stored in _AS_STORED_ON_CPU):
        token = (share * weights.layer * weights.layers + head) / (rates.memory * _READ)
    else:
        token = unpacked + head / (rates.memory * _READ)
    return Times({**found, TOKEN: max(token, share * brought)})

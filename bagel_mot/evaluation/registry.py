"""The benchmarks by name: every class in `bagel_mot.evaluation.benchmarks` that says what it is."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from bagel_mot.errors import SettingError, did_you_mean
from bagel_mot.evaluation import benchmarks
from bagel_mot.evaluation.base import Benchmark


@cache
def all_benchmarks() -> dict[str, type[Benchmark]]:
    """The classes of benchmarks by name, sorted. Their modules are imported when this is first called."""
    found: dict[str, type[Benchmark]] = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        name = f"{benchmarks.__name__}.{module.name}"
        for value in vars(importlib.import_module(name)).values():
            is_class = isinstance(value, type) and issubclass(value, Benchmark)
            if is_class and value.__module__ == name and "info" in vars(value):
                found[value.info.name] = value
    return dict(sorted(found.items()))


def benchmark_named(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Raises:
        SettingError: there is none of this name.
    """
    known = all_benchmarks()
    if name not in known:
        raise SettingError(f"there is no benchmark {name!r}: {did_you_mean(name, known)}")
    return known[name]

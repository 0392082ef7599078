"""The adapters of a loaded model: named, switched and mixed while it stays in memory."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagel_mot.errors import SettingError, did_you_mean
from bagel_mot.inference.runtime import Runtime
from bagel_mot.installation import install_command
from bagel_mot.model.adapters import Adapter

AdapterPlace = str | os.PathLike[str]
Adapters = Sequence[AdapterPlace] | Mapping[str, AdapterPlace]
_STEP = re.compile(r"step-\d+")


def named(adapters: Adapters) -> dict[str, AdapterPlace]:
    """Adapters by name. One without a name is called as its folder is, or as the run that a checkpoint's folder is of.

    Raises:
        SettingError: they are of a wrong type, or two have the same name.
    """
    if isinstance(adapters, str | os.PathLike) or not isinstance(adapters, Sequence | Mapping):
        raise SettingError(f"adapters is {adapters!r}: it must be a list of folders or hub ids, or these by name.")
    pairs = adapters.items() if isinstance(adapters, Mapping) else [(_name_of(place), place) for place in adapters]
    found: dict[str, AdapterPlace] = {}
    for name, place in pairs:
        if not isinstance(name, str) or not name or "." in name:
            raise SettingError(f"{name!r} cannot be the name of an adapter: it must be a text without dots.")
        if name in found:
            raise SettingError(
                f"{os.fspath(found[name])} and {os.fspath(place)} would both be called {name!r}: give them names, "
                f"adapters={{'a': …, 'b': …}}."
            )
        found[name] = place
    return found


def with_strength(text: str) -> tuple[str, float]:
    """A folder or hub id as it is typed, and the strength behind a colon: `runs/dogs:0.5`; 1 without one.

    Raises:
        SettingError: the strength is not a finite number.
    """
    place, colon, number = text.rpartition(":")
    if not colon or not place or os.path.lexists(os.path.expanduser(text)):
        return text, 1.0
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0
    if not math.isfinite(strength):
        raise SettingError(f"the strength of adapter {place!r} is {number!r}: it must be a number; 0 is off.")
    return place, strength


def _name_of(place: Any) -> str:
    if not isinstance(place, str | os.PathLike):
        raise SettingError(f"{place!r} is not an adapter: give a folder or a hub id.")
    path = Path(os.path.abspath(os.path.expanduser(place)))
    return (path.parent if _STEP.fullmatch(path.name) else path).name.replace(".", "-")


class LoadedAdapters:
    """The adapters in a model.

    Attributes:
        strengths: the strength of each, by name; those at 0 are off.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.strengths: dict[str, float] = {}

    def add(self, adapters: Mapping[str, Adapter]) -> None:
        """Adds adapters, which are on.

        Raises:
            SettingError: there is one of this name, or the package peft is missing.
            BagelError: requests are at work.
        """
        if taken := sorted(adapters.keys() & self.strengths.keys()):
            raise SettingError(f"there is an adapter called {taken[0]!r} already: give another name.")
        lora = _lora()
        with self._runtime.engine.changing_weights():
            model = self._runtime.engine.model
            for name, adapter in adapters.items():
                lora.add_adapter(model, name, adapter)
                self.strengths[name] = 1.0
            lora.set_strengths(model, self.strengths)
            self._runtime.prefixes.clear()

    def remove(self, name: str) -> None:
        """Takes an adapter away and frees its memory. Errors as `set`."""
        self._check_known(name)
        with self._runtime.engine.changing_weights():
            _lora().remove_adapter(self._runtime.engine.model, name)
            del self.strengths[name]
            self._runtime.prefixes.clear()

    def set(self, strengths: Mapping[str, float]) -> None:
        """Sets the strength of each adapter; those that are not named are off.

        Raises:
            SettingError: a name is unknown, or a strength is not a number.
            BagelError: requests are at work.
        """
        if not isinstance(strengths, Mapping):
            raise SettingError(
                f"adapters are set by {strengths!r}: it must be strengths by name, such as {{'a': 0.5}}."
            )
        for name, strength in strengths.items():
            self._check_known(name)
            is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
            if not is_number or not math.isfinite(strength):
                raise SettingError(f"the strength of adapter {name!r} is {strength!r}: it must be a number; 0 is off.")
        wanted = {name: float(strengths.get(name, 0.0)) for name in self.strengths}
        if wanted == self.strengths:
            return
        with self._runtime.engine.changing_weights():
            _lora().set_strengths(self._runtime.engine.model, wanted)
            self.strengths = wanted
            self._runtime.prefixes.clear()

    def _check_known(self, name: object) -> None:
        if name not in self.strengths:
            known = did_you_mean(str(name), self.strengths) if self.strengths else "none is loaded"
            raise SettingError(f"there is no adapter {name!r}: {known}")


def _lora() -> Any:
    """The module that needs peft.

    Raises:
        SettingError: it is missing.
    """
    try:
        from bagel_mot.model import lora
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "bagel_mot":
            raise
        raise SettingError(f"adapters need {error.name}: run {install_command('train')}.") from error
    return lora

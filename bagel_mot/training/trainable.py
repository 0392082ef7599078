"""The parameters that train: a recipe names them by patterns, the others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bagel_mot.errors import RecipeError, did_you_mean


def select_trainable(
    module: nn.Module, patterns: Sequence[str], official_name: Callable[[str], str] = lambda name: name
) -> None:
    """Lets the parameters train whose name matches a pattern, and freezes the others.

    Args:
        module: the network.
        patterns: such as `connector.*`; matched against a parameter's name in the module and its official name.
        official_name: a parameter's name in the official layout, from its name in the module.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    names = {name: (name, official_name(name)) for name, _ in module.named_parameters()}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for both in names.values() for name in both):
            parts = {name.split(".")[0] + ".*" for name in names} | {name for both in names.values() for name in both}
            raise RecipeError(f"trainable: no parameter matches {pattern!r}; {did_you_mean(pattern, sorted(parts))}")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(known, pattern) for known in names[name] for pattern in patterns))

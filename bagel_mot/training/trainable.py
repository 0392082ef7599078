"""The parameters that train: a recipe names them by presets and patterns, the others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bagel_mot.errors import RecipeError, did_you_mean

LORA = "lora"
"""The preset that trains adapters alone (`bagel_mot.training.lora`)."""
PRESETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "und": (
        "decoder.layers.*.und.*", "decoder.norm.*", "decoder.embed_tokens.*", "decoder.lm_head.*",
    ),
    "gen": (
        "decoder.layers.*.gen.*", "decoder.norm_gen.*", "latent_in.*", "latent_out.*", "time_embedding.*",
    ),
    "vit": ("vit.*",),
    "connector": ("connector.*",),
}  # fmt: skip
"""Patterns by name: the und expert with the embedding and the head of texts; the gen expert with the layers that take
latents in and out; the vision transformer; the connector behind it.
"""
OfficialName = Callable[[str], str]


def select_trainable(
    module: nn.Module, patterns: Sequence[str], official_name: OfficialName = lambda name: name
) -> None:
    """Lets the parameters train whose name matches a pattern, and freezes the others.

    Args:
        module: the network.
        patterns: see `matching`.
        official_name: a parameter's name in the official layout, from its name in the module.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    names = [name for name, _ in module.named_parameters()]
    chosen = {name for pattern in patterns for name in matching(pattern, names, official_name, "trainable")}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)


def matching(pattern: str, names: Iterable[str], official_name: OfficialName, where: str) -> list[str]:
    """The names that a preset or a pattern means.

    Args:
        pattern: one of PRESETS, or a pattern such as `connector.*`, which is matched against a parameter's name in the
            module and its official name.
        names: the parameters' names in the module.
        official_name: see `select_trainable`.
        where: the key of the recipe, for the error.

    Raises:
        RecipeError: it matches nothing.
    """
    known = {name: (name, official_name(name)) for name in names}
    wanted = PRESETS.get(pattern, (pattern,))
    found = [name for name, both in known.items() if any(fnmatchcase(one, part) for one in both for part in wanted)]
    if not found:
        parts = {name.split(".")[0] + ".*" for name in known} | {one for both in known.values() for one in both}
        meant = did_you_mean(pattern, [*PRESETS, *sorted(parts)])
        raise RecipeError(f"{where}: no parameter matches {pattern!r}; {meant}")
    return found


def trains_gen_alone(module: nn.Module) -> bool:
    """Whether all parameters that train are of the preset `gen`, by their names in the module."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return all(any(fnmatchcase(name, part) for part in PRESETS["gen"]) for name in names)

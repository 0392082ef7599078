"""Recipes as YAML files: reading, what they extend, profiles, and overrides.

    extends: finetune/common      # another recipe, whose keys stand where this one has none
    profiles:                     # changes for a machine, by name; `profile` selects one
      24GB: {lora: {base: nf4}}
      80GB: {...}

What comes later wins: the recipe that is extended, the recipe, its profile, the overrides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from bagel_mot.config import Section, parse
from bagel_mot.data.sources import source_type
from bagel_mot.data.sources.base import SourceConfig
from bagel_mot.errors import RecipeError, did_you_mean
from bagel_mot.files import read_text, user_path
from bagel_mot.training.packaged import find_recipe
from bagel_mot.training.recipe import KINDS, AnyRecipe, Recipe

AUTO = "auto"
"""The profile that is chosen by what the machine has."""


class RecipeFile:
    """A recipe before a profile is chosen.

    Attributes:
        path: the file.
        profiles: changes by the profile's name, in the file's order.
        profile: the profile that the recipe or an override names: a name, "auto", or None where there are no profiles.
    """

    def __init__(self, path: Path | str, overrides: Sequence[str] = ()) -> None:
        """Reads the file and what it extends.

        Args:
            path: the file.
            overrides: `key=value`, nested keys with dots.

        Raises:
            RecipeError: a file is missing or not YAML, or an override is no `key=value`.
        """
        self.path = user_path(path, RecipeError)
        self._raw = _read_file(self.path)
        self._overrides = sorted(overrides, key=lambda override: not override.startswith("kind="))
        self.profiles: dict[str, dict[str, Any]] = self._raw.pop("profiles", None) or {}
        if not isinstance(self.profiles, dict) or not all(isinstance(own, dict) for own in self.profiles.values()):
            raise RecipeError(f"{self.path}: profiles must be a mapping from names to sections of the recipe")
        named = [o.partition("=")[2] for o in self._overrides if o.startswith("profile=")]
        default = AUTO if self.profiles else None
        self.profile = named[-1] if named else self._raw.get("profile", default)
        if self.profile is not None and self.profile != AUTO and self.profile not in self.profiles:
            there = did_you_mean(str(self.profile), [AUTO, *self.profiles]) if self.profiles else "it has no profiles"
            raise RecipeError(f"{self.path}: profile is {self.profile!r}; {there}")

    def recipe(self, profile: str | None) -> AnyRecipe:
        """The recipe with a profile's changes and the overrides.

        Args:
            profile: the name of one of `profiles`, or None for none.

        Raises:
            RecipeError: a key is unknown or missing, or a value is out of its range.
        """
        raw = merged(self._raw, {} if profile is None else self.profiles[profile])
        for override in self._overrides:
            _apply(raw, override)
        raw["profile"] = profile
        kind = raw.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise RecipeError(f"{self.path}: kind is {kind!r}; {did_you_mean(str(kind), KINDS)}")
        return parse(KINDS[kind], raw, str(self.path), RecipeError)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with changes at any depth. Neither argument is changed.

    A section whose `kind`, or `source`, differs is another section: nothing of the one before is kept.
    """
    result = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping) and not _is_another(before, value):
            result[key] = merged(before, value)
        else:
            result[key] = merged(value, {}) if isinstance(value, Mapping) else value
    return result


def _is_another(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return any(key in now and now[key] != before.get(key) for key in ("kind", "source"))


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may be written as in JSON and Python: 1e-3 is a number too. A key must not come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"{key.value} is there twice, in line {lines[key.value]} and in line {line}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


_NULL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _read_file(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's content over that of the one that it extends.

    Args:
        path: the file.
        extending: the files that extend it, which it must not extend in turn.
    """
    try:
        text = read_text(path, RecipeError)
        raw = _read(text)
        if isinstance(raw, dict) and isinstance(other := raw.get("extends"), str):
            beside = path.parent / f"{other}.yaml"
            base_path = beside if beside.is_file() else find_recipe(other)
            if base_path.resolve() in {p.resolve() for p in (*extending, path)}:
                raise RecipeError(f"{path} extends {other}, which extends it in turn")
            base = _read_file(base_path, (*extending, path))
            raw = _read(text, KINDS.get(base.get("kind", "")))
            del raw["extends"]
            return merged(base, raw)
    except RecipeError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's errors fill several lines
        raise RecipeError(f"{path} could not be read as a YAML recipe: {reason}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds a {type(raw).__name__}; a recipe is a YAML mapping")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value")
    *parents, leaf = key.split(".")
    node, kind = raw, _kind(raw)
    for parent in parents:
        kind = _kind_of_key(kind, parent, node)
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"override {override!r}: {parent} is not a section of the recipe")
    is_text = _is_text(_kind_of_key(kind, leaf, node))
    try:
        if is_text and not isinstance(yaml.compose(text, _Loader), yaml.ScalarNode):
            node[leaf] = text or None
        else:
            node[leaf] = _read(text, str if is_text else None)
    except (ValueError, yaml.YAMLError):
        node[leaf] = text


def _read(text: str, kind: Any = Recipe) -> Any:
    """YAML as plain data. What belongs to a text or a path stays as it is written, be it 2026-11-28, 007 or 1e5.

    Args:
        text: the YAML.
        kind: the type that it is for; None where no text is expected.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_texts(node, kind)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_texts(node: yaml.Node, kind: Any) -> None:
    """Marks plain scalars as texts where the type that they are for has a text or a path."""
    if isinstance(node, yaml.ScalarNode) and _is_text(kind) and node.tag != _NULL:
        node.tag = _TEXT
    if not isinstance(node, yaml.MappingNode):
        return
    scalars = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    if kind is Recipe:
        kind = _kind(scalars)
    for key, value in node.value:
        if key.value == "profiles" and kind in KINDS.values() and isinstance(value, yaml.MappingNode):
            for _, changes in value.value:
                _keep_texts(changes, kind)
        else:
            _keep_texts(value, _kind_of_key(kind, key.value, scalars))


def _kind(content: Mapping[str, Any]) -> Any:
    """The type of a recipe, of which `content` has the kind; None if that is unknown."""
    kind = content.get("kind")
    return KINDS.get(kind) if isinstance(kind, str) else None


def _kind_of_key(kind: Any, key: Any, content: Mapping[str, Any]) -> Any:
    """The type of a key in a section of the type `kind`, of which `content` has some keys; None if it is not known."""
    sections = [part for part in _alternatives(kind) if isinstance(part, type) and issubclass(part, Section)]
    if sections == [SourceConfig]:
        chosen = source_type(content)
        sections = [] if chosen is None else [chosen]
    return get_type_hints(sections[0]).get(key) if sections and isinstance(key, str) else None


def _is_text(kind: Any) -> bool:
    """Whether values of a type are texts or paths."""
    return bool({str, Path} & set(_alternatives(kind)))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of which a value may be one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)

"""Sources of training data by `kind`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator, SerializeAsAny, TypeAdapter
from pydantic.dataclasses import dataclass

from bagel_mot.config import Flag, NotNegative, Section
from bagel_mot.data.sources.base import Source, SourceConfig, WeightBy
from bagel_mot.data.sources.folder import FolderConfig
from bagel_mot.data.sources.lmms import LmmsConfig
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.sources.mixed import MixedPart, MixedSource
from bagel_mot.data.sources.published import PublishedConfig
from bagel_mot.data.sources.rows import ROW_KINDS, RowsConfig, with_preset
from bagel_mot.errors import did_you_mean


def read_source_config(content: Any) -> SourceConfig:
    """A recipe's `data` section, of the type that its `kind` selects; a list is a mixture.

    Raises:
        ValueError: the kind is missing or unknown, or the source's own type refuses the rest.
    """
    if isinstance(content, SourceConfig):
        return content
    if isinstance(content, Sequence) and not isinstance(content, str):
        return TypeAdapter(MixedConfig).validate_python({"sources": list(content)})
    if not isinstance(content, Mapping):
        raise ValueError(
            f"it is {content!r}; it must be a section with a kind, one of {', '.join(SOURCES)}, or with a source, or a "
            "list of such"
        )
    content = with_preset(content)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise ValueError(f"kind is {kind!r}, which no source of data has; {did_you_mean(str(kind), SOURCES)}")
    return TypeAdapter(SOURCES[kind]).validate_python(content)


def _read_part(content: Any) -> SourceConfig:
    config = read_source_config(content)
    if config.workers:
        raise ValueError(f"workers is {config.workers}; sources of a mixture share the mixture's own: set it there")
    if isinstance(config, MixedConfig):
        raise ValueError("a mixture within a mixture is not supported; list all sources in one")
    return config


@dataclass(frozen=True)
class WeightedData(Section):
    """A source of a mixture.

    Attributes:
        data: the source.
        weight: its share, relative to those of the others.
        mandatory: whether every pack has a sample of each of its groups.
        name: its name in reports; by default that of its groups.
    """

    data: Annotated[SerializeAsAny[SourceConfig], PlainValidator(_read_part)]
    weight: NotNegative = 1.0
    mandatory: Flag = False
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.weight and not self.mandatory:
            raise ValueError("weight is 0, so nothing of it would be drawn; give it a weight, or mandatory: true")


def _weighted(entry: Any) -> Any:
    """An entry of a recipe's list, whose own keys are among those of the source."""
    if isinstance(entry, WeightedData) or (isinstance(entry, Mapping) and "data" in entry):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"one of them is {entry!r}; each source of a mixture is a section with a kind")
    own = {key: value for key, value in entry.items() if key in ("weight", "mandatory", "name")}
    return {"data": {key: value for key, value in entry.items() if key not in own}, **own}


def _read_sources(content: Any) -> Any:
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise ValueError(f"it is {content!r}; it must be a list of sources, each with a kind and perhaps a weight")
    return tuple(map(_weighted, content))


@dataclass(frozen=True, kw_only=True)
class MixedConfig(SourceConfig):
    """Several sources, mixed by weight.

    Attributes:
        sources: the sources; what belongs to the data as a whole, such as the sheet of samples, is the first one's.
        weight_by: the unit of the weights: each source has its share of the samples, or of the tokens.
    """

    kind: Literal["mixed"] = "mixed"
    sources: Annotated[tuple[WeightedData, ...], BeforeValidator(_read_sources)]
    weight_by: WeightBy = "samples"

    def open(self, seed: int) -> Source:
        parts = [MixedPart(one.data.open(seed), one.weight, one.mandatory, one.name) for one in self.sources]
        return MixedSource(parts, self.weight_by)


SOURCES: dict[str, type[SourceConfig]] = {
    "folder": FolderConfig,
    "lmms": LmmsConfig,
    "mini": MiniConfig,
    "mixed": MixedConfig,
    "published": PublishedConfig,
    **dict.fromkeys(ROW_KINDS, RowsConfig),
}


def source_type(content: Mapping[str, Any]) -> type[SourceConfig] | None:
    """The type of a `data` section, by its `kind` or its `source`; None if neither is known."""
    if content.get("source") is not None:
        return RowsConfig
    kind = content.get("kind")
    return SOURCES.get(kind) if isinstance(kind, str) else None

"""Sources of training data by `kind`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator, SerializeAsAny, TypeAdapter
from pydantic.dataclasses import dataclass

from bagel_mot.config import Positive, Section
from bagel_mot.data.sources.base import Source, SourceConfig, WeightBy
from bagel_mot.data.sources.folder import FolderConfig
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.sources.mixed import MixedSource
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


@dataclass(frozen=True)
class WeightedData(Section):
    """A source of a mixture, and its share relative to the others."""

    data: Annotated[SerializeAsAny[SourceConfig], PlainValidator(read_source_config)]
    weight: Positive = 1.0


def _weighted(entry: Any) -> Any:
    """An entry of a recipe's list, whose `weight` stands among the keys of the source."""
    if not isinstance(entry, Mapping) or "data" in entry:
        return entry
    source = {key: value for key, value in entry.items() if key != "weight"}
    return {"data": source} | ({"weight": entry["weight"]} if "weight" in entry else {})


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
        opened = [entry.data.open(seed) for entry in self.sources]
        return MixedSource(opened, [entry.weight for entry in self.sources], self.weight_by)


SOURCES: dict[str, type[SourceConfig]] = {
    "folder": FolderConfig,
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

"""Sources of training data by `kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from bagel_mot.data.sources.base import SourceConfig
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.sources.published import PublishedConfig
from bagel_mot.errors import did_you_mean

SOURCES: dict[str, type[SourceConfig]] = {"mini": MiniConfig, "published": PublishedConfig}


def read_source_config(content: Any) -> SourceConfig:
    """A recipe's `data` section, of the type that its `kind` selects.

    Raises:
        ValueError: the kind is missing or unknown, or the source's own type refuses the rest.
    """
    if isinstance(content, SourceConfig):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(f"it is {content!r}; it must be a section with a kind, one of {', '.join(SOURCES)}")
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise ValueError(f"kind is {kind!r}, which no source of data has; {did_you_mean(str(kind), SOURCES)}")
    return TypeAdapter(SOURCES[kind]).validate_python(content)

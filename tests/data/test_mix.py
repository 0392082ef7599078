"""Sources in one recipe, each with its weight; and the published order from a published run's positions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import PlainValidator
from pydantic.dataclasses import dataclass

from bagel_mot.config import Section, parse
from bagel_mot.data.mixing import BySamples, ByTokens
from bagel_mot.data.order import PublishedOrder
from bagel_mot.data.sources import MixedConfig, read_source_config
from bagel_mot.data.sources.base import SourceConfig
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.sources.published import PublishedConfig
from bagel_mot.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden-data"
PUBLISHED: dict[str, Any] = {
    "kind": "published",
    "config": str(GOLDEN / "data" / "small.yaml"),
    "dataset_info": str(GOLDEN / "data" / "dataset_info.json"),
    "root": str(GOLDEN),
}


@dataclass(frozen=True)
class Holder(Section):
    data: Annotated[SourceConfig, PlainValidator(read_source_config)]


def test_a_list_is_a_mix_of_sources_with_weights() -> None:
    config = read_source_config(
        [{"kind": "mini", "side": 64, "weight": 1.5, "name": "replay", "mandatory": True}, {**PUBLISHED, "weight": 3}]
    )
    assert isinstance(config, MixedConfig)
    assert config.sources[0].data == MiniConfig()
    source = config.open(5)
    groups = {group.name: (group.weight, group.mandatory) for group in source.groups()}
    assert groups == {  # the weights in the file are 1, 2 and 1
        "replay": (1.5, True),
        "t2i_pretrain": (0.75, True),
        "unified_edit": (1.5, False),
        "vlm_sft": (0.75, False),
    }
    assert isinstance(source.mixture("seed"), BySamples)
    assert next(iter(source.texts()))  # the first source that has texts


def test_names_in_a_mix_are_made_unique_and_weights_may_count_tokens() -> None:
    config = read_source_config(
        {
            "kind": "mixed",
            "weight_by": "tokens",
            "workers": 3,
            "sources": [{"kind": "mini"}, {"kind": "mini", "side": 128}, {**PUBLISHED, "name": "own"}],
        }
    )
    names = [group.name for group in config.open(0).groups()]
    assert names == ["mini (1)", "mini (2)", "own/t2i_pretrain", "own/unified_edit", "own/vlm_sft"]
    assert isinstance(config.open(0).mixture("seed"), ByTokens)
    assert config.workers == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"kind": "mini", "workers": 2}], "workers is 2; sources of a mixture share the mixture's own"),
        ([[{"kind": "mini"}]], "each source of a mixture is a section"),
        ([{"kind": "mixed", "sources": [{"kind": "mini"}]}], "a mixture within a mixture is not supported"),
        ([], "sources"),
        ([{"kind": "mini", "wieght": 2}], "wieght is not known"),
        ([{"kind": "mini", "weight": -1}], "weight is -1"),
        ({**PUBLISHED, "data_seed": 7}, "data_seed is 7, which is for sharding: published alone"),
    ],
)
def test_a_wrong_mix_is_refused_in_a_sentence(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(Holder, {"data": content}, "recipe", DataError)


def published(**changes: Any) -> Any:
    config = read_source_config({**PUBLISHED, "sharding": "published", "rank_workers": 2, **changes})
    assert isinstance(config, PublishedConfig)
    return config.open(0)


def test_the_published_order_begins_behind_a_published_runs_positions(tmp_path: Path) -> None:
    path = tmp_path / "data_status.pt"
    torch.save([{"vlm_sft": {0: 3}, "unified_edit": {0: [1, 1]}, "t2i_pretrain": {0: [0, 1, 0]}}, None], path)
    plain, resumed = (published(**kinds).groups() for kinds in ({}, {"data_status": str(path)}))
    for before, after in zip(plain, resumed, strict=True):
        for worker in range(2):
            if before.name == "unified_edit" and worker:  # it has too few units
                continue
            first, second = (group.supply.cursor(0, worker, 2) for group in (before, after))
            rows = [first.take().key[1:] for _ in range(20)]
            begun = rows.index(second.take().key[1:])
            assert (begun == 0) == (worker == 1)
    torch.save([{"vlm_sft": {0: 99}}], path)
    chat = published(data_status=str(path)).groups()[2].supply
    with pytest.raises(DataError, match="the position 99 of vlm_sft is none of these data"):
        chat.cursor(0, 0, 2)
    path.write_bytes(b"short")
    with pytest.raises(DataError, match=r"could not be read as the data_status\.pt"):
        published(data_status=str(path))


def test_a_worker_without_units_is_an_error_of_one_sentence() -> None:
    source = published(rank_workers=3)
    assert source.rotation == 3
    edits = source.groups()[1].supply
    with pytest.raises(
        DataError, match="unified_edit has 6 units for 4 ranks with 3 workers each, so worker 0 of rank 0"
    ):
        edits.cursor(0, 0, 12)


def test_published_readers_never_share_a_unit() -> None:
    supply = published().groups()[2].supply
    orders = [supply.order(0, stream, 6) for stream in range(6)]
    assert all(isinstance(order, PublishedOrder) for order in orders)
    counts = Counter(stretch for order in orders for stretch in order.stretches(0))
    assert set(counts.values()) == {1}
    assert len(counts) == 30  # of 32 lines, 10 for each rank and 5 for each worker


def test_published_sharding_is_not_mixed() -> None:
    config = read_source_config([{"kind": "mini"}, {**PUBLISHED, "sharding": "published"}])
    with pytest.raises(DataError, match="cannot be mixed with others"):
        config.open(0).groups()  # type: ignore[attr-defined]

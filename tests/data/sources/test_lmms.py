"""The lists of data sets of lmms-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.lmms import LmmsConfig
from bagel_mot.errors import DataError
from tests.data.miniatures import image_file, json_list, jsonl, parquet
from tests.data.test_presets import shape
from tests.data.test_remote import RandomDraws, random


def _turn(role: str, *content: str) -> dict[str, Any]:
    items = [
        {"type": "image_url", "image_url": {"url": text}} if text.endswith(".png") else {"type": "text", "text": text}
        for text in content
    ]
    return {"role": role, "content": items}


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, str]]:
    """Three data sets, and the entries that list them."""
    for level in range(2):
        image_file(tmp_path / "images" / f"{level}.png", level)
    drawn = {"messages": [_turn("user", "draw a cat"), _turn("assistant", "0.png")]}
    edited = {"messages": [_turn("user", "0.png", "make it dark"), _turn("assistant", "1.png")]}
    asked = {"messages": [_turn("user", "1.png", "what is it?"), _turn("assistant", "a cat")]}
    jsonl(tmp_path / "drawn.jsonl", [drawn])
    json_list(tmp_path / "more" / "drawn.json", [edited])
    pytest.importorskip("pyarrow")
    parquet(tmp_path / "asked.parquet", [asked])
    return [
        {"path": "drawn.jsonl", "data_folder": "images", "data_type": "jsonl"},
        {"path": "more/drawn.json", "data_folder": "images", "data_type": "json"},
        {"path": "asked.parquet", "data_folder": "images", "data_type": "parquet"},
    ]


def _read(tmp_path: Path, content: Any) -> LmmsConfig:
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = read_source_config({"kind": "lmms", "config": str(tmp_path / "list.yaml"), "root": str(tmp_path)})
    assert isinstance(found, LmmsConfig)
    return found


@pytest.mark.parametrize("form", ["list", "file", "config", "trainer", "named"])
def test_a_list_is_read_in_each_of_its_places(tmp_path: Path, data: list[dict[str, str]], form: str) -> None:
    own = {"dataset_type": "bagel_iterable", "dataset_format": "yaml", "packing": True, "packing_length": 4096}
    named = tmp_path / "named.yaml"
    named.write_text(yaml.safe_dump({"datasets": data}), encoding="utf-8")
    content = {
        "list": data,
        "file": {"datasets": data},
        "config": {"trainer_type": "fsdp2_trainer", "dataset_config": {**own, "datasets": data}},
        "trainer": [{"type": "trainer", "config": {"dataset_config": {**own, "datasets": data}}}],
        "named": {"dataset_config": {**own, "dataset_path": "named.yaml"}},
    }[form]
    (group,) = _read(tmp_path, content).groups()
    assert [dataset.name for dataset in group.datasets] == ["drawn", "drawn#2", "asked"]
    draws = RandomDraws(random.Random(0))
    found = [shape(d.document(row, draws)) for d in group.datasets for _, row in d.rows(0)]
    assert found == ["(T) N", "(C) (V) (T) N", "V T *T*"]


def test_a_configuration_of_one_data_set_is_read(tmp_path: Path, data: list[dict[str, str]]) -> None:
    content = {"dataset_format": "jsonl", "dataset_path": "drawn.jsonl", "data_folder": "images"}
    (group,) = _read(tmp_path, {"dataset_config": content}).groups()
    assert [unit.rows for unit in group.datasets[0].reader.units()] == [1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"datasets": []}, "has no list datasets"),
        ({"model_config": {}}, "has no list datasets"),
        ("text", "holds a str; a list datasets is expected"),
        ({"datasets": ["a.jsonl"]}, r"datasets\[0\] is 'a.jsonl'; path, data_folder and data_type are expected"),
        ({"datasets": [{"path": "a.jsonl", "data_type": "csv"}]}, r"datasets\[0\].*data_type is 'csv'"),
        ({"datasets": [{"path": "a.jsonl"}]}, r"datasets\[0\].*data_type is missing"),
        ({"datasets": [{"path": "a", "data_type": "jsonl", "data_foler": ""}]}, "did you mean data_folder"),
        ({"datasets": [{"path": "none.jsonl", "data_type": "jsonl"}]}, "none.jsonl, but there is no such file"),
    ],
)
def test_unusable_lists_are_one_sentence(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        _read(tmp_path, content).groups()
    assert "\n" not in str(caught.value)

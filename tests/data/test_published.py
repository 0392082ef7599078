"""The published configuration: read as it is, and what cannot be honoured is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from bagel_mot.data.documents import OPENERS, Dropout, SampleBuilder
from bagel_mot.data.published import read_dataset_info, read_published
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.errors import DataError
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform
from bagel_mot.sequence import PackSpec
from bagel_mot.tokenizer import SpecialTokens

pytest.importorskip("pyarrow")
GOLDEN = Path(__file__).parents[1] / "golden-data"
INFO = json.loads((GOLDEN / "data" / "dataset_info.json").read_text(encoding="utf-8"))
Yaml = dict[str, Any]


def small() -> Yaml:
    content: Yaml = yaml.safe_load((GOLDEN / "data" / "small.yaml").read_text(encoding="utf-8"))
    return content


def read(tmp_path: Path, content: Yaml, info: Any = INFO) -> Any:
    config, infos = tmp_path / "config.yaml", tmp_path / "info.json"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    infos.write_text(json.dumps(info), encoding="utf-8")
    return read_published(config, infos, GOLDEN, OPENERS["upright"])


def test_the_published_example_is_read_as_it_is(tmp_path: Path) -> None:
    t2i, edit, chat = read(tmp_path, small())
    assert [(g.name, g.weight, g.mandatory, g.resumes) for g in (t2i, edit, chat)] == [
        ("t2i_pretrain", 1, True, True),
        ("unified_edit", 2, False, True),
        ("vlm_sft", 1, False, True),
    ]
    assert t2i.datasets[0].images.vae == ImageTransform(96, 48, 16)
    assert edit.datasets[0].images.vit == ImageTransform(84, 42, 14)
    assert chat.datasets[0].images.vit == ImageTransform(98, 42, 14, 9000)
    assert chat.datasets[0].images.vae is None
    assert sum(unit.rows for unit in t2i.datasets[0].reader.units()) == 19
    assert [unit.rows for unit in edit.datasets[0].reader.units()] == [3, 2, 2, 3, 2, 1]  # no parquet_info is needed
    assert [unit.rows for unit in chat.datasets[0].reader.units()] == [32]


def test_num_used_data_counts_files_and_lines(tmp_path: Path) -> None:
    content = small()
    content["t2i_pretrain"]["num_used_data"] = [5]
    content["unified_edit"]["num_used_data"] = [1]
    content["vlm_sft"]["num_used_data"] = [10]
    t2i, edit, chat = read(tmp_path, content)
    reader = t2i.datasets[0].reader
    assert isinstance(reader, ParquetReader)
    assert [file.stem for file in reader.files] == ["part-0", "part-1", "part-0", "part-1", "part-0"]
    assert [unit.rows for unit in edit.datasets[0].reader.units()] == [3, 2, 2]
    assert [unit.rows for unit in chat.datasets[0].reader.units()] == [10]


def test_a_task_can_have_groups_of_other_names_and_weights(tmp_path: Path) -> None:
    content = small()
    content["more_pictures"] = {**content["t2i_pretrain"], "task": "t2i_pretrain", "weight": 0.5}
    groups = read(tmp_path, content)
    assert [(group.name, group.weight) for group in groups][3] == ("more_pictures", 0.5)
    assert groups[3].datasets[0].name == "more_pictures/t2i"


def test_a_data_set_named_twice_keeps_names_unique(tmp_path: Path) -> None:
    content = small()
    content["t2i_pretrain"] |= {"dataset_names": ["t2i", "t2i"], "num_used_data": [1, 2]}
    assert [d.name for d in read(tmp_path, content)[0].datasets] == ["t2i_pretrain/t2i", "t2i_pretrain/t2i#2"]


def test_dataset_info_may_be_yaml_or_the_published_module(tmp_path: Path) -> None:
    (tmp_path / "info.yaml").write_text(yaml.safe_dump(INFO), encoding="utf-8")
    module = f"from .somewhere import Thing\n\nDATASET_REGISTRY = {{'a': Thing}}\nDATASET_INFO = {INFO!r}\n"
    (tmp_path / "dataset_info.py").write_text(module, encoding="utf-8")
    assert read_dataset_info(tmp_path / "info.yaml") == INFO
    assert read_dataset_info(tmp_path / "dataset_info.py") == INFO
    (tmp_path / "dataset_info.py").write_text("DATASET_INFO = make()", encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset_info\.py could not be read"):
        read_dataset_info(tmp_path / "dataset_info.py")
    (tmp_path / "dataset_info.py").write_text("x = 1", encoding="utf-8")
    with pytest.raises(DataError, match="has no DATASET_INFO that is a plain dictionary"):
        read_dataset_info(tmp_path / "dataset_info.py")


def test_a_recipe_of_nemo_automodel_says_all_itself(tmp_path: Path) -> None:
    config = tmp_path / "sft.yaml"

    def written(**extra: Any) -> list[str]:
        content = {"stage": 2, "dataset": {"grouped_datasets": small(), **extra}}
        config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return [group.name for group in read_published(config, None, GOLDEN, OPENERS["upright"])]

    names = ["t2i_pretrain", "unified_edit", "vlm_sft"]
    assert written(dataset_info=INFO) == names
    assert written(dataset_info_path="data/dataset_info.json") == names
    with pytest.raises(DataError, match=r"has no dataset_info; give data\.dataset_info"):
        written()


def _set(*path: Any) -> Callable[[Yaml], None]:
    *keys, last, value = path

    def change(content: Yaml) -> None:
        for key in keys:
            content = content[key]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _set("t2i_pretrain", "num_use_data", [1]),
            r"t2i_pretrain: num_use_data is not known; did you mean num_used_data",
        ),
        (_set("t2i_pretrain", "dataset_names", None), "dataset_names is missing"),
        (_set("t2i_pretrain", "dataset_names", ["t2j"]), "has no data set t2j in t2i_pretrain; did you mean t2i"),
        (_set("t2i_pretrain", "dataset_names", []), "dataset_names is empty"),
        (_set("t2i_pretrain", "num_used_data", [1, 2]), "num_used_data has 2 entries for 1 dataset_names"),
        (_set("t2i_pretrain", "num_used_data", [0]), "it must be"),
        (_set("t2i_pretrain", "weight", -1), "weight is -1; it must be a number of 0 or more"),
        (_set("t2i_pretrain", "image_transform_args", "image_stride", None), "image_stride is missing"),
        (_set("t2i_pretrain", "image_transform_args", "image_mean", [0.4, 0.5, 0.5]), "must be 0.5 throughout"),
        (_set("t2i_pretrain", "frame_sampler_args", {"max_num_frames": 9}), "frame_sampler_args is a key of vlm_sft"),
        (_set("unified_edit", "shuffle_lines", True), "shuffle_lines is a key of vlm_sft"),
        (_set("unified_edit", "vit_image_transform_args", None), "edits need the limits of both encoders"),
        (_set("vlm_sft", "frame_sampler_args", "sample", "best"), "there are rand, middle and fpsX"),
        (_set("t2i_pretrain", "image_transform_args", None), "image_transform_args is missing"),
        (_set("t2i_pretain", {"dataset_names": ["t2i"]}), "no group of this name; did you mean t2i_pretrain"),
        (_set("t2i_pretrain", "task", "t2i"), "t2i_pretrain: there is no group of this name; there are t2i_pretrain"),
        (_set("t2i_pretrain", 3), "a mapping with dataset_names is expected"),
        (lambda content: [group.update(weight=0) for group in content.values()], "every weight is 0"),
        (lambda content: content.clear(), "has no group of data"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, change: Callable[[Yaml], Any], said: str) -> None:
    content = small()
    change(content)
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_dir": "your_data_path/t2i"}, "data_dir is your_data_path/t2i, but there is no folder"),
        (
            {"data_dir": "memory://nowhere/t2i"},
            "data_dir is memory://nowhere/t2i, but there is no folder memory://nowhere",
        ),
        ({"data_dir": "data/vlm/images"}, r"has no \.parquet file in it"),
        ({"data_dir": "data/t2i", "jsonl": "x"}, "jsonl is not known; did you mean jsonl_path"),
        ({}, "data_dir is missing"),
        ({"data_dir": "data/t2i", "jsonl_path": "x.jsonl"}, "jsonl_path is a key of vlm_sft"),
        ({"data_dir": "data/t2i", "json_dir": "x"}, "json_dir is not read"),
    ],
)
def test_an_unusable_entry_of_dataset_info_is_one_sentence(tmp_path: Path, entry: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, small(), {**INFO, "t2i_pretrain": {"t2i": entry}})
    with pytest.raises(DataError, match="has no group vlm_sft"):
        read(tmp_path, small(), {k: v for k, v in INFO.items() if k != "vlm_sft"})


def test_files_that_are_missing_or_no_yaml_are_one_sentence(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "data" / "small.yaml", tmp_path / "a.yaml")
    with pytest.raises(DataError, match=r"x\.json could not be read as JSON"):
        read_published(tmp_path / "a.yaml", tmp_path / "x.json", GOLDEN, OPENERS["upright"])
    (tmp_path / "b.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.yaml could not be read as YAML"):
        read_published(tmp_path / "b.yaml", GOLDEN / "data" / "dataset_info.json", GOLDEN, OPENERS["upright"])


def test_limits_beyond_the_model_are_known_before_training(tmp_path: Path) -> None:
    special = SpecialTokens(1, 2, 3, 4)
    builder = SampleBuilder(SimpleNamespace(special=special), VAE_TRANSFORM, VIT_TRANSFORM, 16, 14, Dropout())  # type: ignore[arg-type]
    spec = PackSpec(special, vit_side=70, latent_side=64, patch_dim=588, latent_dim=64)
    t2i, edit, chat = (group.datasets[0] for group in read(tmp_path, small()))
    for dataset in (t2i, edit, chat):
        dataset.check_sizes(builder, spec)
    edit.check_sizes(builder, replace(spec, latent_side=6, vit_side=6))
    with pytest.raises(DataError, match="chains: images may have a side of 84 pixels, which takes 6 of a ViT patch"):
        edit.check_sizes(builder, replace(spec, vit_side=5))
    with pytest.raises(DataError, match="this model has positions for 5, so the limit must be 80 pixels or less"):
        t2i.check_sizes(builder, replace(spec, latent_side=5))
    t2i.check_sizes(builder, replace(spec, latent_side=5, interpolate=True))
    with pytest.raises(DataError, match="multiples of 16 pixels; they must be multiples of 32"):
        t2i.check_sizes(replace(builder, latent_stride=32), spec)

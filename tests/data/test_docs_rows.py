"""The parts of docs on rows of any layout, and docs/coming-from.md: examples are read, tables are those of the code."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from bagel_mot.config import Section
from bagel_mot.data.documents import ImagePart, TextPart
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.image_places import ImagePlace
from bagel_mot.data.mapping import TASKS
from bagel_mot.data.packer import PackConfig, PublishedPackConfig
from bagel_mot.data.public import PUBLIC_DATA
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.folder import FolderConfig
from bagel_mot.data.sources.published import PublishedConfig
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.data.tasks.parts import Parts
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.recipe_files import _alternatives
from tests.data.miniatures import image_file

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text(encoding="utf-8")
COMING = (DOCS / "coming-from.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def block(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def cells(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first heading this is."""
    table = text.split(f"| {heading} |", 1)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def test_the_public_sets_are_those_of_the_list() -> None:
    rows = cells(section("Public data sets by name"), "source")
    assert [(re.findall(r"`(.+?)`", row[0])[0], "†" in row[0], *row[1:]) for row in rows] == [
        (
            one.name,
            one.unsure,
            f"`{one.task}`",
            one.where,
            one.licence,
            "; ".join(filter(None, (one.layout, one.notes))),
        )
        for one in PUBLIC_DATA.values()
    ], "docs/data.md is to show what `bagel data list` prints"


def test_the_tasks_and_their_columns_are_those_there_are() -> None:
    named: dict[str, set[str]] = {}
    for tasks, columns in cells(section("Rows of files and of the hub"), "task"):
        for task in re.findall(r"`(\w+)`", tasks):
            named[task] = set(re.findall(r"`(\w+)`", columns))
    columns = {name: set(task.columns) for name, task in TASKS.items()}
    columns["messages"] |= {"video"}  # shares a line with chat
    assert named == columns


def test_the_usual_names_of_columns_are_those_there_are() -> None:
    text = section("Rows of files and of the hub")
    for role, names in re.findall(r"`(\w+)` \(([\w, ]+)\)", text):
        assert any(task.columns.get(role) == tuple(names.split(", ")) for task in TASKS.values()), role


def test_the_section_of_rows_is_one() -> None:
    config = read_source_config(yaml.safe_load(block(section("Rows of files and of the hub"), "yaml"))["data"])
    assert isinstance(config, RowsConfig)
    assert config.columns == {"before": ("source",), "after": ("edited",), "instruction": ("prompt", "short_prompt")}


def test_the_parts_are_read(tmp_path: Path) -> None:
    for number in range(5):
        image_file(tmp_path / "clip" / f"{number}.png")
    place = ImagePlace((tmp_path,))
    parts = Parts(image=place.image, path=place.path)
    lines = [json.loads(line) for line in block(section("Documents written out as parts"), "json").splitlines()]
    documents = [parts(row, RandomDraws(random.Random(0))) for row in lines]
    assert [sum(isinstance(part, TextPart) and part.loss for part in document) for document in documents] == [
        0,
        1,
        2,
        1,
        0,
    ]
    assert sum(isinstance(part, ImagePart) and part.target for document in documents for part in document) == 3


def keys(kind: Any) -> set[str]:
    """The keys of a section with those within, with dots."""
    found: set[str] = set()
    for name, inner in get_type_hints(kind).items():
        found.add(name)
        for part in _alternatives(inner):
            if isinstance(part, type) and issubclass(part, Section):
                found |= {f"{name}.{key}" for key in keys(part)}
    return found


def test_what_stands_beside_another_trainers_argument_is_there() -> None:
    known = keys(BagelRecipe)
    for kind in (RowsConfig, FolderConfig, PublishedConfig):
        known |= {f"data.{name}" for name in get_type_hints(kind)}
    for kind in (PackConfig, PublishedPackConfig):
        known |= {f"pack.{name}" for name in get_type_hints(kind)}
    rows = [line.split(" | ") for line in re.findall(r"^\|.*\|$", COMING, re.MULTILINE) if " | " in line]
    named = {key for row in rows for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?::[^`]*)?`", row[1])}
    assert len(named) > 50
    assert named - known == set()


def test_every_argument_of_the_published_scripts_is_there() -> None:
    arguments = """
        model_path llm_path llm_qk_norm tie_word_embeddings layer_module vae_path vit_path max_latent_size
        latent_patch_size vit_patch_size vit_max_num_patch_per_side connector_act interpolate_pos vit_select_layer
        vit_rope text_cond_dropout_prob vae_cond_dropout_prob vit_cond_dropout_prob dataset_config_file prefetch_factor
        num_workers max_num_tokens_per_sample max_num_tokens prefer_buffer_before
        max_buffer_size data_seed visual_gen visual_und
        results_dir checkpoint_dir wandb_project wandb_name wandb_runid wandb_resume wandb_offline log_every save_every
        global_seed auto_resume resume_from resume_model_only finetune_from_ema finetune_from_hf total_steps use_flex lr
        beta1 beta2 eps lr_scheduler min_lr warmup_steps max_grad_norm ema gradient_accumulation_steps timestep_shift
        mse_weight ce_weight ce_loss_reweighting expected_num_tokens sharding_strategy num_replicate num_shard
        backward_prefetch cpu_offload freeze_llm freeze_vit freeze_vae freeze_und copy_init_moe peak_device_tflops
    """
    text = COMING.split("## The published training scripts")[1].split("\n## ")[0]
    named = {name for line in re.findall(r"^\|.*\|$", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)}
    assert set(arguments.split()) - named == set()

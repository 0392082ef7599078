"""The examples of docs/data.md are read, and its table of reasons names those that there are."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from bagel_mot.data.documents import ImagePart, TextPart
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.published import GroupArgs
from bagel_mot.data.sources.published import PublishedConfig
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_conversations_are_read(tmp_path: Path) -> None:
    (tmp_path / "frames" / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / "frames" / "cat" / f"f_{number}.png")
    mapper = Conversation(folder=tmp_path, sampler=FrameSampler(4, 4))
    images = []
    for line in block("json").splitlines():
        row = json.loads(line)
        if str(row.get("video", "/")).endswith("/"):  # the other one needs a file
            document = mapper(row, RandomDraws(random.Random(0)))
            images.append(sum(isinstance(part, ImagePart) for part in document))
            assert [part.text for part in document if isinstance(part, TextPart) and part.loss] == [
                row["conversations"][-1]["value"]
            ]
    assert images == [1, 2, 3, 0]


def test_the_recipe_section_is_one() -> None:
    section = yaml.safe_load(block("yaml"))["data"]
    config = PublishedConfig(**section)
    assert config.config == Path("data/configs/example.yaml")
    with pytest.raises(DataError):
        config.groups()


def test_every_key_of_the_yaml_file_is_in_the_table() -> None:
    table = PAGE.split("| key of the YAML file |")[1].split("\n\n")[0]
    assert {
        key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    } == {*GroupArgs.__dataclass_fields__}


def test_every_reason_is_in_the_table() -> None:
    """Reasons that the code gives as they are, such as SkipRow("no text with loss"), are found in the page's words."""
    table = PAGE.split("## What is left out, and why")[1].split("\n## ")[0].replace("`", "")
    tasks = Path(__file__).parents[2] / "bagel_mot" / "data"
    words = set(re.findall(r"\w+", table))
    for path in [*tasks.rglob("*.py")]:
        for reason in re.findall(r'(?:SkipRow|BrokenRow)\(\s*"([^"{}]+)"', path.read_text(encoding="utf-8")):
            missing = set(re.findall(r"\w+", reason)) - words
            assert not missing, f"{path.name}: {reason!r} is not in the table: {missing}"

"""What a small checkpoint says that it knows, and the hint that a prompt is outside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel_mot.cli.weights import print_hint
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.errors import CheckpointError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.scope import Scope, read_scope

WORLD = Scope("a toy world", ("a", "red", "car", "yes", "no"))


@pytest.mark.parametrize("text", ["a red car", "A RED car, yes!", "", "3 × 4", "a car?\n"])
def test_known_words_give_no_hint(text: str) -> None:
    assert WORLD.hint(text) is None
    assert Scope("anything").hint("whatever it may be") is None


def test_a_hint_names_the_first_unknown_words() -> None:
    assert WORLD.hint("a red corgi") == "this model has never read 'corgi': it knows a toy world."
    assert WORLD.hint("corgi, corgi, a cat and a dog") == (
        "this model has never read 'corgi', 'cat', 'and', …: it knows a toy world."
    )
    assert "'一辆红色的汽车'" in str(WORLD.hint("一辆红色的汽车"))


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "bagel_scope.yaml"
    assert read_scope(path) is None
    path.write_text(WORLD.to_yaml(), encoding="utf-8")
    assert read_scope(path) == WORLD
    path.write_text("about: 5", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no keys but"):
        read_scope(path)
    path.write_text("about: [", encoding="utf-8")
    with pytest.raises(CheckpointError, match="could not be read as YAML"):
        read_scope(path)


def test_mini_knows_the_words_of_its_world() -> None:
    assert read_scope(MINI_FOLDER / "bagel_scope.yaml") == MiniConfig().open(0).scope()


def test_the_model_and_the_command_line_hint(capfd: pytest.CaptureFixture[str]) -> None:
    mini = Bagel.from_pretrained("mini")
    assert mini.hint("two red cars at night") is None
    assert "'corgi'" in str(mini.hint("a photo of a corgi"))
    assert "64×64" in str(mini.hint("一辆红色的汽车"))
    print_hint(mini, "a red car", "a dragon", "a corgi")
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("note: this model has never read 'dragon'")
    assert err.count("\n") == 1

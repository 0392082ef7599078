"""Criterion texts: those that are shipped are the recorded ones, others are found in files by their hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bagel_mot.errors import DataError
from bagel_mot.evaluation.judges.texts import find_texts, sha256_of, shipped_texts

GOLDEN = Path(__file__).parents[2] / "golden-eval"


@pytest.mark.parametrize("benchmark", ["gedit", "kris"])
def test_shipped_texts_are_the_recorded_ones(benchmark: str) -> None:
    templates = json.loads((GOLDEN / benchmark / "requests.json").read_text())["templates"]
    texts = shipped_texts(benchmark)
    assert {name: sha256_of(text) for name, text in texts.items()} == {
        Path(facts["file"]).stem: facts["sha256"] for facts in templates.values()
    }


TEXTS = {"a": "\nRate {x} from 1 to 5.\n", "b": "Is “{y}” there?", "c": "Sum {row['n']}\tup"}
WANTED = {name: sha256_of(text) for name, text in TEXTS.items()}


def test_texts_are_found_by_their_hash_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    code = f"import missing\nclass A:\n    def f(self):\n        return {TEXTS['a']!r}\n"
    code += "row = 1\nt = f\"Sum {row['n']}\\tup\"\n"
    (tmp_path / "deep" / "judge.py").write_text(code)
    (tmp_path / "prompts.json").write_text(json.dumps({"one": ["other", {"two": TEXTS["b"]}]}))
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe\x00")
    assert find_texts(tmp_path, WANTED, "the repository") == TEXTS


def test_missing_texts_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS["a"])
    with pytest.raises(DataError, match=r"lacks 2 of the 3 texts .*\(b, c\).*get the repository.*--judge-texts"):
        find_texts(tmp_path, WANTED, "the repository")
    (tmp_path / "a.txt").write_text(TEXTS["a"] + " ")
    with pytest.raises(DataError, match=r"lacks 3 of the 3"):
        find_texts(tmp_path, WANTED, "the repository")


def test_other_forms_of_a_string_are_tried(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS["a"])
    wanted = {"a": sha256_of(TEXTS["a"].replace("{x}", "<<X>>"))}
    found = find_texts(tmp_path, wanted, "it", forms=lambda text: (text.replace("{x}", "<<X>>"),))
    assert found["a"] == "\nRate <<X>> from 1 to 5.\n"

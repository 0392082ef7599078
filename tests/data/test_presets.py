"""Public data sets by name: a miniature of each layout is read, every row, and every image opens."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.documents import OPENERS, Document, FramesPart, ImagePart, TextPart, opened
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.public import PUBLIC_DATA
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.errors import DataError
from tests.data import miniatures
from tests.data.miniatures import MINIATURES

pytest.importorskip("pyarrow")

# The document of the first row: T a text, *T* one that is learnt; N, C, V the forms of an image. (x) may be dropped.
SHAPES = {
    "t2i": "(T) N",
    "edit": "(C) (V) (T) N",
    "session": "(C) (V) (T) N",
    "think": "T C V T *T* N",
    "trace": "T V *T* N C V *T*",
    "steps": "T C V T *T* N C V *T*",
    "messages": "(T) N",
}
OTHERS = {
    "echo-4o-image-edit": "(C) (V) (C) (V) (T) N",
    "x2i": "(C) (V) (C) (V) (T) N",
    "llava-onevision": "V T *T*",
    "llava-next": "V T *T*",
    "mmdu": "V V T *T*",
    "mammoth-vl": "V T *T*",
}


def shape(document: Document) -> str:
    words = []
    for part in document:
        assert not isinstance(part, FramesPart)
        if isinstance(part, TextPart):
            word = "*T*" if part.loss else "T"
            words.append(f"({word})" if part.droppable else word)
        else:
            given = [name for name, there in (("C", part.vae), ("V", part.vit)) if there]
            words += ["N"] * part.target + [f"({name})" if part.droppable else name for name in given]
    return " ".join(words)


def documents(config: RowsConfig, draws: int = 0) -> list[Document]:
    """Every row's document; the data set goes to another process first."""
    dataset = pickle.loads(pickle.dumps(config.dataset()))
    rng = random.Random(draws)
    return [
        dataset.document(row, RandomDraws(rng))
        for unit in range(len(dataset.reader.units()))
        for _, row in dataset.rows(unit)
    ]


def levels(document: Document) -> list[int]:
    """The level of each image, which opens."""
    images = [opened(part.image, OPENERS["upright"]) for part in document if isinstance(part, ImagePart)]
    return [image.getpixel((3, 3))[0] for image in images]  # type: ignore[index]


def test_every_public_data_set_has_a_miniature_and_a_licence() -> None:
    assert list(MINIATURES) == list(PUBLIC_DATA)
    assert all(preset.licence and preset.layout and preset.where for preset in PUBLIC_DATA.values())


@pytest.mark.parametrize("name", PUBLIC_DATA)
def test_a_miniature_of_each_public_data_set_is_read(name: str, tmp_path: Path) -> None:
    MINIATURES[name](tmp_path)
    config = read_source_config({"source": name, "path": str(tmp_path)})
    assert isinstance(config, RowsConfig)
    found = documents(config)
    assert found
    wanted = OTHERS.get(name) or SHAPES[PUBLIC_DATA[name].task]
    if PUBLIC_DATA[name].task == "session":  # two steps are another shape
        assert {shape(document) for document in found} <= {wanted, "(C) (V) (T) N (C) (V) (T) N"}
    else:
        assert shape(found[0]) == wanted
    for document in found:
        levels(document)


def test_turns_of_magicbrush_are_sessions(tmp_path: Path) -> None:
    MINIATURES["magicbrush"](tmp_path)
    config = read_source_config({"source": "magicbrush", "path": str(tmp_path)})
    assert isinstance(config, RowsConfig)
    seen = set()
    for seed in range(60):
        found = documents(config, seed)
        assert len(found) == 2
        words = " ".join(part.text for part in found[0] if isinstance(part, TextPart))
        seen.add((words, *levels(found[0])))
        assert (found[1][1].text, *levels(found[1])) == ("step 1 of 2", 20, 21)  # type: ignore[union-attr]
    one = {(f"step {n} of 1", 9 + n, 10 + n) for n in (1, 2, 3)}
    two = {(f"step {n} of 1 step {n + 1} of 1", 9 + n, 10 + n, 11 + n) for n in (1, 2)}
    joined = {("step 1 of 1. step 2 of 1.", 10, 12), ("step 2 of 1.", 11, 12)}  # as the published rule has it
    assert seen == one | two | joined
    with pytest.raises(ValueError, match="session_id and turn are the two columns"):
        read_source_config({"source": "magicbrush", "path": str(tmp_path), "turn": None})


def test_sessions_run_backwards_with_the_inverse_instructions(tmp_path: Path) -> None:
    MINIATURES["seed-data-edit"](tmp_path)
    config = read_source_config({"source": "seed-data-edit", "path": str(tmp_path)})
    seen = set()
    for seed in range(60):
        document = documents(config, seed)[0]  # type: ignore[arg-type]
        texts = [part.text for part in document if isinstance(part, TextPart)]
        seen.add((tuple(texts), tuple(levels(document))))
    assert (("step 1",), (0, 1)) in seen
    assert (("undo 2",), (2, 1)) in seen
    assert (("undo 2", "undo 1"), (2, 1, 0)) in seen
    assert all((levels == tuple(sorted(levels))) == texts[0].startswith("step") for texts, levels in seen)


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    miniatures.parquet(tmp_path / "a.parquet", [{"src_image": miniatures.struct(), "edited": 1, "edit_prompt": "dark"}])
    with pytest.raises(
        DataError,
        match=r"nhr-edit \(its columns are set from a description\): there is no column source_image, which is to hold "
        r"the before; .*There are src_image, edited, edit_prompt \(data.before names it\)",
    ):
        read_source_config({"source": "nhr-edit", "path": str(tmp_path)}).open(0).groups()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"source": "blip3o-60"}, "source is 'blip3o-60', which no public data set has; did you mean blip3o-60k?"),
        ({"kind": "jsonl", "task": "t2i", "before": "x"}, "before is no column of the task t2i, which has image, cap"),
        ({"kind": "jsonl", "task": "t2"}, "task is 't2'; did you mean t2i?"),
    ],
)
def test_sections_that_make_no_sense_are_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        read_source_config(section)


def test_a_data_set_that_is_to_be_downloaded_says_how() -> None:
    with pytest.raises(DataError, match="give the folder of blip3o-60k, which `hf download BLIP3o/BLIP3o-60k .*` down"):
        read_source_config({"source": "blip3o-60k"}).open(0)

"""`bagel data`: the walk over a recipe's data, the page of packed samples, and the list of public sets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bagel_mot.cli import app
from bagel_mot.data.public import PUBLIC_DATA
from bagel_mot.errors import DataError
from bagel_mot.training import first_rows
from bagel_mot.training.data_check import DataCheck
from bagel_mot.training.first_rows import check_first_rows
from bagel_mot.training.open_data import open_data
from bagel_mot.training.profiles import load_recipe
from bagel_mot.training.recipe import BagelRecipe
from tests.data.miniatures import MINIATURES, image_bytes, image_file, jsonl, tar

runner = CliRunner()
RECIPE = "kind: bagel\ninit: mini\noutput: run\nsteps: 1\ndevice: cpu\npack: {und: 512, gen: 64}\ndata: DATA\n"


def recipe(folder: Path, data: Any, *overrides: str) -> BagelRecipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.replace("DATA", json.dumps(data)))
    loaded = load_recipe(file, overrides)
    assert isinstance(loaded, BagelRecipe)
    return loaded


def some_rows(folder: Path) -> dict[str, Any]:
    """Twenty-three rows: twenty are right, one lacks its image, one is no JSON, one is too long for a pack."""
    rows: list[Any] = []
    for number in range(20):
        image_file(folder / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "caption": "a cat " * (1 + number)})
    rows += [{"image": "none.png", "caption": "a dog"}, {"image": "0.png", "caption": "word " * 600}]
    file = jsonl(folder / "rows.jsonl", rows)
    with open(file, "a", encoding="utf-8") as opened:
        opened.write("{broken\n")
    return {"kind": "jsonl", "task": "t2i", "path": str(file)}


def test_every_row_is_counted_with_its_tokens_or_its_reason(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, some_rows(tmp_path))
    data = open_data(loaded)
    walk = DataCheck(data, 0)
    told: list[tuple[int, int | None]] = []
    walk.run(lambda done, total: told.append((done, total)))
    report = walk.report()
    assert told == [(number, 23) for number in range(1, 24)]
    assert report["complete"]
    (found,) = report["datasets"]
    assert (found["rows"], found["checked"], found["usable"]) == (23, 23, 20)
    assert found["skipped"] == {"an image cannot be read": 1, "larger than a pack": 1, "a line is no JSON": 1}
    (place,) = (row["place"] for row in found["skipped_rows"] if row["reason"] == "a line is no JSON")
    assert place.endswith("rows.jsonl, line 23")
    assert found["documents"] == {"T N": 20}
    # The tokens by another way: ids and their two marks, patches and theirs.
    texts = [len(data.tokenizer.encode("a cat " * (1 + number))) + 2 for number in range(20)]
    width, height = data.builder.vae_transform.size(16, 16)
    image = width * height // data.builder.latent_stride**2 + 2
    tokens = [text + image for text in texts]
    assert found["tokens"]["an_epoch"] == round(sum(tokens) * 23 / 23) == report["tokens_an_epoch"]
    assert (found["tokens"]["least"], found["tokens"]["most"]) == (min(tokens), max(tokens))
    assert sum(found["tokens"]["histogram"].values()) == 20
    assert all(sum(int(m) // 2 < t <= int(m) for t in tokens) == n for m, n in found["tokens"]["histogram"].items())
    assert found["images"] == {"count": 20, "shortest_side": 16, "longest_side": 16, "sizes": {"16x16": 20}}


def test_workers_and_limits_change_nothing_else(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, some_rows(tmp_path))
    walks = [DataCheck(open_data(loaded), 0, workers) for workers in (0, 2)]
    for walk in walks:
        walk.run()
    assert walks[0].report() == walks[1].report()
    part = DataCheck(open_data(loaded), 0, limit=5)
    part.run()
    (found,) = part.report()["datasets"]
    assert (found["checked"], found["rows"]) == (5, 23)
    assert found["tokens"]["an_epoch"] == round(found["tokens"]["mean"] * 23)
    assert not part.report()["complete"]


def test_the_mixture_of_the_toy_world_and_files_is_walked(tmp_path: Path) -> None:
    data = [{"kind": "mini", "weight": 1}, {**some_rows(tmp_path), "weight": 2}]
    walk = DataCheck(open_data(recipe(tmp_path, data)), 0, limit=4)
    walk.run()
    report = walk.report()
    assert [one["checked"] for one in report["datasets"]] == [4, 4]
    assert report["tokens_an_epoch"] is None  # the toy world never ends


def test_a_file_that_breaks_off_is_told_and_the_walk_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pyarrow.table({"image": [image_bytes(n) for n in range(200)], "caption": ["a"] * 200})
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, file, row_group_size=100, compression="none", use_dictionary=False)
    chunk = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 64] = b"\xff" * 64
    file.write_bytes(content)
    walk = DataCheck(open_data(recipe(tmp_path, {"kind": "parquet", "task": "t2i", "path": str(file)})), 0)
    walk.run()
    (found,) = walk.report()["datasets"]
    assert (found["rows"], found["checked"], found["usable"]) == (200, 100, 100)
    (sentence,) = found["unreadable"]
    assert "is damaged in row group 1" in sentence
    assert not walk.report()["complete"]


def check(*arguments: str) -> Any:
    return runner.invoke(app, ["data", *arguments])


def test_the_command_prints_and_writes_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    recipe(tmp_path, some_rows(tmp_path / "rows"))
    result = check("check", str(tmp_path / "recipe.yaml"), "--json", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    assert "23; 20 usable, 3 left out" in result.stdout
    assert "left out: 1 × larger than a pack" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["datasets"][0]["usable"] == 20


def test_an_interruption_tells_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tmp_path, some_rows(tmp_path))
    real = DataCheck.run

    def run(self: DataCheck, progress: Callable[..., None]) -> None:
        def told(done: int, total: int | None) -> None:
            if done == 7:
                raise KeyboardInterrupt

        real(self, told)

    monkeypatch.setattr(DataCheck, "run", run)
    result = check("check", str(tmp_path / "recipe.yaml"), "--json", "-")
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert (report["interrupted"], report["datasets"][0]["checked"]) == (True, 7)


def test_a_public_set_takes_the_place_of_a_recipes_folder(tmp_path: Path) -> None:
    MINIATURES["seed-data-edit"](tmp_path / "seed")
    result = check(
        "check", "finetune/edit", "data.source=seed-data-edit", f"data.path={tmp_path / 'seed'}", "-c", "mini"
    )
    assert result.exit_code == 0, result.output
    assert "CC-BY-NC-4.0" in result.stdout
    assert "1 usable" in result.stdout


def test_the_page_shows_segments_losses_and_images(tmp_path: Path) -> None:
    image_file(tmp_path / "rows" / "a.png", 200)
    parts = [
        [{"image": "a.png"}, {"text": "what is <this>?"}, {"text": "a gray wall", "loss": True, "starts_image": True}],
        [{"text": "a wall"}, {"image": "a.png", "target": True}],
    ]
    jsonl(tmp_path / "rows" / "rows.jsonl", [{"parts": one} for one in parts])
    recipe(tmp_path, {"kind": "jsonl", "task": "parts", "path": str(tmp_path / "rows")})
    out = tmp_path / "sheet.html"
    result = check("show", str(tmp_path / "recipe.yaml"), "--n", "4", "--out", str(out))
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert page.count('<div class="sample">') == 4
    assert "what is &lt;this&gt;?" in page
    assert "<mark>a gray wall⏎</mark>" in page
    assert '<mark class="next">→ an image starts</mark>' in page
    assert page.count('<span class="tag N">N, loss</span>') >= 1
    assert page.count('<span class="tag V">V</span>') >= 1
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing beside it is needed


def test_public_sets_are_listed() -> None:
    result = check("list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in PUBLIC_DATA)
    listed = json.loads(check("list", "--json", "-").stdout)
    assert [one["name"] for one in listed] == list(PUBLIC_DATA)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "folder", "path": "{tmp}/empty"}, "empty has no image"),
        ({"source": "blip3o-60k"}, "give the folder of blip3o-60k"),
        ({"source": "blip3o-60k", "path": "{tmp}/tars"}, "ends in the middle of|is no tar, or damaged"),
        ({"kind": "jsonl", "task": "t2i", "path": "{tmp}/empty/rows.jsonl"}, "but there is no such file"),
    ],
)
def test_bad_data_end_in_one_sentence(data: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = tar(tmp_path / "tars" / "a.tar", {"a.jpg": bytes(20_000)})
    file.write_bytes(file.read_bytes()[:9_000])
    recipe(tmp_path, {key: value.replace("{tmp}", str(tmp_path)) for key, value in data.items()})
    for command in (["check"], ["show", "--out", str(tmp_path / "sheet.html")]):
        result = check(*command, str(tmp_path / "recipe.yaml"))
        assert result.exit_code == 2
        assert re.search(said, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "sheet.html").exists()


NOTHING: dict[str, tuple[dict[str, Any], str]] = {
    "no captions": (
        {"kind": "folder", "task": "t2i", "path": "{tmp}/bare"},
        r"none of the 2 rows of .*/bare can be used, so there is nothing to train on; .*/0\.png: there is no 0\.txt",
    ),
    "broken images": (
        {"kind": "folder", "path": "{tmp}/broken"},
        r"the only row of .*/broken cannot be used, .*/a\.png: the picture .* is truncated or damaged",
    ),
    "long captions": (
        {"kind": "folder", "path": "{tmp}/long"},
        r"/long cannot be used, .*it needs \d+ und and \d+ gen slots, and an empty row has 512 and 64: enlarge the ",
    ),
    "URLs": (
        {"kind": "jsonl", "task": "t2i", "path": "{tmp}/urls.jsonl"},
        r"none of the 2 rows of urls can be used.*line 1: the image http://nowhere/a\.png is a URL",
    ),
    "no rows": ({"kind": "parquet", "task": "t2i", "path": "{tmp}/none.parquet"}, "the data of none have no rows"),
    "nulls": (
        {"kind": "jsonl", "task": "t2i", "path": "{tmp}/nulls.jsonl"},
        r"the column caption, which is to hold the caption, is empty in the first 2 rows \(data\.caption names",
    ),
    "the web": (
        {"kind": "jsonl", "task": "t2i", "path": "https://nowhere/a.jsonl"},
        r"data\.path is https://nowhere/a\.jsonl; files are read from this machine and from stores",
    ),
    "a store's folder": (
        {"kind": "folder", "path": "s3://bucket/images"},
        "s3://bucket/images is an address; a folder of this machine is expected",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_data_that_train_nothing_are_refused_before_the_model_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for image in ("bare/0", "bare/1", "broken/a", "long/a"):
        image_file(tmp_path / f"{image}.png", 1)
    (tmp_path / "broken" / "a.png").write_bytes((tmp_path / "broken" / "a.png").read_bytes()[:60])
    (tmp_path / "broken" / "a.txt").write_text("a cat")
    (tmp_path / "long" / "a.txt").write_text("word " * 600)
    jsonl(tmp_path / "urls.jsonl", [{"image": "http://nowhere/a.png", "caption": "a cat"}] * 2)
    jsonl(tmp_path / "nulls.jsonl", [{"image": "bare/0.png", "caption": None}] * 2)
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    parquet.write_table(schema.empty_table(), tmp_path / "none.parquet")
    data, said = NOTHING[name]
    content = {key: value.replace("{tmp}", str(tmp_path)) for key, value in data.items()}
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("DATA", json.dumps(content)).replace("output: run", f"output: {tmp_path / 'run'}"))
    monkeypatch.setattr("bagel_mot.training.beginning.load_checkpoint", None)  # which would be called
    for command in (["train", str(file)], ["data", "check", str(file)]):
        result = runner.invoke(app, command)
        assert result.exit_code == 2
        assert re.search(said, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_group_is_refused_only_where_all_of_its_rows_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": f"{number}.png", "caption": "a cat"} for number in range(5)]
    data = {"kind": "jsonl", "task": "t2i", "path": str(jsonl(tmp_path / "rows.jsonl", rows))}
    loaded = recipe(tmp_path, data)
    with pytest.raises(DataError, match=r"none of the 5 rows of rows can be used.*line 1: the picture .*0\.png"):
        check_first_rows(open_data(loaded), 0)
    monkeypatch.setattr(first_rows, "_ROWS", 4)
    check_first_rows(open_data(loaded), 0)
    monkeypatch.undo()
    image_file(tmp_path / "3.png", 1)
    check_first_rows(open_data(loaded), 0)


def test_a_recipe_of_an_autoencoder_has_no_samples() -> None:
    result = check("check", "mini-autoencoder")
    assert result.exit_code == 2
    assert "trains an autoencoder" in result.stderr

"""Readers of Parquet and JSONL files: every row in order, from any row on, and broken files in a sentence."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.readers.base import BrokenRow, Reader
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader, parquet_files
from bagel_mot.errors import DataError

pyarrow = pytest.importorskip("pyarrow")


def parquet(path: Path, rows: int, group: int, **extra: Any) -> Path:
    import pyarrow.parquet

    table = pyarrow.table({"n": list(range(rows)), "names": [["a", str(n)] for n in range(rows)], **extra})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def every_row(reader: Reader) -> list[list[Any]]:
    return [list(reader.read(unit)) for unit in range(len(reader.units()))]


@pytest.mark.parametrize(("by", "units"), [("file", [150, 3]), ("row group", [70, 70, 10, 3])])
def test_parquet_is_read_by_file_or_row_group_from_any_row(tmp_path: Path, by: Any, units: list[int]) -> None:
    files = [parquet(tmp_path / "a.parquet", 150, 70), parquet(tmp_path / "b.parquet", 3, 70)]
    reader = pickle.loads(pickle.dumps(ParquetReader(files, ["n", "names"], by)))
    assert [unit.rows for unit in reader.units()] == units
    rows = every_row(reader)
    assert [len(unit) for unit in rows] == units
    assert [row["n"] for unit in rows for row in unit] == [*range(150), *range(3)]
    assert rows[0][5] == {"n": 5, "names": ["a", "5"]}
    for start in (0, 1, 63, 64, 69, 70, 71, 149, 150):
        assert list(reader.read(0, start)) == rows[0][start:]
    assert reader.row(len(units) - 1, 2)["n"] == 2
    assert reader.place(0, 69) == f"{files[0]}, row group 0, row 69"


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", 2, 2)
    assert list(ParquetReader([file], ["n"]).read(0)) == [{"n": 0}, {"n": 1}]
    assert list(ParquetReader([file]).read(0))[1] == {"n": 1, "names": ["a", "1"]}


def test_unusable_parquet_is_one_sentence(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", 2, 2)
    with pytest.raises(DataError, match=r"a\.parquet has no column image; there are n, names"):
        ParquetReader([file], ["image"]).units()
    for content, said in [(b"PAR1", "could not be read as Parquet"), (None, "No such file")]:
        broken = tmp_path / "broken.parquet"
        broken.unlink(missing_ok=True)
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(DataError, match=said):
            ParquetReader([broken]).units()
    damaged = bytearray(file.read_bytes())
    damaged[4:60] = bytes(56)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"damaged\.parquet is damaged in row group 0"):
        list(ParquetReader([tmp_path / "damaged.parquet"]).read(0))
    with pytest.raises(DataError, match=r"has no \.parquet file in it"):
        parquet_files(tmp_path / "..")
    with pytest.raises(DataError, match="cannot be read"):
        parquet_files(tmp_path / "missing")


def lines(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_jsonl_is_read_from_any_line_and_bad_lines_count(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", b'{"n": 0}\n\n{"n": 2}\r\n{"n": \n[4]\n{"n": "\xc3\xa9"}')
    reader = pickle.loads(pickle.dumps(JsonlReader([file, lines(tmp_path / "b.jsonl", b'{"n": 6}\n')])))
    assert [unit.rows for unit in reader.units()] == [6, 1]
    rows = list(reader.read(0))
    assert [row.get("n") for row in rows] == [0, None, 2, None, None, "é"]
    assert [row.reason for row in rows if isinstance(row, BrokenRow)] == [
        *("a blank line", "a line is no JSON", "a line is no JSON object"),
    ]
    assert pickle.loads(pickle.dumps(rows[1])).sentence == rows[1].sentence
    for start in range(7):
        assert list(reader.read(0, start)) == rows[start:]
    assert reader.place(0, 3) == f"{file}, line 4"
    assert reader.random_access


def test_a_limit_takes_the_first_lines_or_random_ones(tmp_path: Path) -> None:
    content = b"".join(json.dumps({"n": n}).encode() + b"\n" for n in range(20))
    file = lines(tmp_path / "a.jsonl", content)
    assert [row["n"] for row in JsonlReader([file], [7]).read(0)] == list(range(7))
    assert len(list(JsonlReader([file], [50], 3).read(0))) == 20
    order = list(range(20))
    random.Random(3).shuffle(order)
    reader = JsonlReader([file], [7], 3)
    assert [row["n"] for row in reader.read(0)] == sorted(order[:7])
    assert reader.place(0, 2) == f"{file}, line {sorted(order[:7])[2] + 1}"


def test_unusable_jsonl_is_one_sentence(tmp_path: Path) -> None:
    for content, said in [(None, "cannot be read"), (b"", "is empty"), (b"<!doctype html>", "is a web page")]:
        file = tmp_path / "x.jsonl"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=said):
            JsonlReader([file]).units()

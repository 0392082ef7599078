"""Reading benchmarks as they are on disk: whole, cut off, missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.errors import DataError, ImageError
from bagel_mot.evaluation import data

pytest.importorskip("pyarrow")
pytest.importorskip("openpyxl")


def png(color: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", size, color).save(kept, "PNG")
    return kept.getvalue()


def test_a_table_may_hold_line_ends_quotes_and_long_images(tmp_path: Path) -> None:
    long = "A" * 300_000
    (tmp_path / "t.tsv").write_text(f'index\thint\timage\n1\t"one\n""two"""\t{long}\n', encoding="utf-8-sig")
    assert data.read_table(tmp_path / "t.tsv", columns=["index", "image"]) == [
        {"index": "1", "hint": 'one\n"two"', "image": long}
    ]
    (tmp_path / "t.csv").write_text("a,b\n1,\n\n")
    assert data.read_table(tmp_path / "t.csv") == [{"a": "1", "b": ""}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a\tb\n1\t2\n3\n", "line 3: the row has 1 cell, the heading 2"),
        ("a\tc\n1\t2\n", "lacks 'b'; there are a, c"),
        ("", "is empty"),
        ("<html><body>403", "web page"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(DataError, match=says):
        data.read_table(tmp_path / "t.tsv", columns=["b"])


def test_json_and_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert data.read_json_file(tmp_path / "a.json") == [1, 2]
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    assert data.read_json_lines(tmp_path / "a.jsonl", columns=["x"]) == [{"x": 1}, {"x": 2}]
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"y": 2}\n')
    with pytest.raises(DataError, match="line 2 lacks 'x'"):
        data.read_json_lines(tmp_path / "b.jsonl", columns=["x"])
    (tmp_path / "c.jsonl").write_text('{"x": 1}\n{"x": 2')
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: the line is no JSON"):
        data.read_json_lines(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        data.read_json_file(tmp_path / "none.json")


def test_images_of_parquet_files_are_read_when_they_are_opened(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": n, "image": {"bytes": png(size=(n + 1, 2)), "path": None} if n != 2 else None} for n in range(5)]
    rows[4]["image"] = {"bytes": b"not an image", "path": None}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=2)
    read = data.read_parquet([tmp_path / "p.parquet"], columns=["id"], images=["image"])
    assert [row["id"] for row in read] == [0, 1, 2, 3, 4]
    assert read[2]["image"] is None
    assert [data.open_input(read[n]["image"]).size for n in (3, 0, 1)] == [(4, 2), (1, 2), (2, 2)]
    with pytest.raises(ImageError):
        data.open_input(read[4]["image"])
    with pytest.raises(DataError, match="lacks 'picture'; there are id, image"):
        data.read_parquet([tmp_path / "p.parquet"], images=["picture"])


def test_base64_images() -> None:
    text = base64.b64encode(png()).decode()
    assert data.open_input(data.Base64Image(text, "here")).size == (4, 3)
    assert data.open_input(data.Base64Image(f"data:image/png;base64,{text}", "here")).size == (4, 3)
    with pytest.raises(ImageError, match="row 3: the image is not base64"):
        data.Base64Image("abc", "row 3")()


def test_completeness_names_what_is_missing(tmp_path: Path) -> None:
    data.require_complete("MME", {"count": 60}, {"count": 60})
    with pytest.raises(DataError, match=r"MME is not complete.*count 6 of 60, OCR 0 of 40\."):
        data.require_complete("MME", {"count": 6, "color": 60}, {"count": 60, "color": 60, "OCR": 40})
    with pytest.raises(DataError, match="extra 1 of 0"):
        data.require_complete("MME", {"count": 60, "extra": 1}, {"count": 60})
    data.require_complete("MME", {"count": 6}, {"count": 60}, partial=True)
    with pytest.raises(DataError, match="holds no item"):
        data.require_complete("MME", {"count": 0}, {"count": 60}, partial=True)
    names = [tmp_path / f"{n}.jpg" for n in range(5)]
    with pytest.raises(DataError, match=r"MME lacks 5 images: .*0\.jpg, .*1\.jpg, .*2\.jpg and 2 more\."):
        data.require_complete("MME", {"count": 6}, {"count": 60}, files=names, partial=True)


def test_locating(tmp_path: Path) -> None:
    (tmp_path / "MMVP").mkdir()
    assert data.locate(tmp_path, "MMVP", ".") == tmp_path / "MMVP"
    assert data.locate(tmp_path / "MMVP", "MMVP", ".") == tmp_path / "MMVP" / "."
    with pytest.raises(DataError, match=r"lacks Questions\.csv \(nor q\.csv\)"):
        data.locate(tmp_path, "Questions.csv", "q.csv")
    with pytest.raises(DataError, match="is not a folder"):
        data.locate(tmp_path / "none", "x")
    with pytest.raises(DataError, match=r"lacks \*\.parquet"):
        data.files_like(tmp_path, "*.parquet")


def test_an_excel_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.xlsx"
    data.write_xlsx(path, ["index", "prediction", "answer"], [[1, "=A1+1", None], [2, "蓝色\x0b.", "B"]])
    assert data.read_xlsx(path) == [
        {"index": 1, "prediction": "=A1+1", "answer": None},
        {"index": 2, "prediction": "蓝色.", "answer": "B"},
    ]
    (tmp_path / "broken.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read as xlsx"):
        data.read_xlsx(tmp_path / "broken.xlsx")

"""Turns of sessions, read as sessions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.readers.base import BrokenRow
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.turns import TurnsReader
from bagel_mot.errors import DataError
from tests.data.miniatures import jsonl


def _row(name: str, turn: Any) -> dict[str, Any]:
    return {"id": name, "turn": turn, "text": f"{name}{turn}"}


def test_neighbouring_turns_are_a_session(tmp_path: Path) -> None:
    rows = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("c", 3), ("c", 4), ("a", 1), ("a", 1), ("d", None)]
    file = jsonl(tmp_path / "rows.jsonl", [_row(*row) for row in rows])
    reader = pickle.loads(pickle.dumps(TurnsReader(JsonlReader([file]), "id", "turn")))
    found = [row["text"] for row in reader.read(0)]
    assert found == [["a1", "a2", "a3"], ["b1"], ["c1"], ["c3", "c4"], ["a1"], ["a1"], ["dNone"]]
    assert [row["text"] for row in reader.read(0, 3)] == found[3:]
    assert reader.row(0, 3)["turn"] == [3, 4]
    assert [unit.rows for unit in reader.units()] == [None]
    assert reader.place(0, 3).endswith("rows.jsonl, session 3")


def test_broken_rows_stay_and_missing_columns_are_named(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [_row("a", 1)])
    with file.open("a", encoding="utf-8") as opened:
        opened.write('{"id"\n{"id": "a", "turn": 2, "text": "after"}\n')
    found = list(TurnsReader(JsonlReader([file]), "id", "turn").read(0))
    assert isinstance(found[1], BrokenRow)
    assert [row.get("text") for row in found] == [["a1"], None, ["after"]]
    with pytest.raises(DataError, match="has no column trun; did you mean turn"):
        list(TurnsReader(JsonlReader([file]), "id", "trun").read(0))

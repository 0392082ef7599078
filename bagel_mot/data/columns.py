"""Columns of rows by name, as recipes name them.

A name is the key of a row; or a path to something within: `turns[].text` is the list of the texts in a list of objects,
`data[0].prompt` the text of the first, `meta.caption` that of an inner object; or, with `{}`, columns that are numbered
from 1 on: `edit_image_{}` is edit_image_1, edit_image_2, … up to the last that there is. A path goes into texts of JSON
as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.errors import did_you_mean

_STEP = re.compile(r"([^.\[\]]+)|\[(\d*)\]")


def _parsed(value: Any) -> Any:
    """The content of a text of JSON, where a path goes on within it; another value as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def values_of(row: Row, name: str) -> list[Any]:
    """The values that a column's name means in a row, in order, without nulls; there may be none.

    The items of a list that `[]` goes through are values of their own; a list that is a value by itself is one value.
    """
    if name in row:
        return [] if row[name] is None else [row[name]]
    if "{}" in name:
        found: list[Any] = []
        number = 1
        while (value := row.get(name.format(number))) is not None:
            found.append(value)
            number += 1
        return found
    values: list[Any] = [row]
    for key, place in _STEP.findall(name):
        if key:
            values = [value.get(key) for value in map(_parsed, values) if isinstance(value, Mapping)]
        elif place:
            values = [value[int(place)] for value in values if _is_list(value) and int(place) < len(value)]
        else:
            values = [item for value in values if _is_list(value) for item in value]
        values = [value for value in values if value is not None]
    return values


def all_of(row: Row, names: Iterable[str], what: str) -> list[Any]:
    """The values of several columns, one after the other; lists are taken apart.

    Args:
        row: the row.
        names: the columns' names.
        what: the words for it in messages, such as "a caption".

    Raises:
        SkipRow: there is not a single one.
    """
    values = [value for name in names for value in values_of(row, name)]
    flat = [item for value in values for item in (value if _is_list(value) else [value])]
    if not flat:
        raise missing(row, names, what)
    return flat


def first_of(row: Row, names: Iterable[str], what: str) -> Any:
    """The value of the first of several columns that a row has.

    Raises:
        SkipRow: it has none of them.
    """
    for name in names:
        if values := values_of(row, name):
            return values[0]
    raise missing(row, names, what)


def missing(row: Row, names: Iterable[str], what: str) -> SkipRow:
    """The reason for leaving out a row that lacks columns, or has null in them."""
    wanted = ", ".join(names)
    there = ", ".join(str(key) for key in row if not str(key).startswith("__")) or "no columns at all"
    return SkipRow(f"no {what}", f"the row has no {what} in {wanted}; it has {there}")


def missing_columns(rows: Sequence[Row], wanted: Mapping[str, Sequence[str]]) -> str | None:
    """A sentence about what none of some rows has; None if nothing lacks.

    Args:
        rows: the first rows of a data set.
        wanted: the columns of each role that is needed, such as caption; one of them is enough.
    """
    there = list(dict.fromkeys(str(key) for row in rows for key in row if not str(key).startswith("__")))
    for role, names in wanted.items():
        if not any(values_of(row, name) for row in rows for name in names):
            given = " or ".join(names)
            if empty := next((name for name in names if name in there), None):
                where = f"is empty in the first {len(rows)} rows (data.{role} names another)"
                return f"the column {empty}, which is to hold the {role}, {where}"
            hint = did_you_mean(names[0], there) if there else "there are no columns at all"
            if hint.startswith("did you mean"):
                hint = f"{hint} There are {', '.join(there)}"
            return f"there is no column {given}, which is to hold the {role}; {hint} (data.{role} names it)"
    return None

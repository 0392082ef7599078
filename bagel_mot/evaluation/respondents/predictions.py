"""The answers that another program has written into a table, in place of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, SettingError
from bagel_mot.evaluation.base import Benchmark, Item, ItemResult
from bagel_mot.evaluation.data import named
from bagel_mot.evaluation.respondents.base import Answered
from bagel_mot.evaluation.vlmevalkit import kit_indices, kit_name, read_predictions


class PredictionsRespondent:
    """Answers items with the predictions of a table, whose column `index` holds the ids of items.

    Args:
        path: the table; see `read_predictions`.
        benchmark: the benchmark whose items they answer.
        limit: the number of its items that are run; None takes all.

    Raises:
        SettingError: the benchmark has items that are drawn.
        DataError: the table cannot be read, holds rows that are not in the set, or lacks items that are run.
    """

    def __init__(self, path: Path, benchmark: Benchmark, limit: int | None = None) -> None:
        items, title = benchmark.items(), benchmark.info.title
        check_questions(benchmark, "--predictions")
        self._answers = read_predictions(path)
        known = {item.id for item in items}
        if strange := [index for index in self._answers if index not in known]:
            # VLMEvalKit has several splits of a set in one table, and answers all of them.
            known |= kit_indices(benchmark.info, benchmark.options)
            strange = [index for index in strange if index not in known]
        if strange:
            raise DataError(
                f"{path} holds {len(strange)} rows that are not in {title} (index {named(strange)}): give the data "
                "that its predictions were made from."
            )
        if missing := [item.id for item in items[:limit] if item.id not in self._answers]:
            raise DataError(
                f"{path} lacks {len(missing)} of {len(items[:limit])} items of {title} (index {named(missing)}): it "
                "would not be comparable."
            )
        name = kit_name(benchmark.info, benchmark.options.variant) or benchmark.info.name
        digest = hashlib.sha256("\0".join(f"{key}\0{text}" for key, text in self._answers.items()).encode())
        self.facts: Mapping[str, Any] = {
            "model": path.stem.removesuffix(f"_{name}"),
            "predictions": f"{path.name}, sha256 {digest.hexdigest()[:16]}",
        }

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        return [ItemResult(texts=(self._answers[item.id],), truncated=(False,)) for item in items]


def check_questions(benchmark: Benchmark, option: str) -> None:
    """Checks that a benchmark asks for one text an item, as tables of predictions hold it.

    Raises: SettingError if it does not.
    """
    if any(item.kind != "ask" or len(item.seeds) != 1 for item in benchmark.items()):
        raise SettingError(f"{option} is for benchmarks of questions: {benchmark.info.name} has images drawn.")

"""Understanding benchmarks from their data to the summary, with a model of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel_mot.evaluation.base import Item, ItemResult
from bagel_mot.evaluation.benchmarks.mme import Mme
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.inference.api import Bagel
from tests.evaluation.benchmarks import golden


def test_a_small_model_answers_mme(tmp_path: Path) -> None:
    mme = Mme(golden.options("mme"))
    items = mme.items()[:4]
    respondent = LocalRespondent(Bagel.from_pretrained("mini", device="cpu"), {})
    results = respondent.answer(items, tmp_path)
    assert all(isinstance(result, ItemResult) for result in results), results
    scores = {
        item.id: mme.score(item, result, Judges())
        for item, result in zip(items, results, strict=True)
        if isinstance(result, ItemResult)
    }
    assert mme.aggregate(scores).rows["existence"].count == 4


def test_the_size_that_a_model_cannot_see_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    most = bagel.defaults.vit_transform.max_size
    asked: list[dict[str, object]] = []

    def ask(self: Bagel, images: list[object], questions: list[str], **settings: object) -> list[object]:
        asked.append(settings)
        raise RuntimeError

    monkeypatch.setattr(Bagel, "ask", ask)
    for least in (most, most + 1):
        with pytest.raises(RuntimeError):
            LocalRespondent(bagel, {}).answer([Item("1", "ask", "what?", settings={"vit_min_size": least})], tmp_path)
    assert [settings.get("vit_min_size") for settings in asked] == [most, None]

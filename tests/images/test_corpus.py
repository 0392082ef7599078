"""Odd files of every kind come out with their right pixels, or are refused in their own words."""

from __future__ import annotations

import numpy as np
import pytest

from bagel_mot.errors import ImageError
from bagel_mot.images import open_image
from tests.images.corpus import Case, cases

CASES = cases()


def test_the_corpus_is_large_and_the_same_each_time() -> None:
    assert len(CASES) >= 200
    assert sum(case.pixels is not None for case in CASES) >= 200
    assert [case.data for case in cases()] == [case.data for case in CASES]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_pixels_are_right_or_the_file_is_refused(case: Case) -> None:
    if case.pixels is None:
        with pytest.raises(ImageError, match=case.refusal):
            open_image(case.data)
        return
    got = np.asarray(open_image(case.data)).astype(int)
    assert got.shape == case.pixels.shape
    assert np.abs(got - case.pixels).max() <= case.tolerance

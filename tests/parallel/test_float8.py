"""Float8: refused where there is none, and asked for by names and sizes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bagel_mot.errors import DeviceError
from bagel_mot.parallel.float8 import check_float8, is_converted


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_a_device_without_float8_is_told_in_a_sentence() -> None:
    with pytest.raises(DeviceError, match="parallel.enable_float8 is true, but cpu does not multiply in float8"):
        check_float8(torch.device("cpu"))


def test_big_matrices_alone_are_converted() -> None:
    wide = nn.Linear(32, 64)
    assert is_converted(wide, "und.q")
    assert is_converted(wide, "gen.down")
    assert not is_converted(wide, "lm_head")
    assert not is_converted(nn.Linear(32, 60), "und.q")  # the kernels take sides of multiples of 16
    assert not is_converted(nn.LayerNorm(32), "und.q")

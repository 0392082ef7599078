"""When memory runs out: one sentence, and the others go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bagel import Bagel, MemoryShortageError
from bagel.config import NAMED_CONFIGS
from bagel.placement.plan import Machine, choose, plans
from bagel.placement.shortage import explained, is_out_of_memory

CPU = torch.device("cpu")
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000000 bytes."
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 11.00 GiB")


@pytest.mark.parametrize(
    ("error", "needed"), [(RuntimeError(ALLOCATOR), "5 GB"), (CUDA, "2.68 GB"), (MemoryError(), "more memory")]
)
def test_how_much_was_needed_and_is_free(error: Exception, needed: str) -> None:
    assert is_out_of_memory(error)
    text = str(explained(error, CPU, None))
    assert needed in text
    assert "GB is free now" in text
    assert "precision='int8'" in text


def test_which_plan_would_fit() -> None:
    here = Machine(((CPU, 40 * 10**9),), 40 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("generate", "understand"), precisions=("bfloat16", "int8"))
    chosen = choose(found, here)
    assert chosen.precision.name == "bfloat16"
    text = str(explained(MemoryError(), CPU, chosen, found))
    assert "precision='int8', which takes at most 2" in text


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("shapes do not fit")
    assert explained(error, CPU, None) is error
    shortage = MemoryShortageError("said already")
    assert explained(shortage, CPU, None) is shortage


def test_a_request_without_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    forward = type(bagel.checkpoint.model).forward

    def greedy(model: Any, packed: Any, attend: Any) -> Any:
        if packed.latent_grids and any(rows * columns == 64 for rows, columns in packed.latent_grids):
            raise RuntimeError(ALLOCATOR)
        return forward(model, packed, attend)

    alone = bagel.generate("a red star", seed=1, num_timesteps=3, size=(64, 64))
    monkeypatch.setattr(type(bagel.checkpoint.model), "forward", greedy)
    handles = [
        bagel.submit(["a red star"], seed=1, num_timesteps=3, size=size) for size in ((128, 128), (64, 64), (128, 128))
    ]
    bagel.engine.run_until(handles)
    for handle in (handles[0], handles[2]):
        with pytest.raises(MemoryShortageError, match=r"memory ran out on cpu: 5 GB more was needed"):
            handle.result()
    result = handles[1].result()
    assert result.image is not None
    difference = torch.tensor(list(result.image.tobytes())).int() - torch.tensor(list(alone.tobytes())).int()
    assert difference.abs().max() <= 1  # of 255 grey levels: matmuls of other sizes round otherwise

"""One process of several, or one alone, that takes the same steps divided in several ways and keeps what came out.

Arguments: the recipe as JSON, the cases as JSON (name -> changes of the recipe), and the folder of results.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bagel_mot.config import parse
from bagel_mot.data.sources import mini
from bagel_mot.data.streams import PackStream
from bagel_mot.parallel.launch import launched
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import whole
from bagel_mot.training import sizes
from bagel_mot.training.objective import attention_of
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.run import Run
from bagel_mot.training.tasks.bagel import BagelTask

KINDS = ({"draw": 1.0}, {"ask": 1.0}, {"edit": 1.0}, {"think_answer": 1.0})


class Odd(BagelTask):
    """Its streams differ: images to draw without text to learn, then answers without an image to draw, and so on."""

    def pack_stream(self, number: int, total: int) -> PackStream:
        data = dataclasses.replace(self.recipe.data, mix=KINDS[number % len(KINDS)])  # type: ignore[call-arg]
        return BagelTask(dataclasses.replace(self.recipe, data=data)).pack_stream(number, total)


class Wide(BagelTask):
    """It computes in float64, on the values, noise and latents of float32."""

    def parallelise(self, ranks: Ranks) -> None:
        self.module.double()
        super().parallelise(ranks)
        self._attention = attention_of(self.recipe.attention, self.device, torch.float64)


@contextmanager
def widened(active: bool) -> Iterator[None]:
    """Within it, if active, what is computed in float32 whatever the type of its inputs is computed in float64."""
    narrow = Tensor.float
    if active:
        Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = narrow  # type: ignore[method-assign]


def main(recipe: dict[str, Any], cases: dict[str, dict[str, Any]], folder: str) -> None:
    """Runs all cases."""
    mini._TOKENIZER_TEXTS = 1000
    sizes._ENCODED_IMAGES = 4
    torch.set_num_threads(1)
    with launched() as launch:
        for name, case in cases.items():
            changes = {key: value for key, value in case.items() if key not in ("odd", "touch", "wide")}
            made = parse(BagelRecipe, {**recipe, "output": f"{folder}/unused", **changes}, "recipe")
            ranks = Ranks(made.parallel, torch.device("cpu"), launch)
            unused = getattr(FSDPModule, "set_reduce_scatter_unused_params", None)
            if case.get("touch") and unused is not None:  # as PyTorch 2.12 and earlier, which lack it
                del FSDPModule.set_reduce_scatter_unused_params  # type: ignore[attr-defined]
            wide = bool(case.get("wide"))
            with widened(wide):
                run = Run(made, Wide if wide else Odd if case.get("odd") else BagelTask, ranks)
            if case.get("touch") and unused is not None:
                FSDPModule.set_reduce_scatter_unused_params = unused  # type: ignore[attr-defined]
            with widened(wide):
                for _ in range(made.steps):
                    run.advance()
            steps = run.averages.settle(ranks.sum_over_all)
            tensors = run._tensors()
            if run.optimizers.owned is not None:  # each momentum is whole, in one process
                tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("momentum_buffer")}
            found = {key: whole(tensor) for key, tensor in tensors.items()}
            weights = run._official_weights()
            run.task.close()
            run.saver.close()
            if ranks.first and made.adapters is not None:
                run.task.write_weights(Path(folder) / f"{name} files", weights)
            if ranks.first:
                torch.save({"steps": steps, "tensors": found, "weights": weights}, f"{folder}/{name}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])

"""One process of several that begins runs, divided in several ways, and keeps what it has loaded or made.

Arguments: the recipe as JSON, the cases as JSON (name -> changes of the recipe), and the folder of results.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from bagel_mot.checkpoint.parts import ModelParts
from bagel_mot.config import parse
from bagel_mot.data.sources import mini
from bagel_mot.parallel.launch import launched
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local, whole
from bagel_mot.training.initial import InitialValues
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask

read_bytes = 0


def counting(read: Any) -> Any:
    """The `read` of parts, whose bytes are added up."""

    def counted(self: Any, name: str, offsets: Any, sizes: Any) -> torch.Tensor:
        global read_bytes
        found: torch.Tensor = read(self, name, offsets, sizes)
        assert found.untyped_storage().nbytes() == found.nbytes  # no more than the part
        read_bytes += found.nbytes
        return found

    return counted


def main(recipe: dict[str, Any], cases: dict[str, dict[str, Any]], folder: str) -> None:
    """Begins all cases."""
    global read_bytes
    mini._TOKENIZER_TEXTS = 1000
    for kind in (ModelParts, InitialValues):
        kind.read = counting(kind.read)  # type: ignore[method-assign]
    torch.set_num_threads(1)
    with launched() as launch:
        for name, changes in cases.items():
            made = parse(BagelRecipe, {**recipe, "output": f"{folder}/unused", **changes}, "recipe")
            ranks, read_bytes = Ranks(made.parallel, torch.device("cpu"), launch), 0
            task = BagelTask(made)
            on_meta = sum(p.nbytes for p in task.module.parameters() if p.is_meta)
            task.parallelise(ranks)
            state = task.module.state_dict()
            kept = sum(local(tensor).nbytes for tensor in state.values())
            weights = {key: whole(tensor.detach()).clone() for key, tensor in state.items()}
            task.close()
            print(json.dumps({"read": read_bytes, "kept": kept, "on meta": on_meta}), flush=True)
            if ranks.first:
                torch.save(weights, f"{folder}/{name}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])

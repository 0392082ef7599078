"""The node pack as ComfyUI loads it, and what tests do with its nodes."""

from __future__ import annotations

import functools
import sys
import weakref
from typing import Any

import torch

from bagel_mot import Bagel
from tests.integrations import comfy

clone = comfy.load_pack()
package: Any = sys.modules[f"{clone.__name__}.integrations.comfyui"]
NODES: dict[str, Any] = clone.NODE_CLASS_MAPPINGS
ALL = {**comfy.CORE, **NODES}
QUICK = {"num_timesteps": 3}


def handle(checkpoint: str = "mini", precision: str = "float32") -> Any:
    """What travels on the socket of a model."""
    return NODES["BagelLoad"]().load(checkpoint, "cpu", precision)[0]


def defaults(node: str, **changed: Any) -> dict[str, Any]:
    """The values of a node's widgets as they stand when it is new."""
    known = comfy.inputs_of(NODES[node])
    return {name: options["default"] for name, (kind, options) in known.items() if comfy.is_widget(kind)} | changed


def collected(node: str, **changed: Any) -> dict[str, Any]:
    return NODES[node]().collect(**defaults(node, **changed))[0]


def call(node: str, **values: Any) -> Any:
    cls = NODES[node]
    with torch.inference_mode():
        return getattr(cls(), cls.FUNCTION)(**values)


def workflow(name: str) -> comfy.Prompt:
    """The prompt of one of the example workflows."""
    return comfy.read_workflow(comfy.PACK / "example_workflows" / f"{name}.json", ALL)


_BAGELS: weakref.WeakSet[Bagel] = weakref.WeakSet()
_made = Bagel.__init__


@functools.wraps(_made)
def _noted(self: Bagel, *args: Any, **more: Any) -> None:
    _BAGELS.add(self)
    _made(self, *args, **more)


Bagel.__init__ = _noted  # type: ignore[method-assign]


def alive() -> int:
    """The number of models in memory that were made since this was imported. Nothing is collected for it: that is the
    nodes' to do.
    """
    return len(_BAGELS)

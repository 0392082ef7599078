"""Activation checkpointing: what a layer keeps for the backward pass, and what it computes again there."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# Cheap to keep for what they cost to compute: matmuls and attention. The elementwise rest is computed again.
_KEPT = {
    "aten::mm", "aten::addmm", "aten::linear", "aten::bmm", "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_fused_attention_overrideable", "_c10d_functional::all_to_all_single",
}  # fmt: skip


def checkpoint_activations(layers: Iterable[nn.Module], kind: str, *, draws: bool = False) -> None:
    """Lets layers compute again in the backward pass what they do not keep.

    With "full" a layer keeps its input alone, for about a third more work; with "selective" also the results of matmuls
    and attention. Names and values of the weights stay as they are.

    Args:
        layers: the layers, changed in place.
        kind: "none", "selective" or "full".
        draws: whether layers draw random numbers, such as those of dropout, which must be the same ones again.
    """
    if kind == "none":
        return
    more: dict[str, Any] = {"context_fn": _selective} if kind == "selective" else {}
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=draws, **more)


def _selective() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    schema = getattr(operator, "_schema", None)  # higher-order operators have none
    name = str(operator) if schema is None else schema.name
    flex = "flex_attention" in name
    return CheckpointPolicy.MUST_SAVE if flex or name in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE

"""Tensors that are sharded among processes: this process's part, the whole, and one like another.

A parameter that FSDP2 or tensor parallelism has divided is a `DTensor`. What is computed element by element, as by the
optimiser, is computed on the local parts: that is exact, and no operation goes through DTensor's dispatch.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is divided among processes."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; the tensor itself if it is not divided."""
    with torch.no_grad():
        return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor: a collective operation of all processes that share it."""
    # PyTorch warns that a tensor which is divided twice along one dimension is gathered in two operations.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    with torch.no_grad():
        return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def as_shard(part: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that is divided as `like` is, as that tensor; in the same memory."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # `DTensor.from_local` would move what is kept in main memory to the device of the mesh.
    meta = TensorMeta(like.shape, like.stride(), part.dtype)
    spec = DTensorSpec(like.device_mesh, like.placements, tensor_meta=meta)  # type: ignore[attr-defined]
    return DTensor(part, spec, requires_grad=False)


def shard_dims(tensor: Tensor) -> dict[str, int]:
    """The dimension along which a tensor is divided, by the name of the mesh dimension; empty if it is not divided."""
    if not is_sharded(tensor):
        return {}
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    names = mesh.mesh_dim_names or ()
    return {name: where.dim for name, where in zip(names, placements, strict=True) if hasattr(where, "dim")}


def place_of(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The place of this process's part in a tensor: its first entry, and its entries, along each axis."""
    if not is_sharded(tensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return tuple(offsets), tuple(sizes)

"""The processes of a run, and what each of them does: the mesh, and the few things that are agreed on by the host.

The mesh has four dimensions, the outermost first: replicas of the model, shards of one replica, shares of a pack's
tokens, shares of the heads. Parameters are sharded over the second and third together.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.parallel.launch import Launch, current

T = TypeVar("T")


class Ranks:
    """This process's place in a run. With one process nothing here communicates.

    Attributes:
        degrees: the degrees of parallelism.
        rank, world: this process's number, and how many there are.
        data_rank: the number of the packs that it takes part in, of `degrees.data`.
        mesh: the mesh over which parameters are sharded: (shard,) or (replicate, shard); None with one process.
        tensor_mesh: the processes that share heads; None with one.
        context_mesh: the processes that share a pack's tokens; None with one.
    """

    def __init__(self, config: ParallelConfig, device: torch.device, launch: Launch | None = None) -> None:
        """Joins the processes. Under a launch of several, a process group is made where there is none.

        Raises:
            RecipeError: the degrees do not fit the number of processes.
        """
        launch = launch or current()
        self.degrees = config.degrees(launch.world)
        self.rank, self.world = launch.rank, launch.world
        self.mesh: Any = None
        self.tensor_mesh: Any = None
        self.context_mesh: Any = None
        self.checkpoint_group: Any = None
        if self.world > 1 or config.enable_cpu_offload:
            self._join(launch, device)

    def _join(self, launch: Launch, device: torch.device) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d
        from torch.distributed.device_mesh import init_device_mesh as init

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            store = launch.store if launch.store is not None else dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(
                backend, store=distributed_c10d.PrefixStore("group", store), rank=self.rank, world_size=self.world
            )
            if launch.store is None:
                atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        degrees = self.degrees
        shape = (degrees.replicate, degrees.shard * degrees.context, degrees.tensor)
        parameters = init(device.type, shape, mesh_dim_names=("dp_replicate", "dp_shard_cp", "tp"))
        names = ("dp_replicate", "dp_shard_cp") if degrees.replicate > 1 else "dp_shard_cp"
        self.mesh = parameters[names]
        self.tensor_mesh = parameters["tp"] if degrees.tensor > 1 else None
        if self.world > 1:
            data = init(
                device.type, (degrees.data, degrees.context, degrees.tensor), mesh_dim_names=("data", "cp", "tp")
            )
            self._data_group = data["data"].get_group()
            self.context_mesh = data["cp"] if degrees.context > 1 else None
            self.checkpoint_group = dist.new_group(backend="gloo")  # saves go on beside the training

    @classmethod
    def alone(cls) -> Ranks:
        """This process by itself, whatever others there are."""
        return cls(ParallelConfig(), torch.device("cpu"), Launch())

    @property
    def first(self) -> bool:
        """Whether this is the process that reads, writes and reports for all."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The number of this process's packs among those that are computed at a time."""
        return self.rank // (self.degrees.context * self.degrees.tensor)

    @property
    def leads_data(self) -> bool:
        """Whether this process is the first of those that compute the same packs."""
        return self.rank % (self.degrees.context * self.degrees.tensor) == 0

    @property
    def context_rank(self) -> int:
        """The number of this process's share of a pack's tokens."""
        return self.rank // self.degrees.tensor % self.degrees.context

    def streams(self, total: int) -> range:
        """The numbers of the streams of data, of `total`, that this process takes its packs from."""
        self.degrees.check_streams(total)
        return range(self.data_rank, total, self.degrees.data)

    def sum_over_data(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Numbers of each process's packs, added up over all packs of the step."""
        if self.degrees.data == 1:
            return dict(numbers)
        return dict(zip(numbers, self._sum(list(numbers.values()), self._data_group), strict=True))

    def sum_over_all(self, numbers: Sequence[float]) -> list[float]:
        """Numbers that each process has a share of, added up over all; those that share heads have the same share."""
        return [n / self.degrees.tensor for n in self._sum(numbers, None)] if self.world > 1 else list(numbers)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return self._sum([float(flag)], None)[0] > 0 if self.world > 1 else flag

    def _sum(self, numbers: Sequence[float], group: Any) -> list[float]:
        import torch.distributed as dist

        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=group)
        return [float(number) for number in total.tolist()]

    def gather(self, part: T) -> list[T]:
        """The parts of all processes, by their numbers."""
        if self.world == 1:
            return [part]
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part)
        return parts

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of a function that the first process alone calls, given to all."""
        if self.world == 1:
            return make()
        import torch.distributed as dist

        made = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    def sum_in_place(self, tensors: Sequence[Tensor], mesh: Any) -> None:
        """Adds tensors up over the processes of a mesh of one dimension, in one message for each type."""
        import torch.distributed as dist

        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for same in by_type.values():
            joined = torch.cat([tensor.flatten() for tensor in same])
            dist.all_reduce(joined, group=mesh.get_group())
            for tensor, part in zip(same, joined.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

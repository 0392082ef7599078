"""Muon over sharded matrices: each is gathered at one owner, which orthogonalises it alone and hands its change back.

An orthogonalisation needs the whole matrix. Instead of gathering every matrix everywhere, the processes of a shard
group share the matrices out: the owner holds the momentum of its matrices, whole, receives their gradients and sends
back how their weights change. So the work is divided, and the momenta take no more memory in all than sharded ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local, shard_dims


def share_out(sizes: Sequence[int], owners: int) -> list[int]:
    """The owner of each of some matrices, so that all owners have about as many numbers to work on: the largest first,
    each to the owner that has least.
    """
    load = [0] * owners
    chosen = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        chosen[index] = min(range(owners), key=load.__getitem__)
        load[chosen[index]] += sizes[index]
    return chosen


class OwnedMuon:
    """`torch.optim.Muon` over matrices that are divided among processes.

    Args:
        matrices: the matrices by name, in the same order in all processes: DTensors, divided by rows over the mesh
            dimension `dp_shard_cp` and, under tensor parallelism, by rows or columns over `tp`.
        rates: the learning rate of each.
        ranks: the processes.
        options: the other numbers of `torch.optim.Muon`.
    """

    def __init__(
        self, matrices: Mapping[str, nn.Parameter], rates: Mapping[str, float], ranks: Ranks, **options: Any
    ) -> None:
        self.matrices, self.rates, self.ranks = dict(matrices), dict(rates), ranks
        shard_mesh = ranks.mesh["dp_shard_cp"] if ranks.mesh.ndim > 1 else ranks.mesh
        self.group, self.size, self.rank = shard_mesh.get_group(), shard_mesh.size(), shard_mesh.get_local_rank()
        owners = share_out([matrix.numel() for matrix in self.matrices.values()], self.size)
        self.owner = dict(zip(self.matrices, owners, strict=True))
        # The change of an own matrix is made in zeros: weight decay is applied by those who hold the weights.
        self.own = {
            name: nn.Parameter(torch.zeros(matrix.shape, dtype=matrix.dtype, device=local(matrix).device))
            for name, matrix in self.matrices.items()
            if self.owner[name] == self.rank
        }
        self.weight_decay = float(options.get("weight_decay", 0.0))
        groups = [{"params": [matrix], "lr": self.rates[name]} for name, matrix in self.own.items()]
        self.optimizer = torch.optim.Muon(groups, **{**options, "weight_decay": 0.0}) if groups else None

    def step(self, factor: float) -> None:
        """One step, with the gradients that the matrices have and this factor of their learning rates."""
        for matrices in self._rounds():
            self._gather(matrices)
        if self.optimizer is not None:
            for group, name in zip(self.optimizer.param_groups, self.own, strict=True):
                group["lr"] = self.rates[name] * factor
            self.optimizer.step()
        for matrices in self._rounds():
            self._hand_back(matrices, factor)
        for parameter in self.own.values():
            parameter.grad = None
            parameter.data.zero_()

    def _rounds(self) -> Iterator[list[str]]:
        """The matrices in groups of at most one for each owner, which limits what is in flight."""
        left = {owner: [n for n in self.matrices if self.owner[n] == owner] for owner in range(self.size)}
        while any(left.values()):
            yield [names.pop(0) for names in left.values() if names]

    def _rows(self, name: str) -> list[int]:
        """The rows of a matrix that each process of the group holds."""
        matrix = self.matrices[name]
        rows = matrix.shape[0]
        if shard_dims(matrix).get("tp") == 0:
            rows //= self.ranks.degrees.tensor
        share = -(-rows // self.size)
        return [max(0, min(share, rows - rank * share)) for rank in range(self.size)]

    def _columns(self, name: str) -> int:
        """The columns of a matrix in this process."""
        columns = self.matrices[name].shape[1]
        return columns // self.ranks.degrees.tensor if shard_dims(self.matrices[name]).get("tp") == 1 else columns

    def _gather(self, names: Sequence[str]) -> None:
        """Sends the parts of the gradients to the owners, which put them together."""
        by_owner = {self.owner[name]: name for name in names}
        parts = [self._gradient(by_owner[o]).flatten() if o in by_owner else None for o in range(self.size)]
        own = by_owner.get(self.rank)
        sizes = [rows * self._columns(own) for rows in self._rows(own)] if own else [0] * self.size
        received = self._exchange(parts, sizes, names)
        if own:
            block = received.view(-1, self._columns(own))
            self.own[own].grad = self._join(own, block)

    @torch.no_grad()
    def _hand_back(self, names: Sequence[str], factor: float) -> None:
        """Sends the changes of the matrices to those who hold their rows, which apply them."""
        by_owner = {self.owner[name]: name for name in names}
        own = by_owner.get(self.rank)
        parts: list[Tensor | None] = [None] * self.size
        if own:
            block = self._cut(own, self.own[own].detach())
            parts = [rows.flatten() for rows in block.split(self._rows(own))]
        sizes = [
            self._rows(by_owner[o])[self.rank] * self._columns(by_owner[o]) if o in by_owner else 0
            for o in range(self.size)
        ]
        received = self._exchange(parts, sizes, names).split(sizes)
        for owner, name in by_owner.items():
            weight = local(self.matrices[name])
            weight.mul_(1 - self.rates[name] * factor * self.weight_decay).add_(received[owner].view_as(weight))

    def _gradient(self, name: str) -> Tensor:
        matrix = self.matrices[name]
        return torch.zeros_like(local(matrix)) if matrix.grad is None else local(matrix.grad)

    def _exchange(self, parts: Sequence[Tensor | None], sizes: Sequence[int], names: Sequence[str]) -> Tensor:
        import torch.distributed as dist

        like = local(self.matrices[names[0]])
        sent = torch.cat([like.new_zeros(0) if part is None else part for part in parts])
        received = like.new_empty(sum(sizes))
        counts = [0 if part is None else part.numel() for part in parts]
        dist.all_to_all_single(received, sent, list(sizes), counts, group=self.group)
        return received

    def _join(self, name: str, block: Tensor) -> Tensor:
        """The whole matrix from the block of one share of heads: all shares' owners put it together."""
        dim = shard_dims(self.matrices[name]).get("tp")
        if dim is None:
            return block
        import torch.distributed as dist

        blocks = [torch.empty_like(block) for _ in range(self.ranks.degrees.tensor)]
        dist.all_gather(blocks, block.contiguous(), group=self.ranks.tensor_mesh.get_group())
        return torch.cat(blocks, dim=dim)

    def _cut(self, name: str, matrix: Tensor) -> Tensor:
        """The way back: this process's block of the whole matrix."""
        dim = shard_dims(self.matrices[name]).get("tp")
        if dim is None:
            return matrix
        return matrix.chunk(self.ranks.degrees.tensor, dim=dim)[self.ranks.tensor_mesh.get_local_rank()]

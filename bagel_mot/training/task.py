"""The interface between the training loop and a task: its network, its data and its losses.

The data of a run are logical streams, `packs_per_step` of them: a step takes one pack from each, whichever process has
it. Losses are sums and counts: a step's loss is `Σ weight · (Σ sum / Σ count)` over all its packs, so accumulation, and
any number of processes, give what one large pack would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bagel_mot.errors import RecipeError
from bagel_mot.parallel.ranks import Ranks

Batch = TypeVar("Batch")
Network = TypeVar("Network", bound=nn.Module)


class TrainingTask(ABC, Generic[Network, Batch]):
    """The network that is trained, its data and its losses.

    Attributes:
        module: the network; the parameters that require a gradient train.
        device: the device that computes.
        loss_weights: the weight of each loss, by name.
        writes_beside: whether `write_weights` merely writes, and so may run beside the training.
        stored_dtype: the type in which `write_weights` takes weights; None for their own.
    """

    module: Network
    device: torch.device = torch.device("cpu")
    loss_weights: dict[str, float]
    writes_beside: bool = True
    stored_dtype: torch.dtype | None = None

    def parallelise(self, ranks: Ranks) -> None:
        """Moves the network to the device and, if there are several processes, divides it among them, before the
        streams are opened. The values of the first process count.

        Raises:
            RecipeError: it cannot be divided, or not so.
        """
        if ranks.mesh is not None:
            raise RecipeError(f"this kind of run trains in one process, and there are {ranks.world}: start one alone")
        self.module.to(self.device)

    def partial_parameters(self) -> list[nn.Parameter]:
        """Parameters whose gradients are to be added up over the processes that share heads."""
        return []

    @abstractmethod
    def open_streams(self, streams: Sequence[int], total: int) -> None:
        """Opens the streams of data that this process takes its batches from. Called once, before the first batch.

        Args:
            streams: the numbers of this process's streams.
            total: the number of streams of the run; what a stream holds depends on its number and on this alone.
        """

    @abstractmethod
    def next_batches(self) -> list[Batch]:
        """The next pack, or batch, of each stream of this process, in the order in which they were opened."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """The divisor of each loss of a batch, such as tokens or images: known before the losses, and on the host."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Summed losses, scalars under the same names; all randomness comes from `generator`, on the device."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Tokens (or images) in a batch, for the throughput."""

    def take_details(self) -> dict[str, Tensor | float]:
        """Further numbers of the batches since the last call, of which each process has a share, under the same names
        in every process. Two that end in `.sum` and `.count` are reported as their ratio; `flops…` as shares of the
        devices' peak rate.
        """
        return {}

    def validation(self) -> dict[str, Tensor | float]:
        """The losses on data that nothing learns from, as `take_details`. Called in every process at the same steps."""
        return {}

    def kept_tensors(self) -> dict[str, Tensor]:
        """The tensors of the network that a training state keeps, by name: the parameters that train, and buffers,
        which a checkpoint may hold rounded.
        """
        trained = {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.module.named_buffers())}

    def written_tensors(self) -> dict[str, Tensor]:
        """The tensors of the network that `write_weights` takes, by name."""
        return self.module.state_dict()

    def official_name(self, name: str) -> str:
        """The name in the official layout of a parameter of the network."""
        return name

    def notes(self) -> list[str]:
        """Sentences for the user, shown when the training begins."""
        return []

    def gauges(self, states: Sequence[Any]) -> dict[str, float]:
        """Further numbers to report, from the states of all streams of the run."""
        return {}

    @abstractmethod
    def data_state(self) -> dict[int, Any]:
        """Where each stream of this process stands just after the last `next_batches`, as JSON, by its number."""

    @abstractmethod
    def load_data_state(self, states: Sequence[Any]) -> None:
        """Puts the streams of this process back there, before the first batch.

        Args:
            states: the states of all streams of the run, by their numbers.
        """

    @abstractmethod
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes a whole checkpoint in the official layout. It is called in the first process alone, perhaps in a
        thread beside the training, and so takes nothing from the module: to ask a divided network for its values, as
        `state_dict` does, frees the weights that a step has gathered.

        Args:
            folder: the checkpoint's folder.
            weights: the module's values, whole, on the CPU, by name: the averages of the parameters that train, and the
                rest as it is.
        """

    @abstractmethod
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Draws a sheet of samples with a checkpoint's weights."""

    def close(self) -> None:
        """Ends background work."""

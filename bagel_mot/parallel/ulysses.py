"""Context parallelism in the manner of Ulysses: the tokens of a pack are divided among processes.

Each process computes its share of the slots in every layer. In attention the shares are exchanged for heads: there each
process has all tokens for its share of the heads, so any mask serves, and the whole mask is known everywhere. Losses
are those of a process's own slots; gradients are added up over the processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bagel_mot.model.attention import Attend, Attention, Pair
from bagel_mot.parallel.ranks import Ranks


class SequenceShare:
    """This process's share of the slots: the `rank`-th of `degree` equal stretches of the und and of the gen slots."""

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.degree = ranks.context_rank, ranks.degrees.context
        self.group: Any = None if ranks.context_mesh is None else ranks.context_mesh.get_group()

    def of(self, slots: Tensor) -> Tensor:
        """Its part of what all slots (S, …) hold: (S / degree, …)."""
        share = slots.shape[0] // self.degree
        return slots[self.rank * share : (self.rank + 1) * share]

    def own(self, slots: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Which of some slots are in the share, and where.

        Args:
            slots: (N,) int64 numbers of slots, on the host.
            total: the number of all slots of that expert.

        Returns: the places (M,) among the N, and the slots' numbers (M,) within the share.
        """
        share = total // self.degree
        first = self.rank * share
        chosen = ((slots >= first) & (slots < first + share)).nonzero()[:, 0]
        return chosen, slots[chosen] - first

    def divide(self, decoder: nn.Module) -> None:
        """Lets a decoder, called with all slots, compute those of this share alone and return them."""
        whole: Callable[..., Any] = decoder.forward

        def forward(und: Tensor, gen: Tensor, positions: tuple[Tensor, Tensor], attend: Attention) -> Any:
            own = self.of(positions[0]), self.of(positions[1])
            return whole(self.of(und), self.of(gen), own, _Exchanged(attend, self))

        decoder.forward = forward

    def to_heads(self, own: Tensor) -> Tensor:
        """All heads of own tokens (T, heads, dim) -> own heads of all tokens (T·degree, heads/degree, dim)."""
        parts = own.unflatten(1, (self.degree, -1)).transpose(0, 1).contiguous()  # (degree, T, heads/degree, dim)
        return self._exchange(parts).flatten(0, 1)

    def to_tokens(self, own: Tensor) -> Tensor:
        """The way back: (T·degree, heads/degree, dim) -> (T, heads, dim)."""
        parts = self._exchange(own.unflatten(0, (self.degree, -1)).contiguous())  # (degree, T, heads/degree, dim)
        return parts.transpose(0, 1).flatten(1, 2)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Gives each process the part of its number, and returns what each has for this one, (degree, …)."""
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        sizes = [1] * self.degree
        exchanged: Tensor = all_to_all_single_autograd(parts, sizes, sizes, self.group)
        return exchanged


class _Exchanged:
    """An attention over all tokens for processes that hold a share of them each."""

    def __init__(self, attention: Attention, share: SequenceShare) -> None:
        self.attention, self.share = attention, share

    def for_layer(self, layer: int) -> Attend:
        attend = self.attention.for_layer(layer)

        def exchanged(query: Pair, key: Pair, value: Pair) -> Pair:
            def heads(pair: Pair) -> Pair:
                return self.share.to_heads(self._enough(pair[0])), self.share.to_heads(self._enough(pair[1]))

            und, gen = attend(heads(query), heads(key), heads(value))
            return self.share.to_tokens(und), self.share.to_tokens(gen)

        return exchanged

    def _enough(self, pair: Tensor) -> Tensor:
        """With fewer heads than processes, as KV heads may be, each is repeated for those whose queries see it."""
        heads = pair.shape[1]
        return pair if heads % self.share.degree == 0 else pair.repeat_interleave(self.share.degree // heads, dim=1)

"""The weights of two checkpoints compared, one tensor at a time: the error that a conversion made in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bagel_mot.checkpoint.adapters import read_adapter
from bagel_mot.checkpoint.load_weights import check_tensors
from bagel_mot.checkpoint.names import kind_of, official_name
from bagel_mot.checkpoint.official import read_config
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.source import as_stored
from bagel_mot.model.adapters import merge

_PIECE = 1 << 22  # values compared at a time, over float64 sums


@dataclass(frozen=True)
class TensorError:
    """The error of a converted tensor.

    Attributes:
        name: the official one.
        kind: its role: q, k, …, down; embedding; norm; bias; or the part of the model that it is in.
        error: ‖written − original‖ / ‖original‖, of values; infinite where the original is zero and the other is not.
    """

    name: str
    kind: str
    error: float


def relative_errors(
    original: Path,
    written: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
) -> list[TensorError]:
    """Reads both checkpoints and compares all tensors that the first has.

    Args:
        original: a checkpoint folder, or a file with weights in one.
        written: another with the same tensors.
        progress: told tensors done and tensors in all.
        adapters: folders of adapters with their strengths, which were merged into the second.

    Raises:
        CheckpointError: one of them cannot be read, or the second lacks a tensor of the first or has another shape.
    """
    before, after = open_checkpoint(original), open_checkpoint(written)
    check_tensors(after, {name: before.shape(name) for name in before.names()})
    names = [name for name in model_shapes(read_config(before)) if official_name(name) in set(before.names())]
    config = read_config(before)
    merged = [(read_adapter(place, config), strength) for place, strength in adapters]
    errors = []
    for index, ours in enumerate(names):
        name = official_name(ours)
        first, second = (as_stored(source.read(name)) for source in (before, after))
        first = merge(first, ours.removesuffix(".weight"), merged)
        errors.append(TensorError(name, _kind(ours), _relative_error(first, second)))
        if progress is not None:
            progress(index + 1, len(names))
    before.close()
    after.close()
    return errors


def mean_by_kind(errors: Iterable[TensorError]) -> dict[str, float]:
    """The mean error of the tensors of each kind, the largest first."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for row in errors:
        by_kind[row.kind].append(row.error)
    means = {kind: sum(values) / len(values) for kind, values in by_kind.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _relative_error(original: Tensor, written: Tensor) -> float:
    difference = total = 0.0
    for first, second in zip(original.flatten().split(_PIECE), written.flatten().split(_PIECE), strict=True):
        wide = first.double()
        difference += (second.double() - wide).square().sum().item()
        total += wide.square().sum().item()
    if difference == 0:
        return 0.0
    return (difference / total) ** 0.5 if total else float("inf")


def _kind(name: str) -> str:
    kind = kind_of(name)
    if kind != "matrix":
        return kind
    parts = name.rpartition(".")[0].split(".")
    return parts[-1] if parts[0] == "decoder" else parts[0]

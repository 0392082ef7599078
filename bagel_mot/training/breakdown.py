"""Losses by timestep and by data set, as sums and counts that can be added up over packs, steps and processes.

The squared error of a velocity depends on the timestep more than on anything that is learnt: its mean over random
timesteps hardly moves, the mean at a given noise level does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bagel_mot.sequence import TrainingLayout
from bagel_mot.training.objective import OwnTargets

TIMESTEP_BINS = 10
PARTS = _SUM, _COUNT = (".sum", ".count")
"""The ends of the names of a sum and of what it is divided by."""


def sums_by_timestep(
    errors: Tensor, layout: TrainingLayout, timesteps: Tensor, own: OwnTargets | None = None
) -> dict[str, Tensor]:
    """Squared errors in bins of equal width of the timestep.

    Args:
        errors: (Nl,) squared error of each latent token; those of conditions are not read.
        layout: the pack.
        timesteps: (images,) timestep of each image.
        own: the tokens that the errors belong to, where this process computes a share of the pack.

    Returns: scalars by name: the sum and the number of tokens of each bin, for `with_ratios`.
    """
    bins = (timesteps * TIMESTEP_BINS).long().clamp_(0, TIMESTEP_BINS - 1)
    images = layout.latent_image if own is None else layout.latent_image[own.latents]
    drawn = layout.noised[images]
    names = [f"mse_t/{n / TIMESTEP_BINS:.1f}-{(n + 1) / TIMESTEP_BINS:.1f}" for n in range(TIMESTEP_BINS)]
    return _sums(names, bins[images], errors, drawn)


def sums_by_dataset(
    errors: Tensor,
    ce: Tensor,
    layout: TrainingLayout,
    datasets: Tensor,
    names: Sequence[str],
    own: OwnTargets | None = None,
) -> dict[str, Tensor]:
    """Both losses of each data set.

    Args:
        errors: (Nl,) squared error of each latent token.
        ce: (Nc,) cross-entropy of each text target.
        layout: the pack.
        datasets: (samples,) int64 number of each sample's data set.
        names: the names of the data sets.
        own: see `sums_by_timestep`.

    Returns: scalars by name, as `sums_by_timestep`.
    """
    if not len(names) or not len(datasets):
        return {}
    drawn_for, said_for, images = datasets[layout.latent_sample], datasets[layout.ce_sample], layout.latent_image
    if own is not None:
        drawn_for, said_for, images = drawn_for[own.latents], said_for[own.ce], images[own.latents]
    found = _sums([f"mse_of/{name}" for name in names], drawn_for, errors, layout.noised[images])
    everything = torch.ones_like(ce, dtype=torch.bool)
    return found | _sums([f"ce_of/{name}" for name in names], said_for, ce, everything)


def _sums(names: Sequence[str], index: Tensor, values: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Sums and numbers of the values (N,) that are counted, by the place (N,) in `names` that each belongs to."""
    kept = torch.where(counted, values.detach().float(), 0.0)
    sums = kept.new_zeros(len(names)).index_add_(0, index, kept)
    counts = kept.new_zeros(len(names)).index_add_(0, index, counted.to(kept.dtype))
    pairs = zip(names, sums.unbind(), counts.unbind(), strict=True)
    return {key: value for name, s, n in pairs for key, value in ((name + _SUM, s), (name + _COUNT, n))}


def with_ratios(means: Mapping[str, float]) -> dict[str, float]:
    """Numbers whose sums and counts, or the means of both over the same steps, become one: sum / count. What nothing
    was counted for is left out.
    """
    result = {}
    for name, value in means.items():
        if name.endswith(_SUM):
            if count := means[name.removesuffix(_SUM) + _COUNT]:
                result[name.removesuffix(_SUM)] = value / count
        elif not name.endswith(_COUNT):
            result[name] = value
    return result


def tokens_by_kind(layout: TrainingLayout) -> dict[str, float]:
    """Numbers of tokens of a pack on the host: of text, of it those that are learnt, of images seen, of latents given
    and drawn.
    """
    areas = [rows * columns for rows, columns in layout.latent_grids]
    drawn = sum(area for area, noised in zip(areas, layout.noised.tolist(), strict=True) if noised)
    return {
        "tokens/text": float(layout.text_ids.numel()),
        "tokens/learnt": float(layout.ce_labels.numel()),
        "tokens/seen": float(layout.vit_slots.numel()),
        "tokens/given": float(sum(areas) - drawn),
        "tokens/drawn": float(drawn),
    }

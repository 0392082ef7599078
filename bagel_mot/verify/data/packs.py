"""The kind `pack`: every tensor of a pack, its masks and its block layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bagel_mot.data.layout import TrainingPack, lay_out
from bagel_mot.images import scale_levels
from bagel_mot.sequence import PackSpec, TrainingLayout, Values
from bagel_mot.training.objective import add_noise
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import recorded_sample
from bagel_mot.verify.data.recorded import FAULT, PATCH, RecordedData
from bagel_mot.verify.packed import across_samples, published_tensors, sample_lengths, splits_of

_FLOATS = {"packed_vit_tokens": 1e-5, "padded_images": 1e-5}  # absolute
_RELATIVE = {"ce_loss_weights": 1e-6, "packed_timesteps": 1e-6}
_LATENT_DIM = 64  # any number: latents are not compared
_TOO_LONG = "a sample that alone exceeds max_num_tokens is reported as too long"


def judge_pack(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges a pack of given samples, with given normal draws and given dropout."""
    case = judge.case
    samples = [recorded_sample(recorded, row, outcome, case["dropout"]) for row, outcome in case["samples"]]
    spec = PackSpec(
        recorded.tokenizer.special,
        vit_side=case["tables"]["vit_side"],
        latent_side=case["tables"]["latent_side"],
        patch_dim=3 * PATCH**2,
        latent_dim=_LATENT_DIM,
        interpolate=case["interpolate_pos"],
    )
    und, gen = sum(sample.und_len for sample in samples), sum(sample.gen_len for sample in samples)
    made = lay_out([samples], spec, und, gen)
    layout = made.layout
    judge.same("sequence_length", layout.num_tokens, case["sequence_length"])
    judge.same("sample_lens", sample_lengths(layout), case["sample_lens"])
    judge.same("vae_latent_shapes", [list(grid) for grid in layout.latent_grids], case["vae_latent_shapes"])
    judge.same("tokens of one sample that see another", across_samples(layout), 0)
    tensors = {
        **published_tensors(layout, scale_levels(made.vit_patches)),
        "packed_timesteps": _normals(layout, case["normals"]),
        "padded_images": _padded(made),
    }
    _check_timesteps(judge, layout, tensors["packed_timesteps"])
    judge.same("padded_images shape", list(tensors["padded_images"].shape), case.get("padded_images", [0, 3, 0, 0]))
    for name, key in case["tensors"].items():
        if name not in tensors:
            judge.fail(name, "nothing computes it")
        elif name in _FLOATS:
            judge.tensor(name, tensors[name], key, _FLOATS[name])
        else:
            judge.tensor(name, tensors[name], key, _RELATIVE.get(name, 0.0), relative=name in _RELATIVE)
    for name in case.get("absent", ()):
        judge.holds(f"{name} is absent", tensors[name].numel() == 0, f"{tensors[name].numel()} values")
    most = case["flex"]["max_num_tokens"]
    if judge.mark == FAULT:
        return _judge_too_long(judge, most, und + gen)
    flex = lay_out([samples], spec, most - gen, gen).layout
    splits, modes, lengths = splits_of(flex)
    judge.same("flex split_lens", splits, case["flex"]["split_lens"])
    judge.same("flex attn_modes", modes, case["flex"]["attn_modes"])
    judge.same("flex sample_lens", lengths, case["flex"]["sample_lens"])
    return None


def _judge_too_long(judge: RecordJudge, most: int, tokens: int) -> None:
    """The record is of a pack that should not be: its padding is negative. The kind `run` judges that there is none."""
    flex: Any = judge.case["flex"]
    judge.holds("longer than max_num_tokens", tokens > most, f"{tokens} tokens, {most} allowed")
    judge.same("flex padding", [flex["split_lens"][-1], flex["sample_lens"][-1]], [most - tokens] * 2)
    judge.same("flex sum", sum(flex["split_lens"]), most)
    judge.holds("instead", judge.case["instead"] == _TOO_LONG, f"{judge.case['instead']!r} is judged")


def _normals(layout: TrainingLayout, given: list[float]) -> Tensor:
    """The normal draw of each VAE token, (Nl,): that of its noised image, −∞ on conditions; in sequence order.

    Raises:
        ValueError: there are not as many draws as noised images.
    """
    noised = layout.noised.nonzero()[:, 0].tolist()
    per_image = torch.full((len(layout.noised),), float("-inf"))
    for image, normal in zip(noised, given, strict=True):
        per_image[image] = normal
    return per_image[layout.latent_image]


def _check_timesteps(judge: RecordJudge, layout: TrainingLayout, normals: Tensor) -> None:
    """Checks that given normals become the timesteps of training: the sigmoid, and 0 on conditions."""
    images = torch.full((len(layout.noised),), 0.5)  # overwritten, but for images without tokens
    images[layout.latent_image] = normals.sigmoid()
    nothing = torch.zeros(len(normals), 1)
    values = Values(torch.zeros(0, 1), nothing, images)
    timesteps = add_noise(layout, values, images, nothing).values.timesteps
    worst = float((timesteps[layout.latent_image] - normals.sigmoid()).abs().max()) if len(normals) else 0.0
    judge.holds("timesteps", worst == 0, f"they differ by {worst}")


def _padded(made: TrainingPack) -> Tensor:
    """All VAE images in order, each as often as it is packed, with zeros to the right and below: (n, 3, H, W)."""
    grids, stride = made.layout.latent_grids, 16
    flat = [image for same_size in made.images for image in same_size]
    first: dict[int, Tensor] = {}
    start = 0
    for image in flat:
        first[start] = image
        start += image.shape[0] * image.shape[1] // stride**2
    height, width = (max((grid[side] for grid in grids), default=0) * stride for side in (0, 1))
    padded = torch.zeros(len(grids), 3, height, width)
    token = 0
    for number, (rows, columns) in enumerate(grids):
        pixels = scale_levels(first[int(made.latent_source[token])]).permute(2, 0, 1)
        padded[number, :, : pixels.shape[1], : pixels.shape[2]] = pixels
        token += rows * columns
    return padded

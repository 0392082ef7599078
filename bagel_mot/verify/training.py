"""The kinds `train` and `pack`: how samples are laid out, what they lose, and every gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bagel_mot.checkpoint.names import official_name
from bagel_mot.errors import DataError
from bagel_mot.model.bagel import BagelModel
from bagel_mot.sequence import (
    CAUSAL,
    NOISED,
    Sample,
    Segment,
    TextSegment,
    TrainingLayout,
    Values,
    pack,
    text_segment,
    vae_segment,
    vit_segment,
)
from bagel_mot.training.objective import (
    NoisedPack,
    add_noise,
    attention_of,
    compute_losses,
    loss_counts,
    shift_timesteps,
)
from bagel_mot.verify.packed import (
    MODE_NAMES,
    across_samples,
    mask_in_order,
    published_tensors,
    sample_lengths,
    splits_of,
)
from bagel_mot.verify.parts import Subject
from bagel_mot.verify.records import Case, Checker

CaseSegment = Mapping[str, Any]  # one segment of a sample, as cases.json describes it


def check_train(subject: Subject, check: Checker) -> None:
    """One pack of all samples: every packed tensor, the masks, the losses, and the gradients."""
    samples = _samples(subject, check)
    layout, values = pack([samples], subject.spec), Values.of(samples, subject.spec)
    _check_layout(check, layout, values)
    noised = (
        _noised(subject, check, layout, values) if layout.latent_grids else NoisedPack(layout, values, values.latents)
    )
    noised, counts = noised.to(subject.device), loss_counts(layout, reweight=False)
    with _gradients(subject.checkpoint.model) as model:
        losses = compute_losses(model, noised, attention_of("sdpa", subject.device, torch.float32)(noised.layout))
        loss = losses.ce_sum(False) / max(counts["ce"], 1.0) + losses.mse_sum() / max(counts["mse"], 1.0)
        loss.backward()
        check.close("ce", losses.ce)
        check.close("mse", losses.mse[noised.layout.noised[noised.layout.latent_image]])
        check.close("loss", loss)
        if "loss" in check.case:
            check.listed("loss", loss.item())
        _check_gradients(check, model)


def _noised(subject: Subject, check: Checker, layout: TrainingLayout, values: Values) -> NoisedPack:
    """The pack with the recorded noise and timesteps."""
    normals = check.take("packed_timesteps")  # before the sigmoid; −inf on conditions
    check.count("packed_timesteps", int((normals.isfinite() != layout.noised[layout.latent_image]).sum()))
    first = [int((layout.latent_image == image).nonzero()[0]) for image in range(len(layout.latent_grids))]
    drawn = torch.where(layout.noised, normals[first].sigmoid(), 0.0)
    timesteps = shift_timesteps(drawn, subject.checkpoint.config.timestep_shift)
    return add_noise(layout, values, timesteps, check.given("noise"))


def check_pack(subject: Subject, check: Checker) -> None:
    """The same samples in the layout of the block mask, the padding as a last split."""
    samples = _samples(subject, _twin(subject, check))
    capacity = int(check.case["max_num_tokens"])
    gen = sum(sample.gen_len for sample in samples)
    packed = pack([samples], subject.spec, und_len=capacity - gen, gen_len=gen)
    splits, modes, lengths = splits_of(packed)
    check.listed("split_lens", splits)
    check.listed("attn_modes", modes)
    check.listed("sample_lens", lengths)
    used = packed.num_tokens
    expected = _mask_by_split(check.case["split_lens"], check.case["attn_modes"], check.case["sample_lens"])
    got = mask_in_order(packed)
    wrong = int((got != expected[:used, :used]).sum()) if expected.shape[0] == capacity else used * used
    check.count("mask", wrong)
    # Padding may attend to anything, but nothing may attend to it.
    real, order = packed.sample[0] >= 0, packed.mask()[0]
    check.count("mask hides padding", int(order[real][:, ~real].sum()))


def _samples(subject: Subject, check: Checker) -> list[Sample]:
    """The samples of a `train` case, from its plans, images and latents."""
    checkpoint = subject.checkpoint
    samples: list[Sample] = []
    images: list[Tensor] = []
    # Without an image to draw or to start from, none of these is recorded.
    pictured = any(plan["type"] == "vae_image" for plans in check.case["samples"].values() for plan in plans)
    latents = check.take("padded_latent") if pictured else torch.zeros(0, 1, 1, 1)
    shapes = check.case["latent_shapes"] if pictured else []
    for name, plans in check.case["samples"].items():
        segments: list[Segment] = []
        for number, plan in enumerate(plans):
            if plan.get("special_token_loss"):
                raise DataError(f"sample {name}, segment {number}: a loss on image markers is not supported")
            if plan["type"] == "text":
                segments.append(_text(subject, plan))
                continue
            pixels = check.given(f"pixels/{name}/{number}")
            if plan["type"] == "vit_image":
                segments.append(vit_segment(pixels, checkpoint.config.vit.patch_size))
            elif plan["type"] == "vae_image":
                rows, columns = shapes[len(images)]
                side = checkpoint.config.latent_patch_size
                latent = latents[len(images)][:, : side * rows, : side * columns]
                segments.append(vae_segment(latent, side, noised=bool(plan["loss"])))
                images.append(pixels)
            else:
                raise DataError(f"sample {name}, segment {number}: type {plan['type']!r} is not known")
        samples.append(Sample(tuple(segments)))
    if pictured:
        check.close("padded_latent", _encode_padded(subject, images, latents))
    return samples


def _encode_padded(subject: Subject, images: list[Tensor], latents: Tensor) -> Tensor:
    """Latents as the published training makes them: all images padded with zeros to one size."""
    autoencoder = subject.checkpoint.autoencoder
    height, width = (side * autoencoder.config.downsample for side in latents.shape[-2:])
    padded = latents.new_zeros(len(images), 3, height, width)
    for target, pixels in zip(padded, images, strict=True):
        target[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    with torch.inference_mode():
        return autoencoder.encode(padded.to(subject.device, subject.dtype))


def _text(subject: Subject, plan: CaseSegment) -> TextSegment:
    ids = plan["ids"] if plan.get("ids") is not None else subject.checkpoint.tokenizer.encode(plan["text"])
    special = subject.checkpoint.special
    return text_segment(ids, special, learn=bool(plan["loss"]))


def _twin(subject: Subject, check: Checker) -> Checker:
    """The `train` case whose samples a `pack` case lays out; what it reads makes no rows here."""
    twins = [case for case in subject.recorded.cases if case["kind"] == "train"]
    if not twins:
        raise DataError("a pack case lays out the samples of a train case, and there is none")
    case: Case = twins[0] if "samples" not in check.case else {**twins[0], "samples": check.case["samples"]}
    return Checker(case, check.tensors, check.tolerance)


def _check_layout(check: Checker, packed: TrainingLayout, values: Values) -> None:
    """Everything the published packing produces, from slots back in sequence order."""
    tensors = published_tensors(packed, values.vit_patches)
    for quantity, tensor in tensors.items():
        (check.close if tensor.is_floating_point() else check.equal)(quantity, tensor)
    if "latent_shapes" in check.case:
        check.listed("latent_shapes", [list(grid) for grid in packed.latent_grids])
    check.listed("sample_lens", sample_lengths(packed))
    lengths = tensors["vit_token_seqlens"].tolist()
    for quantity, value in (("vit_token_seqlens", lengths), ("sequence_length", packed.num_tokens)):
        if quantity in check.case:
            check.listed(quantity, value)
    check.count("no sample sees another", across_samples(packed))


def _mask_by_split(splits: list[int], modes: list[str], samples: list[int]) -> Tensor:
    """The rule by block: (causal or same full/noised split) and not (key in another noised split) and same sample."""
    total = sum(splits)
    split = torch.arange(len(splits)).repeat_interleave(torch.tensor(splits))
    sample = torch.arange(len(samples)).repeat_interleave(torch.tensor(samples))
    mode = torch.tensor([list(MODE_NAMES.values()).index(name) for name in modes])[split]
    same = split[:, None] == split[None, :]
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    seen = causal | (same & (mode != CAUSAL)[:, None])
    return seen & (same | (mode != NOISED)[None, :]) & (sample[:, None] == sample[None, :])


@contextmanager
def _gradients(model: BagelModel) -> Iterator[BagelModel]:
    """The model with gradients on, and as it was afterwards."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield model.requires_grad_(True)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name]).grad = None


def _check_gradients(check: Checker, model: BagelModel) -> None:
    """Norms of all gradients, and whole gradients where they were recorded.

    A key bias of the ViT adds one number to all scores of a query, which softmax ignores: its gradient is zero in exact
    arithmetic, and what was recorded is rounding. The error of such a one is measured against the case's largest
    gradient.
    """
    largest = max((float(check.tensors[f"{check.name}/{name}"]) for name in check.recorded("grad_norm/")), default=0.0)
    gradients = {official_name(name): p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients.items():
        norm = torch.zeros(()) if gradient is None else gradient.double().norm()
        if norm or check.recorded_or_none(f"grad_norm/{name}") is not None:  # parts that no sample uses get none
            check.close(f"grad_norm/{name}", norm, largest=largest)
    for quantity in check.recorded("grad/"):
        gradient = gradients.get(quantity.removeprefix("grad/"))
        if gradient is None:
            check.take(quantity)
            check.fail(quantity, "the model has no such parameter, or it gets no gradient")
        else:
            check.close(quantity, gradient, largest=largest)

"""The training step: forward, backward, optimiser and averaged weights, over a pack of samples as recipes run it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.bench.machine import peak_allocated
from bagel_mot.bench.roofline import ForwardTokens
from bagel_mot.bench.settings import SPECIAL, BenchSettings, grid_of, random_ids
from bagel_mot.bench.timing import Calls, Measured, measure
from bagel_mot.model.bagel import BagelModel
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, pack
from bagel_mot.training.flops import visible_pairs
from bagel_mot.training.objective import add_noise, attention_of, compute_losses
from bagel_mot.training.optimizer import Ema, OptimizerConfig, Optimizers


def measure_training(
    model: BagelModel, settings: BenchSettings, device: torch.device, say: Callable[[str], None]
) -> list[Measured]:
    """Measures one whole step in as many layers as memory allows: float32 weights, matmuls in the model's precision."""
    samples, text = settings.train_samples, settings.train_text
    available = min(settings.train_layers or len(model.decoder.layers), len(model.decoder.layers))
    tokens = min(settings.train_image, model.config.max_latent_size**2)
    grid = grid_of(tokens, model.config.max_latent_size)
    outside = sum(p.numel() for n, p in model.named_parameters() if ".layers." not in n)
    inside = sum(p.numel() for p in model.decoder.layers[0].parameters())
    # For each parameter, in float32: itself, its gradient, two moments, its average, as much again in flight.
    room = 0.7 * free_memory(device) / (6 * 4)
    layers = min(available, int((room - outside) / inside))
    if layers < 1:
        say("no memory for a training step")
        return []
    name = f"training step, {text} text and {tokens} image tokens, {layers} layer{'s' if layers > 1 else ''}"
    if not settings.wants(name):
        return []
    model.decoder.layers = model.decoder.layers[:layers]
    ids = random_ids(text - 2, model.config.decoder.vocab_size).tolist()
    segment = VaeSegment(torch.randn(tokens, model.config.latent_dim), grid, noised=True)
    row = samples * [Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment))]
    spec = PackSpec.of(model.config, SPECIAL)
    layout, values = pack([row], spec), Values.of(row, spec)
    noised = add_noise(layout, values, torch.full((samples,), 0.5), torch.randn_like(values.latents)).to(device)
    trained = copy.deepcopy(model).float().requires_grad_(True)
    optimizers = Optimizers(trained.named_parameters(), OptimizerConfig(lr=1e-6))
    attend = attention_of("sdpa", device, model.dtype)
    ema = Ema(trained, 0.9999)
    if device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT_IN_TRAINING, in_all_threads=True)

    def gradients() -> None:
        with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
            losses = compute_losses(trained, noised, attend(noised.layout))
        (losses.ce.mean() + losses.mse.mean()).backward()

    def gradients_alone() -> None:
        gradients()
        trained.zero_grad(set_to_none=True)

    def whole() -> None:
        gradients()
        optimizers.step(1.0)
        ema.update()

    work = ForwardTokens(
        und=samples * (text + 2),
        gen=samples * tokens,
        logits=samples * (text - 1),
        latents=samples * tokens,
        attended=visible_pairs(layout.spans),
        backward=True,
    )
    calls: Calls = {"ours": whole, "forward and backward alone": gradients_alone}
    depth = f"{layers} layer{'s' if layers > 1 else ''}"
    name = f"training step, {samples} × ({text} text and {tokens} image tokens), {depth}"
    say(name)
    held = sum(p.nbytes for p in trained.parameters()) + sum(t.nbytes for t in ema.average.values())
    numbers = {
        "per_token": layout.num_tokens,
        "layers": layers,
        "peak_memory_bytes": held + peak_allocated(device, whole),
    }
    return [measure(model, name, work, calls, settings.rounds, device, **numbers)]

"""The training step: forward, backward, optimiser and averaged weights, as a recipe with `optimizer.implementation:
fused` runs them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.bench.machine import peak_allocated
from bagel_mot.bench.roofline import ForwardTokens
from bagel_mot.bench.settings import SPECIAL, BenchSettings, grid_of, random_ids
from bagel_mot.bench.timing import Calls, Measured, measure
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, pack
from bagel_mot.training.objective import add_noise, compute_losses
from bagel_mot.training.optimizer import Ema, OptimizerConfig, Optimizers


def measure_training(
    model: BagelModel, settings: BenchSettings, device: torch.device, say: Callable[[str], None]
) -> list[Measured]:
    """Measures one whole step in as many layers as memory allows: float32 weights, matmuls in the model's precision."""
    text, available = settings.train_text, len(model.decoder.layers)
    tokens = min(settings.train_image, model.config.max_latent_size**2)
    grid = grid_of(tokens, model.config.max_latent_size)
    outside = sum(p.numel() for n, p in model.named_parameters() if ".layers." not in n)
    inside = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n) // available
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
    sample = Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment))
    spec = PackSpec.of(model.config, SPECIAL)
    layout, values = pack([[sample]], spec), Values.of([sample], spec)
    noised = add_noise(layout, values, torch.tensor([0.5]), torch.randn_like(values.latents)).to(device)
    trained = copy.deepcopy(model).float().requires_grad_(True)
    optimizers = Optimizers(trained.named_parameters(), OptimizerConfig(lr=1e-6, implementation="fused"))
    ema = Ema(trained, 0.9999)
    if device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT_IN_TRAINING, in_all_threads=True)

    def gradients() -> None:
        with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
            losses = compute_losses(trained, noised, MaskedAttention(noised.layout, dtype=model.dtype))
        (losses.ce.mean() + losses.mse.mean()).backward()

    def whole() -> None:
        gradients()
        optimizers.step(1.0)
        ema.update()

    length = text + tokens + 2
    seen = text * (text + 1) // 2 + (tokens + 2) * length
    work = ForwardTokens(und=text + 2, gen=tokens, logits=text - 1, latents=tokens, attended=seen, backward=True)
    calls: Calls = {"ours": whole, "forward and backward alone": gradients}
    say(name)
    held = sum(p.nbytes for p in trained.parameters()) + sum(t.nbytes for t in ema.average.values())
    numbers = {"per_token": length, "layers": layers, "peak_memory_bytes": held + peak_allocated(device, whole)}
    return [measure(model, name, work, calls, settings.rounds, device, **numbers)]

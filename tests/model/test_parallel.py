"""The model in two processes, changed from outside alone: sharded with FSDP2 for training, with heads split by TP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bagel_mot

WORKER = """
import copy, os, sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.parallel.tensor import divide_experts
from bagel_mot.sequence import *
from bagel_mot.tokenizer import SpecialTokens

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
mesh = dist.init_device_mesh("cpu", (2,))
torch.manual_seed(0)
config = BagelConfig(
    decoder=DecoderConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48,
                          vocab_size=64),
    vit=VitConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, patch_size=4, image_size=32),
    max_latent_size=8, vit_max_num_patch_per_side=8,
)
model = BagelModel(config)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
spec = PackSpec.of(config, SpecialTokens(1, 2, 3, 4))
text = text_segment([7, 8, 9], spec.special, learn=True)
vit = VitSegment(torch.randn(6, spec.patch_dim), (2, 3))
vae = VaeSegment(torch.randn(4, spec.latent_dim), (2, 2), noised=True, timestep=0.4)
PACKS = {"no image to see": (text, vae), "no latents": (vit, text), "text alone": (text,)}

def loss_of(model, segments):
    rows = [[Sample(segments)]]
    layout = pack(rows, spec)
    und, gen = model(layout, Values.of(rows[0], spec), MaskedAttention(layout))
    velocity = model.velocity(gen[layout.latent_slots])
    return model.logits(und[layout.ce_slots]).logsumexp(-1).sum() + velocity.square().sum()

for names in (("no image to see", "no latents"), ("text alone", "no image to see")):
    reference, sharded = copy.deepcopy(model), copy.deepcopy(model)
    for layer in sharded.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for each, steps in ((sharded, (names[rank],)), (reference, names)):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3)
        for name in steps:
            (loss_of(each, PACKS[name]) / len(steps)).backward()
        optimizer.step()
    moved = 0.0
    for (name, ours), theirs in zip(sharded.named_parameters(), reference.parameters(), strict=True):
        ours = ours.full_tensor()
        assert torch.allclose(ours, theirs, atol=1e-5), (names, name, (ours - theirs).abs().max())
        moved = max(moved, (theirs - dict(model.named_parameters())[name]).abs().max().item())
    assert moved > 1e-3

@torch.no_grad()
def read(model):
    context, found = Context(model.decoder.cache_spec), []
    for segment in (text, vit, text, vae):
        samples = [Sample((segment,), context.position)]
        layout, tail = pack_cached(samples, spec), context.allocate(segment_length(segment))
        attend = CachedAttention([CachedSample(layout.spans[0], tail)])
        found += model(layout, Values.of(samples, spec), attend)
        context.commit(tail, (segment,))
    return torch.cat(found), context

expected, _ = read(model)
model.decoder.prepare(prepack=False)  # what was joined is divided, too
assert all(layer.und.qkv is not None for layer in model.decoder.layers)
divide_experts(model.decoder.layers, SimpleNamespace(tensor_mesh=mesh))
assert all(layer.und.qkv is None for layer in model.decoder.layers)
found, context = read(model)
assert model.decoder.cache_spec.kv_heads == 1
assert next(iter(context.chunks)).slab.layers[0].shape[1] == 1
assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
dist.destroy_process_group()
print("done")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Training packs of different kinds of segments on each rank, where collectives must agree; and split heads."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(Path(bagel_mot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "rendezvous")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all("done" in output for output in outputs), "\n".join(outputs)[-3000:]

"""A training step divided among processes: seconds, tokens per second and memory of each.

    OMP_NUM_THREADS=2 python benchmarks/parallel.py
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/parallel.py
    torchrun --nproc_per_node 8 benchmarks/parallel.py --device cuda --config 7b-mot --packs 8

A step has as many packs as `--packs` says, whatever the number of processes, so that the tokens per second can be
compared: two processes of one thread each are meant to be within 15% of one process of two. With fewer layers than
the configuration has, `--vocabulary` cuts the vocabulary too, or its optimiser step and its exchange weigh more than
they do in the whole model. The first process writes `benchmarks/results/parallel-N.json`.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.bench.settings import SPECIAL, grid_of, random_ids
from bagel_mot.config import NAMED_CONFIGS, parse
from bagel_mot.errors import RecipeError
from bagel_mot.model.bagel import BagelModel
from bagel_mot.parallel.apply import parallelise
from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.parallel.launch import launched
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.tensor import partial_parameters
from bagel_mot.parallel.ulysses import SequenceShare
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, pack
from bagel_mot.training.loop import own_device
from bagel_mot.training.objective import NoisedPack, OwnTargets, add_noise, attention_of, compute_losses
from bagel_mot.training.optimizer import Ema, OptimizerConfig, Optimizers

RESULTS = Path(__file__).parent / "results"


def _pack(model: BagelModel, samples: int, text: int, image: int) -> NoisedPack:
    grid = grid_of(image, model.config.max_latent_size)
    ids = random_ids(text - 4, model.config.decoder.vocab_size).tolist()  # with its ends and an image's marks: `text`
    segment = VaeSegment(torch.zeros(image, model.config.latent_dim), grid, noised=True)
    row = samples * [Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment))]
    spec = PackSpec.of(model.config, SPECIAL)
    values = Values.of(row, spec)
    return add_noise(pack([row], spec), values, torch.full((samples,), 0.5), torch.ones_like(values.latents))


def _peak(place: torch.device) -> int:
    """Bytes at the most so far: of the device's memory, or resident ones of this process."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(
    config: Annotated[str, typer.Option(help="The widths: 0.5b or 7b-mot.")] = "0.5b",
    layers: Annotated[int, typer.Option(help="Layers of the decoder, at most.", min=1)] = 4,
    vocabulary: Annotated[int | None, typer.Option(help="Words of the vocabulary, at most.", min=1024)] = None,
    samples: Annotated[int, typer.Option(help="Samples of a pack, each a text and an image.", min=1)] = 4,
    text: Annotated[int, typer.Option(help="Und slots of a sample.", min=8)] = 256,
    image: Annotated[int, typer.Option(help="Gen slots of a sample.", min=4)] = 1024,
    packs: Annotated[int, typer.Option(help="Packs of a step, over all processes.", min=1)] = 2,
    warm_up: Annotated[int, typer.Option(help="Steps before those that are measured: the heap grows.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps that are measured.", min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    change: Annotated[list[str] | None, typer.Option("--set", help="Keys of `parallel`, as KEY=VALUE.")] = None,
) -> None:
    """Measures a step, and writes what was found."""
    given = dict(entry.removeprefix("parallel.").partition("=")[::2] for entry in change or [])
    section = parse(ParallelConfig, {k: yaml.safe_load(v) for k, v in given.items()}, "parallel", RecipeError)
    with launched() as launch:
        place = own_device(torch.device(device), launch)
        if place.type == "cpu":
            keep_freed_memory(LARGEST_KEPT_IN_TRAINING, in_all_threads=True)
        ranks = Ranks(section, place, launch)
        mine = ranks.streams(packs)
        whole = NAMED_CONFIGS[config]
        words = min(vocabulary or whole.decoder.vocab_size, whole.decoder.vocab_size)
        decoder = replace(whole.decoder, num_layers=min(layers, whole.decoder.num_layers), vocab_size=words)
        with torch.device("meta" if launch.rank else "cpu"):
            model = BagelModel(replace(whole, decoder=decoder, vit=replace(whole.vit, num_layers=1))).train()
        noised = _pack(model, samples, text, image)
        layout = noised.layout
        ranks.degrees.check_decoder(decoder, (layout.und_len, layout.gen_len))
        precision = "bfloat16" if place.type == "cuda" else "float32"
        parallelise(model, ranks, section, precision=precision, device=place)
        own = None
        if ranks.context_mesh is not None:
            share = SequenceShare(ranks)
            ce, latents = (
                share.own(*slots)
                for slots in ((layout.ce_slots, layout.und_len), (layout.latent_slots, layout.gen_len))
            )
            own = OwnTargets(*ce, *latents).to(place)
        noised = noised.to(place)
        partial = partial_parameters(model.decoder.layers) if ranks.tensor_mesh is not None else []
        adamw = OptimizerConfig(lr=1e-6, eps=1e-8)
        named = model.named_parameters()
        optimizers = Optimizers(named, adamw, ranks=ranks, offload=section.offload_optimizer, partial=partial)
        ema = Ema(model, 0.999)
        attend = attention_of("sdpa", place, torch.bfloat16 if precision == "bfloat16" else torch.float32)

        def step() -> None:
            for _ in mine:
                with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    losses = compute_losses(model, noised, attend(noised.layout), own)
                texts, images = samples * text * packs, samples * image * packs
                (losses.ce.sum() / texts + losses.mse.mean(-1).sum() / images).backward()
            optimizers.step(1.0)
            ema.update()
            if place.type == "cuda":
                torch.cuda.synchronize()

        for _ in range(warm_up):
            step()
        seconds = []
        for _ in range(steps):
            ranks.any(False)  # all begin together
            begun = time.perf_counter()
            step()
            seconds.append(max(ranks.gather(time.perf_counter() - begun)))
        best = min(seconds)
        found = {
            "processes": launch.world,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if place.type == "cuda" else "cpu",
            "config": config,
            "layers": decoder.num_layers,
            "vocabulary": words,
            "packs": packs,
            "tokens": packs * samples * (text + image),
            "parallel": given,
            "seconds": best,
            "tokens_per_second": packs * samples * (text + image) / best,
            "peak_memory_bytes": ranks.gather(_peak(place)),
        }
    if launch.rank == 0:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"parallel-{launch.world}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)

"""`bagel bench`: a model's speed on this machine, compared with the machine's own matmuls and with a plain loop.

Weights are random: only shapes matter. Every quantity is measured three ways in turn, round after round, so that
other load on the machine affects all of them alike, and the shortest time of each counts:

- `ours`: through the engine, with weights prepacked as users' are (or a whole training step with its optimiser);
- `matmul`: the matmuls of the same work alone, with the same weights. `share` is the rate of arithmetic of `ours`,
  attention included, divided by the rate of these matmuls;
- `plain`: a loop over plain weights that works as the published code does (`bagel_mot.bench.plain`).

Whole tasks (`bagel_mot.bench.tasks`) are measured beside these, from what users give to what they get.

Memory is that of `ours`: its weights, its cache, and the largest total of other tensors at one time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bagel_mot.bench import ours, plain
from bagel_mot.bench.busy import OtherProcesses
from bagel_mot.bench.machine import config_named, layers_that_fit, machine, peak_allocated
from bagel_mot.bench.roofline import ForwardTokens, roofline
from bagel_mot.bench.settings import QUICK, SPECIAL, BenchSettings, grid_of, random_ids
from bagel_mot.bench.tasks import TaskRunner, whole_tasks
from bagel_mot.bench.timing import Calls, Measured, measure
from bagel_mot.bench.training import measure_training
from bagel_mot.checkpoint.precision import dtype_name, parse_precision
from bagel_mot.checkpoint.shapes import weight_count
from bagel_mot.config import BagelConfig, VaeConfig, VitConfig
from bagel_mot.errors import SettingError
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.without_values import without_values
from bagel_mot.placement.rates import seconds
from bagel_mot.sequence import table_index
from bagel_mot.threads import choose_threads

_PROMPT = 64  # text tokens in the context of an image


def random_model(config: BagelConfig, dtype: torch.dtype, device: torch.device, *, vision: bool = False) -> BagelModel:
    """A model with random weights; without `vision` its vision transformer, which nothing here runs, is tiny."""
    if not vision:
        tiny = VitConfig(hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, patch_size=2, image_size=4)
        config = replace(config, vit=tiny, vit_max_num_patch_per_side=2)
    with without_values():
        model = BagelModel(config)
    block = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(device, dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or "norm_gen" in name:
            value = torch.ones(parameter.shape, dtype=dtype, device=device)
        else:  # one block over and over: drawing a billion numbers would take longer than the measurements
            repeats = -(-parameter.numel() // block.numel())
            value = block.repeat(repeats)[: parameter.numel()].view(parameter.shape).clone()
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    for name, table in model.named_buffers():
        setattr(model, name, torch.zeros(table.shape, dtype=dtype, device=device))
    return model.eval()


def random_autoencoder(config: VaeConfig, dtype: torch.dtype, device: torch.device) -> Autoencoder:
    """An autoencoder with random weights, the same each time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return Autoencoder(config).to(device, dtype).requires_grad_(False).eval()


def bench(
    config: BagelConfig,
    *,
    settings: BenchSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measures a configuration and returns all figures, ready for JSON.

    Args:
        config: the model's shape.
        settings: token counts and rounds; the default is `BenchSettings()`.
        dtype, device: the precision of the weights and the device that runs them.
        layers: the number of decoder layers to run, at most; the report extrapolates to the full depth.
        progress: a callback that receives each quantity's name before it is measured.
    """
    with choose_threads(weight_count(config)).at_work():
        return _bench(config, settings or BenchSettings(), dtype, device, layers, progress or (lambda _: None))


def _bench(
    config: BagelConfig,
    settings: BenchSettings,
    dtype: torch.dtype,
    device: str,
    layers: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    depth = config.decoder.num_layers
    shallow = replace(config, decoder=replace(config.decoder, num_layers=min(layers or depth, depth)))
    where = torch.device(device)
    others = OtherProcesses()
    model = random_model(shallow, dtype, where)
    weights = sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())
    model.decoder.prepare(prepack=True)
    prepack_weights(model)
    reference = random_model(shallow, dtype, where) if settings.compare else None
    stub = VaeConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=config.vae.z_channels)
    engine = Engine(model, Autoencoder(stub).to(where, dtype), SPECIAL)
    ran = len(model.decoder.layers)
    with torch.inference_mode():
        measured = _Inference(engine, reference, settings, where, weights[1], say).measure()
    del engine, model
    measured += measure_training(reference or random_model(shallow, dtype, where), settings, where, say)
    del reference
    tasks = _tasks(shallow, settings, dtype, where, depth / ran, say)
    if not measured and not tasks:
        raise SettingError(
            f"no row has {' or '.join(map(repr, settings.only))} in its name: run without --only to see them all."
        )
    numbers = [quantity.to_json() for quantity in measured]
    if ran < depth:
        for entry in numbers:
            if "layers" in entry:  # training: its embedding and optimiser do not grow with depth
                continue
            head = entry["head_seconds"]
            entry["full_depth_seconds"] = (entry["seconds"]["ours"] - head) * depth / ran + head
    return {
        "machine": {**machine(where), **others.facts()},
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(where),
        "layers": ran,
        "of_layers": depth,
        "parameters": weights[0],
        "weights_bytes": weights[1],
        "peak_memory_bytes": {
            "inference": max((m.numbers["peak_memory_bytes"] for m in measured if "training" not in m.name), default=0),
            "training": max((m.numbers["peak_memory_bytes"] for m in measured if "training" in m.name), default=0),
        },
        "settings": vars(settings),
        "results": numbers,
        "tasks": tasks,
        "summary": _summary(numbers, depth / ran),
    }


def _tasks(
    config: BagelConfig,
    settings: BenchSettings,
    dtype: torch.dtype,
    device: torch.device,
    full_depth: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The whole tasks, with all parts of the model; the plain side's autoencoder is in the model's precision."""
    largest = config.max_latent_size * config.latent_stride
    wanted = [task for task in whole_tasks(settings, largest) if settings.wants(task.name)]
    if not wanted:
        return []
    say("making random weights of all parts")
    model = random_model(config, dtype, device, vision=True)
    ours_in = parse_precision(dtype_name(dtype)).autoencoder_on(device, config.vae)
    reference = None
    if settings.compare:
        reference = random_model(config, dtype, device, vision=True), random_autoencoder(config.vae, dtype, device)
    runner = TaskRunner(model, random_autoencoder(config.vae, ours_in, device), reference, settings.side)
    found = []
    for task in wanted:
        say(task.name)
        found.append(runner.measure(task, settings.task_rounds, device, full_depth))
    return found


class _Inference:
    """Measurements of one model's inference, through requests to the engine."""

    def __init__(
        self,
        engine: Engine,
        reference: BagelModel | None,
        settings: BenchSettings,
        device: torch.device,
        weights_bytes: int,
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.model, self.settings, self.device, self.say = engine, engine.model, settings, device, say
        self.reference = reference  # the plain loop's weights
        self.weights_bytes = weights_bytes
        self.layers = len(self.model.decoder.layers)
        head = roofline(self.model, ForwardTokens(logits=1))
        self.head = min(seconds(head, device) for _ in range(3))

    def measure(self) -> list[Measured]:
        found = [self._prefill()]
        largest = self.model.config.max_latent_size**2
        for tokens in sorted({min(tokens, largest) for tokens in self.settings.images}):
            found += [self._denoise(tokens, branches) for branches in (1, 2, 3)]
        found += [self._decode(length) for length in self.settings.contexts]
        return [measured for measured in found if measured is not None]

    def _ids(self, count: int) -> Tensor:
        return random_ids(count, self.model.config.decoder.vocab_size)

    def _context(self, length: int, spare: int = 0) -> Context:
        context = self.engine.new_context(length + spare)
        if length:
            ours.read_text(self.engine, self._ids(length).tolist(), context)
        return context

    def _plain_cache(self, reference: BagelModel, length: int) -> plain.PlainCache:
        cache = plain.PlainCache.empty(self.layers)
        if length:
            plain.plain_text(reference, self._ids(length).to(self.device), 0, cache)
        return cache

    def _prefill(self) -> Measured | None:
        count = self.settings.prefill
        ids = self._ids(count)
        work = ForwardTokens(und=count, logits=1, attended=count * (count + 1) // 2)
        mine = lambda: ours.read_text(self.engine, ids.tolist(), self.engine.new_context(count))  # noqa: E731
        calls: Calls = {"ours": mine}
        if (reference := self.reference) is not None:
            on_device = ids.to(self.device)

            def plainly() -> Tensor:
                cache = plain.PlainCache.empty(self.layers)
                return reference.logits(plain.plain_text(reference, on_device, 0, cache)[-1:])

            calls["plain"] = plainly
        return self._measure(f"prefill of {count} text tokens", work, calls, held=0, per_token=count)

    def _denoise(self, tokens: int, branches: int) -> Measured | None:
        grid = grid_of(tokens, self.model.config.max_latent_size)
        texts = (_PROMPT, 0, _PROMPT // 2)[:branches]  # full, without text, without image
        latents = torch.randn(tokens, self.model.config.latent_dim, device=self.device)
        run = ours.Denoising(self.engine, [self._context(length, tokens + 2) for length in texts], grid)
        calls: Calls = {"ours": lambda: run.velocities(latents, 0.5)}
        if (reference := self.reference) is not None:
            caches = [self._plain_cache(reference, length) for length in texts]
            markers = torch.tensor([3, 4], device=self.device)
            index = table_index(*grid, self.model.config.max_latent_size).to(self.device)

            def plainly() -> list[Tensor]:
                like = latents.to(self.model.dtype)
                return [plain.plain_velocity(reference, markers, like, index, 0.5, c.length, c) for c in caches]

            calls["plain"] = plainly
        seen = sum((tokens + 2) * (length + tokens + 2) for length in texts)
        work = ForwardTokens(und=2 * branches, gen=tokens * branches, latents=tokens * branches, attended=seen)
        name = f"denoising step, {tokens} image tokens, {branches} branch{'es' if branches > 1 else ''}"
        held = sum(tail.chunk.nbytes for tail in run.scratches)
        return self._measure(name, work, calls, held=held, head=0.0, branches=branches)

    def _decode(self, length: int) -> Measured | None:
        steps = self.settings.decoded
        filled = self._context(length, steps + 1)
        config = self.model.config.decoder
        shape = self.layers, 2, config.num_kv_heads, length, config.head_dim
        like_cache = torch.zeros(shape, dtype=self.model.dtype, device=self.device)

        def mine() -> None:
            context = filled.fork()
            for _ in range(steps):
                ours.read_text(self.engine, [7], context, record=False)

        def reading() -> None:  # as many bytes as the caches of all layers have, once a token
            for _ in range(steps):
                for layer in like_cache:
                    layer.amax()

        calls: Calls = {"ours": mine, "reading the cache": reading}
        if (reference := self.reference) is not None:
            cache = self._plain_cache(reference, length)

            def plainly() -> None:
                own = plain.PlainCache(list(cache.keys), list(cache.values), cache.length)
                token = torch.tensor([7], device=self.device)
                for step in range(steps):
                    reference.logits(plain.plain_text(reference, token, length + step, own))

            calls["plain"] = plainly
        return self._measure(
            f"decoded token at context {length}",
            ForwardTokens(und=1, logits=1, attended=length),
            calls,
            held=filled.nbytes,
            repeat=steps,
            per_token=1,
            context=length,
        )

    def _measure(
        self,
        name: str,
        work: ForwardTokens,
        calls: Calls,
        *,
        held: int,
        repeat: int = 1,
        head: float | None = None,
        **numbers: float,
    ) -> Measured | None:
        if not self.settings.wants(name):
            return None
        self.say(name)
        numbers["peak_memory_bytes"] = self.weights_bytes + held + peak_allocated(self.device, calls["ours"])
        measured = measure(self.model, name, work, calls, self.settings.rounds, self.device, repeat=repeat, **numbers)
        measured.numbers["head_seconds"] = self.head if head is None else head
        return measured


def _summary(results: list[dict[str, Any]], layers: float) -> dict[str, float]:
    """Ratios between quantities, at full depth, which has `layers` times the layers that ran."""
    summary: dict[str, float] = {}
    steps = {(r["name"].split(",")[1].split()[0], r["branches"]): r for r in results if "branches" in r}
    for (tokens, branches), entry in steps.items():
        three = steps.get((tokens, 3), {}).get("seconds", {}).get("plain")
        if branches == 2 and three is not None:
            # The published text to image runs three branches where two suffice.
            summary[f"text to image, {tokens} image tokens: plain 3 branches / ours 2"] = (
                three / entry["seconds"]["ours"]
            )
    decoded = sorted((r for r in results if "context" in r), key=lambda r: r["context"])
    if len(decoded) > 1:
        short, long = decoded[0], decoded[-1]
        took = {r["context"]: r.get("full_depth_seconds", r["seconds"]["ours"]) for r in decoded}
        reading = (long["seconds"]["reading the cache"] - short["seconds"]["reading the cache"]) * layers
        ratio = (took[long["context"]] - reading) / took[short["context"]]
        summary[f"decoding, context {long['context']} / {short['context']} beyond reading the cache"] = ratio
    return summary


__all__ = ["QUICK", "BenchSettings", "Measured", "bench", "config_named", "layers_that_fit"]

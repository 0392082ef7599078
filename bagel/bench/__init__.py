"""`bagel bench`: how fast this machine runs a model of a given shape, against its own matmuls and against a plain loop.

Weights are random: only shapes matter. Every quantity is measured three ways in turn, round after round, so that
whatever else the machine does meets all of them alike, and the least time of each counts:

- `ours`: through the engine (or, for training, the training objective);
- `matmul`: the matmuls of the same work alone, with the same weights. `share` is the rate of arithmetic that ours
  reaches, its attention included, as a share of the rate of these matmuls;
- `plain`: a loop over the same weights that works as the published code does (`bagel.bench.plain`).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bagel.bench import ours, plain
from bagel.bench.floor import Work, floor, flops, matmul_flops
from bagel.bench.machine import config_named, free_memory, layers_that_fit, machine, peak_memory
from bagel.config import BagelConfig, VaeConfig, VitConfig
from bagel.inference.engine import Engine
from bagel.model.bagel import BagelModel
from bagel.model.cache import Context
from bagel.model.vae import Autoencoder
from bagel.sequence import Sample, SpecialTokens, TextSegment, VaeSegment, pack, table_index

Calls = dict[str, Callable[[], object]]
_PROMPT = 64  # text tokens in the context of a picture


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prefill: text tokens of the prefill.
        images: image tokens of the denoising steps (square numbers).
        contexts: text lengths before a decoded token.
        rounds: how often each call is timed.
        decoded: tokens decoded in one timing.
        compare: whether the plain loop runs too.
    """

    prefill: int = 1024
    images: tuple[int, ...] = (256, 1024)
    contexts: tuple[int, ...] = (256, 4096)
    rounds: int = 5
    decoded: int = 8
    compare: bool = True
    train_text: int = 512
    train_image: int = 1024


QUICK = Plan(prefill=256, images=(64, 256), contexts=(64, 1024), rounds=2, decoded=4, train_text=64, train_image=256)


@dataclass
class Measured:
    """One quantity: seconds of each way, least and median, and what follows from them."""

    name: str
    seconds: dict[str, float]
    median_seconds: dict[str, float]
    numbers: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "seconds": self.seconds, "median_seconds": self.median_seconds, **self.numbers}


def random_model(config: BagelConfig, dtype: torch.dtype, device: torch.device) -> BagelModel:
    """The decoder and its heads with random weights; the vision transformer, which nothing here runs, is a stub."""
    tiny = VitConfig(hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, patch_size=2, image_size=4)
    with torch.device("meta"):
        model = BagelModel(replace(config, vit=tiny, vit_max_num_patch_per_side=2))
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


def bench(
    config: BagelConfig,
    *,
    plan: Plan | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measures a configuration; everything is in the result, ready for JSON.

    Args:
        layers: run only so many decoder layers; results also say what the full depth would take.
    """
    plan = plan or Plan()
    depth = config.decoder.num_layers
    shallow = replace(config, decoder=replace(config.decoder, num_layers=min(layers or depth, depth)))
    where = torch.device(device)
    model = random_model(shallow, dtype, where)
    stub = VaeConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=config.vae.z_channels)
    engine = Engine(model, Autoencoder(stub).to(where, dtype), SpecialTokens(1, 2, 3, 4))
    ran = len(model.decoder.layers)
    weights = sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())
    bench_run = _Bench(engine, plan, where, progress or (lambda _: None))
    with torch.inference_mode():
        measured = bench_run.inference()
    peak = {"inference": peak_memory(where)}
    measured += bench_run.training()
    peak["training"] = peak_memory(where)
    numbers = [quantity.to_json() for quantity in measured]
    if ran < depth:
        for entry in numbers:
            if "layers" in entry:  # training: its embedding and optimiser do not grow with depth
                continue
            head = entry["head_seconds"]
            entry["full_depth_seconds"] = (entry["seconds"]["ours"] - head) * depth / ran + head
    return {
        "machine": machine(where),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(where),
        "layers": ran,
        "of_layers": depth,
        "parameters": weights[0],
        "weights_bytes": weights[1],
        "peak_memory_bytes": peak,
        "plan": {name: getattr(plan, name) for name in plan.__dataclass_fields__},
        "results": numbers,
        "summary": _summary(numbers),
    }


class _Bench:
    """One model under measurement."""

    def __init__(self, engine: Engine, plan: Plan, device: torch.device, say: Callable[[str], None]) -> None:
        self.engine, self.model, self.plan, self.device, self.say = engine, engine.model, plan, device, say
        self.layers = len(self.model.decoder.layers)
        head = floor(self.model, Work(logits=1))
        self.head = min(self._time(head) for _ in range(3))

    def inference(self) -> list[Measured]:
        found = [self._prefill()]
        largest = self.model.config.max_latent_size**2
        for tokens in sorted({min(tokens, largest) for tokens in self.plan.images}):
            found += [self._denoise(tokens, branches) for branches in (1, 2, 3)]
        return found + [self._decode(length) for length in self.plan.contexts]

    def _ids(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.randint(5, self.model.config.decoder.vocab_size, (count,), generator=generator)

    def _context(self, length: int, spare: int = 0) -> Context:
        context = self.engine.new_context(length + spare)
        if length:
            ours.read_text(self.engine, self._ids(length).tolist(), context)
        return context

    def _plain_cache(self, length: int) -> plain.PlainCache:
        cache = plain.PlainCache.empty(self.layers)
        if length:
            plain.plain_text(self.model, self._ids(length).to(self.device), 0, cache)
        return cache

    def _prefill(self) -> Measured:
        count = self.plan.prefill
        ids = self._ids(count)
        on_device = ids.to(self.device)

        def plainly() -> Tensor:
            cache = plain.PlainCache.empty(self.layers)
            return self.model.logits(plain.plain_text(self.model, on_device, 0, cache)[-1:])

        work = Work(und=count, logits=1, attended=count * (count + 1) // 2)
        mine = lambda: ours.read_text(self.engine, ids.tolist(), self.engine.new_context(count))  # noqa: E731
        return self._measure(f"prefill of {count} text tokens", work, {"ours": mine, "plain": plainly}, per_token=count)

    def _denoise(self, tokens: int, branches: int) -> Measured:
        side = int(tokens**0.5)
        texts = (_PROMPT, 0, _PROMPT // 2)[:branches]  # full, without text, without image
        latents = torch.randn(tokens, self.model.config.latent_dim, device=self.device)
        run = ours.Denoising(self.engine, [self._context(length, tokens + 2) for length in texts], (side, side))
        caches = [self._plain_cache(length) for length in texts] if self.plan.compare else []
        markers = torch.tensor([3, 4], device=self.device)
        index = table_index(side, side, self.model.config.max_latent_size).to(self.device)

        def plainly() -> list[Tensor]:
            like = latents.to(self.model.dtype)
            return [plain.plain_velocity(self.model, markers, like, index, 0.5, c.length, c) for c in caches]

        seen = sum((tokens + 2) * (length + tokens + 2) for length in texts)
        work = Work(und=2 * branches, gen=tokens * branches, latents=tokens * branches, attended=seen)
        name = f"denoising step, {tokens} image tokens, {branches} branch{'es' if branches > 1 else ''}"
        calls: Calls = {"ours": lambda: run.velocities(latents, 0.5), "plain": plainly}
        return self._measure(name, work, calls, head=0.0, branches=branches)

    def _decode(self, length: int) -> Measured:
        steps = self.plan.decoded
        filled = self._context(length, steps + 1)
        cache = self._plain_cache(length) if self.plan.compare else None
        config = self.model.config.decoder
        shape = self.layers, 2, config.num_kv_heads, length, config.head_dim
        held = torch.zeros(shape, dtype=self.model.dtype, device=self.device)

        def mine() -> None:
            context = filled.fork()
            for _ in range(steps):
                ours.read_text(self.engine, [7], context, record=False)

        def plainly() -> None:
            assert cache is not None
            own = plain.PlainCache(list(cache.keys), list(cache.values), cache.length)
            token = torch.tensor([7], device=self.device)
            for step in range(steps):
                self.model.logits(plain.plain_text(self.model, token, length + step, own))

        def reading() -> None:  # of as many bytes as the caches of all layers have, once a token
            for _ in range(steps):
                for layer in held:
                    layer.amax()

        work = Work(und=1, logits=1, attended=length)
        calls: Calls = {"ours": mine, "plain": plainly, "reading the cache": reading}
        return self._measure(
            f"decoded token at context {length}", work, calls, repeat=steps, per_token=1, context=length
        )

    def training(self) -> list[Measured]:
        """One step of the training objective and its optimiser, in as many layers as memory allows."""
        from bagel.model.attention import MaskedAttention
        from bagel.training.objective import add_noise, compute_losses
        from bagel.training.optimizer import Optimizers
        from bagel.training.recipe import OptimizerRecipe

        model, text = self.model, self.plan.train_text
        tokens = min(self.plan.train_image, model.config.max_latent_size**2)
        outside = sum(p.numel() for n, p in model.named_parameters() if ".layers." not in n)
        inside = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n) // self.layers
        size = torch.finfo(model.dtype).bits // 8
        room = (
            0.7 * free_memory(self.device) / (4 * size)
        )  # parameters: gradients, two moments, as much again in flight
        layers = min(self.layers, int((room - outside) / inside))
        if layers < 1:
            self.say("no memory for a training step")
            return []
        model.decoder.layers = model.decoder.layers[:layers]
        side = int(tokens**0.5)
        ids = self._ids(text - 2).tolist()
        segment = VaeSegment(torch.randn(tokens, model.config.latent_dim), (side, side), noised=True)
        sample = Sample((TextSegment((1, *ids, 2), labels=(*ids, 2)), segment))
        packed = pack([[sample]], self.engine.spec)
        noised = add_noise(packed, torch.tensor([0.5]), torch.randn_like(packed.latents))
        noised.packed, noised.target = noised.packed.to(self.device), noised.target.to(self.device)
        model.requires_grad_(True)
        optimizers = Optimizers(model.named_parameters(), OptimizerRecipe.model_validate({"name": "adamw", "lr": 1e-6}))

        def gradients() -> None:
            losses = compute_losses(model, noised, MaskedAttention(noised.packed))
            (losses.ce_sum(False) / losses.ce_count(False) + losses.mse_sum() / losses.mse_count).backward()

        def whole() -> None:
            gradients()
            optimizers.step(1.0)

        length = text + tokens + 2
        seen = text * (text + 1) // 2 + (tokens + 2) * length
        work = Work(und=text + 2, gen=tokens, logits=text - 1, latents=tokens, attended=seen, backward=True)
        calls: Calls = {"ours": gradients, "with optimiser": whole}
        name = f"training step, {text} text and {tokens} image tokens, {layers} layer{'s' if layers > 1 else ''}"
        measured = self._measure(name, work, calls, head=0.0, per_token=length, layers=layers)
        model.requires_grad_(False)
        return [measured]

    def _time(self, call: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _measure(
        self, name: str, work: Work, calls: Calls, *, repeat: int = 1, head: float | None = None, **numbers: float
    ) -> Measured:
        """Times each call, and the matmuls of the same work, in turn; `repeat` is how often a call does its work."""
        self.say(name)
        if not self.plan.compare:
            calls.pop("plain", None)
        matmul = floor(self.model, work)
        calls["matmul"] = lambda: [matmul() for _ in range(repeat)]
        for call in calls.values():  # once unmeasured: caches, allocations, kernels chosen
            call()
        times: dict[str, list[float]] = {way: [] for way in calls}
        for _ in range(self.plan.rounds):
            for way, call in calls.items():
                times[way].append(self._time(call) / repeat)
        least = {way: min(values) for way, values in times.items()}
        rate = matmul_flops(self.model, work) / least["matmul"]
        numbers |= {
            "gflops": flops(self.model, work) / least["ours"] / 1e9,
            "matmul_gflops": rate / 1e9,
            "share": flops(self.model, work) / least["ours"] / rate,
            "head_seconds": self.head if head is None else head,
        }
        if "per_token" in numbers:
            numbers["tokens_per_second"] = numbers.pop("per_token") / least["ours"]
        if "plain" in least:
            numbers["speedup"] = least["plain"] / least["ours"]
        gc.collect()
        return Measured(name, least, {way: statistics.median(v) for way, v in times.items()}, numbers)


def _summary(results: list[dict[str, Any]]) -> dict[str, float]:
    """What the quantities say together."""
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
        reading = long["seconds"]["reading the cache"] - short["seconds"]["reading the cache"]
        ratio = (long["seconds"]["ours"] - reading) / short["seconds"]["ours"]
        summary[f"decoding, context {long['context']} / {short['context']} beyond reading the cache"] = ratio
    return summary


__all__ = ["QUICK", "Measured", "Plan", "bench", "config_named", "layers_that_fit"]

"""Estimated memory is what going through the model counts, and what a process is measured to take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.official import TASKS, read_config
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.precision import PARTS, Precision
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model import attend_over, cached_attention, kernels, vae_strips
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import CachePool, CacheSpec, Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.vae import Autoencoder
from bagel_mot.placement.estimate import (
    _HEAP_SHARE,
    _STRIPS_SHARE,
    PROCESS_BYTES,
    Workload,
    cache_bytes,
    capacity,
    decode_bytes,
    encode_bytes,
    forward_bytes,
    memory_estimate,
    reference_workloads,
    weight_bytes,
)
from bagel_mot.sequence import (
    PackSpec,
    Sample,
    Segment,
    TextSegment,
    VaeSegment,
    Values,
    VitSegment,
    pack_cached,
)
from bagel_mot.tokenizer import SpecialTokens
from tests.placement.trace import peak, without_values

CONFIGS = {
    "mini": read_config(open_checkpoint(MINI_FOLDER)),
    **{name: NAMED_CONFIGS[name] for name in ("0.5b", "7b-mot")},
}
MIB = 1 << 20
GB = 10**9


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> BagelConfig:
    return CONFIGS[request.param]


# -------------------------------------------------------------------------------------------------------- the tracer


@pytest.fixture(autouse=True)
def _attention_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without bfloat16 attend in float32, which takes more for a model as small as mini."""
    for module in (attend_over, cached_attention):
        monkeypatch.setattr(module, "product_dtype", lambda dtype, device: dtype)


def test_what_is_alive_at_once_is_counted() -> None:
    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        x = torch.empty(MIB)  # 4 MiB, which are there before

        def compute() -> Tensor:
            y = x + 1  # 4
            y = y * 2  # 8, then 4 again
            return torch.cat([y, y]) + 0  # 4 + 8 + 8

        return [x], compute

    assert peak(prepare) == 20 * MIB


def test_views_and_changes_in_place_take_nothing() -> None:
    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        x = torch.empty(MIB)
        return [x], lambda: x.view(1024, 1024).transpose(0, 1)[3:].mul_(2)

    assert peak(prepare) == 0


# ------------------------------------------------------------------------------- formulas against the model's own code


def alive_in_forward(config: BagelConfig, dtype: torch.dtype, rows: list[Sample], context_length: int) -> int:
    """Bytes alive in one forward pass; more than two layers hold no more at once."""
    shallow = replace(config, decoder=replace(config.decoder, num_layers=min(2, config.decoder.num_layers)))
    kernels._flash_works_on_cpu(dtype)  # a probe needs values
    spec = PackSpec.of(config, SpecialTokens(1, 2, 3, 4))
    layout, values = pack_cached(rows, spec), Values.of(rows, spec)

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        model = without_values(BagelModel(shallow), dtype)
        # As they come to the model, but made here, so that they have no values either.
        empty: dict[Any, dict[str, Any]] = {
            part: {
                name: torch.empty(value.shape, dtype=value.dtype)
                for name, value in vars(part).items()
                if isinstance(value, Tensor)
            }
            for part in (layout, values)
        }
        samples, caches = [], []
        for row, spans in zip(rows, layout.spans, strict=True):
            context = Context(model.decoder.cache_spec)
            if context_length:
                behind = context.allocate(context_length, scratch=True)
                context.commit(behind, (TextSegment((5,) * context_length),))
            tokens = sum(segment.und_len + segment.gen_len for segment in row.segments)
            samples.append(CachedSample(spans, context.allocate(tokens, scratch=True)))
            chunks = [samples[-1].reservation.chunk, *(view.chunk for view in samples[-1].reservation.views_before)]
            caches += [layer for chunk in chunks for layer in chunk.slab.layers]

        def compute() -> None:
            und, gen = model(*(replace(part, **made) for part, made in empty.items()), CachedAttention(samples))
            if rows[0].segments[-1].gen_len == 0:
                model.logits(und[-len(rows) :]).float()
            else:
                model.velocity(gen).float()

        given = [tensor for made in empty.values() for tensor in made.values()]
        return [*model.parameters(), *model.buffers(), *caches, *given], compute

    return peak(prepare)


def side(config: BagelConfig) -> int:
    return min(256, config.max_latent_size * config.latent_stride)


def copied(config: BagelConfig, dtype: torch.dtype, images: Sequence[tuple[int, int]]) -> int:
    """Bytes of what small images see, which is copied side by side, and of their queries: no estimate counts them.

    Args:
        config: the model's configuration.
        dtype: the type of the cache.
        images: for each its tokens, and those that it sees.
    """
    decoder, total = config.decoder, 0
    for n, sees in images:
        a_token = decoder.head_dim * dtype.itemsize
        if 2 * sees * decoder.num_kv_heads * a_token <= cached_attention._SMALL_ROW:
            keys = cached_attention._padded(sees) * decoder.num_kv_heads
            total += (2 * keys + n * decoder.num_heads) * a_token
    return total


def noised(config: BagelConfig, pixels: int | None = None) -> Segment:
    cells = (pixels or side(config)) // config.latent_stride
    latents = torch.zeros(1).expand(cells * cells, config.latent_dim)
    return VaeSegment(latents, (cells, cells), noised=True, timestep=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_denoising_step(config: BagelConfig, dtype: torch.dtype, rows: int) -> None:
    alive = alive_in_forward(config, dtype, [Sample((noised(config),), 0)] * rows, 100)
    latents = rows * (side(config) // config.latent_stride) ** 2
    n = 2 + latents // rows
    estimated = forward_bytes(config.decoder, 2 * rows, latents, dtype)
    assert 0.93 < (estimated + copied(config, dtype, [(n, 100 + n)] * rows)) / alive < 1.05


def test_images_that_both_experts_read(config: BagelConfig) -> None:
    cells, patches = side(config) // config.latent_stride, min(config.vit.side, side(config) // config.vit.patch_size)
    image: tuple[Segment, ...] = (
        VaeSegment(torch.zeros(1).expand(cells * cells, config.latent_dim), (cells, cells)),
        VitSegment(torch.zeros(1).expand(patches * patches, config.vit.patch_dim), (patches, patches)),
    )
    alive = alive_in_forward(config, torch.bfloat16, [Sample((*image, *image, TextSegment((5,) * 66)), 0)], 0)
    estimated = forward_bytes(config.decoder, 2 * (patches**2 + 4) + 66, 2 * cells**2, torch.bfloat16)
    sizes = 2 * [cells**2 + 2, patches**2 + 2]
    estimated += copied(config, torch.bfloat16, list(zip(sizes, accumulate(sizes), strict=True)))
    assert 0.95 < estimated / alive < 1.05


def test_a_text(config: BagelConfig) -> None:
    alive = alive_in_forward(config, torch.bfloat16, [Sample((TextSegment((5,) * 1000),), 0)], 0)
    assert 0.9 < forward_bytes(config.decoder, 1000, 0, torch.bfloat16) / alive < 1.05


@pytest.mark.parametrize("decode", [True, False])
def test_images_as_whole_maps(monkeypatch: pytest.MonkeyPatch, config: BagelConfig, decode: bool) -> None:
    monkeypatch.setattr(vae_strips, "SMALLEST_MAP", 1 << 50)
    width, height = side(config), side(config) // 2
    step = config.vae.downsample

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        autoencoder = without_values(Autoencoder(config.vae), torch.float32)
        if decode:
            x = torch.empty(2, config.vae.z_channels, height // step, width // step)
            return [*autoencoder.parameters(), x], lambda: autoencoder.decode(x)
        x = torch.empty(2, config.vae.in_channels, height, width)
        return [*autoencoder.parameters(), x], lambda: autoencoder.encode(x)

    estimated = (decode_bytes if decode else encode_bytes)(
        config.vae, 2 * width * height, torch.float32, images=2, on_cpu=True
    )
    assert 0.95 < estimated / peak(prepare) <= 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [512, 1024])
@pytest.mark.parametrize("decode", [True, False])
def test_images_in_strips(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, side: int, decode: bool) -> None:
    """Two images of the official size take no more than one, but for what comes out."""
    if not kernels.has_channel_kernels("cpu", dtype):
        pytest.skip("this PyTorch does not work in strips")
    config = NAMED_CONFIGS["7b-mot"].vae
    # Gone through without values it would make a tensor and copy it; with values it writes where it is told to.
    monkeypatch.setattr(kernels, "scale_channels", lambda out, *_: out.zero_())
    monkeypatch.setattr(vae_strips, "activation_for", lambda *_: None)  # compiled passes read memory, and here is none

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        autoencoder = without_values(Autoencoder(config), dtype)
        if decode:
            x = torch.empty(2, config.z_channels, side // 8, side // 8, dtype=dtype)
            return [*autoencoder.parameters(), x], lambda: autoencoder.decode(x)
        x = torch.empty(2, config.in_channels, side, side, dtype=dtype)
        return [*autoencoder.parameters(), x], lambda: autoencoder.encode(x)

    estimated = (decode_bytes if decode else encode_bytes)(config, 2 * side * side, dtype, images=2, on_cpu=True)
    assert 0.97 < estimated / peak(prepare) <= 1.03
    assert estimated < (decode_bytes if decode else encode_bytes)(config, side * side, dtype), "one image as whole maps"


LARGEST = {  # bytes for one image of 1024×1024, as the estimate states them
    ("decode", torch.bfloat16): 1.2e9,
    ("decode", torch.float32): 2.3e9,
    ("encode", torch.bfloat16): 0.65e9,
    ("encode", torch.float32): 1.2e9,
}


def alive_in_autoencoder(monkeypatch: pytest.MonkeyPatch, what: str, dtype: torch.dtype) -> int:
    """Bytes alive while the official autoencoder works on one image of 1024×1024 on the CPU."""
    if not kernels.has_channel_kernels("cpu", dtype):
        pytest.skip("this PyTorch does not work in strips")
    config = NAMED_CONFIGS["7b-mot"].vae
    monkeypatch.setattr(kernels, "scale_channels", lambda out, *_: out.zero_())  # see above
    monkeypatch.setattr(vae_strips, "activation_for", lambda *_: None)

    def prepare() -> tuple[list[Tensor], Callable[[], object]]:
        autoencoder = without_values(Autoencoder(config), dtype)
        channels, side = (config.z_channels, 128) if what == "decode" else (config.in_channels, 1024)
        x = torch.empty(1, channels, side, side, dtype=dtype)
        return [*autoencoder.parameters(), x], lambda: getattr(autoencoder, what)(x)

    return peak(prepare)


@pytest.mark.parametrize(("what", "dtype"), LARGEST)
def test_a_large_image_takes_no_more_than_is_stated(
    monkeypatch: pytest.MonkeyPatch, what: str, dtype: torch.dtype
) -> None:
    assert 0.9 * LARGEST[what, dtype] < alive_in_autoencoder(monkeypatch, what, dtype) <= LARGEST[what, dtype]


# --------------------------------------------------------------------------------------------------------- workloads


@pytest.mark.parametrize("images", [torch.float32, torch.bfloat16], ids=str)
def test_drawing_at_the_official_size_in_int4_fits_13_5_gb(
    monkeypatch: pytest.MonkeyPatch, images: torch.dtype
) -> None:
    """What is alive is counted; what a process holds beside it was measured (`PROCESS_BYTES`, `_HEAP_SHARE`)."""
    config = NAMED_CONFIGS["7b-mot"]
    drawing = reference_workloads(config)[0]
    assert drawing.drawn == (1024, 1024)
    rows = [Sample((noised(config, 1024),), 0)] * drawing.branches
    forward = _HEAP_SHARE * alive_in_forward(config, torch.bfloat16, rows, 100)
    decoding = _STRIPS_SHARE * alive_in_autoencoder(monkeypatch, "decode", images)
    tokens = drawing.branches * (4096 + 2) + 66
    cache = tokens * 2 * 28 * 4 * 128 * 2
    with torch.device("meta"):
        model, autoencoder = BagelModel(config), Autoencoder(config.vae)
    weights = sum(t.numel() for t in autoencoder.parameters()) * images.itemsize
    for name, tensor in model.state_dict().items():
        if name != "decoder.embed_tokens.weight":  # which stays in its file
            quantised = PARTS["decoder"].fullmatch(name) is not None
            weights += int(tensor.numel() * (4.5 / 8 if quantised else 2))
    counted = PROCESS_BYTES + weights + cache + max(forward, decoding)
    precision = Precision(parts={"decoder": "int4"}, autoencoder=images)
    foretold = weight_bytes(config, precision, TASKS)
    work = memory_estimate(config, drawing, torch.bfloat16, images, on_cpu=True)
    predicted = PROCESS_BYTES + foretold.total - foretold.embedding + work.peak
    assert predicted == pytest.approx(counted, rel=0.03)
    assert max(predicted, counted) < 13.5e9


def test_the_cache_of_a_workload(config: BagelConfig) -> None:
    kept = memory_estimate(config, Workload("understand", ((64, 64),)), torch.bfloat16, torch.float32, on_cpu=True)
    each = cache_bytes(config.decoder, 1, torch.bfloat16)
    patches = min(config.vit.side, 64 // config.vit.patch_size) ** 2
    assert kept.cache == each * (patches + 2 + 66 + 256)  # the image with its markers, a prompt, an answer
    assert kept.peak > kept.cache


def test_estimates_are_within_a_tenth_of_what_was_measured_at_the_official_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peaks of processes with INT4, by `benchmarks/full.py`; an embedding that is stored as it is wanted stays in its
    file. They were measured when the autoencoder computed whole feature maps, in float32.
    """
    monkeypatch.setattr(vae_strips, "SMALLEST_MAP", 1 << 50)
    report = json.loads((Path(__file__).parents[2] / "benchmarks/results/full-7b-mot-cpu.json").read_text())
    measured = {part["job"]: part["peak_resident_bytes"] for part in report["parts"].values() if "job" in part}
    config, precision = NAMED_CONFIGS["7b-mot"], Precision(parts={"decoder": "int4"}, autoencoder=torch.float32)
    weights = weight_bytes(config, precision, ("generate", "edit", "understand"))
    held = PROCESS_BYTES + weights.total - weights.embedding
    for workload in reference_workloads(config):
        work = memory_estimate(config, workload, precision.activations, torch.float32, on_cpu=True)
        assert (held + work.peak) / measured.pop(workload.name) == pytest.approx(1, abs=0.1), workload.name
    assert not measured


def test_capacity_divides_what_there_is() -> None:
    config, types = NAMED_CONFIGS["7b-mot"], (torch.bfloat16, torch.float32)
    for gigabytes in (2, 8, 32, 500):
        found = capacity(config, gigabytes * GB, *types, on_cpu=True)
        cache = cache_bytes(config.decoder, found.cache_tokens + found.prefix_tokens, types[0])
        work = forward_bytes(config.decoder, found.step_tokens, 0, types[0])
        work += decode_bytes(config.vae, found.step_pixels, types[1])
        assert cache + work <= gigabytes * GB
    assert found.step_tokens == 32768
    assert found.step_pixels == 4 * MIB


# What it prints: bytes that the process had at most while it did the work. What it frees goes back to the system at
# once, so that this is what was alive: a heap that keeps blocks is larger by luck, by where small ones happen to be
# between large ones (an image of 512 took 2.86 to 3.5 GB).
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "OMP_NUM_THREADS": "1",
}
_PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from torch import nn
from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.config import BagelConfig, NAMED_CONFIGS
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine import engine
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.model.vae import Autoencoder
from bagel_mot.tokenizer import Tokenizer

engine.keep_freed_memory = lambda: True
task, side, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
config = NAMED_CONFIGS["0.5b"]
config = replace(config, decoder=replace(config.decoder, num_layers=4), vit=replace(config.vit, num_layers=4))
with torch.device("meta"):
    model, autoencoder = BagelModel(config).eval(), Autoencoder(config.vae).eval()
for module, kind in ((model, dtype), (autoencoder, torch.float32)):
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    filled = torch.full(tensor.shape, 0.01, dtype=kind)
                    tensors[name] = nn.Parameter(filled, requires_grad=False)
prepack_weights(model)
bagel = Bagel(Checkpoint(config, model, autoencoder, Tokenizer.from_folder(MINI_FOLDER)))
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
image, text = Image.new("RGB", (side, side), "red"), "x " * 60
if task == "generate":
    bagel.generate(text, size=(side, side), num_timesteps=2)
else:
    bagel.ask(image, text, max_new_tokens=2)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps(int(status["VmHWM"].split()[0]) * 1024))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks the Linux kernel for the peak")
@pytest.mark.parametrize(
    ("task", "side", "dtype"),
    [
        ("understand", 896, torch.bfloat16),
        ("understand", 896, torch.float32),
        ("generate", 512, torch.bfloat16),
        ("generate", 1024, torch.bfloat16),
    ],
)
def test_predictions_are_near_what_is_measured(task: str, side: int, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-c", _PROGRAM, task, str(side), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, **_ALLOCATOR})
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    config = NAMED_CONFIGS["0.5b"]
    config = replace(config, decoder=replace(config.decoder, num_layers=4), vit=replace(config.vit, num_layers=4))
    square = (side, side)
    drawing, asking = Workload("generate", drawn=square, branches=2), Workload("understand", (square,))
    weights = weight_bytes(config, Precision(dtype, autoencoder=torch.float32), TASKS).total
    work = memory_estimate(config, drawing if task == "generate" else asking, dtype, torch.float32, on_cpu=True)
    predicted = PROCESS_BYTES + weights + work.peak
    # A prediction has room for the gaps in a heap, which are not here: with it, it was 1.15 to 1.19 of what was alive.
    assert 1.05 < predicted / measured < 1.25, f"predicted {predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f}"


def test_a_cache_in_slabs_takes_no_more_than_is_estimated() -> None:
    config = NAMED_CONFIGS["0.5b"]
    token = cache_bytes(config.decoder, 1, torch.bfloat16)
    for workload in reference_workloads(config):
        exact, slabs = (
            memory_estimate(config, workload, torch.bfloat16, torch.float32, on_cpu=on_cpu).cache // token
            for on_cpu in (True, False)
        )
        pool, spec = CachePool(), CacheSpec(1, 2, torch.bfloat16, (torch.device("meta"),))
        # An image that is drawn has a chunk for each branch; the context has the rest.
        drawn = 0 if workload.drawn is None else 4096 + 2
        chunks = [drawn] * workload.branches * bool(drawn)
        placed = [pool.place(spec, tokens) for tokens in [*chunks, exact - sum(chunks)]]
        taken = sum(slab.layers[0].shape[2] for slab in {id(slab): slab for slab, _ in placed}.values())
        assert exact <= taken <= slabs, workload.name

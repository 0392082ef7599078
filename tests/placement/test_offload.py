"""Layers on other devices, in host memory and on the disk compute what they compute in place, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bagel_mot.bench import random_model
from bagel_mot.config import BagelConfig, DecoderConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import CacheSpec, Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.decoder import DecoderLayer
from bagel_mot.model.quant import Int4Matrix, Int8Matrix
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.placement import offload
from bagel_mot.placement.offload import BroughtLayer, Placement, spread
from bagel_mot.placement.prefetch import LayerPrefetcher
from bagel_mot.placement.weights import Weight, experts_of, pin
from bagel_mot.sequence import PackSpec, Sample, Segment, TextSegment, VaeSegment, Values, pack_cached
from bagel_mot.tokenizer import SpecialTokens

CPU = torch.device("cpu")
CONFIG = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=64, num_layers=5, num_heads=4, num_kv_heads=2, intermediate_size=192, vocab_size=100
    )
)
SPEC = PackSpec.of(CONFIG, SpecialTokens(1, 2, 3, 4))
TEXT = TextSegment((1, 20, 30, 40, 2))
IMAGE = VaeSegment(torch.randn(6, CONFIG.latent_dim, generator=torch.Generator().manual_seed(3)), (2, 3))


def forward(model: BagelModel, context: Context, *segments: Segment) -> tuple[Tensor, Tensor]:
    """One step of the engine: segments are read behind a context."""
    samples = [Sample(segments, context.position)]
    layout = pack_cached(samples, SPEC)
    tail = context.allocate(sum(segment.und_len + segment.gen_len for segment in segments))
    with torch.inference_mode():
        out = model(layout, Values.of(samples, SPEC), CachedAttention([CachedSample(layout.spans[0], tail)]))
    context.commit(tail, segments)
    return out


def run(model: BagelModel) -> list[Tensor]:
    """A text, then a picture (which needs the other expert), then a text."""
    context = Context(model.decoder.cache_spec)
    return [tensor for segment in (TEXT, IMAGE, TEXT) for tensor in forward(model, context, segment)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def model_in(dtype: torch.dtype) -> BagelModel:
    """Its layers differ, which those of `random_model` do not."""
    model = random_model(CONFIG, dtype, CPU)
    for index, layer in enumerate(model.decoder.layers):
        for parameter in layer.parameters():
            parameter.mul_(1 + index / 8)
    return model


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest) -> BagelModel:
    return model_in(request.param)


def moved_into_file(model: BagelModel, path: Path, layers: list[int]) -> None:
    """Makes the weights of some layers views of a file."""
    chosen = [w for i in layers for expert in experts_of(layer(model, i)).values() for w in expert]
    save_file({str(i): weight.home for i, weight in enumerate(chosen)}, path)
    with safe_open(path, framework="pt") as file:
        for i, weight in enumerate(chosen):
            weight.put(file.get_tensor(str(i)))


def layer(model: BagelModel, index: int) -> DecoderLayer:
    return cast(DecoderLayer, model.decoder.layers[index])


def brought_from_host(model: BagelModel, folder: Path) -> None:
    offload.apply(model, spread(5, 0, "host", CPU))


def partly_from_host(model: BagelModel, folder: Path) -> None:
    offload.apply(model, spread(5, 2, "host", CPU))


def from_disk(model: BagelModel, folder: Path) -> None:
    moved_into_file(model, folder / "layers.safetensors", [0, 1, 2, 3, 4])
    offload.apply(model, spread(5, 0, "disk", CPU))


def from_disk_through_buffers(model: BagelModel, folder: Path) -> None:
    """As with a GPU: a thread copies from the mapped file into the ring."""
    moved_into_file(model, folder / "layers.safetensors", [0, 1, 2, 3, 4])
    ring = LayerPrefetcher(
        [experts_of(layer(model, i)) for i in range(5)], CPU, background=True, after_fetch=offload.drop
    )
    for i in range(5):
        model.decoder.layers[i] = BroughtLayer(layer(model, i), ring, i, CPU)


WAYS = [brought_from_host, partly_from_host, from_disk, from_disk_through_buffers]


@pytest.mark.parametrize("way", WAYS)
def test_results_are_those_of_the_plain_model(
    model: BagelModel, way: Callable[[BagelModel, Path], None], tmp_path: Path
) -> None:
    expected = run(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    way(model, tmp_path)
    for _ in range(2):
        assert same(run(model), expected)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", [Int8Matrix, Int4Matrix])
def test_quantised_layers_are_brought_as_they_are_stored(kind: type[Int8Matrix | Int4Matrix]) -> None:
    model = model_in(torch.bfloat16)
    quantised = 0
    for module in list(model.decoder.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and kind.fits((child.out_features, child.in_features)):
                matrix = kind.quantise(child.weight)
                setattr(module, name, QuantisedLinear(matrix, child.bias, torch.bfloat16))
                quantised += 1
    assert quantised >= 5 * 2 * 5
    expected = run(model)
    offload.apply(model, spread(5, 1, "host", CPU))
    assert same(run(model), expected)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_in_a_layer_leaves_the_model_usable(
    way: Callable[[BagelModel, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(torch.float32)
    expected = run(model)
    way(model, tmp_path)

    def fail(x: Tensor, attended: Tensor) -> Tensor:
        raise KeyboardInterrupt

    for broken in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder.layers[broken].und, "finish", fail)
            with pytest.raises(KeyboardInterrupt):
                run(model)
        assert same(run(model), expected)


def test_an_error_while_weights_are_brought_leaves_the_model_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in(torch.float32)
    expected = run(model)
    offload.apply(model, spread(5, 0, "host", CPU))
    copy, calls = LayerPrefetcher._copy, iter(range(100))

    def fail_once(self: LayerPrefetcher, *rest: object) -> object:
        if next(calls) == 3:
            raise RuntimeError("no memory")
        return copy(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerPrefetcher, "_copy", fail_once)
    with pytest.raises(RuntimeError, match="no memory"):
        run(model)
    assert same(run(model), expected)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Layers and experts in the order in which a ring brings them."""
    order: list[tuple[int, str]] = []
    copy = LayerPrefetcher._copy

    def note(self: LayerPrefetcher, buffer: object, layer: int, expert: str, free: object) -> object:
        order.append((layer, expert))
        return copy(self, buffer, layer, expert, free)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerPrefetcher, "_copy", note)
    return order


def test_layers_come_in_order_and_text_brings_no_expert_for_images(fetched: list[tuple[int, str]]) -> None:
    model = model_in(torch.float32)
    offload.apply(model, spread(5, 0, "host", CPU))
    context = Context(model.decoder.cache_spec)
    forward(model, context, TEXT)
    around = [(i % 5, "und") for i in range(6)]  # the first layer already comes for the next forward
    assert fetched == around
    fetched.clear()
    forward(model, context, TEXT)
    assert fetched == around[1:]
    fetched.clear()
    forward(model, context, IMAGE)
    assert fetched[0] == (0, "gen")  # the other expert of this layer is there
    assert fetched[1:] == [(i % 5, expert) for i in range(1, 6) for expert in ("und", "gen")]


def test_the_next_layer_is_asked_for_before_one_computes(
    fetched: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(torch.float32)
    offload.apply(model, spread(5, 0, "host", CPU))
    seen: list[int] = []
    forward_of = DecoderLayer.forward

    def note(self: DecoderLayer, *rest: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(fetched[-1][0])
        return forward_of(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DecoderLayer, "forward", note)
    forward(model, Context(model.decoder.cache_spec), TEXT)
    assert seen == [1, 2, 3, 4, 0]


def test_no_more_than_two_layers_are_on_the_device() -> None:
    model = model_in(torch.bfloat16)
    one = sum(p.nbytes for p in layer(model, 0).parameters())
    ring = LayerPrefetcher([experts_of(layer(model, i)) for i in range(5)], CPU)
    blocks = {
        place.untyped_storage().data_ptr(): place.untyped_storage().nbytes()
        for buffer in ring._buffers
        for experts in buffer.places
        for places in experts.values()
        for place in places
    }
    assert 2 * one <= sum(blocks.values()) <= 2.1 * one + 4 * 22 * 256  # each weight begins at a multiple of 256 bytes


def resident(path: Path) -> int:
    """Bytes of a file that are mapped into this process and in memory, as the kernel counts."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(str(path))
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks the Linux kernel")
def test_of_a_mapped_file_two_layers_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = DecoderConfig(
        hidden_size=512, num_layers=5, num_heads=8, num_kv_heads=2, intermediate_size=4096, vocab_size=100
    )
    model = random_model(BagelConfig(decoder=decoder), torch.bfloat16, CPU)
    path = tmp_path / "layers.safetensors"
    und = sum(p.nbytes for p in layer(model, 0).und.parameters())
    moved_into_file(model, path, list(range(5)))
    offload.apply(model, spread(5, 0, "disk", CPU))
    most: list[int] = []
    forward_of = DecoderLayer.forward

    def note(self: DecoderLayer, *rest: Tensor) -> tuple[Tensor, Tensor]:
        out = forward_of(self, *rest)  # type: ignore[arg-type]
        most.append(resident(path))
        return out

    monkeypatch.setattr(DecoderLayer, "forward", note)
    forward(model, Context(model.decoder.cache_spec), TEXT)
    around = 5 * 14 * 2 * (64 << 10)  # on both sides of each weight: pages that the kernel brings along
    assert len(most) == 5
    assert 2 * und + around < 3 * und
    assert max(most) <= 2 * und + around
    assert max(most) >= und
    assert resident(path) <= und + around  # the first layer, for the next forward


def test_layers_on_several_devices_hand_over_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second CPU is not to be had, but tensors on "cpu:1" are: moves are seen, and computed as ever."""
    model = model_in(torch.float32)
    expected = run(model)
    other = torch.device("cpu", 1)
    moves: list[torch.device] = []
    monkeypatch.setattr(
        DecoderLayer,
        "device",
        property(lambda self: other if self._late else CPU),
    )
    for index in range(5):
        layer(model, index)._late = index >= 3  # type: ignore[assignment]
    placement = Placement(CPU, (CPU, CPU, CPU, other, other))
    offload.apply(model, placement)
    for index in range(5):
        layer(model, index)._late = index >= 3  # type: ignore[assignment]
    assert model.decoder.devices == (CPU, CPU, CPU, other, other)
    to = Tensor.to

    def note(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        if args and isinstance(args[0], torch.device):
            moves.append(args[0])
        return to(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Tensor, "to", note)
    context = Context(model.decoder.cache_spec)
    out = forward(model, context, TEXT)
    assert same(list(out), expected[:2])
    both = 2
    ropes = 4  # cosines and sines of both experts, once for each device
    assert moves.count(other) == 2 * both + ropes
    assert moves[-both:] == [CPU, CPU]  # the result


def test_the_cache_of_each_layer_stands_with_its_layer() -> None:
    devices = (CPU, CPU, torch.device("meta"), torch.device("meta"), CPU)
    context = Context(CacheSpec(2, 16, torch.float32, devices))
    tail = context.allocate(7)
    assert [block.device.type for block in tail.chunk.slab.layers] == [device.type for device in devices]
    shape = 2, 2, tail.chunk.capacity, 16
    assert all(block.shape == shape for block in tail.chunk.slab.layers)
    blocks = [block.untyped_storage().data_ptr() for block in tail.chunk.slab.layers if block.device == CPU]
    assert len(set(blocks)) == 1
    assert tail.chunk.nbytes == 5 * 2 * 2 * tail.chunk.capacity * 16 * 4


def test_a_placement_says_where_each_tensor_is_loaded_to() -> None:
    gpu = torch.device("cuda", 0)
    placement = Placement(gpu, ("host", "disk", gpu))
    assert placement.device_of("decoder.layers.0.und.q.weight") == CPU
    assert placement.device_of("decoder.layers.1.gen.q.bias") is None
    assert placement.device_of("decoder.layers.2.gen.q.bias") == gpu
    assert placement.device_of("decoder.embed_tokens.weight") == gpu
    assert placement.device_of("vit.layers.1.q.weight") == gpu
    assert placement.device_of("autoencoder") == gpu


@pytest.mark.parametrize(("layers", "stay"), [(28, 0), (28, 9), (28, 28), (5, 2)])
def test_those_that_stay_are_spread_evenly(layers: int, stay: int) -> None:
    places = spread(layers, stay, "host", CPU).layers
    assert places.count(CPU) == stay
    gaps = re.findall("h+", "".join("h" if place == "host" else "d" for place in places))
    if 0 < stay < layers:
        assert max(map(len, gaps)) - min(map(len, gaps)) <= 1 + (layers % stay > 0)


def test_wrong_placements_are_refused() -> None:
    model = model_in(torch.float32)
    with pytest.raises(ValueError, match="4 layers, the model has 5"):
        offload.apply(model, Placement(CPU, (CPU,) * 4))
    with pytest.raises(ValueError, match="one device only"):
        offload.apply(model, Placement(CPU, (CPU, torch.device("cpu", 1), "host", CPU, CPU)))


def test_pinned_weights_share_blocks_of_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked: list[int] = []
    empty = torch.empty

    def unpinned(*size: int, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory  # which takes a GPU
        asked.append(*size)
        return empty(*size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr("bagel_mot.placement.weights._BLOCK", 1 << 17)
    weights: list[Weight] = [w for i in range(5) for e in experts_of(layer(model, i)).values() for w in e]
    pin(weights)
    assert all(size & (size - 1) == 0 for size in asked)
    total = sum(weight.home.nbytes for weight in weights)
    assert total <= sum(asked) <= 1.2 * total + (1 << 17)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(getattr(weight.module, weight.name).data_ptr() == weight.home.data_ptr() for weight in weights)

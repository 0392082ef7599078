"""Weights come through buffers that are used again, and nothing of them stays there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bagel_mot.checkpoint import load_weights
from bagel_mot.checkpoint.load_weights import load_tensors, on_device
from bagel_mot.checkpoint.precision import Precision
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.checkpoint.write import entry_of, write_safetensors
from bagel_mot.errors import CheckpointError

WIDTH, LAYERS = 128, 6


def expected(part: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(part)
    return {
        f"decoder.layers.{part}.und.down.weight": torch.randn(64, WIDTH, generator=generator).to(torch.bfloat16),
        f"decoder.layers.{part}.und.down.bias": torch.randn(64, generator=generator).to(torch.bfloat16),
    }


def network() -> nn.Module:
    def layer() -> nn.Module:
        und = nn.Module()
        und.down = nn.Linear(WIDTH, 64)
        found = nn.Module()
        found.und = und
        return found

    model = nn.Module()
    model.decoder = nn.Module()
    model.decoder.layers = nn.ModuleList(layer() for _ in range(LAYERS))
    return model.to("meta")


@pytest.fixture
def source(tmp_path: Path) -> SafetensorsFiles:
    entries = [entry_of(name, tensor) for part in range(LAYERS) for name, tensor in expected(part).items()]
    write_safetensors(tmp_path / "weights.safetensors", entries)
    return SafetensorsFiles(tmp_path / "weights.safetensors", [tmp_path / "weights.safetensors"])


def watch(source: SafetensorsFiles, reading: Callable[[str, Tensor | None], None]) -> None:
    read = source.read

    def watched(name: str, buffer: Tensor | None = None) -> Tensor:
        reading(name, buffer)
        return read(name, buffer)

    source.read = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("precision", ["int8", "int4", "nf4", "fp8"])
def test_rounded_weights_share_memory(source: SafetensorsFiles, precision: str) -> None:
    used: dict[str, int | None] = {}
    watch(source, lambda name, buffer: used.update({name: None if buffer is None else buffer.data_ptr()}))
    model = network()
    load_tensors(model, source, Precision(torch.bfloat16, {"decoder": precision}), on_device("cpu"))
    weights = [place for name, place in used.items() if name.endswith("weight")]
    assert None not in weights
    assert len(set(weights)) < LAYERS
    assert {place for name, place in used.items() if name.endswith("bias")} == {None}  # they stay as they are read
    state = model.state_dict()
    for part in range(LAYERS):
        for name, tensor in expected(part).items():
            off = (state[name].double() - tensor.double()).norm() / tensor.double().norm()
            assert off < 0.15 if name.endswith("weight") else off == 0


def test_what_stays_as_it_is_has_memory_of_its_own(source: SafetensorsFiles) -> None:
    used: list[Tensor | None] = []
    watch(source, lambda name, buffer: used.append(buffer))
    model = network()
    load_tensors(model, source, Precision(torch.bfloat16), on_device("cpu"))
    assert used == [None] * (2 * LAYERS)
    for part in range(LAYERS):
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected(part).items())


def test_the_next_weight_is_read_while_one_is_rounded(
    source: SafetensorsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding waits here until the next read has begun, and would wait for ever if it came after."""
    begun = {name: threading.Event() for part in range(LAYERS) for name in expected(part)}
    order: list[str] = []

    def reading(name: str, buffer: Tensor | None) -> None:
        order.append(name)
        begun[name].set()

    watch(source, reading)
    install = load_weights._in_precision

    def rounding(name: str, *rest: object) -> object:
        names = sorted(begun)
        following = names.index(name) + 1
        if following < len(names):
            assert begun[names[following]].wait(30)
        return install(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(load_weights, "_in_precision", rounding)
    load_tensors(network(), source, Precision(torch.bfloat16, {"decoder": "int8"}), on_device("cpu"))
    assert order == sorted(begun)


@pytest.mark.parametrize("precision", ["int8", "int4", "nf4", "fp8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_large_weight_that_is_not_finite_is_named(
    tmp_path: Path, precision: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_weights, "_ALWAYS_CHECKED", 0)
    tensors = {name: tensor for part in range(LAYERS) for name, tensor in expected(part).items()}
    bad = "decoder.layers.3.und.down.weight"
    tensors[bad][13, 77] = value
    write_safetensors(tmp_path / "bad.safetensors", [entry_of(name, tensor) for name, tensor in tensors.items()])
    files = SafetensorsFiles(tmp_path / "bad.safetensors", [tmp_path / "bad.safetensors"])
    with pytest.raises(CheckpointError, match=bad.replace(".", r"\.")):
        load_tensors(network(), files, Precision(torch.bfloat16, {"decoder": precision}), on_device("cpu"))


def test_a_buffer_that_is_too_small_is_not_used(source: SafetensorsFiles) -> None:
    name, wanted = next(iter(expected(0).items()))
    small, large = torch.zeros(wanted.nbytes - 1, dtype=torch.uint8), torch.zeros(wanted.nbytes + 64, dtype=torch.uint8)
    assert torch.equal(source.read(name, small), wanted)
    assert not small.any()
    found = source.read(name, large)
    assert torch.equal(found, wanted)
    assert found.data_ptr() == large.data_ptr()

"""Tensors are read ahead into memory that nobody uses any more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint import read_ahead
from bagel_mot.checkpoint.read_ahead import ring_places
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.checkpoint.write import entry_of, write_safetensors

ALIGNED = 256


@pytest.mark.parametrize("seed", range(20))
def test_no_place_is_given_before_it_is_free(seed: int) -> None:
    drawn = random.Random(seed)
    sizes = [drawn.choice((0, 1, 100, 4000, 70_000)) + drawn.randrange(5000) for _ in range(200)]
    room = 2 * max(-(-size // ALIGNED) * ALIGNED for size in sizes)
    places, done_before = ring_places(sizes, room)
    for index, (place, size) in enumerate(zip(places, sizes, strict=True)):
        assert place is not None
        assert place % ALIGNED == 0
        assert place + size <= room
        assert done_before[index] <= index  # else it would be waited for for ever
        for other in range(done_before[index], index):  # may be there still
            assert places[other] + sizes[other] <= place or place + size <= places[other]
    assert done_before == sorted(done_before)


def test_small_ones_are_read_while_a_large_one_is_worked_on() -> None:
    large, small = 100 * ALIGNED, ALIGNED
    places, done_before = ring_places([large, large, *[small] * 50, large], 2 * large)
    assert places[:3] == [0, large, 0]
    assert done_before[:2] == [0, 0]
    assert set(done_before[2:52]) == {1}  # all of them as soon as the first large one is done with
    assert done_before[52] == 2


def test_what_is_too_large_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "LARGEST_AHEAD", 1000)
    places, done_before = ring_places([1001, 5000, 10, 10], 2048)
    assert places == [None, None, 0, ALIGNED]
    assert done_before == [0, 1, 1, 1]


def test_all_are_read_once_in_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [random.Random(number).randrange(1, 3000) for number in range(60)]
    tensors = {f"{number:02}": torch.randn(size, generator=generator) for number, size in enumerate(sizes)}
    write_safetensors(tmp_path / "some.safetensors", [entry_of(name, tensor) for name, tensor in tensors.items()])
    source = SafetensorsFiles(tmp_path / "some.safetensors", [tmp_path / "some.safetensors"])
    kept: dict[str, Tensor] = {}
    seen = []
    for name, found in read_ahead.read_ahead(source, list(tensors), lambda name: int(name) % 3 > 0):
        assert isinstance(found, Tensor)
        assert torch.equal(found, tensors[name])
        seen.append(name)
        if int(name) % 3 == 0:
            kept[name] = found
    assert seen == list(tensors)
    assert all(torch.equal(found, tensors[name]) for name, found in kept.items())


def test_an_error_ends_reading(tmp_path: Path) -> None:
    tensors = {f"{number:02}": torch.full((1000,), float(number)) for number in range(40)}
    write_safetensors(tmp_path / "some.safetensors", [entry_of(name, tensor) for name, tensor in tensors.items()])
    source = SafetensorsFiles(tmp_path / "some.safetensors", [tmp_path / "some.safetensors"])
    read, names = source.read, []

    def failing(name: str, buffer: Tensor | None = None) -> Tensor:
        names.append(name)
        if name == "05":
            raise OSError("the disk is gone")
        return read(name, buffer)

    source.read = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        for _ in read_ahead.read_ahead(source, list(tensors), lambda name: True):
            pass
    assert len(names) < 10

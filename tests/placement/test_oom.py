"""When memory runs out: one sentence, and the others go on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot import Bagel, CheckpointError, DeviceError, MemoryShortageError
from bagel_mot.config import NAMED_CONFIGS
from bagel_mot.placement.estimate import decode_bytes, encode_bytes
from bagel_mot.placement.oom import check_memory, explained, is_out_of_memory
from bagel_mot.placement.plan import Machine, choose, plans
from bagel_mot.placement.system_memory import _SWAP, _VERSIONS, free_memory, room_for_work

CPU = torch.device("cpu")
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000000 bytes."
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 11.00 GiB")


@pytest.mark.parametrize(
    ("error", "needed"), [(RuntimeError(ALLOCATOR), "5 GB"), (CUDA, "2.68 GB"), (MemoryError(), "more memory")]
)
def test_how_much_was_needed_and_is_free(error: Exception, needed: str) -> None:
    assert is_out_of_memory(error)
    text = str(explained(error, CPU, None))
    assert needed in text
    assert "GB is free now" in text
    assert "in fewer bits" in text


def test_no_more_bits_are_advised_than_it_has() -> None:
    here = Machine(((CPU, 30 * 10**9),), 30 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("understand",), precisions=("int4",))
    text = str(explained(MemoryError(), CPU, choose(found, here), lambda: found))
    assert "precision='int8'" not in text
    assert "`bagel info --plan`" in text


@pytest.mark.skipif(sys.platform != "linux", reason="such limits are Linux's")
def test_a_limit_of_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    whole = free_memory(CPU)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + 10**8
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    assert 0 < free_memory(CPU) <= 10**8 < whole


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    _, _, limit, used, statistics, beginning = _VERSIONS[2 - version]
    root = tmp_path / "memory" if version == 1 else tmp_path
    own = root / "job" / "step"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("1:cpu:/other\n" + ("7:memory:/job/step\n" if version == 1 else "0::/job/step\n"))
    counted = f"anon 5\n{beginning}inactive_file 100000\n{beginning}active_file 50000"

    def limited(group: Path, most: str) -> None:
        for name, text in ((limit, most), (used, "600000"), (statistics, counted)):
            (group / name).write_text(text + "\n")

    roots = [
        (line, root if index == 2 - version else tmp_path / "none", *files)
        for index, (line, _, *files) in enumerate(_VERSIONS)
    ]
    monkeypatch.setattr("bagel_mot.placement.system_memory._VERSIONS", roots)
    monkeypatch.setattr("bagel_mot.placement.system_memory._OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr("bagel_mot.placement.system_memory.kept_memory", lambda: 7)
    limited(root, "1000000")  # all that a container sees of its own
    assert free_memory(CPU) == 500_000
    assert room_for_work() == 550_007
    monkeypatch.setattr("bagel_mot.placement.system_memory._meminfo", lambda name: 10**12)
    assert room_for_work() == 550_007  # the group says nothing of swap
    with_memory = 0 if version == 2 else 600_000 + 400_000  # version 1 counts memory with it
    for name, count in zip(_SWAP[2 - version], (30_000 + with_memory, with_memory and 600_000), strict=True):
        (root / name).write_text(f"{count}\n")
    assert room_for_work() == 580_007
    limited(own, "800000")
    assert free_memory(CPU) == 300_000
    limited(own.parent, "700000")  # the least of those around it
    assert free_memory(CPU) == 200_000
    limited(own.parent, "10")
    assert free_memory(CPU) == 0
    for group in (root, own.parent, own):
        limited(group, "max")
    assert free_memory(CPU) > 10**8


def test_a_file_that_cannot_be_mapped_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr("bagel_mot.checkpoint.source.safe_open", refuse)
    with pytest.raises(
        MemoryShortageError, match=r"ema.safetensors cannot be opened: mapping its .* MB takes .*\(ulimit -v\)"
    ):
        Bagel.from_pretrained("mini")


def test_a_large_checkpoint_is_never_loaded_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the system ends a process that takes more than there is, without a word."""
    monkeypatch.setattr("bagel_mot.inference.loading._LARGE", 1000)
    assert Bagel.from_pretrained("mini", device="cpu", offload="none").plan is not None
    monkeypatch.setattr("bagel_mot.placement.plan.free_memory", lambda device: 1 << 20)
    for precision in ("auto", "bfloat16"):
        with pytest.raises(DeviceError, match="does not fit"):
            Bagel.from_pretrained("mini", device="cpu", offload="none", precision=precision)


def test_which_plan_would_fit() -> None:
    here = Machine(((CPU, 40 * 10**9),), 40 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("generate", "understand"), precisions=("bfloat16", "int8"))
    chosen = choose(found, here)
    assert chosen.precision.name == "bfloat16"
    text = str(explained(MemoryError(), CPU, chosen, lambda: found))
    assert "precision='int8', which takes at most 2" in text


def test_what_would_fit_is_said_where_a_precision_was_asked_for_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.inference.loading._LARGE", 1000)
    monkeypatch.setattr("bagel_mot.placement.plan.free_memory", lambda device: 700 << 20)
    with pytest.raises(DeviceError, match=r"does not fit.*\(float32 on cpu\); it fits with precision='\w+'.* MB\."):
        Bagel.from_pretrained("mini", device="cpu", precision="float32")


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("shapes do not fit")
    assert explained(error, CPU, None) is error
    shortage = MemoryShortageError("said already")
    assert explained(shortage, CPU, None) is shortage


def test_a_request_without_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    forward = type(bagel.checkpoint.model).forward

    def greedy(model: Any, packed: Any, attend: Any) -> Any:
        if packed.latent_grids and any(rows * columns == 64 for rows, columns in packed.latent_grids):
            raise RuntimeError(ALLOCATOR)
        return forward(model, packed, attend)

    alone = bagel.generate("a red star", seed=1, num_timesteps=3, size=(64, 64))
    monkeypatch.setattr(type(bagel.checkpoint.model), "forward", greedy)
    handles = [
        bagel.submit(["a red star"], seed=1, num_timesteps=3, size=size) for size in ((128, 128), (64, 64), (128, 128))
    ]
    bagel.engine.run_until(handles)
    for handle in (handles[0], handles[2]):
        with pytest.raises(MemoryShortageError, match=r"memory ran out on cpu: 5 GB more was needed"):
            handle.result()
    result = handles[1].result()
    assert result.image is not None
    difference = torch.tensor(list(result.image.tobytes())).int() - torch.tensor(list(alone.tobytes())).int()
    assert difference.abs().max() <= 1  # of 255 grey levels: matmuls of other sizes round otherwise


def test_work_that_cannot_fit_on_the_cpu_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the system would end the process, with whatever else it was doing."""
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: 10**9)
    check_memory(10**9, CPU, None)
    check_memory(10**12, torch.device("cuda"), None)  # fails by itself
    with pytest.raises(
        MemoryShortageError, match=r"takes 2 GB at the least, and 1 GB is free; ask for smaller"
    ) as raised:
        check_memory(2 * 10**9, CPU, None)
    assert is_out_of_memory(raised.value)
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: None)
    check_memory(10**15, CPU, None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says it")
def test_room_for_work_is_what_is_free_and_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.placement.system_memory.kept_memory", lambda: 10**9)
    monkeypatch.setattr(
        "bagel_mot.placement.system_memory._meminfo", {"MemAvailable": 3 * 10**9, "SwapFree": 10**8}.__getitem__
    )
    monkeypatch.setattr("bagel_mot.placement.system_memory._container", lambda **_: None)
    monkeypatch.setattr("bagel_mot.placement.system_memory._address_space", lambda: None)
    assert room_for_work() == 4_100_000_000
    monkeypatch.setattr("bagel_mot.placement.system_memory._container", lambda **_: 2 * 10**9)
    assert room_for_work() == 3 * 10**9
    monkeypatch.setattr("bagel_mot.placement.system_memory.kept_memory", lambda: None)
    assert room_for_work() is None


def test_requests_that_fit_one_by_one_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    settings = {"seed": 1, "num_timesteps": 3}
    together = bagel.generate(["a red star", "a blue car"], **settings)
    monkeypatch.setattr("bagel_mot.placement.oom._SMALL", 0)
    image = decode_bytes(bagel.config.vae, 64 * 64, torch.float32)
    batches: list[int] = []
    decode = bagel.engine._decode

    def counted(batch: Any) -> None:
        batches.append(len(batch))
        decode(batch)

    monkeypatch.setattr(bagel.engine, "_decode", counted)
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: int(1.5 * image))
    images = bagel.generate(["a red star", "a blue car"], **settings)
    assert batches == [1, 1]
    for got, expected in zip(images, together, strict=True):
        assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: image // 2)
    forwards = bagel.engine.stats.forwards
    with pytest.raises(MemoryShortageError, match="memory would run out on cpu"):
        bagel.generate("a red star", **settings)
    assert bagel.engine.stats.forwards == forwards  # not after all the steps of drawing
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: int(1.5 * image))
    failed: list[Any] = []
    monkeypatch.setattr(bagel.engine, "explain", lambda error: failed.append(error) or error)
    bagel.generate(["a red star", "a blue car"], **settings)
    assert batches == [1, 1, 1, 1]
    assert not failed  # what was too much once is not tried again


def test_images_of_one_request_that_fit_one_by_one_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    settings: dict[str, Any] = {"seed": 1, "num_timesteps": 2}
    together = bagel.edit(images, "make it green", **settings)
    monkeypatch.setattr("bagel_mot.placement.oom._SMALL", 0)
    one = encode_bytes(bagel.config.vae, 64 * 64, torch.float32)
    room = max(int(1.5 * one), decode_bytes(bagel.config.vae, 64 * 64, torch.float32))
    monkeypatch.setattr("bagel_mot.placement.oom.room_for_work", lambda: room)
    before = bagel.engine.stats.encoded
    alone = bagel.edit(images, "make it green", **settings)
    assert bagel.engine.stats.encoded - before == 2
    assert np.abs(np.asarray(alone, int) - np.asarray(together, int)).max() <= 1


def test_what_cannot_be_found_out_does_not_hide_that_memory_ran_out() -> None:
    def gone() -> list[Any]:
        raise CheckpointError("the folder is gone")

    here = Machine(((CPU, 40 * 10**9),), 40 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("understand",), precisions=("int8",))
    assert "`bagel info --plan`" in str(explained(MemoryError(), CPU, found[0], gone))
    nothing = Machine(((CPU, 10**9),), 10**9)
    with pytest.raises(DeviceError, match="does not fit"):
        choose(plans(NAMED_CONFIGS["7b-mot"], nothing, ("understand",), precisions=("int8",)), nothing, others=gone)

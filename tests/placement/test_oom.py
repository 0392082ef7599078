"""When memory runs out: one sentence, and the others go on."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot import Bagel, DeviceError, MemoryShortageError
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.config import NAMED_CONFIGS
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.placement.estimate import decode_bytes, encode_bytes
from bagel_mot.placement.oom import MemoryGuard, is_out_of_memory
from bagel_mot.placement.plan import Machine, choose, plans
from bagel_mot.placement.system_memory import free_memory, room_for_work
from tests.placement.conftest import FakeSystem

CPU = torch.device("cpu")
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000000 bytes."
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 11.00 GiB")


@pytest.mark.parametrize(
    ("error", "needed"), [(RuntimeError(ALLOCATOR), "5 GB"), (CUDA, "2.68 GB"), (MemoryError(), "more memory")]
)
def test_how_much_was_needed_and_is_free(error: Exception, needed: str) -> None:
    assert is_out_of_memory(error)
    text = str(MemoryGuard(CPU).explain(error))
    assert needed in text
    assert "GB is free now" in text
    assert "in fewer bits" in text


def test_no_more_bits_are_advised_than_it_has() -> None:
    here = Machine(((CPU, 30 * 10**9),), 30 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("understand",), precisions=("int4",))
    text = str(MemoryGuard(CPU, choose(found, here), found).explain(MemoryError()))
    assert "precision='int8'" not in text
    assert "`bagel info --plan`" in text


def test_a_system_that_says_nothing(system: FakeSystem) -> None:
    assert free_memory(CPU) > 10**9
    assert room_for_work() is None
    MemoryGuard(CPU).check(10**15)


def test_swap_is_room_but_not_free(system: FakeSystem) -> None:
    system.free(3 << 30, swap=1 << 30)
    assert free_memory(CPU) == 3 << 30
    assert room_for_work() == 4 << 30


def test_a_limit_of_address_space_counts(system: FakeSystem) -> None:
    system.free(3 << 30)
    system.write("proc/self/statm", "1000 5 5")
    system.write("proc/self/limits", "Max address space         unlimited            unlimited            bytes")
    assert free_memory(CPU) == 3 << 30
    limit = 1000 * mmap.PAGESIZE + 10**8
    system.write("proc/self/limits", f"Max address space         {limit}            unlimited            bytes")
    assert free_memory(CPU) == room_for_work() == 10**8
    system.write("proc/self/statm", "10000000 5 5")
    assert free_memory(CPU) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_the_container_counts(system: FakeSystem, version: int) -> None:
    system.free(1 << 30)
    if version == 1:
        root, limit, used, beginning = (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        )
        swap_limit, swap_used, with_memory = "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", 1_000_000
        system.write("proc/self/cgroup", "1:cpu:/other\n7:memory:/job/step")
    else:
        root, limit, used, beginning = "sys/fs/cgroup", "memory.max", "memory.current", ""
        swap_limit, swap_used, with_memory = "memory.swap.max", "memory.swap.current", 0
        system.write("proc/self/cgroup", "1:cpu:/other\n0::/job/step")
    own = f"{root}/job/step"

    def limited(group: str, most: str) -> None:
        system.write(f"{group}/{limit}", most)
        system.write(f"{group}/{used}", 600_000)
        system.write(f"{group}/memory.stat", f"anon 5\n{beginning}inactive_file 100000\n{beginning}active_file 50000")

    limited(root, "1000000")  # all that a container sees of its own
    assert free_memory(CPU) == 500_000
    assert room_for_work() == 550_000
    system.free(1 << 30, swap=1 << 30)
    assert room_for_work() == 550_000  # the group says nothing of swap
    system.write(f"{root}/{swap_limit}", 30_000 + with_memory)  # version 1 counts memory with it
    system.write(f"{root}/{swap_used}", with_memory and 600_000)
    assert room_for_work() == 580_000
    limited(own, "800000")
    assert free_memory(CPU) == 300_000
    limited(f"{root}/job", "700000")  # the least of those around it
    assert free_memory(CPU) == 200_000
    limited(f"{root}/job", "10")
    assert free_memory(CPU) == 0
    for group in (root, f"{root}/job", own):
        limited(group, "max")
    assert free_memory(CPU) == 1 << 30


def test_a_file_that_cannot_be_mapped_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError("Cannot allocate memory")

    source = open_checkpoint(MINI_FOLDER)
    monkeypatch.setattr("bagel_mot.checkpoint.source.mmap.mmap", refuse)
    with pytest.raises(MemoryShortageError, match=r"\.safetensors cannot be mapped: its .* MB take .*\(ulimit -v\)"):
        source.mapped("llm2vae.weight")


def test_a_large_checkpoint_is_never_loaded_without_looking(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the system ends a process that takes more than there is, without a word."""
    monkeypatch.setattr("bagel_mot.inference.loading._LARGE", 1000)
    assert Bagel.from_pretrained("mini", device="cpu", offload="none").plan is not None
    system.free(1 << 20)
    for precision in ("auto", "bfloat16"):
        with pytest.raises(DeviceError, match="does not fit"):
            Bagel.from_pretrained("mini", device="cpu", offload="none", precision=precision)


def test_which_plan_would_fit() -> None:
    here = Machine(((CPU, 40 * 10**9),), 40 * 10**9)
    found = plans(NAMED_CONFIGS["7b-mot"], here, ("generate", "understand"), precisions=("bfloat16", "int8"))
    chosen = choose(found, here)
    assert chosen.precision.name == "bfloat16"
    text = str(MemoryGuard(CPU, chosen, found).explain(MemoryError()))
    assert "precision='int8', which takes at most 2" in text


def test_what_would_fit_is_said_where_a_precision_was_asked_for_that_does_not(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bagel_mot.inference.loading._LARGE", 1000)
    system.free(690 * 10**6)
    with pytest.raises(DeviceError, match=r"does not fit.*\(float32 on cpu\); it fits with precision='\w+'.* MB\."):
        Bagel.from_pretrained("mini", device="cpu", precision="float32")


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("shapes do not fit")
    assert MemoryGuard(CPU).explain(error) is error
    shortage = MemoryShortageError("said already")
    assert MemoryGuard(CPU).explain(shortage) is shortage


def test_a_request_without_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    forward = type(bagel.checkpoint.model).forward

    def greedy(model: Any, layout: Any, values: Any, attend: Any) -> Any:
        if any(rows * columns == 64 for rows, columns in layout.latent_grids):
            raise RuntimeError(ALLOCATOR)
        return forward(model, layout, values, attend)

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


def test_work_that_cannot_fit_on_the_cpu_is_refused_before_it_begins(system: FakeSystem) -> None:
    """There the system would end the process, with whatever else it was doing."""
    system.free(1_000_000 * 1024)
    MemoryGuard(CPU).check(10**9)
    MemoryGuard(torch.device("cuda")).check(10**12)  # fails by itself
    with pytest.raises(
        MemoryShortageError, match=r"takes 2 GB at the least, and 1.02 GB is free; ask for smaller"
    ) as raised:
        MemoryGuard(CPU).check(2 * 10**9)
    assert is_out_of_memory(raised.value)


def test_what_the_process_has_kept_is_returned_before_work_is_refused(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.free(1 << 30)
    monkeypatch.setattr("bagel_mot.placement.oom.return_freed_memory", lambda: system.free(3 << 30))
    MemoryGuard(CPU).check(2 << 30)
    with pytest.raises(MemoryShortageError, match=r"takes 4\.\d+ GB at the least, and 3\.\d+ GB is free"):
        MemoryGuard(CPU).check(4 << 30)


def test_requests_that_fit_one_by_one_run_one_by_one(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    settings = {"seed": 1, "num_timesteps": 3}
    together = bagel.generate(["a red star", "a blue car"], **settings)
    monkeypatch.setattr("bagel_mot.placement.oom._SMALL", 0)
    image = decode_bytes(bagel.config.vae, 64 * 64, torch.float32, on_cpu=True)
    two = decode_bytes(bagel.config.vae, 2 * 64 * 64, torch.float32, images=2, on_cpu=True)
    batches: list[int] = []
    decode = bagel.engine.runner.decode

    def counted(batch: Any) -> None:
        batches.append(len(batch))
        decode(batch)

    monkeypatch.setattr(bagel.engine.runner, "decode", counted)
    system.free((image + two) // 2)
    images = bagel.generate(["a red star", "a blue car"], **settings)
    assert batches == [1, 1]
    for got, expected in zip(images, together, strict=True):
        assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1
    system.free(image // 2)
    forwards = bagel.engine.stats.forwards
    with pytest.raises(MemoryShortageError, match="memory would run out on cpu"):
        bagel.generate("a red star", **settings)
    assert bagel.engine.stats.forwards == forwards  # not after all the steps of drawing
    system.free((image + two) // 2)
    failed: list[Any] = []
    monkeypatch.setattr(bagel.engine.memory, "explain", lambda error: failed.append(error) or error)
    bagel.generate(["a red star", "a blue car"], **settings)
    assert batches == [1, 1, 1, 1]
    assert not failed  # what was too much once is not tried again


def test_images_of_one_request_that_fit_one_by_one_are_read_one_by_one(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    settings: dict[str, Any] = {"seed": 1, "num_timesteps": 2}
    together = bagel.edit(images, "make it green", **settings)
    monkeypatch.setattr("bagel_mot.placement.oom._SMALL", 0)
    one = encode_bytes(bagel.config.vae, 64 * 64, torch.float32)
    room = max(int(1.5 * one), decode_bytes(bagel.config.vae, 64 * 64, torch.float32))
    system.free(room)
    before = bagel.engine.stats.encoded
    alone = bagel.edit(images, "make it green", **settings)
    assert bagel.engine.stats.encoded - before == 2
    assert np.abs(np.asarray(alone, int) - np.asarray(together, int)).max() <= 1

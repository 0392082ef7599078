"""Large blocks stay in the process: the kernel has less to do, and results are the same."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from bagel_mot import allocator as memory

_PROGRAM = """
import json, resource, sys
import torch
from bagel_mot.allocator import keep_freed_memory

torch.set_num_threads(1)
kept = sys.argv[1] == "keep" and keep_freed_memory() and keep_freed_memory()
x = torch.arange(12 << 20, dtype=torch.float32)  # 48 MiB
for step in range(35):
    if step == 20:  # the heap has grown
        before = resource.getrusage(resource.RUSAGE_SELF)
    y = torch.tanh(x * 2) + x
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"kept": bool(kept), "faults": after.ru_minflt - before.ru_minflt,
                  "system": after.ru_stime - before.ru_stime, "sum": y.double().sum().item()}))
"""


def _measure(how: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not _glibc(), reason="the setting is glibc's")
def test_freed_blocks_are_not_mapped_again() -> None:
    """Page faults are counted, which a busy machine does not disturb as it does times."""
    plain, kept = _measure("plain"), _measure("keep")
    assert kept["kept"]
    assert not plain["kept"]
    assert kept["faults"] < plain["faults"] / 4
    assert kept["sum"] == plain["sum"]


def test_nothing_happens_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_nothing_happens_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


_IN_A_THREAD = """
import resource, sys, threading
import torch
from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory

keep_freed_memory(LARGEST_KEPT_IN_TRAINING, in_all_threads=sys.argv[1] == "all")
def work():
    torch.set_num_threads(1)
    for step in range(35):
        if step == 20:  # the heap has grown
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(24 << 20)  # 96 MiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not _glibc(), reason="the setting is glibc's")
def test_threads_keep_blocks_too_if_they_are_to() -> None:
    faults = {}
    for which in ("main", "all"):
        command = [sys.executable, "-c", _IN_A_THREAD, which]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        faults[which] = int(done.stdout)
    assert faults["all"] < faults["main"] / 4


@pytest.mark.skipif(not _glibc(), reason="the setting is glibc's")
def test_what_was_kept_can_be_returned() -> None:
    program = (
        "import torch; from pathlib import Path\n"
        "from bagel_mot.allocator import keep_freed_memory, return_freed_memory\n"
        "def held(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "keep_freed_memory(); before = held(); blocks = [torch.ones(12 << 20) for _ in range(4)]; del blocks\n"
        "kept = held() - before; return_freed_memory(); print(kept, held() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    kept, after = map(int, done.stdout.split())
    assert kept > 4 * 45 << 20
    assert after < 20 << 20


def test_nothing_can_be_returned_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    memory.return_freed_memory()

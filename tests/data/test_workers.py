"""Worker processes give what the function gives, and end with the process that began them, however it ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from bagel_mot.data.workers import Workers, packed

_PARENT = """
import os
import time
from bagel_mot.data.workers import Workers

if __name__ == "__main__":
    workers = Workers(os.path.abspath, 1)
    workers.submit(".").result()
    print(*workers._pool._processes, flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_end_with_a_process_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    (worker,) = map(int, parent.stdout.readline().split())
    os.kill(worker, 0)  # it is there
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(600):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there a minute after its parent")


def test_without_processes_a_task_is_done_when_its_result_is_asked_for() -> None:
    done: list[int] = []
    workers: Workers[int, None] = Workers(done.append, 0)
    pending = workers.submit(3)
    assert done == []
    pending.result()
    assert done == [3]
    workers.close()


def test_tensors_are_packed_as_their_bytes_and_stay_one_where_they_are_one() -> None:
    levels = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3)
    first, second, part = pickle.loads(packed((levels, levels, levels.permute(2, 0, 1))))
    assert first is second
    assert torch.equal(first, levels)
    assert torch.equal(part, levels.permute(2, 0, 1))
    assert len(packed(torch.zeros(1000, dtype=torch.uint8))) < 1400

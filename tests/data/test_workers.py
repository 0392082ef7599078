"""Worker processes give what the function gives, and end with the process that began them, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from bagel_mot.data.transfer import send
from bagel_mot.data.workers import Workers
from bagel_mot.errors import DataError

_PARENT = """
import os
import time
from bagel_mot.data.workers import Workers

if __name__ == "__main__":
    workers = Workers(os.path.abspath, 1)
    workers.submit(".").result()
    print(*workers.processes, flush=True)
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


def levels_twice(side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    levels = torch.arange(side * side * 3).reshape(side, side, 3).to(torch.uint8)
    return levels, levels, levels.permute(2, 0, 1)


def end_abruptly(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_results_come_in_any_order_from_several_processes() -> None:
    workers: Workers[int, tuple[torch.Tensor, ...]] = Workers(levels_twice, 2)
    try:
        pending = [(side, workers.submit(side)) for side in (300, 1, 2, 400, 3)]  # some larger than a pipe holds
        for side, one in reversed(pending):
            first, second, part = one.result()
            assert first is second
            assert torch.equal(first, levels_twice(side)[0])
            assert torch.equal(part, first.permute(2, 0, 1))
            first += 1  # it can be written to
        assert len(set(workers.processes)) == 2
    finally:
        workers.close()


def test_what_a_process_cannot_do_is_told_where_its_result_is_asked_for() -> None:
    workers: Workers[str, object] = Workers(open, 1)  # a file that is open cannot be sent
    try:
        missing, there = workers.submit("no such file"), workers.submit(__file__)
        with pytest.raises(DataError, match="a worker process of the data failed: TypeError: cannot pickle"):
            there.result()
        with pytest.raises(DataError, match="FileNotFoundError: .*no such file"):
            missing.result()
    finally:
        workers.close()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_process_that_is_killed_is_told() -> None:
    workers: Workers[int, int] = Workers(end_abruptly, 2)
    try:
        pending = [workers.submit(number) for number in (3, 1, 2)]
        with pytest.raises(DataError, match=r"ended abruptly.* lower data\.workers"):
            pending[0].result()
    finally:
        workers.close()


def test_a_tensor_is_sent_as_its_bytes() -> None:
    reads, writes = multiprocessing.Pipe(duplex=False)
    send(writes, torch.zeros(1000, dtype=torch.uint8))
    content, sizes = pickle.loads(reads.recv_bytes())
    assert sizes == [1000]
    assert len(content) < 300

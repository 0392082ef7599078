"""`bagel eval` in several processes: they give what one process gives, each item once; and whatever ends them, nothing
that was done is lost, nothing is done twice, and none of them stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.evaluation.benchmarks.mini import Mini
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.evaluation.runner import ItemRunner
from bagel_mot.inference.api import Bagel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found by /proc"),
]
ROWS = ["draw/one_thing", "ask/count"]
PATIENCE = 300.0  # seconds, for whatever must happen


def started(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`bagel eval mini` in a group of processes of its own, one item at a time."""
    rows = [word for row in ROWS for word in ("--rows", row)]
    words = ["eval", "mini", *rows, "--batch", 1, "--threads", 1, "--out", folder, *arguments]
    start = [sys.executable, *(launcher or ("-m", "bagel_mot")), *map(str, words)]
    return subprocess.Popen(
        start,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """Undoes what a shell does to commands in its background, and they pass on: SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The status and what was said, once all processes of the group are gone."""
    out, said = process.communicate(timeout=PATIENCE)
    wait_for(lambda: not group_lives(process.pid))
    return process.returncode, out, said


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def wait_for_items(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Waits until a run has answered so many items, or has ended."""
    wait_for(lambda: process.poll() is not None or len(records(folder, "items")) >= count)


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The whole records of all processes."""
    found = []
    for path in (folder / "mini").glob(f"{name}*.jsonl"):
        found += [json.loads(line) for line in path.read_text().split("\n")[1:-1]]
    return found


def scores(folder: Path) -> dict[str, float]:
    """The scores by item, each of which was answered and scored once."""
    for name in ("items", "scores"):
        counts = Counter(line["id"] for line in records(folder, name))
        assert set(counts.values()) <= {1}, counts
    found = {line["id"]: line["score"]["values"]["right"] for line in records(folder, "scores")}
    assert found.keys() == {line["id"] for line in records(folder, "items")}
    return found


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The scores of the first items of each row, answered one by one in this process."""
    mini, folder = Mini(rows=ROWS, count=4), tmp_path_factory.mktemp("alone")
    with Bagel.from_pretrained("mini", threads=1) as bagel:
        runner = ItemRunner(mini, LocalRespondent(bagel, {}), folder, batch=1)
        runner.run(mini.items())
    return {id: score.values["right"] or 0.0 for id, score in runner.outcomes(mini.items()).scores.items()}


def test_processes_of_torchrun_score_as_one_does(tmp_path: Path, right: dict[str, float]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "bagel_mot")
    status, out, said = ended(started(tmp_path, "--limit", 2, launcher=torchrun))
    assert status == 0, said
    assert out.count("draw/one_thing") == 1  # one process speaks for all
    first = scores(tmp_path)
    assert len(first) == 4
    for number in ("", ".1"):
        assert len((tmp_path / "mini" / f"items{number}.jsonl").read_text().splitlines()) == 1 + 2
    status, _, said = ended(started(tmp_path, "--limit", 4))  # one process goes on with what two have done
    assert status == 0, said
    assert scores(tmp_path) == right
    summary = json.loads((tmp_path / "mini" / "summary.json").read_text())
    assert (summary["items"], summary["of"], summary["scored"]) == (8, 400, 8)
    assert summary["rows"]["ask/count"]["value"] == sum(v for id, v in right.items() if id.startswith("ask")) / 4


def kill(rank: int) -> Callable[[subprocess.Popen[str]], None]:
    def ends(process: subprocess.Popen[str]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    return ends


def to_all(process: subprocess.Popen[str]) -> None:
    """Ctrl-C in a terminal."""
    os.killpg(process.pid, signal.SIGINT)


def to_one(sent: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.kill(process.pid, sent)


ENDS: list[tuple[str, Callable[[subprocess.Popen[str]], None], int]] = [
    ("the second is killed", kill(1), 2),
    ("the first is killed", kill(0), 2),
    ("Ctrl-C", to_all, 130),
    ("the command alone is interrupted", to_one(signal.SIGINT), 130),
    ("the command is ended", to_one(signal.SIGTERM), 143),
    ("the command is killed", to_one(signal.SIGKILL), -9),
]


def test_workers_that_are_ended_lose_nothing_and_leave_nobody(tmp_path: Path) -> None:
    for what, end, expected in ENDS:
        before = {line["id"] for line in records(tmp_path, "items")}
        process = started(tmp_path, "--workers", 2)
        wait_for_items(tmp_path, process, len(before) + 2)
        assert process.poll() is None, (what, process.communicate())
        end(process)
        status, _, said = ended(process)
        assert status == expected, (what, status, said)
        if expected == 2:
            assert "was ended from outside (SIGKILL)" in said, said
        assert "Traceback" not in said, (what, said)
        now = [line["id"] for line in records(tmp_path, "items")]
        assert before < set(now), what
        assert len(now) == len(set(now)), what
    done = {line["id"] for line in records(tmp_path, "items")}
    most = max(int(id.rpartition("/")[2]) for id in done if id.startswith(ROWS[0])) + 1
    status, _, said = ended(started(tmp_path, "--workers", 2, "--limit", most))
    assert status == 0, said
    assert len(scores(tmp_path)) == 2 * most

"""Runs of several processes by the command line: what fails in one ends all, in one sentence."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bagel_mot.errors import RecipeError
from bagel_mot.parallel.config import Degrees, ParallelConfig
from bagel_mot.parallel.launch import _numbers
from bagel_mot.parallel.muon import share_out
from tests.parallel.processes import finish, run, start

COMMAND = """
import os, sys
from bagel_mot.data.sources import mini
from bagel_mot.training import sizes
from bagel_mot.training.tasks.bagel import BagelTask

mini._TOKENIZER_TEXTS, sizes._ENCODED_IMAGES = 1000, 4
BagelTask.write_samples = lambda self, path, checkpoint: None
PATCH
sys.argv = ["bagel", "train", *sys.argv[1:]]
from bagel_mot.cli import main
main()
"""
FAILING = """
taken = BagelTask.next_batches
def next_batches(self):
    if os.environ["RANK"] == "VICTIM" and self.data_state()[VICTIM]["slots"][0] > 0:
        raise ERROR
    return taken(self)
BagelTask.next_batches = next_batches
"""
WATCHED = """
import threading
from torch.distributed.fsdp import FSDPModule
from torch.nn import Module

asked = Module.state_dict
def state_dict(self, *arguments, **options):
    beside = threading.current_thread() is not threading.main_thread()
    assert not (beside and isinstance(self, FSDPModule)), "the weights that a step has gathered would be freed"
    return asked(self, *arguments, **options)
Module.state_dict = state_dict
"""


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny, "output": str(tmp_path / "run"), "packs_per_step": 2, "steps": 4}))
    return path


def _said(found: list[tuple[int, str, str]], output: Path) -> str:
    """What processes said of errors, and the tracebacks that they left."""
    return "\n".join([*(errors for _, _, errors in found), *(path.read_text() for path in output.glob("failure-*"))])


def _losses(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [[line["ce"], line["mse"]] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "error", "sentence"),
    [
        ("1", "__import__('bagel_mot.errors').errors.DataError('row 7 is broken: mend it')", "bagel: row 7 is broken"),
        ("1", "KeyError('nobody thought of it')", "bagel: process 1 of 2 failed: KeyError: 'nobody thought of it'"),
        # It has the store by which the other one learns of it.
        ("0", "KeyError('nobody thought of it')", "bagel: process 0 of 2 failed: KeyError: 'nobody thought of it'"),
    ],
)
def test_a_process_that_fails_ends_all_in_one_sentence(recipe: Path, victim: str, error: str, sentence: str) -> None:
    code = COMMAND.replace("PATCH", FAILING.replace("ERROR", error).replace("VICTIM", victim))
    found = finish(start(2, "-c", code, str(recipe), "save_async=false"))  # what is being written is given up
    said = "".join(errors for _, _, errors in found)
    assert [status != 0 for status, _, _ in found] == [True, True], said
    assert said.count("bagel:") == 1, said
    assert sentence in said.replace("\n", " ")
    assert "Traceback" not in said
    output = recipe.parent / "run"
    assert [path.name for path in output.glob("step-*")] == ["step-00000001"]
    assert not [path for path in output.glob("failure-*") if "Traceback" not in path.read_text()]


def test_a_number_of_processes_that_does_not_divide_is_refused_in_one_sentence(recipe: Path) -> None:
    found = finish(start(2, "-m", "bagel_mot", "train", str(recipe), "parallel.tensor_parallel_degree=3"))
    said = "".join(errors for _, _, errors in found)
    assert sorted(status for status, _, _ in found) == [1, 2], said
    assert said.count("bagel:") == 1
    assert "this run has 2 processes, but its parallel section needs a multiple of 3" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (recipe.parent / "run").exists()


def test_degrees() -> None:
    assert ParallelConfig(tensor_parallel_degree=2).degrees(8) == Degrees(1, 4, 1, 2)
    assert ParallelConfig(data_parallel_replicate_degree=2, context_parallel_degree=2).degrees(8) == Degrees(2, 2, 2, 1)
    assert ParallelConfig(data_parallel_shard_degree=2).degrees(2).world == 2
    with pytest.raises(RecipeError, match="this run has 1 process, but its parallel section needs 4 "):
        ParallelConfig(data_parallel_shard_degree=4).degrees(1)
    with pytest.raises(RecipeError, match="this run has 6 processes.* needs a multiple of 4 "):
        ParallelConfig(tensor_parallel_degree=4).degrees(6)
    with pytest.raises(RecipeError, match="packs_per_step is 3, which 2 data-parallel processes cannot share"):
        Degrees(shard=2).check_streams(3)


def test_processes_are_known_by_the_variables_of_torchrun_or_slurm() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    expected = {"RANK": 3, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    assert _numbers(torchrun) == expected
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert _numbers(slurm)["WORLD_SIZE"] == 1  # a batch script has them too
    assert _numbers({**slurm, "MASTER_ADDR": "node0"}) == {**expected, "LOCAL_WORLD_SIZE": 8}
    with pytest.raises(ValueError, match="RANK is None, beside WORLD_SIZE=8: start the processes with torchrun"):
        _numbers({"WORLD_SIZE": "8"})


def test_matrices_are_shared_out_evenly() -> None:
    sizes = [8, 1, 1, 4, 4, 2]
    loads = {0: 0, 1: 0}
    for size, owner in zip(sizes, share_out(sizes, 2), strict=True):
        loads[owner] += size
    assert set(loads.values()) == {10}


@pytest.mark.slow
def test_two_processes_stop_and_one_goes_on(recipe: Path, tmp_path: Path) -> None:
    code = COMMAND.replace("PATCH", "")
    run(2, "-c", code, str(recipe), "steps=2", "parallel.data_parallel_shard_degree=2")
    run(1, "-c", code, str(recipe))
    run(1, "-c", code, str(recipe), f"output={tmp_path / 'whole'}")
    ours, whole = _losses(tmp_path / "run"), _losses(tmp_path / "whole")
    assert ours == [pytest.approx(line, rel=1e-6) for line in whole]
    assert len(ours) == 4


@pytest.mark.slow
def test_the_thread_that_writes_leaves_the_network_alone(recipe: Path, tmp_path: Path) -> None:
    """FSDP2 frees gathered weights when a network is asked for its values, and a step may be computing with them."""
    run(2, "-c", COMMAND.replace("PATCH", WATCHED), str(recipe), "save_async=true")
    assert (tmp_path / "run" / "step-00000004").exists()


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_by_fewer(recipe: Path, tmp_path: Path) -> None:
    """Four processes, of which one is killed; two, of which one is; and one to the end."""
    code = COMMAND.replace("PATCH", "")
    arguments = [str(recipe), "packs_per_step=4", "steps=8"]
    run(1, "-c", code, *arguments, f"output={tmp_path / 'whole'}")
    begun = 0
    for count, victim in ((4, 2), (4, 0), (2, 1), (2, 0)):
        processes, end = start(count, "-c", code, *arguments), time.monotonic() + 240
        while time.monotonic() < end and all(process.poll() is None for process in processes):
            newest = max((int(path.name[5:]) for path in (tmp_path / "run").glob("step-*")), default=0)
            if newest > begun:
                begun = newest
                break
            time.sleep(0.02)
        processes[victim].send_signal(signal.SIGKILL)
        found = finish(processes)
        said = "".join(errors for _, _, errors in found)
        everything = f"{count} processes, {victim} killed: {_said(found, tmp_path / 'run')}"
        assert found[victim][0] == -signal.SIGKILL, everything
        assert all(status != 0 for status, _, _ in found), everything
        assert said.count("bagel:") == 1, everything
        assert "Traceback" not in said, everything
    run(1, "-c", code, *arguments)
    assert os.listdir(tmp_path / "run" / "step-00000008" / "training_state")
    assert _losses(tmp_path / "run") == [pytest.approx(line, rel=1e-6) for line in _losses(tmp_path / "whole")]

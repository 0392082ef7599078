"""The number of threads that compute: by the work, the cores that may be used, and what the user says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from bagel_mot import system_files, threads
from bagel_mot.errors import SettingError
from bagel_mot.inference.api import Bagel
from bagel_mot.threads import Threads, choose_threads, set_from_command_line, usable_cores

LARGE = 14_000_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine with 16 cores and no limits, PyTorch set to all of them."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: set(range(16)), raising=False)
    monkeypatch.setattr(system_files, "ROOT", tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(16)
    yield
    torch.set_num_threads(before)
    set_from_command_line(None)


@pytest.fixture
def group(tmp_path: Path) -> Callable[..., None]:
    """Writes files of a control group, named by its folder."""

    def write(folder: str, **files: str) -> None:
        place = tmp_path / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / f"cpu.{name}").write_text(f"{text}\n")

    return write


def in_group(tmp_path: Path, *lines: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("\n".join(lines) + "\n")


def test_a_small_model_takes_one_thread_and_a_large_one_all_cores() -> None:
    assert choose_threads(14_600_000) == Threads(1)
    assert choose_threads(100_000_000) == Threads(4)
    assert choose_threads(LARGE) == choose_threads() == Threads(16)


def test_affinity_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: {3, 7, 9})
    assert choose_threads(LARGE) == Threads(3)
    assert choose_threads(1) == Threads(1)


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("400000 100000", 4), ("350000 100000", 3), ("50000 100000", 1), ("9900000 100000", 16)],
)
def test_the_quota_of_a_control_group_bounds_the_cores(
    tmp_path: Path, group: Callable[..., None], quota: str, cores: int
) -> None:
    in_group(tmp_path, "0::/jobs/mine")
    group("jobs/mine", max=quota)
    assert usable_cores() == cores


def test_the_least_quota_of_nested_groups_counts(tmp_path: Path, group: Callable[..., None]) -> None:
    in_group(tmp_path, "0::/outer/inner")
    group("outer", max="200000 100000")
    group("outer/inner", max="800000 100000")
    assert usable_cores() == 2


def test_in_a_container_the_groups_begin_with_its_own(tmp_path: Path, group: Callable[..., None]) -> None:
    in_group(tmp_path, "0::/not/to/be/seen/here")
    group("", max="300000 100000")
    assert usable_cores() == 3


@pytest.mark.parametrize("line", ["4:cpu:/jobs", "4:cpu,cpuacct:/jobs", "4:cpuacct,cpu:/jobs"])
def test_quotas_of_version_1(tmp_path: Path, group: Callable[..., None], line: str) -> None:
    in_group(tmp_path, "5:cpuset:/other", line, "0::/")
    group("cpu", cfs_quota_us="-1", cfs_period_us="100000")
    assert usable_cores() == 16
    group("cpu/jobs", cfs_quota_us="250000", cfs_period_us="50000")
    assert usable_cores() == 5


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "100 0", "-5 100"])
def test_a_quota_that_cannot_be_read_is_none(tmp_path: Path, group: Callable[..., None], text: str) -> None:
    in_group(tmp_path, "0::/")
    group("", max=text)
    assert usable_cores() == 16


def test_what_the_user_asks_for_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.VARIABLE, "6")
    assert choose_threads(1) == Threads(6, asked=True)
    assert choose_threads(1, asked=5) == Threads(5, asked=True)
    set_from_command_line(40)
    assert choose_threads(1, asked=5) == Threads(40, asked=True)
    set_from_command_line(None)
    monkeypatch.setenv(threads.VARIABLE, " ")
    assert choose_threads(1) == Threads(1)


@pytest.mark.parametrize("text", ["0", "many", "-2", "1025", "2.5", "9" * 5000])
def test_a_variable_that_is_no_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(threads.VARIABLE, text)
    with pytest.raises(SettingError, match=r"^BAGEL_THREADS is .*: it must be a whole number from 1 to 1024\.$"):
        choose_threads(1)


@pytest.mark.parametrize("asked", [0, -1, True, 2.0, "2", 1025])
def test_an_argument_that_is_no_number_of_threads_is_refused(asked: int) -> None:
    with pytest.raises(SettingError, match="threads is .*: it must be a whole number from 1 to 1024"):
        Bagel.from_pretrained("mini", threads=asked)


def test_the_number_holds_during_the_work_alone() -> None:
    with Threads(2).at_work():
        assert torch.get_num_threads() == 2
        with Threads(4).at_work():
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 16
    with pytest.raises(ZeroDivisionError), Threads(2).at_work():
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 16


def test_what_pytorch_is_set_to_is_the_upper_limit_of_a_chosen_number_alone() -> None:
    torch.set_num_threads(3)
    with choose_threads(LARGE).at_work():
        assert torch.get_num_threads() == 3
    with choose_threads(LARGE, asked=5).at_work():
        assert torch.get_num_threads() == 5
    assert torch.get_num_threads() == 3


@pytest.fixture(scope="module")
def mini() -> Bagel:
    return Bagel.from_pretrained("mini")


def numbers_in_callbacks(bagel: Bagel) -> set[int]:
    """The numbers of threads while an image is drawn."""
    found: set[int] = set()
    bagel.generate("a cup", num_timesteps=3, seed=0, progress=lambda done, of: found.add(torch.get_num_threads()))
    return found


def test_the_engine_computes_with_one_thread_for_mini_and_leaves_the_program_its_own(mini: Bagel) -> None:
    assert numbers_in_callbacks(mini) == {1}
    assert torch.get_num_threads() == 16


def test_a_number_that_was_asked_for_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers_in_callbacks(Bagel.from_pretrained("mini", threads=3)) == {3}
    monkeypatch.setenv(threads.VARIABLE, "2")
    assert numbers_in_callbacks(Bagel.from_pretrained("mini")) == {2}


def test_it_holds_in_every_thread_that_drives_the_engine(mini: Bagel) -> None:
    found: dict[int, set[int]] = {}
    after: dict[int, int] = {}

    def work(name: int) -> None:
        torch.get_num_threads()
        found[name] = numbers_in_callbacks(mini)
        after[name] = torch.get_num_threads()

    for name in range(3):
        thread = Thread(target=work, args=(name,))
        thread.start()
        thread.join()
    assert list(found.values()) == [{1}] * 3
    assert list(after.values()) == [16] * 3


def test_mini_draws_and_writes_the_same_with_one_and_with_two_threads(mini: Bagel) -> None:
    two = Bagel.from_pretrained("mini", threads=2)
    images = [bagel.generate("a red car below a yellow sun", seed=3, num_timesteps=8) for bagel in (mini, two)]
    assert images[0].tobytes() == images[1].tobytes()
    edits = [bagel.edit(images[0], "make the car blue", seed=3, num_timesteps=8) for bagel in (mini, two)]
    # oneDNN divides the convolutions of small maps by threads, so what the encoder says of an image differs in its last
    # digits, and a pixel by one level.
    assert np.abs(np.asarray(edits[0], np.int16) - np.asarray(edits[1], np.int16)).max() <= 1
    assert len({bagel.ask(images[0], "Describe the picture.", max_new_tokens=24) for bagel in (mini, two)}) == 1

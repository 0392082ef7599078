"""The loop by itself, with a task so small that a step takes no time: signals, failures, what is told and when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from torch import Tensor, nn

from bagel_mot.config import parse
from bagel_mot.errors import RecipeError, TrainingError
from bagel_mot.training import checkpoints
from bagel_mot.training.loop import interruptible, train
from bagel_mot.training.metrics import METRICS_FILE
from bagel_mot.training.optimizer import Ema
from bagel_mot.training.recipe import Recipe
from bagel_mot.training.run import Run
from bagel_mot.training.task import TrainingTask


class Line(TrainingTask[nn.Linear, Tensor]):
    """Fits a line; every batch is one number, counted up. `at` calls something in the step, save or sheet named."""

    loss_weights = {"mse": 1.0}  # noqa: RUF012

    def __init__(self, recipe: Recipe | None = None, **at: Callable[[int], None]) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(1, 1)
        self.drawn = 0
        self.at = at
        self.closed = False

    def _reach(self, name: str) -> None:
        self.at.get(name, lambda number: None)(self.drawn)

    def open_streams(self, streams: Sequence[int], total: int) -> None:
        assert list(streams) == [0]

    def next_batches(self) -> list[Tensor]:
        self.drawn += 1
        return [torch.full((1, 1), float(self.drawn))]

    def counts(self, batch: Tensor) -> dict[str, float]:
        return {"mse": 1.0}

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self._reach("step")
        return {"mse": (self.module(batch) - torch.randn(1, 1, generator=generator)).square().sum()}

    def tokens(self, batch: Tensor) -> int:
        return 1

    def gauges(self, states: Sequence[Any]) -> dict[str, float]:
        return {"drawn": float(states[0])}

    def data_state(self) -> dict[int, Any]:
        return {0: self.drawn}

    def load_data_state(self, states: Sequence[Any]) -> None:
        self.drawn = states[0]

    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self._reach("save")
        (folder / "inner").mkdir()
        torch.save(weights, folder / "inner" / "weights.pt")

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        self._reach("sheet")

    def close(self) -> None:
        self.closed = True


Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def recipe(**changes: Any) -> Recipe:
        raw: dict[str, Any] = {
            "output": tmp_path / "run",
            "steps": 12,
            "precision": "float32",
            "device": "cpu",
            "ema": 0.5,
            "save_async": False,
            "log_every": 3,
            "save_every": 4,
            "sample_every": 100,
        }
        return parse(Recipe, {**raw, **changes}, "recipe", RecipeError)

    return recipe


def _steps(run: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in checkpoints.checkpoint_folders(run)]


def _told(run: Path) -> list[dict[str, float]]:
    """Reports without what depends on the clock."""
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    clock = ("time", "tokens_per_second", "steps_per_second")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def _interrupt(*numbers: int) -> Callable[[int], None]:
    """Sends this process a SIGINT whenever one of these batches is the last one drawn."""

    def send(drawn: int) -> None:
        if drawn in numbers:
            os.kill(os.getpid(), signal.SIGINT)

    return send


def _raise(error: BaseException, *numbers: int) -> Callable[[int], None]:
    def fail(drawn: int) -> None:
        if drawn in numbers:
            raise error

    return fail


# ------------------------------------------------------------------------------------------------------------- signals


def test_a_signal_in_a_step_ends_that_step_and_saves_it(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = make()
    task = Line(step=_interrupt(6))
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: task)
    assert _steps(made.output) == [4, 6]
    assert "run the same command to go on" in capsys.readouterr().out
    assert task.closed
    assert train(made, Line) == made.output / "step-00000012"


def test_a_signal_in_a_save_lets_it_end(make: Make) -> None:
    made = make()
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: Line(save=_interrupt(4)))
    assert _steps(made.output) == [4]


def test_a_signal_after_the_save_of_a_step_is_not_lost(make: Make) -> None:
    """In drawing the samples: the very last thing that is done in a step."""
    made = make(sample_every=4)
    task = Line(sheet=_interrupt(4))
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: task)
    assert _steps(made.output) == [4]
    assert task.drawn == 4


def test_a_signal_in_the_last_step_leaves_a_finished_run(make: Make) -> None:
    made = make()
    assert train(made, lambda _: Line(step=_interrupt(12))) == made.output / "step-00000012"


def test_a_signal_at_any_moment_between_two_steps_leaves_the_step_saved(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(save_every=100)

    class Late(Line):
        def tokens(self, batch: Tensor) -> int:  # after the update, before anything is reported or saved
            _interrupt(5)(self.drawn)
            return 1

    with pytest.raises(KeyboardInterrupt):
        train(made, Late)
    assert _steps(made.output) == [5]


@pytest.mark.parametrize("where", ["step", "save", "sheet"])
def test_a_second_signal_ends_at_once_and_the_last_checkpoint_stays(make: Make, where: str) -> None:
    made = make(sample_every=4)

    def twice(drawn: int) -> None:
        if drawn == 8:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    task = Line(**{where: twice})
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: task)
    assert task.closed
    assert _steps(made.output) == ([4, 8] if where == "sheet" else [4])
    whole = make(output=made.output.parent / "whole", sample_every=4)
    train(whole, Line)
    train(made, Line)
    assert _told(made.output) == _told(whole.output)
    expected, got = (checkpoints.load_latest(run) for run in (whole.output, made.output))
    assert expected is not None
    assert got is not None
    assert torch.equal(expected["module.weight"], got["module.weight"])


def test_a_thread_that_hears_no_signals_can_train(make: Make) -> None:
    made = make(steps=4)
    done: list[Path | None] = []
    thread = threading.Thread(target=lambda: done.append(train(made, Line)))
    thread.start()
    thread.join(60)
    assert done == [made.output / "step-00000004"]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(("warmup", "told"), [(12, False), (48, True)])
def test_a_warm_up_that_never_ends_is_told(
    warmup: int, told: bool, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make(schedule={"name": "constant", "warmup": warmup}), Line)
    note = "the learning rate ends at 25% of optimizer.lr: schedule.warmup is 48 and steps is 12"
    assert (note in " ".join(capsys.readouterr().out.split())) == told


def test_samples_that_cannot_be_drawn_do_not_end_a_training(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(sample_every=4)
    assert train(made, lambda _: Line(sheet=_raise(RuntimeError("no [red] ink"), 4))) == made.output / "step-00000012"
    assert "no samples of step 4: RuntimeError: no [red] ink" in capsys.readouterr().out


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing_behind(make: Make) -> None:
    made = make()
    with pytest.raises(TrainingError, match=r"checkpoint of step 8 could not be written to .*No space left"):
        train(made, lambda _: Line(save=_raise(OSError(28, "No space left on device"), 8)))
    assert _steps(made.output) == [4]
    assert not list(made.output.glob(".step-*"))


def test_a_gradient_that_is_not_finite_names_the_last_checkpoint(make: Make) -> None:
    made = make()
    train(made, Line, stop_after=5)

    class Broken(Line):
        def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return {"mse": super().losses(batch, generator)["mse"] * float("nan")}

    with pytest.raises(TrainingError, match=r"gradient of step 6 is nan.*step-00000005"):
        train(made, Broken)
    assert _steps(made.output) == [4, 5]


def test_weights_that_are_lost_are_never_saved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may take the weights beyond all numbers although its gradient was finite."""
    made = make()
    train(made, Line, stop_after=5)

    update = Ema.update

    def leap(self: Ema) -> None:  # at the end of a step
        update(self)
        if self.updates == 8:
            self.parameters["weight"].data.fill_(float("inf"))

    monkeypatch.setattr(Ema, "update", leap)
    with pytest.raises(TrainingError, match=r"weight is not finite after step 8: the last checkpoint is .*00000005"):
        train(made, Line)
    assert _steps(made.output) == [4, 5]


def test_weights_to_begin_with_that_are_not_finite_are_refused_at_once(make: Make) -> None:
    class Damaged(Line):
        def __init__(self, recipe: Recipe | None = None) -> None:
            super().__init__(recipe, step=_raise(AssertionError("a step"), *range(9)))
            self.module.bias.data.fill_(float("nan"))

    made = make()
    with pytest.raises(RecipeError, match=r"the checkpoint to start from holds .* in bias: download or convert it"):
        train(made, Damaged)
    train(made, Line, stop_after=5)
    state = checkpoints.load_latest(made.output)
    assert state is not None
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    tensors["module.weight"].fill_(float("nan"))
    shutil.rmtree(folder := made.output / "step-00000005" / checkpoints.STATE_FOLDER)
    torch.distributed.checkpoint.save(tensors, checkpoint_id=folder, no_dist=True)
    with pytest.raises(RecipeError, match=r"step-00000005 holds .* in weight: remove it to resume from the one before"):
        train(made, Line)


def test_a_finished_run_gives_its_checkpoint_and_makes_no_step(make: Make) -> None:
    made = make()
    train(made, Line)
    task = Line(step=_raise(AssertionError("a step"), *range(100)))
    assert train(made, lambda _: task) == made.output / "step-00000012"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_folder_is_trained_in_by_one_run_at_a_time(make: Make) -> None:
    made = make()
    hidden = made.output / ".step-00000004"  # what another process is writing

    def second(drawn: int) -> None:
        if drawn == 2:
            hidden.mkdir()
            with pytest.raises(TrainingError, match=f"being trained in {made.output} already"):
                train(made, Line)
            assert hidden.exists()

    assert train(made, lambda _: Line(step=second)) == made.output / "step-00000012"
    assert train(make(steps=13), Line) == made.output / "step-00000013"


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be made or written to .*: give another output"):
        train(make(output=tmp_path / "file" / "run"), Line)


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_resumed_run_takes_the_numbers_that_its_recipe_has_now(make: Make) -> None:
    made = make(optimizer={"lr": 1e-3})
    train(made, Line, stop_after=4)
    numbers = {"lr": 5e-2, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.25}
    task = Line()
    train(make(optimizer=numbers, ema=0.75, steps=8, schedule={"name": "constant"}), lambda _: task)
    state = checkpoints.load_latest(made.output)
    assert state is not None
    assert state["optimizer.weight.step"] == 8  # moments are the run's own
    run = Run(made, Line)
    assert run.optimizers.tensors()["weight.step"] == 8
    group = Run(make(optimizer=numbers), Line).optimizers.optimizers[0].param_groups[0]
    assert {name: group[name] for name in numbers} == numbers
    assert _told(made.output)[-1]["lr"] == 5e-2


def test_a_resumed_run_keeps_what_it_was_begun_with(make: Make) -> None:
    made = make()
    train(made, Line, stop_after=4)
    with pytest.raises(RecipeError, match=r"run in .*/run was .*\(seed was 0 and is now 7\): go on with"):
        train(make(seed=7), Line)
    with pytest.raises(RecipeError, match="optimizer.name was 'adamw' and is now 'muon'"):
        train(make(optimizer={"name": "muon"}), Line)
    train(made, Line)
    assert _steps(made.output) == [8, 12]


def test_weights_of_another_shape_are_told_in_a_sentence(make: Make) -> None:
    made = make()
    train(made, Line, stop_after=4)

    class Plane(Line):
        def __init__(self, recipe: Recipe) -> None:
            super().__init__()
            self.module = nn.Linear(2, 1)

    class Deeper(Line):
        def __init__(self, recipe: Recipe) -> None:
            super().__init__()
            self.module = nn.Sequential(nn.Linear(1, 1))  # type: ignore[assignment]

    for other in (Plane, Deeper):
        with pytest.raises(RecipeError, match="step-00000004 do not fit this recipe .*: go on with"):
            train(made, other)


@pytest.mark.parametrize("state", [{"step": 1}, [1, 2], 3])
def test_a_state_that_is_none_is_told_in_a_sentence(make: Make, state: object) -> None:
    made = make()
    folder = train(made, Line, stop_after=4)
    (folder / checkpoints.STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(RecipeError, match="training_state.json could not be read .*remove .*step-00000004 to resume"):
        train(made, Line)


def test_damaged_tensors_are_told_in_a_sentence(make: Make) -> None:
    made = make()
    folder = train(made, Line, stop_after=4)
    [file] = (folder / checkpoints.STATE_FOLDER).glob("*.distcp")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecipeError, match="training_state could not be read .*remove .*step-00000004 to resume"):
        train(made, Line)
    (folder / checkpoints.STATE_FOLDER / ".metadata").unlink()
    with pytest.raises(RecipeError, match="training_state could not be read .*remove .*step-00000004 to resume"):
        train(made, Line)


def test_the_state_of_an_earlier_version_is_refused_in_a_sentence(make: Make) -> None:
    made = make()
    (folder := made.output / "step-00000004").mkdir(parents=True)
    (folder / "training_state.pt").write_bytes(b"")
    with pytest.raises(RecipeError, match="step-00000004 holds a training state of an earlier version.*init"):
        train(made, Line)


def test_a_checkpoint_written_beside_the_training_holds_its_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on while it is written, and change nothing of it."""
    expected = make(output=make().output.parent / "expected", keep=9)
    train(expected, Line)
    going_on, written = threading.Event(), threading.Event()

    class Slow(Line):
        def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
            going_on.wait(20)
            super().write_weights(folder, weights)
            written.set()

        def tokens(self, batch: Tensor) -> int:
            if self.drawn == 7:
                assert not written.is_set()
                going_on.set()
            return 1

    made = make(save_async=True, keep=9)
    train(made, Slow)
    assert _steps(made.output) == [4, 8, 12]
    for step in ("step-00000004", "step-00000008", "step-00000012"):
        states = []
        for run in (expected, made):
            (run.output / "one").mkdir()
            os.symlink(run.output / step, run.output / "one" / step)
            states.append(checkpoints.load_latest(run.output / "one"))
            states[-1]["recipe"] = None  # type: ignore[index]
            shutil.rmtree(run.output / "one")
            states.append(torch.load(run.output / step / "inner" / "weights.pt"))  # type: ignore[arg-type]
        assert str(states[0]) == str(states[2])
        assert states[1] == states[3]


def test_a_save_beside_the_training_that_fails_ends_it_in_a_sentence(make: Make) -> None:
    made = make(save_async=True)
    with pytest.raises(TrainingError, match=r"checkpoint of step \d+ could not be written to .*No space left"):
        train(made, lambda _: Line(save=_raise(OSError(28, "No space left on device"), *range(7, 13))))
    assert _steps(made.output) in ([4], [])
    assert not list(made.output.glob(".step-*"))


class Halves(Line):
    """Has something to lose in every second batch only."""

    def counts(self, batch: Tensor) -> dict[str, float]:
        return {"mse": float(self.drawn % 2), "never": 0.0}

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        value = self.module(batch).sum() * 0 + 6.0
        return {"mse": value * (self.drawn % 2), "never": value * 0}

    loss_weights = {"mse": 1.0, "never": 1.0}  # noqa: RUF012


def test_steps_without_a_loss_do_not_lower_its_mean(make: Make) -> None:
    made = make()
    train(made, Halves)
    told = _told(made.output)
    assert [line["mse"] for line in told] == [6.0] * 4
    assert not any("never" in line for line in told)


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_training(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_remove", lambda folder: (_ for _ in ()).throw(OSError("held open")))
        train(made, Line, stop_after=8)
    assert _steps(made.output) == [4, 8]
    train(made, Line)
    assert _steps(made.output) == [12]


def test_everything_is_on_the_disk_before_it_gets_its_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(steps=4)
    flushed: list[int] = []
    before: list[set[int]] = []
    sync, rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        sync(handle)

    def named(source: Path, target: Path) -> None:
        if Path(target).name.startswith("step-"):
            before.append(set(flushed))
            flushed.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", named)
    folder = train(made, Line)
    inside = {path.stat().st_ino for path in (folder, *folder.rglob("*"))}
    assert len(inside) == 7  # the folder, two in it, weights, state, tensors and what is said of them
    assert [inside <= seen for seen in before] == [True]
    assert made.output.stat().st_ino in flushed


def test_an_old_checkpoint_loses_its_name_before_its_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(keep=1)

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    train(made, Line, stop_after=4)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(made, Line)
    assert _steps(made.output) == [8]
    train(made, Line)
    assert sorted(path.name for path in made.output.iterdir() if "step-" in path.name) == ["step-00000012"]


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("killed", [5, 8, 10, 11])
def test_metrics_of_a_killed_run_are_those_of_a_whole_one(make: Make, killed: int, tmp_path: Path) -> None:
    whole = make(output=tmp_path / "whole")
    train(whole, Line)
    parts = make()
    with pytest.raises(KeyboardInterrupt):
        train(parts, lambda _: Line(step=_raise(KeyboardInterrupt(), killed)))
    with open(parts.output / METRICS_FILE, "a") as file:
        file.write('{"step": 1')  # killed in the middle of a line
    train(parts, Line)
    assert [line["step"] for line in _told(whole.output)] == [3, 6, 9, 12]
    assert [line["drawn"] for line in _told(whole.output)] == [3, 6, 9, 12]
    assert _told(parts.output) == _told(whole.output)


def test_tensorboard_forgets_the_steps_that_are_done_again(make: Make) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = make()
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: Line(step=_raise(KeyboardInterrupt(), 8)))  # reported 3 and 6, saved 4
    train(made, Line)
    events = accumulator.EventAccumulator(str(made.output / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mse")] == [3, 6, 9, 12]
    assert [event.value for event in events.Scalars("drawn")] == [3, 6, 9, 12]

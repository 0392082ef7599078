"""Recorded passes: replayed by operations alone on the CPU, they give the bits of the passes themselves."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.engine.graphs import Graphs, Outputs, StaticPass, recorder_for
from bagel_mot.inference.request import Recorder
from bagel_mot.model import cache
from bagel_mot.model.decoder import Decoder
from bagel_mot.placement.estimate import MAX_GRAPHS
from tests.inference.engine.recording import OperationRecorder

DRAWING: dict[str, Any] = {"num_timesteps": 8, "seed": 3}
CPU = torch.device("cpu")


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts share slabs, as on accelerators."""
    spec = Decoder.cache_spec.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Decoder, "cache_spec", property(lambda self: spec(self)._replace(pool=self._cache_pool)))


def made(checkpoint: Checkpoint, defaults: Defaults, recorder: Any) -> Bagel:
    bagel = Bagel(checkpoint, defaults=defaults)
    bagel.engine.runner.graphs = Graphs(recorder, CPU)
    return bagel


def both(checkpoint: Checkpoint, defaults: Defaults) -> tuple[Bagel, Bagel]:
    """One that records, and one that computes the same passes each time."""
    recording, computing = (made(checkpoint, defaults, OperationRecorder()) for _ in range(2))
    computing.engine.runner.graphs._record = lambda *_: None  # type: ignore[method-assign]
    return recording, computing


def latents(bagel: Bagel, prompts: list[str], **settings: Any) -> list[Tensor]:
    """What denoising ends at, before it is decoded."""
    recorders = [Recorder() for _ in prompts]
    tickets = [
        bagel.submit([prompt], recorder=recorder, **(DRAWING | settings))
        for prompt, recorder in zip(prompts, recorders, strict=True)
    ]
    bagel.engine.run_until(tickets)
    for ticket in tickets:
        ticket.result()
    return [recorder.latent for recorder in recorders]  # type: ignore[misc]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "settings",
    [{}, {"enable_taylorseer": True, "num_timesteps": 14}, {"eta": 0.5}, {"cfg_text_scale": 1.0}],
    ids=["guided", "extrapolated", "fresh noise", "one branch"],
)
def test_an_image_has_the_same_bits(checkpoint: Checkpoint, defaults: Defaults, settings: dict[str, Any]) -> None:
    recording = made(checkpoint, defaults, OperationRecorder())
    plain = Bagel(checkpoint, defaults=defaults)
    assert not plain.engine.runner.graphs.on, "none is recorded on the CPU"
    assert same(latents(recording, ["a red car"], **settings), latents(plain, ["a red car"], **settings))
    graphs = recording.engine.runner.graphs
    assert graphs.recorded >= 1
    assert graphs.replayed >= 2


def test_steps_with_and_without_guidance_are_recorded_apart(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel, plain = made(checkpoint, defaults, OperationRecorder()), Bagel(checkpoint, defaults=defaults)
    settings = {"cfg_interval": (0.6, 1.0), "num_timesteps": 12}
    assert same(latents(bagel, ["a red car"], **settings), latents(plain, ["a red car"], **settings))
    assert bagel.engine.runner.graphs.recorded == 2
    # Each is computed twice, and replayed in all other steps.
    assert bagel.engine.runner.graphs.replayed == 11 - 4


def test_a_batch_whose_members_come_and_go(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel, plain = made(checkpoint, defaults, OperationRecorder()), Bagel(checkpoint, defaults=defaults)

    def run(each: Bagel) -> list[Tensor]:
        recorders = [Recorder() for _ in range(3)]
        first = each.submit(["a red car"], recorder=recorders[0], num_timesteps=12, seed=1)
        for _ in range(5):
            each.engine.step()
        second = each.submit(["a blue sun"], recorder=recorders[1], num_timesteps=5, seed=2)
        third = each.submit(["two trees"], recorder=recorders[2], num_timesteps=9, seed=3, size=(32, 32))
        each.engine.run_until([first, second, third])
        return [recorder.latent for recorder in recorders]  # type: ignore[misc]

    assert same(run(bagel), run(plain))
    assert bagel.engine.runner.graphs.replayed > 3


def test_what_an_image_recorded_is_gone_with_it(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = made(checkpoint, defaults, OperationRecorder())
    latents(bagel, ["a red car"])
    gc.collect()
    assert len(bagel.engine.runner.graphs) == 0


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("slab", [8192, 64], ids=["one slab", "many slabs"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_texts_have_the_same_bits(
    checkpoint: Checkpoint, defaults: Defaults, monkeypatch: pytest.MonkeyPatch, slab: int, count: int
) -> None:
    monkeypatch.setattr(cache, "SLAB_TOKENS", slab)
    prompts = [f"How many cars are there, {'and suns ' * n}?" for n in range(count)]
    asked: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.5}
    found = []
    recording, computing = both(checkpoint, defaults)
    for bagel in (recording, computing):
        recorded = record_logits(bagel, monkeypatch)
        answers = bagel.ask(None, prompts, seed=list(range(count)), **asked)
        found.append((answers, recorded))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])
    assert recording.engine.runner.graphs.replayed >= 5
    plain = Bagel(checkpoint, defaults=defaults)
    logits = record_logits(plain, monkeypatch)
    plain.ask(None, prompts, seed=list(range(count)), **asked)
    for ours, theirs in zip(found[0][1], logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4), "as they are decoded without any of it"


def record_logits(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Where the logits of all its texts will be."""
    runner, kept = bagel.engine.runner, []
    results = runner._text_results

    def keep(ops: Any, logits: Tensor) -> Any:
        kept.append(logits.clone())
        return results(ops, logits)

    monkeypatch.setattr(runner, "_text_results", keep)
    return kept


@pytest.mark.usefixtures("pooled")
def test_a_longer_text_in_the_same_bucket_is_replayed_at_once(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = made(checkpoint, defaults, OperationRecorder())
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5}
    with torch.inference_mode():
        held = bagel.engine.new_context(900).allocate(1)  # keeps the slab alive
    bagel.ask(None, "one?", **asked)
    graphs = bagel.engine.runner.graphs
    recorded = graphs.recorded
    assert recorded >= 1
    replayed = graphs.replayed
    bagel.ask(None, "how many cars are there, and where?", **asked)
    assert graphs.recorded == recorded
    assert graphs.replayed >= replayed + 5
    del held


def test_what_was_recorded_is_forgotten_when_weights_change(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = made(checkpoint, defaults, OperationRecorder())
    graphs = bagel.engine.runner.graphs
    owner = Owner()
    for _ in range(2):
        graphs.run(passing(owner, 1.0))
    assert len(graphs) == 1
    with bagel.engine.changing_weights():
        pass
    assert len(graphs) == 0


class Owner:
    """Owns memory that a pass reads."""


def passing(owner: object, number: float, key: object = 0, times: float = 2.0) -> StaticPass:
    return StaticPass("pass", key, (owner,), (torch.tensor([number]),), lambda x: (x * times,))


def values(outputs: Outputs) -> list[float]:
    return [output.item() for output in outputs]


def test_outputs_stay_as_they_are() -> None:
    graphs, owner = Graphs(OperationRecorder(), CPU), Owner()
    found = [graphs.run(passing(owner, number)) for number in (1.0, 2.0, 3.0, 4.0)]
    assert [values(each) for each in found] == [[2.0], [4.0], [6.0], [8.0]]
    assert (graphs.recorded, graphs.replayed) == (1, 2)


def test_what_python_decided_stays_as_it_was_recorded() -> None:
    """This is why everything that decides a pass is in its key or in its owners."""
    graphs, owner = Graphs(OperationRecorder(), CPU), Owner()
    for _ in range(2):
        graphs.run(passing(owner, 1.0, times=2.0))
    assert values(graphs.run(passing(owner, 1.0, times=5.0))) == [2.0]
    assert values(graphs.run(passing(owner, 1.0, key=1, times=5.0))) == [5.0]


def test_a_dead_owner_ends_what_was_recorded() -> None:
    graphs, owner = Graphs(OperationRecorder(), CPU), Owner()
    for _ in range(2):
        graphs.run(passing(owner, 1.0))
    assert len(graphs) == 1
    del owner
    assert len(graphs) == 0


def test_no_more_than_some_are_kept() -> None:
    graphs, owner = Graphs(OperationRecorder(), CPU), Owner()
    for key in range(MAX_GRAPHS + 3):
        for _ in range(2):
            graphs.run(passing(owner, 1.0, key=key))
    assert len(graphs) == MAX_GRAPHS
    assert graphs.recorded == MAX_GRAPHS + 3
    graphs.run(passing(owner, 1.0, key=0))
    assert graphs.replayed == 0, "the first is forgotten"


def test_where_recording_fails_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs, owner = Graphs(OperationRecorder(fails=True), CPU), Owner()
    with caplog.at_level(logging.WARNING):
        found = [values(graphs.run(passing(owner, number))) for number in (1.0, 2.0, 3.0, 4.0)]
    assert found == [[2.0], [4.0], [6.0], [8.0]]
    assert not graphs.on
    assert caplog.messages == [
        "graphs are off: a pass cannot be recorded (operation not permitted when stream is capturing)"
    ]


def test_what_waits_for_the_device_cannot_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    graphs, owner = Graphs(OperationRecorder(), CPU), Owner()

    def compute(x: Tensor) -> Outputs:
        return (x + x.item(),)

    for _ in range(2):
        assert values(graphs.run(StaticPass("pass", 0, (owner,), (torch.tensor([1.0]),), compute))) == [2.0]
    assert not graphs.on
    assert "waits for the device" in caplog.text


def test_a_replay_that_gives_other_numbers_turns_them_off(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(OperationRecorder):
        def record(self, run: Any) -> Any:
            replay, outputs = super().record(run)
            return lambda: (replay(), outputs[0].add_(1.0)), outputs

    graphs, owner = Graphs(Wrong(), CPU), Owner()
    assert [values(graphs.run(passing(owner, 1.0))) for _ in range(4)] == [[2.0]] * 4
    assert not graphs.on
    assert "gave other numbers" in caplog.text


def test_nothing_is_recorded_on_the_cpu(checkpoint: Checkpoint) -> None:
    assert recorder_for(checkpoint.model) is None

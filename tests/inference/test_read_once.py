"""What a request costs before it runs and while it reads: everything once, however many results are asked for."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot.images import ImageTransform
from bagel_mot.inference import prepare
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ops import ForwardOp
from bagel_mot.inference.engine.runner import Runner
from bagel_mot.inference.prepare import Preparer
from bagel_mot.inference.request import Listener, Recorder, Request
from bagel_mot.inference.session import Session
from bagel_mot.serving.service import Service
from bagel_mot.task import Task
from bagel_mot.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def loaded() -> Bagel:
    return Bagel.from_pretrained("mini", device="cpu")


@pytest.fixture
def mini(loaded: Bagel) -> Bagel:
    """The embedded model with a fresh engine."""
    return Bagel(loaded.checkpoint, defaults=loaded.defaults)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts tokenizations, images opened, resized and measured."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(Tokenizer, "encode")
    count(prepare, "open_image")
    count(ImageTransform, "resize")
    count(ImageTransform, "size")
    return found


def image(side: int = 100) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


FEW: dict[str, Any] = {"num_timesteps": 3, "seed": 1}
SHORT: dict[str, Any] = {"max_new_tokens": 4}


def by_service(bagel: Bagel, inputs: list[Any], output: str, **settings: Any) -> Any:
    service = Service(bagel, memory=1 << 30)
    try:
        return service.start(inputs, output=output, **settings).tickets[0].result(60)
    finally:
        service.stop()


def by_session(bagel: Bagel, inputs: list[Any], output: str, **settings: Any) -> Any:
    chat = Session(bagel, think=settings.pop("think", False))
    for one in inputs[:-1]:
        chat.add(one)
    return chat.ask(inputs[-1], **settings) if output == "text" else chat.generate_image(inputs[-1], **settings)


def by_bagel(bagel: Bagel, inputs: list[Any], output: str, **settings: Any) -> Any:
    return bagel.interleave(inputs, output=output, **settings)


@pytest.mark.parametrize("through", [by_bagel, by_session, by_service])
@pytest.mark.parametrize("think", [False, True])
def test_everything_is_prepared_once(
    mini: Bagel, counts: Counter[str], through: Callable[..., Any], think: bool
) -> None:
    for inputs, output, settings in (
        (["a red car"], "image", {**FEW, "max_think_tokens": 4} if think else FEW),
        ([image(), "make it night"], "image", {**FEW, "max_think_tokens": 4} if think else FEW),
        ([image(), "What is it?"], "text", SHORT),
    ):
        counts.clear()
        encoded = mini.engine.stats.encoded
        through(mini, inputs, output, think=think, **settings)
        given = len(inputs) - 1
        drawn = through is by_session and output == "image"  # what is drawn is read, too
        # The prompt, the system prompt, and what is written, to be read behind it.
        assert counts["encode"] == 1 + think + (think or output == "text")
        assert counts["open_image"] == given + drawn
        assert counts["resize"] == 2 * (given + drawn)
        assert counts["size"] == counts["resize"]
        reads_latents = output == "image" or through is by_session
        assert mini.engine.stats.encoded - encoded == given * reads_latents + drawn


def test_images_that_requests_share_are_prepared_once(mini: Bagel, counts: Counter[str]) -> None:
    mini.edit(image(), ["make it night", "make it day"], n=2, **FEW)
    assert (counts["open_image"], counts["resize"], counts["encode"]) == (1, 2, 2)
    assert mini.engine.stats.encoded == 1


# --------------------------------------------------------------------------------------------------------- many results


def test_results_of_one_input_read_it_once(mini: Bagel) -> None:
    settings: dict[str, Any] = {"num_timesteps": 4, "seed": 3}
    images = mini.edit(image(), "make it night", n=4, **settings)
    assert (mini.engine.stats.encoded, mini.engine.stats.prefill_tokens) == (1, 41)
    alone = [mini.edit(image(), "make it night", num_timesteps=4, seed=3 + i) for i in range(4)]
    for got, expected in zip(images, alone, strict=True):
        assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1


def test_a_service_reads_results_of_one_input_once(mini: Bagel) -> None:
    service = Service(mini, memory=1 << 30)
    started = service.start([image(), "make it night"], n=4, num_timesteps=4, seed=3)
    for ticket in started.tickets:
        ticket.result(60)
    assert (mini.engine.stats.encoded, mini.engine.stats.prefill_tokens) == (1, 41)
    service.stop()


def test_equal_requests_of_a_batch_are_read_once(mini: Bagel) -> None:
    mini.edit([image(), image()], ["make it night"] * 2, seed=[1, 2], num_timesteps=3)
    assert (mini.engine.stats.encoded, mini.engine.stats.prefill_tokens) == (1, 41)
    read = mini.engine.stats.prefill_tokens
    assert len(set(mini.ask(image(), ["How many?"] * 3, **SHORT))) == 1
    once = mini.engine.stats.prefill_tokens - read
    mini.ask(image(), "How many?", **SHORT)
    assert mini.engine.stats.prefill_tokens - read == 2 * once


def test_equal_beginnings_of_a_batch_are_read_once(mini: Bagel) -> None:
    questions = ["How many?", "What is it?", "Is it a car?"]
    answers = mini.ask(image(), questions, **SHORT)
    together = mini.engine.stats.prefill_tokens
    assert answers == [mini.ask(image(), question, **SHORT) for question in questions]
    prepared = Preparer(mini.runtime).image(image(), Task.ASK)
    assert mini.engine.stats.prefill_tokens - together == together + 2 * prepared.tokens


@pytest.mark.parametrize("how", ["fails", "cancelled"])
def test_where_the_reader_is_lost_the_next_one_reads(mini: Bagel, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    forward, calls = Runner.forward, 0

    def broken(runner: Runner, batch: list[ForwardOp]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and how == "fails":
            raise OSError("lost")
        forward(runner, batch)

    monkeypatch.setattr(Runner, "forward", broken)
    tickets = [mini.submit([image(), "make it night"], num_timesteps=3, seed=i) for i in range(3)]
    mini.engine.step()  # the image is encoded for all; the others wait
    if how == "cancelled":
        tickets[0].cancel()
    mini.engine.run_until(tickets)
    assert [ticket.cancelled() or ticket.exception() is not None for ticket in tickets] == [True, False, False]
    assert mini.engine.stats.encoded == 2
    assert mini.engine.stats.prefill_tokens == 41
    for i in (1, 2):
        got, expected = tickets[i].result().image, mini.edit(image(), "make it night", num_timesteps=3, seed=i)
        assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1


def test_nothing_is_kept_where_nothing_is_at_work(mini: Bagel) -> None:
    for _ in range(2):
        before = mini.engine.stats.prefill_tokens
        mini.edit(image(), "make it night", n=2, **FEW)
        assert mini.engine.stats.prefill_tokens - before == 41
    assert mini.runtime.prefixes.tokens == 0


# ----------------------------------------------------------------------------------------------------- another process


def _run(request: bytes, results: Any) -> None:
    torch.set_num_threads(1)
    bagel, recorder = Bagel.from_pretrained("mini", device="cpu"), Recorder()
    result = bagel.submit_request(pickle.loads(request), Listener(recorder=recorder)).result()
    latent = None if recorder.latent is None else recorder.latent.numpy()
    results.put((result.text, latent, result.seed))


def test_a_request_runs_in_another_process(mini: Bagel) -> None:
    make = Preparer(mini.runtime)

    def request(task: Task, *values: Any, **settings: Any) -> Request:
        return make.request(task, make.inputs(values, task), settings)

    context = multiprocessing.get_context("spawn")
    for own in (
        request(Task.EDIT, image(), "make it night", num_timesteps=3, seed=2),
        request(Task.ASK, image(), "What is it?", max_new_tokens=5, think=True, do_sample=True, seed=2),
    ):
        recorder = Recorder()
        here = mini.submit_request(own, Listener(recorder=recorder)).result()
        results = context.Queue()
        process = context.Process(target=_run, args=(pickle.dumps(own), results))
        process.start()
        text, latent, seed = results.get(timeout=120)
        process.join(timeout=60)
        assert (text, seed) == (here.text, here.seed)
        assert (latent is None) == (recorder.latent is None)
        if recorder.latent is not None:
            assert np.abs(latent - recorder.latent.numpy()).max() < 1e-5

"""Closing a model, and what it says of itself."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from bagel_mot import Bagel, BagelError
from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.defaults import Defaults

CLOSED = "this model was closed: load it again with Bagel.from_pretrained."


def test_a_closed_model_is_gone_though_it_and_its_sessions_are_held() -> None:
    bagel = Bagel.from_pretrained("mini", device="cpu")
    chat = bagel.session()
    chat.add("a cup")
    bagel.submit(["a cup"], num_timesteps=2, seed=0, on_preview=lambda image: None).result()
    model, autoencoder = weakref.ref(bagel.checkpoint.model), weakref.ref(bagel.checkpoint.autoencoder)
    bagel.close()
    gc.collect()
    assert model() is None
    assert autoencoder() is None
    assert chat.history[0].content == "a cup"


def test_use_after_closing_is_refused_in_one_sentence(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("a cup")
    bagel.close()
    bagel.close()
    for use in (
        lambda: bagel.generate("a"),
        lambda: bagel.generate(["a", "b"]),
        lambda: bagel.ask(None, "a"),
        lambda: list(bagel.ask(None, "a", stream=True)),
        lambda: bagel.submit(["a"]),
        lambda: bagel.session(),
        lambda: bagel.device,
        lambda: bagel.checkpoint,
        lambda: chat.add("b"),
        lambda: chat.generate_image(),
        lambda: chat.ask("what?"),
    ):
        with pytest.raises(BagelError) as caught:
            use()
        assert str(caught.value).endswith(CLOSED)


def test_with_closes_it(bagel: Bagel) -> None:
    with bagel as same:
        assert same is bagel
        assert same.ask(None, "a", max_new_tokens=1) is not None
    with pytest.raises(BagelError, match="was closed"):
        bagel.ask(None, "a")


def test_requests_that_wait_are_cancelled(bagel: Bagel) -> None:
    ticket = bagel.submit(["a"], seed=0)
    bagel.close()
    assert ticket.cancelled()
    with pytest.raises(CancelledError):
        ticket.result()
    assert bagel.engine.idle


def test_closing_waits_for_the_step_of_another_thread(bagel: Bagel) -> None:
    began = threading.Event()
    ticket = bagel.submit(["a"], seed=0, num_timesteps=1000, on_step=lambda done, of: began.set())
    ended: list[BaseException] = []

    def drive() -> None:
        try:
            ticket.result()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    assert began.wait(60)
    bagel.close()
    thread.join(60)
    assert [type(error) for error in ended] == [CancelledError]


def test_a_callback_cannot_close_the_model_that_runs_it(bagel: Bagel) -> None:
    with pytest.raises(RuntimeError, match="cannot run the engine that runs it"):
        bagel.generate("a", seed=0, progress=lambda done, of: bagel.close())
    assert bagel.ask(None, "a", max_new_tokens=1) is not None


def test_it_says_which_model_it_is(checkpoint: Checkpoint, defaults: Defaults, golden: object) -> None:
    bagel = Bagel(checkpoint, defaults=defaults)
    assert repr(bagel) == "Bagel(device='cpu', precision='float32')"
    folder = Path(golden.checkpoint)  # type: ignore[attr-defined]
    loaded = Bagel.from_pretrained(folder, device="cpu", precision="int8")
    assert repr(loaded) == f"Bagel({str(folder)!r}, device='cpu', precision='{loaded.checkpoint.precision.name}')"
    assert "int8" in repr(loaded)
    loaded.close()
    assert repr(loaded) == f"Bagel({str(folder)!r}, closed)"

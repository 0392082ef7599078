"""The engine: joining and leaving, failures, cancelling, limits, and what it counts."""

from __future__ import annotations

import gc
import math
import threading
import traceback
import weakref
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.errors import MemoryShortageError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import DecodeOp, EncodeOp, ForwardOp, Output, Steps
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.model.cache import Context
from bagel_mot.placement.oom import MemoryGuard
from bagel_mot.sequence import TextSegment, VaeSegment


def text(bagel: Bagel, content: str) -> TextSegment:
    return bagel.runtime.text(content)


def read_texts(bagel: Bagel, contents: list[str]) -> Steps[list[Tensor]]:
    """Reads texts one after the other; the logits after each."""
    context = bagel.engine.new_context()
    found = []
    for content in contents:
        op = ForwardOp(context, (text(bagel, content),), Output.LOGITS)
        yield [op]
        logits = op.result
        found.append(logits)
    return found


def finish(bagel: Bagel, *requests: Steps[Any]) -> list[Any]:
    tickets = [bagel.engine.submit(request) for request in requests]
    bagel.engine.run_until(tickets)
    return [ticket.result() for ticket in tickets]


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def test_requests_join_and_leave_between_steps(bagel: Bagel) -> None:
    engine = bagel.engine
    long = engine.submit(read_texts(bagel, ["a", "red circle", "b", "c"]))
    engine.step()
    engine.step()
    short = engine.submit(read_texts(bagel, ["x"]))
    engine.step()
    assert short.done()
    assert not long.done()
    engine.step()
    assert long.done()
    assert engine.idle
    assert engine.stats.forwards == engine.stats.steps == 4
    assert engine.stats.forward_ops == 5
    (alone,) = finish(bagel, read_texts(bagel, ["a", "red circle", "b", "c"]))
    for got, expected in zip(long.result(), alone, strict=True):
        assert relative(got, expected) < 1e-5


def test_one_text_at_once_or_in_pieces(bagel: Bagel) -> None:
    """A context built piece by piece is that of one prefill."""

    def at_once() -> Steps[Tensor]:
        segments = tuple(text(bagel, content) for content in ("one", "two two", "three"))
        op = ForwardOp(bagel.engine.new_context(), segments, Output.LOGITS)
        yield [op]
        logits = op.result
        return logits

    pieces, whole = finish(bagel, read_texts(bagel, ["one", "two two", "three"]), at_once())
    assert relative(pieces[-1], whole) < 1e-5


def test_a_failing_request_fails_alone(bagel: Bagel) -> None:
    def failing() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        raise KeyError("mine")

    def impossible() -> Steps[None]:  # the model itself fails on it
        yield [ForwardOp(bagel.engine.new_context(), (TextSegment((10**6,)),))]

    def too_wide() -> Steps[None]:  # and so does the autoencoder
        yield [EncodeOp(torch.zeros(3, 17, 32))]

    requests = [failing(), read_texts(bagel, ["a", "b", "c"]), impossible(), too_wide()]
    tickets: list[Ticket[Any]] = [bagel.engine.submit(request) for request in requests]
    bagel.engine.run_until(tickets)
    with pytest.raises(KeyError, match="mine"):
        tickets[0].result()
    with pytest.raises(IndexError):
        tickets[2].result()
    with pytest.raises(ValueError, match="17"):
        tickets[3].result()
    (alone,) = finish(bagel, read_texts(bagel, ["a", "b", "c"]))
    assert relative(tickets[1].result()[-1], alone[-1]) < 1e-5


def test_a_request_may_recover(bagel: Bagel) -> None:
    def recovering() -> Steps[str]:
        try:
            yield [ForwardOp(bagel.engine.new_context(), (TextSegment((10**6,)),))]
        except IndexError:
            return "recovered"
        return "no error"

    assert finish(bagel, recovering()) == ["recovered"]


def test_cancel(bagel: Bagel) -> None:
    ended = []

    def endless() -> Steps[None]:
        context = bagel.engine.new_context()
        try:
            while True:
                yield [ForwardOp(context, (text(bagel, "x"),))]
        finally:
            ended.append(True)

    engine = bagel.engine
    ticket = engine.submit(endless())
    waiting = engine.submit(endless())
    waiting.cancel()
    engine.step()
    assert not ticket.done()
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0)
    ticket.cancel()
    assert ticket.done()
    assert ended == [True]
    assert engine.idle  # at once, not only after another step
    for cancelled in (ticket, waiting):
        with pytest.raises(CancelledError):
            cancelled.result()


def test_a_request_can_cancel_itself_and_others(bagel: Bagel) -> None:
    tickets: list[Ticket[Any]] = []

    def killer() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        for ticket in tickets:
            ticket.cancel()
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]

    tickets += [bagel.engine.submit(killer()), bagel.engine.submit(read_texts(bagel, ["a", "b", "c"]))]
    bagel.engine.run_until(tickets)
    assert all(ticket.cancelled() for ticket in tickets)


def test_an_interrupt_cancels_what_was_waited_for(bagel: Bagel) -> None:
    def interrupted() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        raise KeyboardInterrupt

    other = bagel.engine.submit(read_texts(bagel, ["a", "b", "c"]))
    ticket = bagel.engine.submit(interrupted())
    with pytest.raises(KeyboardInterrupt):
        bagel.engine.run_until([ticket])
    assert ticket.done()
    bagel.engine.run_until([other])  # the other one goes on unharmed
    (alone,) = finish(bagel, read_texts(bagel, ["a", "b", "c"]))
    assert relative(other.result()[-1], alone[-1]) < 1e-5


def test_an_interrupt_hands_nothing_over_twice(bagel: Bagel) -> None:
    """Requests behind the interrupted one have been computed in the same step: they must not be computed again."""

    def interrupted() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        raise KeyboardInterrupt

    ticket = bagel.engine.submit(interrupted())
    behind = bagel.engine.submit(read_texts(bagel, ["a", "b", "c"]))
    with pytest.raises(KeyboardInterrupt):
        bagel.engine.run_until([ticket])
    assert not behind.done()
    bagel.engine.run_until([behind])
    assert bagel.engine.stats.forward_ops == 1 + 3
    (alone,) = finish(bagel, read_texts(bagel, ["a", "b", "c"]))
    for got, expected in zip(behind.result(), alone, strict=True):
        assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_interrupt_while_contexts_grow(bagel: Bagel, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Of three rows the second one's commit is broken off: it alone is lost, in whatever state its context is."""
    tickets = [bagel.engine.submit(read_texts(bagel, [f"text {i}", "b"])) for i in range(3)]
    original, calls = Context.commit, 0

    def commit(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if place == "after" or calls != 2:
            original(*args, **kwargs)
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Context, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        bagel.engine.step()
    bagel.engine.run_until(tickets)
    assert tickets[1].cancelled()
    for i in (0, 2):
        (alone,) = finish(bagel, read_texts(bagel, [f"text {i}", "b"]))
        assert relative(tickets[i].result()[-1], alone[-1]) < 1e-5


def test_a_failed_attempt_is_gone_before_the_next(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not fit into memory together may fit one by one, but only once the memory of the attempt is free."""
    original, alive, seen = bagel.engine.runner.forward, weakref.WeakSet[Tensor](), []

    def forward(batch: list[Any]) -> None:
        seen.append((len(batch), len(alive)))
        if len(batch) > 1:
            large = torch.zeros(10)
            alive.add(large)
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(batch)

    monkeypatch.setattr(bagel.engine.runner, "forward", forward)
    finish(bagel, *[read_texts(bagel, [content]) for content in ("a", "b")])
    assert seen == [(2, 0), (1, 0), (1, 0)]


def test_steps_are_split_at_the_token_limit(bagel: Bagel) -> None:
    checkpoint = bagel.checkpoint
    small = Engine(checkpoint.model, checkpoint.autoencoder, checkpoint.special, max_step_tokens=8)
    contents = ["a", "a red circle on the left", "b", "c"]

    def one(content: str) -> Steps[Tensor]:
        op = ForwardOp(small.new_context(), (text(bagel, content),), Output.LOGITS)
        yield [op]
        logits = op.result
        return logits

    tickets = [small.submit(one(content)) for content in contents]
    small.run_until(tickets)
    assert small.stats.steps == 1
    assert small.stats.forwards == 3
    together = finish(bagel, *[read_texts(bagel, [content]) for content in contents])
    assert bagel.engine.stats.forwards == 1
    for ticket, (expected,) in zip(tickets, together, strict=True):
        assert relative(ticket.result(), expected) < 1e-5


def test_batches_are_smaller_for_a_while_after_memory_was_short(bagel: Bagel) -> None:
    checkpoint = bagel.checkpoint

    class Guard(MemoryGuard):
        limit: float = math.inf
        asked: list[int]

        def check(self, needed: int) -> None:
            self.asked.append(needed)
            if needed > self.limit:
                raise MemoryShortageError("too much")

    guard = Guard()
    engine = Engine(checkpoint.model, checkpoint.autoencoder, checkpoint.special, memory=guard)

    def read(ids: tuple[int, ...]) -> Steps[None]:
        yield [ForwardOp(engine.new_context(), (TextSegment(ids),))]

    def forwards(length: int, count: int = 4) -> int:
        """Forward passes in which texts are read that arrive together."""
        guard.asked, before = [], engine.stats.forwards
        engine.run_until([engine.submit(read((5,) * length)) for _ in range(count)])
        return engine.stats.forwards - before

    assert forwards(400) == 1
    (together,) = guard.asked
    guard.limit = together - 1
    assert forwards(400) == 4, "each alone"
    assert max(guard.asked) == together
    assert forwards(400) == 2
    assert max(guard.asked) < together, "what was too much is not tried again"
    guard.limit = math.inf
    assert sum(forwards(1, count=1) for _ in range(198)) == 198
    assert forwards(400) == 1, "others may have held the memory"


def test_requests_wait_for_room(bagel: Bagel) -> None:
    engine = Engine(bagel.checkpoint.model, bagel.checkpoint.autoencoder, bagel.checkpoint.special, max_active_cost=100)
    active: list[int] = []

    def counting() -> Steps[None]:
        active.append(1)
        yield [ForwardOp(engine.new_context(), (text(bagel, "x"),))]
        active.pop()

    tickets = [engine.submit(counting(), cost=40) for _ in range(5)] + [engine.submit(counting(), cost=10**6)]
    engine.step()
    assert [ticket.done() for ticket in tickets] == [True, True, False, False, False, False]
    engine.run_until(tickets)
    assert all(ticket.exception() is None for ticket in tickets)
    assert engine.stats.steps == 4  # 2, 2, 1, and the one that is too large for company


def test_requests_of_one_prompt_need_room_for_it_once(bagel: Bagel) -> None:
    engine = Engine(bagel.checkpoint.model, bagel.checkpoint.autoencoder, bagel.checkpoint.special, max_active_cost=100)

    def steps() -> Steps[None]:
        yield [ForwardOp(engine.new_context(), (text(bagel, "x"),))]

    together = [engine.submit(steps(), cost=10, prompt=("one", 60)) for _ in range(4)]
    fifth, other = (
        engine.submit(steps(), cost=1, prompt=("one", 60)),
        engine.submit(steps(), cost=1, prompt=("two", 60)),
    )
    engine.step()
    assert all(ticket.done() for ticket in together)  # 4 times 10, and 60
    assert not fifth.done()
    assert not other.done()
    engine.step()
    assert fifth.done()
    assert not other.done(), "its prompt is another one: 61 and 61 are too much"
    engine.run_until([other])


def test_images_of_one_size_run_together(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = bagel.checkpoint.autoencoder.encode

    def encode(pixels: Tensor) -> Tensor:
        shapes.append(tuple(pixels.shape))
        return original(pixels)

    monkeypatch.setattr(bagel.checkpoint.autoencoder, "encode", encode)
    images = [torch.rand(3, *size) for size in ((32, 48), (48, 32), (32, 48), (32, 48))]

    def two(first: Tensor, second: Tensor) -> Steps[list[Tensor]]:
        ops = [EncodeOp(first), EncodeOp(second)]
        yield ops
        return [op.result for op in ops]

    first, second = finish(bagel, two(*images[:2]), two(*images[2:]))
    found = [*first, *second]
    assert sorted(shapes) == [(1, 3, 48, 32), (3, 3, 32, 48)]
    for image, latent in zip(images, found, strict=True):
        assert relative(latent, original(image[None])[0].detach()) < 1e-5
    assert bagel.engine.stats.encoded == 4
    assert bagel.engine.stats.forwards == 0


def test_pixels_of_one_pass_are_limited(bagel: Bagel) -> None:
    checkpoint = bagel.checkpoint
    engine = Engine(checkpoint.model, checkpoint.autoencoder, checkpoint.special, max_step_pixels=2 * 32 * 32)
    sizes: list[int] = []
    engine.runner.decode = lambda batch, run=engine.runner.decode: (sizes.append(len(batch)), run(batch))[1]  # type: ignore[method-assign]

    def one() -> Steps[Tensor]:
        op = DecodeOp(torch.zeros(4, 4, 4))
        yield [op]
        pixels = op.result
        return pixels

    tickets = [engine.submit(one()) for _ in range(5)]
    engine.run_until(tickets)
    assert sizes == [2, 2, 1]
    assert all(ticket.result().shape == (3, 32, 32) for ticket in tickets)


def test_scratch_leaves_the_context_alone(bagel: Bagel) -> None:
    def denoise() -> Steps[list[Tensor]]:
        context = bagel.engine.new_context()
        yield [ForwardOp(context, (text(bagel, "a cat"),))]
        length, found = context.length, []
        scratch = context.allocate(6, scratch=True)
        for value in (1.0, 2.0, 1.0):
            segment = VaeSegment(torch.full((4, 16), value), (2, 2), noised=True, timestep=0.5)
            op = ForwardOp(context, (segment,), Output.VELOCITY, scratch=scratch)
            yield [op]
            hidden = op.result
            found.append(hidden)
        assert context.length == length
        return found

    ((first, second, third),) = finish(bagel, denoise())
    assert first.shape == (4, bagel.config.latent_dim)
    assert torch.equal(first, third)
    assert relative(second, first) > 1e-3


def test_empty_work_is_passed_over(bagel: Bagel) -> None:
    def idle() -> Steps[str]:
        yield []
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        yield []
        return "done"

    def at_once() -> Steps[str]:
        return "at once"
        yield []

    assert finish(bagel, idle(), at_once()) == ["done", "at once"]


def test_a_request_cannot_run_its_own_engine(bagel: Bagel) -> None:
    def nested() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        bagel.engine.step()

    def nested_at_once() -> Steps[None]:
        bagel.engine.step()
        yield []

    for request in (nested(), nested_at_once()):
        ticket = bagel.engine.submit(request)
        bagel.engine.run_until([ticket])
        with pytest.raises(RuntimeError, match="cannot run the engine"):
            ticket.result()


def test_a_foreign_ticket_is_refused(bagel: Bagel, checkpoint: Any) -> None:
    other = Bagel(checkpoint)
    ticket = other.engine.submit(read_texts(other, ["a"]))
    with pytest.raises(RuntimeError, match="not submitted"):
        bagel.engine.run_until([ticket])


def test_threads_share_steps(bagel: Bagel) -> None:
    """Several threads, each waiting for its own request, drive one engine."""
    contents = [[f"text {i}", "and", "more"] for i in range(4)]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = finish(bagel, read_texts(bagel, contents[i]))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(found) == [0, 1, 2, 3]
    for i in range(4):
        (alone,) = finish(bagel, read_texts(bagel, contents[i]))
        assert relative(found[i][-1], alone[-1]) < 1e-5


def slow_request(bagel: Bagel, entered: threading.Event, go_on: threading.Event) -> Steps[str]:
    """Holds up the engine in its first step until it is told to go on."""
    context = bagel.engine.new_context()
    yield [ForwardOp(context, (text(bagel, "x"),))]
    entered.set()
    assert go_on.wait(timeout=30)
    yield [ForwardOp(context, (text(bagel, "y"),))]
    return "done"


def test_neither_submitting_nor_cancelling_waits_for_a_step(bagel: Bagel) -> None:
    entered, go_on = threading.Event(), threading.Event()
    slow = bagel.engine.submit(slow_request(bagel, entered, go_on))
    thread = threading.Thread(target=bagel.engine.run_until, args=([slow],))
    thread.start()
    assert entered.wait(timeout=30)
    late = bagel.engine.submit(read_texts(bagel, ["a"]))  # both while the other thread is in the middle of a step
    late.cancel()
    assert not late.done()
    assert bagel.engine.waiting == 1
    go_on.set()
    thread.join(timeout=30)
    assert slow.result() == "done"
    assert late.cancelled()
    assert bagel.engine.idle


def test_what_is_cancelled_at_the_very_end_of_a_step_is_closed(bagel: Bagel) -> None:
    """No later step is needed to give its memory back."""
    tickets: list[Ticket[Any]] = []
    engine = bagel.engine

    def last() -> Steps[None]:
        yield [ForwardOp(engine.new_context(), (text(bagel, "x"),))]
        canceller = threading.Thread(target=tickets[0].cancel)  # another thread: it finds the engine taken
        canceller.start()
        canceller.join(timeout=30)

    tickets.append(engine.submit(read_texts(bagel, ["a", "b", "c", "d"])))
    ticket = engine.submit(last())
    engine.run_until([ticket])
    assert ticket.done()
    assert tickets[0].cancelled()
    assert engine.idle


def test_what_is_cancelled_while_another_is_being_closed_is_closed(bagel: Bagel) -> None:
    closing, cancelled = threading.Event(), threading.Event()
    engine = bagel.engine

    def slow_to_close() -> Steps[None]:
        context = engine.new_context()
        try:
            while True:
                yield [ForwardOp(context, (text(bagel, "x"),))]
        finally:
            closing.set()
            assert cancelled.wait(30)

    other, slow = engine.submit(read_texts(bagel, ["a", "b", "c"])), engine.submit(slow_to_close())
    engine.step()
    thread = threading.Thread(target=slow.cancel)
    thread.start()
    assert closing.wait(30)
    other.cancel()  # finds the engine taken
    assert not other.done()
    cancelled.set()
    thread.join(30)
    assert slow.cancelled()
    assert other.cancelled()
    assert engine.idle


@pytest.mark.parametrize("error", [KeyError, MemoryShortageError])
def test_a_failed_request_lets_go_of_what_it_held(
    bagel: Bagel, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """At once, not when garbage is collected: it may have failed for want of memory."""
    held: list[weakref.ref[Context]] = []

    def no_memory(batch: Any) -> None:
        raise MemoryError

    def failing() -> Steps[None]:
        context = bagel.engine.new_context()
        held.append(weakref.ref(context))
        yield [ForwardOp(context, (text(bagel, "x"),))]
        if error is KeyError:
            raise KeyError("mine")
        monkeypatch.setattr(bagel.engine.runner, "forward", no_memory)
        monkeypatch.setattr(bagel.engine.memory, "explain", lambda error: MemoryShortageError("there is none left"))
        yield [ForwardOp(context, (text(bagel, "x"),))]

    ticket = bagel.engine.submit(failing())
    gc.disable()
    try:
        bagel.engine.run_until([ticket])
        assert isinstance(ticket.exception(), error)
        assert held[0]() is None
    finally:
        gc.enable()
    assert "in failing" in "".join(traceback.format_exception(ticket.exception()))


def test_a_callback_cannot_run_the_engine(bagel: Bagel) -> None:
    def within() -> Steps[None]:
        yield [ForwardOp(bagel.engine.new_context(), (text(bagel, "x"),))]
        bagel.engine.run_until([bagel.engine.submit(read_texts(bagel, ["a"]))])

    ticket = bagel.engine.submit(within())
    bagel.engine.run_until([ticket])
    with pytest.raises(RuntimeError, match="cannot run the engine"):
        ticket.result()


def test_threads_wait_asleep_while_one_drives(bagel: Bagel) -> None:
    """Twenty threads, each with requests of its own, make the steps of the longest, not one after another."""
    count = 20
    found: list[Any] = []

    def work() -> None:
        found.append(finish(bagel, read_texts(bagel, ["a", "b", "c", "d", "e"])))

    threads = [threading.Thread(target=work) for _ in range(count)]
    entered, go_on = threading.Event(), threading.Event()
    slow = bagel.engine.submit(slow_request(bagel, entered, go_on))
    driver = threading.Thread(target=bagel.engine.run_until, args=([slow],))
    driver.start()
    assert entered.wait(timeout=30)
    for thread in threads:
        thread.start()
    while bagel.engine.waiting < count:
        pass
    go_on.set()
    for thread in (driver, *threads):
        thread.join(timeout=60)
    assert len(found) == count
    assert bagel.engine.stats.steps <= 2 + 6

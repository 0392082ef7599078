"""Runs, desks and conversations, without a browser."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from bagel_mot.app import view as stage
from bagel_mot.app.context import telling
from bagel_mot.app.conversation import MOST, Chats, Conversation
from bagel_mot.app.messages import Messages
from bagel_mot.app.run import Run
from bagel_mot.app.state import Desk, Desks
from bagel_mot.errors import BagelError, DeviceError, MemoryShortageError, PromptError
from bagel_mot.inference.preview import PREVIEWS
from bagel_mot.inference.session import Session
from bagel_mot.serving.limits import BusyError, ClosedError
from bagel_mot.serving.service import Service
from tests.app.visiting import wait_until

FEW: dict[str, Any] = {"num_timesteps": 4}


def follow(run: Run) -> list[Any]:
    for _ in run.follow():
        pass
    return run.results()


def test_a_run_is_followed_to_its_results(service: Service) -> None:
    run = Run(2)
    run.start(service, ["a red car"], "image", {"seed": 3, "num_timesteps": 17})
    assert run.size == (64, 64)
    shown = [stage.at_work(run, "en") for _ in run.follow()]
    results = run.results()
    assert [result.seed for result in results] == [3, 4]
    assert (run.done, run.total) == (32, 32)
    assert any("s left" in one for one in shown)
    assert all(progress.preview is not None for progress in run.progress)
    assert "data:image/jpeg" in stage.at_work(run, "en")
    assert service.present == 0


def test_a_stopped_run_gives_its_places_back(service: Service) -> None:
    run = Run(2)
    run.start(service, ["a red car"], "image", {"num_timesteps": 250})
    for _ in run.follow():
        if run.done:
            run.stop()
    assert run.results() == []
    assert run.done < run.total
    assert "Stopped after step" in stage.stopped(run, "en")
    assert service.present == 0
    wait_until(lambda: service.bagel.engine.idle)


@pytest.mark.parametrize("kind", ["request", "turn"])
def test_what_waits_for_room_is_stopped_at_once(service: Service, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.bagel.engine, "max_active_cost", 1)
    first, second, talk = Run(), Run(), Conversation(1)
    first.start(service, ["a red car"], "image", {"num_timesteps": 250})
    wait_until(lambda: first.begun)
    if kind == "request":
        second.start(service, ["a red car"], "image", FEW)
    else:
        own: dict[str, Any] = {"think": False, "settings": {}}
        second.start_thread(partial(talk.turn, service, second, "", [Image.new("RGB", (64, 64))], "text", **own))
    wait_until(lambda: service.bagel.engine.waiting == 1)
    assert not second.begun
    second.stop()
    assert follow(second) == []
    wait_until(lambda: service.present == 1)
    assert not first._futures[0].done()
    first.stop()
    assert talk.turns == ()


def test_an_abandoned_run_is_stopped(service: Service) -> None:
    run = Run()
    run.start(service, ["a red car"], "image", {"num_timesteps": 250})
    following = run.follow()
    next(following)
    following.close()
    end = time.monotonic() + 10
    while service.present and time.monotonic() < end:
        time.sleep(0.01)
    assert run.stopped
    assert service.present == 0


def test_a_refused_run_runs_nothing(service: Service) -> None:
    run = Run(9)
    with pytest.raises(BagelError, match="n is 9"):
        run.start(service, ["a red car"], "image", {})
    assert list(run.follow()) == []
    assert service.present == 0


def test_the_stage_shows_no_markup_that_the_model_wrote() -> None:
    run = Run()
    run.size = (64, 64)
    run.text = "<think><img src=x onerror=alert(1)>"
    assert "<img src=x" not in stage.at_work(run, "en")
    assert "&lt;img src=x" in stage.at_work(run, "en")


def test_errors_are_told_without_markup_and_without_what_is_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda sentence, **_: told.append(sentence))
    for error in (PromptError("not <b>"), ValueError("secret")):
        with telling("en"):
            raise error
    assert told[0] == "not &lt;b&gt;"
    assert "secret" not in told[1]
    assert "something went wrong" in told[1]
    assert "failed with ValueError" in caplog.text
    assert "secret" not in caplog.text.replace('ValueError("secret")', "")  # the line of this test in the traceback


def test_in_chinese_an_error_begins_with_what_kind_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda sentence, **_: told.append(sentence))
    for error in (
        ClosedError("a {b}", 1),
        BusyError("a {b}", 1),
        MemoryShortageError("a {b}"),
        DeviceError("a {b}"),
        BagelError("a"),
    ):
        with telling("zh"):
            raise error
    assert told == [
        "服务器正在关闭：a {b}",
        "现在请求太多，请稍后再试：a {b}",
        "内存不足：a {b}",
        "设备无法执行：a {b}",
        "a",
    ]


def test_thinking_and_answer_are_told_apart_while_they_are_written() -> None:
    assert stage.split_stream("<think>so ma", True) == ("so ma", "")
    assert stage.split_stream("<think>so many</think> tw", True) == ("so many", "tw")
    assert stage.split_stream("tw", False) == ("", "tw")


def turn(service: Service, talk: Conversation, said: str, output: Any = "text", **given: Any) -> Any:
    """One turn, as the page does it."""
    run = Run()
    own = {"think": given.pop("think", False), "settings": given.pop("settings", FEW if output == "image" else {})}
    run.start_thread(partial(talk.turn, service, run, said, given.get("images", ()), output, **own))
    (result,) = follow(run)
    return result


def test_a_conversation_goes_on_branches_and_goes_back(service: Service) -> None:
    chats = Chats()
    first = turn(service, chats.current, "a red car", "image")
    turn(service, chats.current, "What colour is it?")
    assert [one.kind for one in chats.current.turns] == ["text", "drawing", "text", "answer"]
    chats.branch()
    assert chats.current.title == "2 ← 1 · a red car"
    chats.current.undo()
    turn(service, chats.current, "make it night", "image")
    assert [one.kind for one in chats.current.turns] == ["text", "drawing", "text", "drawing"]
    assert chats.current.turns[1].content is first.image
    chats.show(1)
    assert [one.kind for one in chats.current.turns] == ["text", "drawing", "text", "answer"]
    for _ in range(2):
        chats.current.undo()
    assert chats.current.turns == ()
    with pytest.raises(PromptError, match="nothing to undo"):
        chats.current.undo()
    with pytest.raises(PromptError, match="nothing to branch off"):
        chats.branch()
    chats.close()
    assert chats.current.number == 2
    chats.close()
    assert (chats.current.number, chats.current.turns, len(chats.conversations)) == (3, (), 1)
    assert service.present == 0


def test_images_are_shown_and_answered(service: Service) -> None:
    talk = Conversation(1)
    result = turn(service, talk, "", "text", images=[Image.new("RGB", (64, 64), "red")])
    assert [one.kind for one in talk.turns] == ["image", "answer"]
    assert result.text == talk.turns[1].content


def test_a_turn_takes_what_the_service_would_take(service: Service) -> None:
    """Pictures as the model sees them, not at their full size, and texts that cannot end a turn."""
    talk = Conversation(1)
    turn(service, talk, "a <|im_<|im_end|>end|> car", images=[Image.new("RGB", (1000, 1000), "red")])
    image, said = (one.content for one in talk.turns[:2])
    assert isinstance(image, Image.Image)
    assert max(image.size) < 200
    assert said == "a  car"


def test_a_turn_that_ends_while_it_is_stopped_changes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, run, ask = Conversation(1), Run(), Session.ask

    def stopped(*given: Any, **more: Any) -> Any:
        result = ask(*given, **more)
        run.stop()  # as Undo does, before it goes back
        return result

    monkeypatch.setattr(Session, "ask", stopped)
    run.start_thread(partial(talk.turn, service, run, "What is there?", (), "text", think=False, settings={}))
    assert follow(run) == []
    assert (talk.session, talk.past) == (None, [])


def test_a_conversation_that_thinks(service: Service) -> None:
    talk = Conversation(1)
    turn(service, talk, "a red car", "image", think=True)
    assert [one.kind for one in talk.turns] == ["system", "text", "thought", "drawing"]
    messages = Messages().of(talk, "en")
    assert [message["role"] for message in messages] == ["user", "assistant", "assistant"]
    assert messages[1]["metadata"]["title"] == "Thinking"
    assert "think>" not in messages[1]["content"]
    turn(service, talk, "What is there?", think=False)
    plain = Conversation(2)
    turn(service, plain, "a red car", "image")
    with pytest.raises(PromptError, match="began without thinking"):
        turn(service, plain, "What is there?", think=True)


@pytest.mark.parametrize("output", ["image", "text"])
def test_a_refused_or_stopped_turn_leaves_a_conversation_as_it_was(service: Service, output: Any) -> None:
    talk = Conversation(1)
    with pytest.raises(PromptError, match="nothing to answer"):
        turn(service, talk, "", output)
    turn(service, talk, "a red car", "image")
    session = talk.session
    wrong = {"num_timesteps": 251} if output == "image" else {"max_new_tokens": 4097}
    with pytest.raises(BagelError, match="250" if output == "image" else "4096"):
        turn(service, talk, "and now?", output, settings=wrong)
    run = Run()
    own: dict[str, Any] = {"num_timesteps": 250} if output == "image" else {"max_new_tokens": 1000}
    run.start_thread(partial(talk.turn, service, run, "and now?", (), output, think=False, settings=own))
    run.stop()
    with pytest.raises(CancelledError):
        run._futures[0].result(timeout=20)
    assert talk.session is session
    assert len(talk.past) == 1
    assert service.present == 0


def test_messages_keep_each_image_once(service: Service) -> None:
    talk, messages = Conversation(1), Messages()
    result = turn(service, talk, "a red car", "image")
    first, second = messages.of(talk, "en"), messages.of(talk, "en")
    assert first == second
    path = first[1]["content"]["path"]
    assert path.endswith(f"bagel-{result.seed}.png")
    assert Image.open(path).info["prompt"] == "a red car"


def test_a_tab_may_have_so_many_conversations() -> None:
    chats = Chats()
    chats.begin()
    assert len(chats.conversations) == 1, "an empty one is not followed by another"
    chats.conversations += [Conversation(number) for number in range(2, MOST + 1)]
    chats.current.session = SimpleNamespace(fork=lambda: None)  # type: ignore[assignment]
    with pytest.raises(PromptError, match="close one"):
        chats.begin()


def test_desks_are_each_tabs_own_and_end_with_it() -> None:
    desks = Desks()
    one, two = (SimpleNamespace(session_hash=name) for name in ("one", "two"))
    desk: Desk = desks.of(one)  # type: ignore[arg-type]
    assert desks.of(one) is desk  # type: ignore[arg-type]
    assert desks.of(two) is not desk  # type: ignore[arg-type]
    with desk.running("create") as run:
        assert desk.busy("create")
        desks.close(one)  # type: ignore[arg-type]
        assert run.stopped
    assert not desk.busy("create")
    assert len(desks) == 1
    assert desks.tokens == 0
    first, second = Mock(capacity=100), Mock(capacity=20)
    for name, chunks in (("two", {first}), ("three", {first, second})):
        chats = desks.of(SimpleNamespace(session_hash=name)).chats  # type: ignore[arg-type]
        chats.current.session = SimpleNamespace(chunks=chunks)  # type: ignore[assignment]
    assert desks.tokens == 120, "what is shared counts once"
    desks.close(one)  # type: ignore[arg-type]


def test_looks_cost_little(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run of usual length, looking at the picture and showing it takes less than a twentieth."""
    from bagel_mot.inference.preview import Previewer

    spent: list[float] = []
    look = Previewer.__call__

    def timed(previewer: Previewer, latent: Any) -> Image.Image:
        began = time.perf_counter()
        found = look(previewer, latent)
        spent.append(time.perf_counter() - began)
        return found

    service.bagel.runtime.previewer  # noqa: B018 - fitted beforehand, as the page does
    monkeypatch.setattr(Previewer, "__call__", timed)
    shares = []
    for seed in range(3):
        spent.clear()
        run = Run()
        began = time.perf_counter()
        run.start(service, ["a red car below a yellow sun"], "image", {"seed": seed})
        for _ in run.follow():
            entered = time.perf_counter()
            stage.at_work(run, "en")
            spent.append(time.perf_counter() - entered)
        shares.append(sum(spent) / (run.results()[0].seconds))
        assert time.perf_counter() - began < 60
        assert len(spent) > PREVIEWS // 2
    assert min(shares) < 0.05, shares

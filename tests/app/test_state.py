"""Generations, the state of tabs and conversations, without a browser."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from bagel_mot.app import view
from bagel_mot.app.chats import MAX_CONVERSATIONS, TabChat
from bagel_mot.app.context import shown_errors
from bagel_mot.app.generation import Generation
from bagel_mot.app.state import TabState, TabStates
from bagel_mot.errors import BagelError, DeviceError, MemoryShortageError, PromptError
from bagel_mot.inference.preview import MAX_PREVIEWS
from bagel_mot.inference.session import Session
from bagel_mot.serving.limits import BusyError, ClosedError
from bagel_mot.serving.service import Service
from tests.app.visiting import wait_until
from tests.holding import Hold

FEW: dict[str, Any] = {"num_timesteps": 4}


def follow(run: Generation) -> list[Any]:
    for _ in run.follow():
        pass
    return run.results()


def test_a_run_is_followed_to_its_results(service: Service) -> None:
    run = Generation(2)
    run.start(service, ["a red car"], "image", {"seed": 3, "num_timesteps": 17})
    assert run.size == (64, 64)
    shown = [view.progress_html(run, "en") for _ in run.follow()]
    results = run.results()
    assert [result.seed for result in results] == [3, 4]
    assert (run.done, run.total) == (32, 32)
    assert any("s left" in one for one in shown)
    assert all(progress.preview is not None for progress in run.progress)
    assert "data:image/jpeg" in view.progress_html(run, "en")
    assert service.present == 0


def test_a_stopped_run_gives_its_places_back(service: Service) -> None:
    run = Generation(2)
    run.start(service, ["a red car"], "image", {"num_timesteps": 250})
    for _ in run.follow():
        if run.done:
            run.stop()
    assert run.results() == []
    assert run.done < run.total
    assert "Stopped after step" in view.stopped_html(run, "en")
    assert service.present == 0
    wait_until(lambda: service.bagel.engine.idle)


@pytest.mark.parametrize("kind", ["request", "turn"])
def test_what_waits_for_room_is_stopped_at_once(
    service: Service, kind: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.bagel.engine, "max_active_cost", 1)
    first, second, chat = Generation(), Generation(), TabChat(1)
    hold.after(3)
    first.start(service, ["a red car"], "image", {"num_timesteps": 250})
    wait_until(lambda: first.begun)
    if kind == "request":
        second.start(service, ["a red car"], "image", FEW)
    else:
        image = Image.new("RGB", (64, 64))
        second.start_thread(partial(chat.turn, service, second, [image], "text", {"think": False}))
    wait_until(lambda: service.bagel.engine.waiting == 1)
    assert not second.begun
    second.stop()
    hold.after(5)
    assert follow(second) == []
    wait_until(lambda: service.present == 1)
    assert not first._futures[0].done()
    first.stop()
    hold.release()
    wait_until(lambda: service.present == 0)
    assert chat.turns == ()


def test_an_abandoned_run_is_stopped(service: Service) -> None:
    run = Generation()
    run.start(service, ["a red car"], "image", {"num_timesteps": 250})
    following = run.follow()
    next(following)
    following.close()
    assert run.stopped
    wait_until(lambda: service.present == 0)


def test_a_refused_run_runs_nothing(service: Service) -> None:
    run = Generation(9)
    with pytest.raises(BagelError, match="n is 9"):
        run.start(service, ["a red car"], "image", {})
    assert list(run.follow()) == []
    assert service.present == 0


def test_progress_shows_no_markup_that_the_model_wrote() -> None:
    run = Generation()
    run.size = (64, 64)
    run.text = "<think><img src=x onerror=alert(1)>"
    assert "<img src=x" not in view.progress_html(run, "en")
    assert "&lt;img src=x" in view.progress_html(run, "en")


def test_errors_are_told_without_markup_and_without_what_is_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda sentence, **_: told.append(sentence))
    for error in (PromptError("not <b>"), ValueError("secret")):
        with shown_errors("en"):
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
        with shown_errors("zh"):
            raise error
    assert told == [
        "服务器正在关闭：a {b}",
        "现在请求太多，请稍后再试：a {b}",
        "内存不足：a {b}",
        "设备无法执行：a {b}",
        "a",
    ]


def test_thinking_and_answer_are_told_apart_while_they_are_written() -> None:
    assert view.split_stream("<think>so ma", True) == ("so ma", "")
    assert view.split_stream("<think>so many</think> tw", True) == ("so many", "tw")
    assert view.split_stream("tw", False) == ("", "tw")


def turn(service: Service, chat: TabChat, *inputs: Any, output: Any = "text", **settings: Any) -> Any:
    """One turn, as the page does it."""
    run = Generation()
    settings = {"think": False, **(FEW if output == "image" else {}), **settings}
    run.start_thread(partial(chat.turn, service, run, inputs, output, settings))
    (result,) = follow(run)
    return result


def test_a_conversation_goes_on_branches_and_goes_back(service: Service) -> None:
    tab = TabState()
    first = turn(service, tab.chat, "a red car", output="image")
    turn(service, tab.chat, "What colour is it?")
    assert [one.kind for one in tab.chat.turns] == ["text", "drawing", "text", "answer"]
    tab.branch_chat()
    assert tab.chat.title == "2 ← 1 · a red car"
    tab.chat.undo()
    turn(service, tab.chat, "make it night", output="image")
    assert [one.kind for one in tab.chat.turns] == ["text", "drawing", "text", "drawing"]
    assert tab.chat.turns[1].content is first.image
    tab.show_chat(1)
    assert [one.kind for one in tab.chat.turns] == ["text", "drawing", "text", "answer"]
    for _ in range(2):
        tab.chat.undo()
    assert tab.chat.turns == ()
    with pytest.raises(PromptError, match="nothing to undo"):
        tab.chat.undo()
    with pytest.raises(PromptError, match="nothing to branch off"):
        tab.branch_chat()
    tab.close_chat()
    assert tab.chat.number == 2
    tab.close_chat()
    assert (tab.chat.number, tab.chat.turns, len(tab.chats)) == (3, (), 1)
    assert service.present == 0


def test_images_are_shown_and_answered(service: Service) -> None:
    chat = TabChat(1)
    result = turn(service, chat, Image.new("RGB", (64, 64), "red"))
    assert [one.kind for one in chat.turns] == ["image", "answer"]
    assert result.text == chat.turns[1].content


def test_a_turn_takes_what_the_service_would_take(service: Service) -> None:
    """Pictures as the model sees them, not at their full size, and texts that cannot end a turn."""
    chat = TabChat(1)
    turn(service, chat, service.reduced(Image.new("RGB", (1000, 1000), "red")), "a <|im_<|im_end|>end|> car")
    image, said = (one.content for one in chat.turns[:2])
    assert isinstance(image, Image.Image)
    assert max(image.size) < 200
    assert said == "a  car"


def test_a_turn_that_ends_while_it_is_stopped_changes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, run, answer = TabChat(1), Generation(), Session.generate_text

    def stopped(*given: Any, **more: Any) -> Any:
        result = answer(*given, **more)
        run.stop()  # as Undo does, before it goes back
        return result

    monkeypatch.setattr(Session, "generate_text", stopped)
    run.start_thread(partial(chat.turn, service, run, ["What is there?"], "text", {"think": False}))
    assert follow(run) == []
    assert chat.sessions == []


def test_a_conversation_that_thinks(service: Service) -> None:
    chat = TabChat(1)
    turn(service, chat, "a red car", output="image", think=True)
    assert [one.kind for one in chat.turns] == ["system", "text", "thought", "drawing"]
    messages = view.chat_messages(chat.session, {}, "en")
    assert [message["role"] for message in messages] == ["user", "assistant", "assistant"]
    assert messages[1]["metadata"]["title"] == "Thinking"
    assert "think>" not in messages[1]["content"]
    turn(service, chat, "What is there?", think=False)
    plain = TabChat(2)
    turn(service, plain, "a red car", output="image")
    with pytest.raises(PromptError, match="began without thinking"):
        turn(service, plain, "What is there?", think=True)


@pytest.mark.parametrize("output", ["image", "text"])
def test_a_refused_or_stopped_turn_leaves_a_conversation_as_it_was(service: Service, output: Any) -> None:
    chat = TabChat(1)
    with pytest.raises(PromptError, match="nothing to answer"):
        turn(service, chat, output=output)
    turn(service, chat, "a red car", output="image")
    session = chat.session
    wrong = {"num_timesteps": 251} if output == "image" else {"max_new_tokens": 4097}
    with pytest.raises(BagelError, match="250" if output == "image" else "4096"):
        turn(service, chat, "and now?", output=output, **wrong)
    run = Generation()
    own: dict[str, Any] = {"num_timesteps": 250} if output == "image" else {"max_new_tokens": 1000}
    run.start_thread(partial(chat.turn, service, run, ["and now?"], output, {"think": False, **own}))
    run.stop()
    with pytest.raises(CancelledError):
        run._futures[0].result(timeout=120)
    assert chat.session is session
    assert len(chat.sessions) == 1
    assert service.present == 0


def test_messages_keep_each_image_once(service: Service) -> None:
    chat, files = TabChat(1), TabState().files
    result = turn(service, chat, "a red car", output="image")
    first, second = (view.chat_messages(chat.session, files, "en") for _ in range(2))
    assert first == second
    path = first[1]["content"]["path"]
    assert path.endswith(f"bagel-{result.seed}.png")
    assert Image.open(path).info["prompt"] == "a red car"


def test_a_tab_may_have_so_many_conversations() -> None:
    tab = TabState()
    tab.begin_chat()
    assert len(tab.chats) == 1, "an empty one is not followed by another"
    tab.chats += [TabChat(number) for number in range(2, MAX_CONVERSATIONS + 1)]
    tab.chat.sessions = [SimpleNamespace()]  # type: ignore[list-item]
    with pytest.raises(PromptError, match="close one"):
        tab.begin_chat()


def test_tabs_are_each_tabs_own_and_end_with_it() -> None:
    tabs = TabStates()
    one, two = (SimpleNamespace(session_hash=name) for name in ("one", "two"))
    tab: TabState = tabs.of(one)  # type: ignore[arg-type]
    assert tabs.of(one) is tab  # type: ignore[arg-type]
    assert tabs.of(two) is not tab  # type: ignore[arg-type]
    with tab.generating("create") as run:
        assert tab.busy("create")
        tabs.close(one)  # type: ignore[arg-type]
        assert run.stopped
    assert not tab.busy("create")
    assert len(tabs) == 1
    assert tabs.tokens == 0
    first, second = Mock(capacity=100), Mock(capacity=20)
    for name, chunks in (("two", {first}), ("three", {first, second})):
        chat = tabs.of(SimpleNamespace(session_hash=name)).chat  # type: ignore[arg-type]
        chat.sessions = [SimpleNamespace(chunks=chunks)]  # type: ignore[list-item]
    assert tabs.tokens == 120, "what is shared counts once"
    tabs.close(one)  # type: ignore[arg-type]


def test_previews_cost_little(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making and showing previews takes less than a twentieth of a run of usual length, in time of the processor."""
    from bagel_mot.inference.preview import Previewer

    spent: list[float] = []
    look = Previewer.__call__

    def timed(previewer: Previewer, latent: Any) -> Image.Image:
        began = time.thread_time()
        found = look(previewer, latent)
        spent.append(time.thread_time() - began)
        return found

    service.bagel.runtime.previewer  # noqa: B018 - fitted beforehand, as the page does
    monkeypatch.setattr(Previewer, "__call__", timed)
    shares = []
    for seed in range(3):
        spent.clear()
        run, began = Generation(), time.process_time()
        run.start(service, ["a red car below a yellow sun"], "image", {"seed": seed})
        for _ in run.follow():
            entered = time.thread_time()
            view.progress_html(run, "en")
            spent.append(time.thread_time() - entered)
        assert len(run.results()) == 1
        shares.append(sum(spent) / (time.process_time() - began))
        assert len(spent) > MAX_PREVIEWS // 2
    assert min(shares) < 0.05, shares

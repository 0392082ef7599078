"""Sessions: what a turn costs, forks, undo, equality with one-shot requests, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bagel_mot.errors import BagelError, ContextLengthError, DataError, ImageError, PromptError, SettingError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ops import ForwardOp, Output, Steps
from bagel_mot.inference.history import History, Turn
from bagel_mot.inference.request import Kind
from bagel_mot.inference.sampler import Role
from bagel_mot.inference.session import Session, draw_together
from bagel_mot.sequence import TextSegment


def same(first: Image.Image, second: Image.Image) -> bool:
    """Equal but for rounding: reading in one piece or in several differs in the last bits."""
    return first.size == second.size and np.abs(np.array(first).astype(int) - np.array(second).astype(int)).max() <= 1


def next_logits(session: Session) -> Tensor:
    """What the model would say next, as a fingerprint of the context."""

    def probe() -> Steps[Tensor]:
        context = session._history.context.fork()
        op = ForwardOp(context, (session.runtime.text("?"),), Output.LOGITS, record=False)
        yield [op]
        return op.result

    return session.runtime.engine.submit(probe()).result()


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def image_tokens(bagel: Bagel, size: tuple[int, int]) -> int:
    """Tokens of a picture as VAE image and ViT image, markers included."""
    resized = bagel.defaults.vae_transform.size(*size)
    vit = bagel.defaults.vit_transform.size(*resized)
    return resized[0] * resized[1] // 16**2 + vit[0] * vit[1] // 14**2 + 4


def test_a_turn_reads_only_that_turn(bagel: Bagel, golden: Any) -> None:
    stats, chat = bagel.engine.stats, bagel.session()
    text = bagel.runtime.text
    wide = image_tokens(bagel, Image.open(golden.image("wide")).size)
    chat.add(golden.image("wide"))
    assert stats.prefill_tokens == wide == chat.tokens
    chat.add("make it red")
    assert stats.prefill_tokens == chat.tokens == wide + text("make it red").und_len

    drawn = chat.generate_image(seed=0, cfg_image_scale=2.0)
    own = image_tokens(bagel, drawn.size)
    without_image = text("make it red").und_len
    assert stats.prefill_tokens == chat.tokens + without_image
    assert chat.tokens == wide + text("make it red").und_len + own

    before = stats.prefill_tokens
    chat.add("now blue")
    chat.generate_image(seed=0, cfg_image_scale=2.0)
    # The context of texts alone, too, is kept and grows by the new text only.
    assert stats.prefill_tokens - before == 2 * text("now blue").und_len + own

    before, encoded = stats.prefill_tokens, stats.encoded
    answer = chat.ask("What changed?")
    assert stats.prefill_tokens - before == text("What changed?").und_len + text(answer).und_len
    assert stats.encoded == encoded


def test_a_session_keeps_memory_for_what_it_has_read_alone(
    bagel: Bagel, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bagel_mot.model.cache._SMALLEST_CHUNK", 1)
    chat = bagel.session()
    chat.add(golden.image("wide"))
    chat.add("make it red")
    before = sum(chunk.capacity for chunk in chat.chunks)
    assert before >= chat.tokens
    read = chat.chunks
    chat.generate_image(seed=0, cfg_image_scale=2.0)
    texts = bagel.runtime.text("make it red").und_len  # the context of texts alone, without room for noise
    assert texts in {chunk.capacity for chunk in chat.chunks - read}
    assert read <= chat.chunks
    assert chat.fork().chunks == chat.chunks


def test_equals_the_one_shot_request(bagel: Bagel, golden: Any) -> None:
    wide = golden.image("wide")
    chat = bagel.session()
    chat.add("Here is a picture:")
    chat.add(wide)
    chat.add("draw it at night")
    assert same(chat.generate_image(seed=3), bagel.interleave(["Here is a picture:", wide, "draw it at night"], seed=3))

    chat = bagel.session()
    chat.add("a cat")
    first = chat.generate_image(seed=1)
    assert same(first, bagel.generate("a cat", seed=1))
    chat.add("now a dog")
    second = chat.generate_image(seed=2, size=(48, 32))
    assert same(second, bagel.interleave(["a cat", first, "now a dog"], seed=2, size=(48, 32)))

    asking = bagel.session(understanding=True)
    asking.add(wide)
    asking.add("What is it?")
    assert asking.generate_text() == bagel.ask(wide, "What is it?")


def test_an_answer_counts_as_a_text(bagel: Bagel, golden: Any) -> None:
    wide = golden.image("wide")
    chat = bagel.session()
    chat.add(wide)
    answer = chat.ask("What is it?")
    chat.add("Draw it.")
    assert same(chat.generate_image(seed=3), bagel.interleave([wide, "What is it?", answer, "Draw it."], seed=3))


def test_guidance_contexts(bagel: Bagel) -> None:
    history = History(bagel.engine.new_context())

    def append(kind: Kind) -> None:
        count = 2 if kind in ("image", "drawing") else 1  # an image is two segments
        history.turns += (Turn(kind, "", tuple(TextSegment((len(history.turns),)) for _ in range(count))),)

    def turns(role: Role) -> list[int]:
        """Turn numbers, one for each segment."""
        return [segment.ids[0] for segment in history.guidance()[role] if isinstance(segment, TextSegment)]

    append("text")
    assert (turns(Role.FULL), turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == ([0], [], [0])
    append("drawing")
    assert (turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == ([0, 1, 1], [0])
    append("text")
    append("answer")  # right after an answer guidance is towards question and answer
    assert (turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == ([0, 1, 1], [0, 2, 3])
    append("text")
    assert turns(Role.FULL) == [0, 1, 1, 2, 3, 4]
    assert (turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == ([0, 1, 1, 2, 3], [0, 2, 3, 4])
    append("thought")
    assert (turns(Role.FULL)[-1], turns(Role.WITHOUT_TEXT)) == (5, [0, 1, 1, 2, 3])
    append("drawing")  # its thought is an earlier image's from here on
    assert (turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == ([0, 1, 1, 2, 3, 4, 5, 6, 6], [0, 2, 3, 4])
    append("image")
    assert (turns(Role.WITHOUT_TEXT), turns(Role.WITHOUT_IMAGE)) == (turns(Role.FULL), [0, 2, 3, 4])


def test_the_system_prompt_is_part_of_every_guidance_context_but_the_empty_one(bagel: Bagel) -> None:
    history = History(bagel.engine.new_context())
    for number, kind in enumerate(("system", "text", "thought", "drawing")):
        history.turns += (Turn(kind, "", (TextSegment((number,)),)),)  # type: ignore[arg-type]
    found = history.guidance()
    assert found[Role.WITHOUT_IMAGE] == (*history.turns[0].segments, *history.turns[1].segments)
    assert found[Role.WITHOUT_TEXT] == found[Role.FULL]


def test_thinking_sessions(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    chat = bagel.session(think=True)
    assert [turn.kind for turn in chat.history] == ["system"]
    chat.add("a cat")
    spoken("<think>a red one</think>")
    result = chat.generate_image(seed=1, return_result=True)
    assert result.thinking == "a red one"
    assert same(result.image, bagel.generate("a cat", seed=1, think=True))
    assert [turn.kind for turn in chat.history] == ["system", "text", "thought", "drawing"]
    chat.undo()
    assert [turn.kind for turn in chat.history] == ["system", "text"]
    chat.generate_image(seed=1, think=False)
    assert [turn.kind for turn in chat.history] == ["system", "text", "drawing"]
    spoken("<think>hm</think> yes")
    assert chat.ask("Is it a cat?", max_new_tokens=50) == "yes"
    assert chat.history[-1].content == "<think>hm</think> yes"
    plain = bagel.session()
    plain.add("a cat")
    with pytest.raises(SettingError, match="began without it"):
        plain.generate_image(think=True)


def test_forks_share_memory_and_part(bagel: Bagel, golden: Any) -> None:
    chat = bagel.session()
    chat.add(golden.image("wide"))
    chat.add("a text that both know")
    before = bagel.engine.stats.prefill_tokens
    other = chat.fork()
    assert bagel.engine.stats.prefill_tokens == before
    shared = chat.chunks
    assert other.chunks == shared

    chat.add("left")
    other.add("right")
    assert [t.content for t in chat.history[2:]] == ["left"]
    assert [t.content for t in other.history[2:]] == ["right"]
    for session, word in ((chat, "left"), (other, "right")):
        fresh = bagel.session()
        for item in (golden.image("wide"), "a text that both know", word):
            fresh.add(item)
        assert relative(next_logits(session), next_logits(fresh)) < 1e-5
    assert relative(next_logits(chat), next_logits(other)) > 1e-3
    assert shared <= chat.chunks & other.chunks


def test_undo(bagel: Bagel, golden: Any) -> None:
    chat = bagel.session()
    prints = [next_logits(chat)]
    acts: list[Callable[[], Any]] = [
        lambda: chat.add("a cat"),
        lambda: chat.generate_image(seed=0),
        lambda: chat.add("What is it?"),
        lambda: chat.generate_text(),
        lambda: chat.add(golden.image("tall")),
    ]
    for act in acts:
        act()
        prints.append(next_logits(chat))
    memory = sum(chunk.nbytes for chunk in chat.chunks)
    for expected in reversed(prints[:-1]):
        chat.undo()
        assert relative(next_logits(chat), expected) < 1e-6
    assert chat.history == ()
    with pytest.raises(PromptError, match="nothing to undo"):
        chat.undo()
    for act in acts:
        act()
    assert relative(next_logits(chat), prints[-1]) < 1e-5
    assert sum(chunk.nbytes for chunk in chat.chunks) == memory


def test_undo_leaves_forks_alone(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("first")
    chat.add("second")
    other = chat.fork()
    expected = next_logits(other)
    chat.undo()
    chat.add("something else, and longer than before")
    assert torch.equal(next_logits(other), expected)


def test_failures_leave_the_session_as_it_was(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("a cat")
    expected, history = next_logits(chat), chat.history
    cases: list[tuple[type[BagelError], Callable[[], Any]]] = [
        (PromptError, lambda: chat.add(" ")),
        (ImageError, lambda: chat.add(b"nothing")),
        (ContextLengthError, lambda: chat.add("word " * 500)),
        (SettingError, lambda: chat.generate_image(num_timesteps=1)),
        (SettingError, lambda: chat.generate_text(cfg_text_scale=2)),
        (SettingError, lambda: chat.ask("What?", steps=3)),
    ]
    for error, act in cases:
        with pytest.raises(error):
            act()

    def fail(done: int, total: int) -> None:
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        chat.generate_image(progress=fail)
    stream = chat.generate_text(stream=True)
    next(stream)
    stream.close()
    assert chat.history == history
    assert relative(next_logits(chat), expected) < 1e-6
    assert bagel.engine.idle


def fill(chat: Session, left: int) -> None:
    """Adds a text (every digit is a token) that leaves so many positions."""
    chat.add("1" * (positions_left(chat) - left - 2))
    assert positions_left(chat) == left


def positions_left(chat: Session) -> int:
    """The positions that are left in a session of texts alone, each token of which takes one."""
    return chat.runtime.config.decoder.max_position_embeddings - chat.tokens


def test_what_finds_no_room_is_refused_before_any_work(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    spoken("word " * 50)
    cases: list[tuple[int, Callable[[Session], Any]]] = [  # the positions that are too few by one
        (1, lambda chat: chat.generate_image()),
        (2, lambda chat: chat.generate_text()),
        (2, lambda chat: next(chat.generate_text(stream=True))),
        (2, lambda chat: chat.add("1")),
        (5, lambda chat: chat.ask("1")),
        (5, lambda chat: next(chat.ask("1", stream=True))),
    ]
    for left, act in cases:
        for chat, room in ((bagel.session(), left), (bagel.session(), left + 1)):
            fill(chat, room)
            history, steps = chat.history, bagel.engine.stats.steps
            if room == left:
                with pytest.raises(ContextLengthError, match="would take 513 positions or more, the model has 512"):
                    act(chat)
                assert bagel.engine.stats.steps == steps
                assert chat.history == history
            else:
                act(chat)
    thinking = bagel.session(think=True)
    fill(thinking, 5)
    assert thinking.fork().generate_image(return_result=True).thinking != ""
    thinking.undo()
    fill(thinking, 4)
    steps = bagel.engine.stats.steps
    with pytest.raises(ContextLengthError):
        thinking.generate_image()
    assert bagel.engine.stats.steps == steps


def test_a_full_context_can_be_kept_and_taken_back(bagel: Bagel, spoken: Callable[[str], None], tmp_path: Path) -> None:
    spoken("1" * 50)
    chat = bagel.session()
    fill(chat, 10)
    assert chat.generate_text(max_new_tokens=100) == "1" * 8
    assert positions_left(chat) == 0
    chat.save(tmp_path / "chat")
    for full in (chat, bagel.load_session(tmp_path / "chat")):
        with pytest.raises(ContextLengthError):
            full.generate_text()
        full.undo()
        assert positions_left(full) == 10


@pytest.mark.parametrize("what", ["answer", "thought"])
def test_a_text_longer_to_read_than_to_write_is_cut(bagel: Bagel, spoken: Callable[[Any], None], what: str) -> None:
    """The tokens as written fit, but not those of the text they make: each broken character takes several."""
    spoken([bagel.tokenizer.encode("🐈")[0]] * 100)
    chat = bagel.session(think=what == "thought")
    chat.add("a cat")
    fill(chat, 100)
    if what == "answer":
        chat.generate_text(max_new_tokens=1000)
    else:
        chat.generate_image(seed=0)
    (turn,) = (turn for turn in chat.history if turn.kind == what)
    assert isinstance(turn.content, str)
    assert set(turn.content) == {"\ufffd"}
    longer = bagel.runtime.text(turn.content + "\ufffd").advance
    room = 100 - 2 * (what == "thought")
    assert turn.segments[0].advance <= room < longer


def test_a_text_and_its_image_are_one_turn_or_none(bagel: Bagel, golden: Any) -> None:
    chat = bagel.session()
    chat.add(golden.image("wide"))
    step_by_step = chat.fork()
    step_by_step.add("make it red")
    drawn = chat.generate_image("make it red", seed=1)
    assert same(drawn, step_by_step.generate_image(seed=1))
    assert [turn.kind for turn in chat.history] == ["image", "text", "drawing"]
    assert chat.tokens == step_by_step.tokens

    before = chat.history

    def broken(done: int, steps: int) -> None:
        raise RuntimeError("the listener fails")

    with pytest.raises(RuntimeError, match="the listener fails"):
        chat.generate_image("make it green", seed=1, progress=broken)
    with pytest.raises(PromptError):
        chat.generate_image(" ", seed=1)
    assert chat.history == before

    chat.undo()
    assert [turn.kind for turn in chat.history] == ["image", "text"]
    chat.undo()
    assert [turn.kind for turn in chat.history] == ["image"]

    empty = bagel.session()
    assert same(empty.generate_image("a cat", seed=2), bagel.generate("a cat", seed=2))


def test_streams_hold_the_session(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("a cat")
    history, expected = chat.history, next_logits(chat)
    unread = chat.ask("What?", stream=True)  # nothing has begun: nothing is held
    chat.add("a dog")
    with pytest.raises(BagelError, match="has changed since this stream was made"):
        next(unread)
    chat.undo()
    for begin in (lambda: chat.ask("What?", stream=True), lambda: chat.generate_text(stream=True)):
        stream = begin()
        next(stream)
        acts: list[Callable[[], Any]] = [
            lambda: chat.add("x"),
            chat.undo,
            chat.generate_image,
            chat.generate_text,
            lambda: chat.ask("x"),
            lambda: chat.ask("x", stream=True),
            lambda: draw_together([chat], seed=[1]),
        ]
        for act in acts:
            with pytest.raises(BagelError, match="a stream of this session is open"):
                act()
        other = chat.fork()
        other.add("a bird")
        del stream  # its reader lost interest
        assert chat.history == history
    assert relative(next_logits(chat), expected) < 1e-6
    pieces = list(chat.ask("What?", stream=True))
    assert [turn.content for turn in chat.history] == ["a cat", "What?", "".join(pieces)]
    chat.undo()
    assert [turn.content for turn in chat.history] == ["a cat", "What?"]
    chat.undo()
    assert chat.history == history


def test_a_question_whose_answer_fails_is_taken_back(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.inference.engine import runner

    chat = bagel.session()
    chat.add("a cat")
    history, expected = chat.history, next_logits(chat)
    choose, calls = runner.choose_tokens, 0

    def broken(*args: Any) -> list[int]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError("lost")
        return choose(*args)

    monkeypatch.setattr(runner, "choose_tokens", broken)
    for act in (lambda: chat.ask("What?"), lambda: list(chat.ask("What?", stream=True))):
        with pytest.raises(OSError, match="lost"):
            act()
        assert chat.history == history
    monkeypatch.setattr(runner, "choose_tokens", choose)
    assert relative(next_logits(chat), expected) < 1e-6
    chat.add("x")  # no stream is open


def test_streams_hand_out_pieces_only(bagel: Bagel) -> None:
    chat = bagel.session()
    for name, act in (
        ("on_text", lambda: chat.ask("What?", stream=True, on_text=print)),
        ("return_result", lambda: chat.ask("What?", stream=True, return_result=True)),
        ("on_text", lambda: bagel.ask(None, "What?", stream=True, on_text=print)),
        ("return_result", lambda: bagel.ask(None, "What?", stream=True, return_result=True)),
    ):
        with pytest.raises(SettingError, match=f"{name} is given together with stream=True"):
            act()


def test_drawing_together_is_all_or_nothing(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.inference import session as module

    chats = [bagel.session() for _ in range(3)]
    for chat, text in zip(chats, ("a cat", "a dog", "a bird"), strict=True):
        chat.add(text)
    alone = [chat.fork().generate_image(seed=seed) for seed, chat in enumerate(chats)]
    histories = [chat.history for chat in chats]
    follow = module.follow

    def failing(runtime: Any, history: Any, request: Any, listener: Any) -> Steps[Any]:
        result = yield from follow(runtime, history, request, listener)
        if request.seed == 1:
            raise OSError("lost")
        return result

    monkeypatch.setattr(module, "follow", failing)
    with pytest.raises(OSError, match="lost") as caught:
        draw_together(chats, seed=[0, 1, 2])
    assert caught.value.__notes__ == ["This was session 2 of 3 (index 1)."]
    assert [chat.history for chat in chats] == histories
    monkeypatch.setattr(module, "follow", follow)
    images = draw_together(chats, seed=[0, 1, 2])
    assert all(same(got, expected) for got, expected in zip(images, alone, strict=True))
    assert [len(chat.history) for chat in chats] == [2, 2, 2]

    steps = bagel.engine.stats.steps
    for sessions, seeds, message in (
        ([chats[0], chats[0]], [0, 1], "must be different ones of one model"),
        ([chats[0], Bagel(bagel.checkpoint).session()], [0, 1], "must be different ones of one model"),
        (chats, [0], "seed is a list of 1: there are 3 sessions"),
        ([chats[0], bagel.session(understanding=True)], [0, 1], r"session 2 of 2 \(index 1\): .*for understanding"),
    ):
        with pytest.raises(SettingError, match=message):
            draw_together(sessions, seed=seeds)
    assert bagel.engine.stats.steps == steps


def test_sessions_wait_for_room(bagel: Bagel) -> None:
    """What a session is about to hold counts, as it does for other requests."""
    bagel.engine.max_active_cost = 30  # a picture of 48×32 takes two branches of 8 tokens
    chats = [bagel.session() for _ in range(3)]
    for chat in chats:
        chat.add("a cat")
    bagel.engine.stats.steps = bagel.engine.stats.forwards = 0
    draw_together(chats, seed=[0, 1, 2], num_timesteps=2)
    one_by_one = 1 + 1 + 1 + 1  # denoise, decode, encode, read
    assert bagel.engine.stats.steps == 3 * one_by_one


def test_an_empty_session_cannot_generate(bagel: Bagel) -> None:
    for chat in (bagel.session(), bagel.session(think=True)):
        with pytest.raises(PromptError, match="the session is empty"):
            chat.generate_image()
        with pytest.raises(PromptError, match="the session is empty"):
            chat.generate_text()


def test_understanding_sessions_do_not_draw(bagel: Bagel, golden: Any) -> None:
    chat = bagel.session(understanding=True)
    chat.add(golden.image("wide"))
    assert bagel.engine.stats.encoded == 0
    with pytest.raises(SettingError, match="understanding=False"):
        chat.generate_image()


def test_streaming(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("What?")
    other = chat.fork()
    pieces = list(chat.generate_text(stream=True))
    assert len(pieces) > 3
    assert "".join(pieces) == other.generate_text()
    assert [turn.kind for turn in chat.history] == ["text", "answer"]
    assert relative(next_logits(chat), next_logits(other)) < 1e-6


def test_what_is_drawn_can_be_asked_about(bagel: Bagel) -> None:
    chat = bagel.session()
    chat.add("a cat")
    image = chat.generate_image(seed=0)
    chat.add("What is it?")
    answer = chat.generate_text()
    assert answer == bagel_answer(bagel, ["a cat", image, "What is it?"])


def bagel_answer(bagel: Bagel, items: list[Any]) -> str:
    chat = bagel.session()
    for item in items:
        chat.add(item)
    return chat.generate_text()


def test_save_and_load(bagel: Bagel, golden: Any, tmp_path: Path, spoken: Callable[[str], None]) -> None:
    chat = bagel.session(think=True)
    chat.add(golden.image("alpha"))
    chat.add("draw: ein «Bild»")
    spoken("<think>blue</think>")
    chat.generate_image(seed=4)
    chat.ask("why?", max_new_tokens=40)
    chat.save(tmp_path / "chat")

    loaded = bagel.load_session(tmp_path / "chat")
    assert (loaded.think, loaded.understanding, loaded.tokens) == (True, False, chat.tokens)
    assert [t.kind for t in loaded.history] == [t.kind for t in chat.history]
    assert relative(next_logits(loaded), next_logits(chat)) < 1e-5
    loaded.undo()
    loaded.undo()
    loaded.undo()
    assert [t.kind for t in loaded.history] == ["system", "image", "text"]
    loaded.save(tmp_path / "chat")  # replaces it
    assert len(bagel.load_session(tmp_path / "chat").history) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat"]
    assert sorted(p.name for p in (tmp_path / "chat").iterdir()) == ["001.png", "session.json"]

    empty = bagel.session()
    empty.save(tmp_path / "empty")
    assert bagel.load_session(tmp_path / "empty").history == ()


def test_folders_that_are_no_sessions(bagel: Bagel, tmp_path: Path) -> None:
    chat = bagel.session()
    chat.add("a cat")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(DataError, match="no saved session and not empty"):
        chat.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").exists()
    with pytest.raises(DataError, match="no saved session"):
        bagel.load_session(tmp_path / "mine")
    chat.save(tmp_path / "chat")
    document = json.loads((tmp_path / "chat" / "session.json").read_text())
    for change in ({"version": 9}, {"marks": [7]}, {"turns": [{"kind": "song", "text": "la"}]}, {"turns": [1]}):
        (tmp_path / "chat" / "session.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(DataError):
            bagel.load_session(tmp_path / "chat")
    text, system = {"kind": "text", "text": "a cat"}, {"kind": "system", "text": "think"}
    for change in (
        {"turns": [{"kind": "text", "text": 5}]},
        {"turns": [{"kind": "text", "text": None}]},
        {"turns": [{"kind": "text", "text": " "}]},
        {"turns": [{"kind": "text", "text": "a cat", "image": "000.png"}]},
        {"turns": [{"kind": "text", "image": "000.png"}]},
        {"turns": [{"kind": "image", "text": "a cat"}]},
        {"turns": [{"kind": "drawing", "image": ["000.png"]}]},
        {"think": True},
        {"think": "no", "turns": [system]},
        {"think": False, "turns": [system, text], "marks": [1]},
        {"think": True, "turns": [text, system], "marks": [1]},
        {"understanding": 1},
    ):
        (tmp_path / "chat" / "session.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(DataError, match="is damaged"):
            bagel.load_session(tmp_path / "chat")
    (tmp_path / "chat" / "session.json").write_text(
        json.dumps({**document, "turns": [{"kind": "image", "image": "../x.png"}]})
    )
    with pytest.raises(BagelError):
        bagel.load_session(tmp_path / "chat")


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_failed_save_leaves_the_old_one(
    bagel: Bagel, golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    chat = bagel.session()
    chat.add("a cat")
    chat.save(tmp_path / "chat")
    chat.add(golden.image("tall"))
    with monkeypatch.context() as patch:
        if moment == "writing":

            def full(*args: Any, **kwargs: Any) -> None:
                raise OSError("disk full")

            patch.setattr(Image.Image, "save", full)
        else:
            rename = Path.rename

            def lost(self: Path, target: Path) -> Path:
                if self.name == "fresh":
                    raise OSError("disk full")
                return rename(self, target)

            patch.setattr(Path, "rename", lost)
        with pytest.raises(OSError, match="disk full"):
            chat.save(tmp_path / "chat")
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
    assert [turn.content for turn in bagel.load_session(tmp_path / "chat").history] == ["a cat"]


def test_only_saved_sessions_are_replaced(bagel: Bagel, tmp_path: Path) -> None:
    chat = bagel.session()
    chat.add("a cat")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match="file is a file: name a folder"):
        chat.save(tmp_path / "file")
    chat.save(tmp_path / "chat")
    (tmp_path / "chat" / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match="it holds notes.txt"):
        chat.save(tmp_path / "chat")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "session.json").write_text('{"user": "somebody"}')
    with pytest.raises(DataError, match="no valid session.json"):
        chat.save(tmp_path / "theirs")
    assert (tmp_path / "chat" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    chat.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "session.json").exists()

"""What a browser keeps of the page: earlier images and conversations, and what is left out of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.app.answers import AnswerHistory, answer_entry
from bagel_mot.app.chats import ClosedSession, TabChat, store, unstore
from bagel_mot.app.context import PageContext
from bagel_mot.app.generation import Generation
from bagel_mot.app.history import MAX_ENTRIES, ImageHistory, entry_of, file_of
from bagel_mot.app.image_files import keep
from bagel_mot.app.state import TabState
from bagel_mot.app.uploads import ImageField
from bagel_mot.serving.service import Service
from bagel_mot.task import Task

PIXELS = 1_000_000


@pytest.fixture(scope="module")
def entry(service: Service) -> dict[str, Any]:
    result = service.start(["a red car"], num_timesteps=4, seed=5, size=(64, 48)).tickets[0].result(60)
    assert result.image is not None
    return entry_of(result, keep(result.image, "bagel-5"))


@pytest.fixture
def history(context: PageContext) -> ImageHistory:
    return ImageHistory(context, "create", Task.GENERATE)


def test_an_entry_is_small_and_finds_its_image(entry: dict[str, Any], history: ImageHistory) -> None:
    assert json.loads(json.dumps(entry)) == entry
    assert history.usable(entry)
    assert len(json.dumps(entry)) * MAX_ENTRIES < 1_000_000, "a browser has about 5 MB"
    with Image.open(file_of(entry)) as image:
        assert image.size == (64, 48)
        assert image.info["prompt"] == entry["prompt"] == "a red car"
    assert json.loads(entry["settings"])["num_timesteps"] == 4


def test_an_image_that_is_gone_is_shown_by_its_thumbnail(entry: dict[str, Any]) -> None:
    for path in ("/nowhere/a.png", __file__, "/etc/passwd"):
        found = file_of({**entry, "path": path})
        assert Path(found).name == "thumbnail.png"


@pytest.mark.parametrize(
    "changed",
    [
        {"thumbnail": "no base64"},
        {"thumbnail": base64.b64encode(b"no image").decode()},
        {"thumbnail": "A" * 100_000},
        {"settings": "{"},
        {"settings": '{"num_timesteps": 1}'},
        {"seed": "x"},
        {"prompt": 5},
        {"path": None},
    ],
)
def test_what_was_changed_in_the_browser_is_left_out(
    entry: dict[str, Any], history: ImageHistory, changed: dict[str, Any]
) -> None:
    assert not history.usable({**entry, **changed})


def turn(service: Service, chat: TabChat, *inputs: Any, output: str = "text") -> Any:
    run = Generation()
    settings = {"think": False, **({"num_timesteps": 4} if output == "image" else {})}
    return chat.turn(service, run, inputs, output, settings)


def test_a_conversation_goes_on_after_a_reload_as_it_would_have_without(service: Service) -> None:
    tab = TabState()
    turn(service, tab.chat, "a red car", output="image")
    turn(service, tab.chat, "What colour is the car?")
    stored = json.loads(json.dumps(store(tab.chats, tab.files)))
    later = TabState()
    later.take_back(unstore(stored, later.files, PIXELS), 1)
    assert [one.kind for one in later.chat.turns] == ["text", "drawing", "text", "answer"]
    assert isinstance(later.chat.session, ClosedSession)
    assert later.chunks == set(), "it takes no memory until it goes on"
    drawn, again = (one.chat.turns[1].content for one in (tab, later))
    assert isinstance(drawn, Image.Image)
    assert isinstance(again, Image.Image)
    assert drawn.tobytes() == again.tobytes()
    answers = [turn(service, one.chat, "How many cars are there?").text for one in (tab, later)]
    assert answers[0] == answers[1]
    later.chat.undo()
    later.chat.undo()
    assert [one.kind for one in later.chat.turns] == ["text", "drawing"]
    tab.close()
    later.close()


def test_a_conversation_ends_before_an_image_that_is_gone(service: Service) -> None:
    chat = TabChat(1)
    files: dict[Any, str] = {}
    turn(service, chat, "Is it day?")
    turn(service, chat, "a red car", output="image")
    stored = store([chat], files)
    stored[0]["turns"][3] = ("drawing", "/etc/passwd")
    (found,) = unstore(stored, {}, PIXELS)
    assert [one.kind for one in found.turns] == ["text", "answer"]
    for damaged in (None, {}, [{}], [{"number": 1}], [{**stored[0], "turns": [["video", "x"]]}], [5]):
        assert unstore(damaged, {}, PIXELS) == []


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.fixture
def answers(context: PageContext) -> AnswerHistory:
    return AnswerHistory(context, "ask", Task.ASK)


@pytest.fixture(scope="module")
def answer(service: Service) -> dict[str, Any]:
    image = Image.new("RGB", (300, 200), "red")
    result = service.start([image, "How many cars are there?"], output="text", max_new_tokens=4).tickets[0].result(60)
    return answer_entry(result, "How many cars are there?", [image], [keep(image, "picture")])


def test_an_answer_is_kept_with_its_question_and_small_copies(answer: dict[str, Any], answers: AnswerHistory) -> None:
    assert json.loads(json.dumps(answer)) == answer
    assert answers.usable(answer)
    assert answer["question"] == "How many cars are there?"
    assert json.loads(answer["settings"])["max_new_tokens"] == 4
    assert len(answer["thumbnails"]) == 1
    assert len(json.dumps(answer)) < 5000


@pytest.mark.parametrize(
    "changed",
    [
        {"answer": None},
        {"thumbnails": "x"},
        {"thumbnails": ['"><script>']},
        {"thumbnails": [5]},
        {"paths": [None]},
        {"settings": '{"max_new_tokens": 0}'},
        {"seed": "x"},
    ],
)
def test_an_answer_that_was_changed_is_left_out(
    answer: dict[str, Any], answers: AnswerHistory, changed: dict[str, Any]
) -> None:
    assert not answers.usable({**answer, **changed})
    assert answers.checked([answer, {**answer, **changed}, 5]) == [answer]


def test_a_list_keeps_what_finds_room_in_the_browser(answer: dict[str, Any], answers: AnswerHistory) -> None:
    long = {**answer, "answer": "word " * 40_000}
    kept = answers.added([answer] * 3, [long, long])[answers.entries]
    assert kept == [long, long, answer, answer, answer], "the newest first"
    kept = answers.added([answer] * 3, [long] * 4)[answers.entries]
    assert 0 < len(kept) < 4
    assert len(json.dumps(kept)) <= 600_000
    assert len(answers.added([answer] * 50, [answer])[answers.entries]) == MAX_ENTRIES
    nothing = answers.added([], [{**answer, "answer": "word " * 400_000}])
    assert nothing[answers.entries] == [], "an answer that finds no room alone is not kept, and costs nothing else"


# ------------------------------------------------------------------------------------------------------------- uploads


def test_images_that_are_gone_are_said(context: PageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("bagel_mot.app.uploads.warn", lambda sentence, language: said.append(sentence))
    field = ImageField(context, "edit", "pictures")
    path = keep(Image.new("RGB", (32, 32), "red"), "picture")
    assert field.put_back([path, path], "en") == [(path, "1"), (path, "2")]
    assert said == []
    assert field.put_back([path, "/etc/passwd", str(Path(path).with_name("gone.png"))], "en") == [(path, None)]
    assert said == ["2 of the 3 pictures that were here are not on the server any more: add them again."]
    for damaged in (None, "x", {"a": 1}, [None, 5]):
        assert field.put_back(damaged, "zh") == []

"""A judge by HTTP: what is sent, what is kept, what is tried again, and what ends a run."""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.errors import EvaluationError, SettingError
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeMessage, JudgeRequest, TokenJudge
from bagel_mot.evaluation.judges.chat import ChatJudge, JudgeOptions
from bagel_mot.serving.options import ServerOptions
from tests.evaluation.judges.scripted import error, reply, serving
from tests.serving.conftest import running

SECRET = "sk-very-secret-0123456789"
HTML = (200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>")


def encoded(size: tuple[int, int], format_: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, format_)
    return file.getvalue()


def asked(*content: Any, **more: Any) -> JudgeRequest:
    return JudgeRequest((JudgeMessage("user", content or ("Is it red?",)),), "gpt-judge", **more)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAGEL_JUDGE_KEY", SECRET)


def judge(url: str, waits: list[float], model: str | None = None, **more: Any) -> ChatJudge:
    options = {
        name: more.pop(name) for name in list(more) if name in {f.name for f in dataclasses.fields(JudgeOptions)}
    }
    return ChatJudge(url, model, options=JudgeOptions(**options), sleep=waits.append, **more)


def test_a_request_is_sent_to_the_letter(waits: list[float]) -> None:
    request = JudgeRequest(
        (
            JudgeMessage("system", ("Be strict.",), plain=True),
            JudgeMessage("user", ("Before:", JudgeImage(encoded((9, 7)), "image/jpeg", "low"), "After?")),
        ),
        "gpt-judge",
        temperature=0.0,
        max_tokens=9,
        extra={"seed": 3},
    )
    with serving("[7]") as script:
        assert judge(script.url, waits).complete(request) == "[7]"
    path, headers, body = script.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    url = f"data:image/jpeg;base64,{base64.b64encode(encoded((9, 7))).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    texts = [{"type": "text", "text": text} for text in ("Before:", "After?")]
    assert body == {
        "model": "gpt-judge",
        "messages": [
            {"role": "system", "content": "Be strict."},
            {
                "role": "user",
                "content": [texts[0], shown, texts[1]],
            },
        ],
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 3,
    }


def test_what_is_none_is_not_sent_and_the_users_model_replaces_the_protocols(waits: list[float]) -> None:
    with serving() as script:
        judge(f"{script.url}/v1/", waits, "mine", temperature=0.5).complete(asked())
        judge(f"{script.url}/v1/chat/completions", waits).complete(asked())
    assert {path for path, _, _ in script.asked} == {"/v1/chat/completions"}
    assert script.asked[0][2].keys() == {"model", "messages", "temperature"}
    assert (script.asked[0][2]["model"], script.asked[0][2]["temperature"]) == ("mine", 0.5)
    assert script.asked[1][2].keys() == {"model", "messages"}


def test_the_key_is_taken_from_the_environment_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]
) -> None:
    with serving("yes", error(401, f"Incorrect API key provided: {SECRET}")) as script:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
        first = judge(script.url, waits, cache=tmp_path)
        first.complete(asked())
        with pytest.raises(EvaluationError, match=r"refuses its key .*BAGEL_JUDGE_KEY") as refused:
            first.complete(asked("Another?"))
        monkeypatch.delenv("BAGEL_JUDGE_KEY")
        script.answers = ["yes"]
        judge(script.url, waits).complete(asked())
        monkeypatch.delenv("OPENAI_API_KEY")
        judge(script.url, waits).complete(asked())
    assert [headers.get("Authorization") for _, headers, _ in script.asked[1:]] == [
        f"Bearer {SECRET}",
        "Bearer sk-other",
        None,
    ]
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert kept
    assert SECRET not in kept + repr(first) + str(first.about()) + str(refused.value)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"attempt": 1}, False),
        ({"temperature": 0.5}, False),
        ({"model": "other"}, False),
        ({"messages": (JudgeMessage("user", ("Is it blue?",)),)}, False),
        ({"messages": (JudgeMessage("user", ("Is it red?", JudgeImage(encoded((4, 5))))),)}, False),
    ],
)
def test_a_reply_is_kept_for_the_same_request_alone(
    tmp_path: Path, waits: list[float], change: dict[str, Any], is_same: bool
) -> None:
    request = JudgeRequest((JudgeMessage("user", ("Is it red?", JudgeImage(encoded((4, 4))))),), "gpt-judge")
    with serving("first", "second") as script:
        assert judge(script.url, waits, cache=tmp_path).complete(request) == "first"
        later = judge(script.url, waits, cache=tmp_path)
        assert later.complete(dataclasses.replace(request, **change)) == ("first" if is_same else "second")
    assert later.counts["cached"] == is_same


def test_a_damaged_reply_on_disk_is_asked_for_again(tmp_path: Path, waits: list[float]) -> None:
    with serving("first", "second") as script:
        found = judge(script.url, waits, cache=tmp_path)
        found.complete(asked())
        (path,) = tmp_path.rglob("*.json")
        path.write_text('{"reply": "fir')
        assert found.complete(asked()) == "second"
        assert found.complete(asked()) == "second"


def test_failed_calls_are_not_kept(tmp_path: Path, waits: list[float]) -> None:
    with serving(error(400, "the image was refused"), "yes") as script:
        found = judge(script.url, waits, cache=tmp_path)
        assert found.complete(asked()) is None
        assert found.complete(asked()) == "yes"
    assert waits == []  # what is refused is not sent again


@pytest.mark.parametrize(
    "answer",
    [
        error(500),
        error(503, "loading the model"),
        (502, {}, b"<html>Bad gateway</html>"),
        HTML,
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b"[]"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": "none"}'),
        (200, {}, b'{"error": {"message": "busy", "code": 503}}'),
        reply(7),
    ],
    ids=str,
)
def test_a_rude_judge_is_asked_again_with_longer_and_longer_waits(answer: Any, waits: list[float]) -> None:
    with serving(answer, answer, answer, "at last") as script:
        assert judge(script.url, waits).complete(asked()) == "at last"
    assert waits == [1, 2, 4]


def test_a_judge_that_stays_rude_fails_requests_and_then_the_run(waits: list[float]) -> None:
    with serving(HTML) as script:
        found = judge(script.url, waits, failures=3, tries=2)
        assert found.complete(asked()) is None
        assert found.complete(asked()) is None
        with pytest.raises(EvaluationError, match=r"failed 3 requests one after the other.*Sign in.*kept") as stopped:
            found.complete(asked())
        assert "\n" not in str(stopped.value)
        script.answers = ["yes"]
        assert found.complete(asked()) == "yes"
        script.answers = [HTML]
        assert found.complete(asked()) is None  # it counts anew
    assert found.counts["failed"] == 4


def test_retry_after_is_honoured(waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    busy = [error(429, headers={"Retry-After": after}) for after in ("7", date, "soon")]
    with serving(*busy, "yes") as script:
        assert judge(script.url, waits).complete(asked()) == "yes"
    assert waits[0] == 7
    assert 0 < waits[1] <= 30
    assert waits[2] == 4  # what cannot be read is passed over
    with (
        serving(error(429, headers={"Retry-After": "3600"})) as script,
        pytest.raises(EvaluationError, match="left alone for 3600 seconds"),
    ):
        judge(script.url, waits).complete(asked())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(401, "bad key"), "refuses its key"),
        (error(403, "not for you"), "refuses its key"),
        (error(404, "no model gpt-judge"), "no model gpt-judge"),
        (error(402, "pay"), "out of quota"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "out of quota"),
        ((302, {"Location": "http://elsewhere.example/"}, b""), "sends elsewhere"),
    ],
)
def test_what_will_never_be_answered_ends_the_run_at_once(answer: Any, says: str, waits: list[float]) -> None:
    with serving(answer) as script, pytest.raises(EvaluationError, match=says) as ended:
        judge(script.url, waits).complete(asked())
    assert len(script.asked) == 1
    assert "kept" in str(ended.value)
    assert "\n" not in str(ended.value)


def test_no_server_is_one_sentence(waits: list[float]) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
        with pytest.raises(EvaluationError, match=r"cannot be reached .*start it"):
            judge(url, waits).complete(asked())
    assert waits == [1, 2, 4, 8]


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server that never ends its answer."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            try:
                while not over.is_set():
                    taken, _ = server.accept()
                    taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
                    while not over.wait(0.02):
                        taken.sendall(b" ")
            except OSError:
                pass

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()


def test_a_judge_that_drips_is_left_at_the_time_limit(dripping: str, waits: list[float]) -> None:
    with pytest.raises(EvaluationError, match=r"did not answer within 0\.3 seconds"):
        judge(dripping, waits, timeout=0.3, tries=1, failures=1).complete(asked())


def test_half_a_character_in_a_reply_can_be_stored(tmp_path: Path, waits: list[float]) -> None:
    with serving("so \ud83d") as script:
        for _ in range(2):
            assert judge(script.url, waits, cache=tmp_path).complete(asked()) == "so \ufffd"
    assert len(script.asked) == 1


def test_a_reply_that_is_withheld_is_a_failed_call_and_an_empty_one_a_reply(waits: list[float]) -> None:
    with serving(reply(None), "", reply([{"type": "text", "text": "[1, "}, {"type": "text", "text": "2]"}])) as script:
        found = judge(script.url, waits)
        assert [found.complete(asked()) for _ in range(3)] == [None, "", "[1, 2]"]


def test_images_are_made_smaller_and_of_one_format_where_asked(waits: list[float]) -> None:
    large, small = JudgeImage(encoded((64, 32)), "image/jpeg"), JudgeImage(encoded((8, 6), "JPEG"), "image/png", "high")
    with serving() as script:
        judge(script.url, waits, image_side=32, image_format="jpeg").complete(asked(large, small))
        judge(script.url, waits, image_side=32).complete(asked(large))
    sent = [part["image_url"] for _, _, body in script.asked for part in body["messages"][0]["content"]]
    images = [Image.open(io.BytesIO(base64.b64decode(image["url"].partition(",")[2]))) for image in sent]
    assert [(image.size, image.format) for image in images] == [((32, 16), "JPEG"), ((8, 6), "JPEG"), ((32, 16), "PNG")]
    assert [image["url"].partition(";")[0] for image in sent] == ["data:image/jpeg"] * 2 + ["data:image/png"]
    assert sent[1]["detail"] == "high"


def test_so_many_calls_at_once_and_no_more(waits: list[float]) -> None:
    with serving() as script:
        script.meeting = threading.Barrier(3)  # nobody is answered before three have come
        found = judge(script.url, waits, concurrency=3)
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda i: found.complete(asked(f"{i}?")), range(6))) == ["yes"] * 6
    assert script.most_together == 3


def test_the_limit_of_tokens_is_renamed_for_models_that_want_it(waits: list[float]) -> None:
    says = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with serving(error(400, says), "yes") as script:
        found = judge(script.url, waits)
        assert found.complete(asked(max_tokens=5)) == "yes"
        found.complete(asked(max_tokens=6))
    assert [body.get("max_completion_tokens") for _, _, body in script.asked] == [None, 5, 6]


def test_probabilities_of_the_first_token(tmp_path: Path, waits: list[float]) -> None:
    tops = [{"token": "Yes", "logprob": -0.5}, {"token": "No", "logprob": -1.5}]
    with serving(reply("Yes", logprobs={"content": [{"token": "Yes", "top_logprobs": tops}]}), reply("Yes")) as script:
        found = judge(script.url, waits, cache=tmp_path)
        for _ in range(2):  # from the server, then from the disk
            assert found.first_token(asked()) == pytest.approx({"Yes": 0.60653066, "No": 0.22313016})
        with pytest.raises(EvaluationError, match="no probabilities"):
            found.first_token(asked("Another?"))
    assert isinstance(found, TokenJudge)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://user:pass@host/v1", "http://host:port/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="judge's address") as refused:
        ChatJudge(url)
    assert "pass@" not in str(refused.value)


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"image_side": 0}, {"tries": 0}, {"timeout": 0.0}, {"image_format": "gif"}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            JudgeOptions(**wrong)  # type: ignore[arg-type]


def test_our_own_server_is_a_judge(tmp_path: Path) -> None:
    """mini answers a question of its own world through `bagel serve`, as it does when asked directly."""
    bagel = Bagel.from_pretrained("mini")
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((200, 30, 30), (16, 16, 48, 48))
    file = io.BytesIO()
    image.save(file, "PNG")
    question = "What color is the square?"
    expected = bagel.ask(image, question, max_new_tokens=8, do_sample=False)
    with running(Bagel(bagel.checkpoint, defaults=bagel.defaults), ServerOptions(model_name="mini")) as live:
        found = ChatJudge(live.url, "mini", cache=tmp_path)
        request = asked(JudgeImage(file.getvalue(), "image/jpeg", "low"), question, temperature=0.0, max_tokens=8, n=1)
        assert found.complete(request) == expected
        with pytest.raises(EvaluationError, match="does not know the model"):
            ChatJudge(live.url, "another").complete(request)
    assert found.complete(request) == expected  # kept: the server is gone
    assert json.loads(next(tmp_path.rglob("*.json")).read_text())["model"] == "mini"

"""A server answers as the local model does; one that refuses ends the run in one sentence."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import EvaluationError, PromptError, SettingError
from bagel_mot.evaluation.base import Item, ItemResult
from bagel_mot.evaluation.benchmarks.mini import Mini
from bagel_mot.evaluation.http import ModelServer
from bagel_mot.evaluation.records import Records
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.evaluation.respondents.server import ServerRespondent
from bagel_mot.inference.api import Bagel
from bagel_mot.serving.options import ServerOptions
from tests.evaluation.judges.scripted import Script, error, reply, serving
from tests.serving.conftest import running

ROWS = ["draw/colours", "ask/count", "edit/recolour"]
JPEG = b"\xff\xd8\xff!"
NO_IMAGE = (200, {}, json.dumps({"data": [{"url": "http://elsewhere"}]}).encode())


def respondent(script: Script, slept: list[float] | None = None) -> ServerRespondent:
    server = ModelServer(f"{script.url}/v1", "secret", sleep=(slept if slept is not None else []).append)
    return ServerRespondent(server, "other")


def test_our_own_server_answers_as_the_local_model(tmp_path: Path) -> None:
    with Bagel.from_pretrained("mini", threads=1) as bagel, running(bagel, ServerOptions(model_name="mini")) as live:
        mini = Mini(rows=ROWS, count=1, settings={"num_timesteps": 4})
        asks = ServerRespondent(ModelServer(f"{live.url}/v1"), "mini")
        assert asks.is_ours
        theirs = asks.answer(mini.items(), tmp_path / "server")
        ours = LocalRespondent(bagel, {}).answer(mini.items(), tmp_path / "local")
        for item, there, here in zip(mini.items(), theirs, ours, strict=True):
            assert isinstance(there, ItemResult), item.id
            assert isinstance(here, ItemResult)
            assert there.texts == here.texts, item.id
            assert len(there.images) == len(here.images) == (item.kind != "ask")
        # A size that mini never looks at is left out, as it is for the local model; one that it does is sent.
        [question] = Mini(rows=["ask/count"], count=1).items()
        most = bagel.defaults.vit_transform.max_size
        for least in (378, most):
            item = replace(question, settings={**question.settings, "vit_min_size": least})
            assert asks.answer([item], tmp_path) == LocalRespondent(bagel, {}).answer([item], tmp_path)
        sent = list[dict[str, object]]()
        post = asks.server.post
        asks.server.post = lambda path, read, **body: (sent.append(body["json"]), post(path, read, **body))[1]  # type: ignore
        for least in (most, most + 1):
            asks.answer([replace(question, settings={**question.settings, "vit_min_size": least})], tmp_path)
        assert [body.get("vit_min_size") for body in sent] == [most, None]
        [chain] = Mini(rows=["edit/chain of 3"], count=1).items()
        with pytest.raises(EvaluationError, match="asks for a chain of edits, which a server does not offer"):
            asks.answer([chain], tmp_path)
        with pytest.raises(EvaluationError, match="has no model 'maxi': it has mini"):
            ServerRespondent(ModelServer(f"{live.url}/v1"), "maxi")


def test_another_models_server_gets_what_all_of_them_know(tmp_path: Path) -> None:
    item = Item("a", "ask", "What?", (JPEG,), settings={"max_new_tokens": 9, "top_k": 3}, seeds=(4,))
    with serving(reply("that", finish_reason="length")) as script:
        [outcome] = respondent(script).answer([item], tmp_path)
    assert outcome == ItemResult(texts=("that",), truncated=(True,))
    [(path, headers, body)] = script.asked
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    data = base64.b64encode(JPEG).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    content = [image, {"type": "text", "text": "What?"}]
    assert body == {
        "model": "other", "messages": [{"role": "user", "content": content}], "seed": 4, "max_tokens": 9,
        "temperature": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "text", "text": "th"}, {"type": "text", "text": "at"}], "that"),
        (None, ""),
        ("that \ud83d", "that \ufffd"),
        ("that \U0001f697", "that \U0001f697"),
    ],
    ids=["in parts", "nothing", "half a character", "a whole one"],
)
def test_an_answer_in_another_form_is_read_and_can_be_stored(content: Any, said: str, tmp_path: Path) -> None:
    with serving(reply(content)) as script:
        [outcome] = respondent(script).answer([Item("a", "ask", "What?")], tmp_path)
    assert outcome == ItemResult(texts=(said,), truncated=(False,))
    Records(tmp_path, "items", {}).add("a", {"texts": [said]})
    assert Records(tmp_path, "items", {}).lines["a"] == {"texts": [said]}


def test_the_limit_of_tokens_is_renamed_for_models_that_want_it(tmp_path: Path) -> None:
    item = Item("a", "ask", "What?", settings={"max_new_tokens": 9})
    with serving(error(400, "'max_tokens' is not supported: use 'max_completion_tokens'"), reply("that")) as script:
        assert respondent(script).answer([item], tmp_path) == [ItemResult(texts=("that",), truncated=(False,))]
    assert [(body.get("max_tokens"), body.get("max_completion_tokens")) for _, _, body in script.asked] == [
        (9, None),
        (None, 9),
    ]


def test_thinking_is_refused_where_the_server_would_not_be_told(tmp_path: Path) -> None:
    item = Item("a", "ask", "What?", settings={"think": True})
    with serving(reply("that")) as script, pytest.raises(EvaluationError, match="asks for thinking, which the server"):
        respondent(script).answer([item], tmp_path)
    assert script.asked == []


def test_a_busy_server_is_asked_again_and_a_refused_item_named(tmp_path: Path) -> None:
    item, slept = Item("a", "ask", "What?"), list[float]()
    with serving(error(429, headers={"Retry-After": "7"}), error(503), reply("that")) as script:
        assert respondent(script, slept).answer([item], tmp_path) == [ItemResult(texts=("that",), truncated=(False,))]
    assert slept == [7.0, 2.0]
    with serving(error(400, "too long")) as script:
        [outcome] = respondent(script).answer([item], tmp_path)
    assert isinstance(outcome, PromptError)
    assert str(outcome) == "the server refuses item 'a' (status 400: too long)."


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (error(401, "bad key"), "refuses its key"),
        (error(429, "You exceeded your current quota"), "is out of quota"),
        (error(404, "no such model"), "does not know the model or the address"),
        (error(500, "oh"), "does not answer after 6 tries: it answers with status 500: oh"),
        ((200, {}, b"<html>"), "its answer is not a JSON object"),
        ((200, {}, b"{}"), "a reply without an answer"),
        (reply(7), "its reply is a int, not a text"),
    ],
)
def test_a_server_that_refuses_for_good(
    answer: tuple[int, dict[str, str], bytes], sentence: str, tmp_path: Path
) -> None:
    with serving(answer) as script, pytest.raises(EvaluationError, match=sentence):
        respondent(script).answer([Item("a", "ask", "What?")], tmp_path)


def test_a_server_that_is_down_or_draws_nothing(tmp_path: Path) -> None:
    with serving(NO_IMAGE) as script:
        asks = respondent(script)
        with pytest.raises(EvaluationError, match="without an image in data"):
            asks.answer([Item("a", "generate", "a car")], tmp_path)
    with pytest.raises(EvaluationError, match="does not answer after 6 tries: it is not reached"):
        asks.answer([Item("a", "ask", "What?")], tmp_path)
    with pytest.raises(SettingError, match="the server's address is 'here': write http://HOST:PORT/v1"):
        ModelServer("here")

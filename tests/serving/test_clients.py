"""What clients send in practice is taken, or refused in a sentence that names its place in their own body."""

from __future__ import annotations

import base64
import dataclasses
import gc
import itertools
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.scope import Scope
from bagel_mot.serving.limits import Limits
from bagel_mot.serving.openai.image_data import from_data_uri
from bagel_mot.serving.options import ServerOptions
from bagel_mot.version import __version__
from tests.holding import Hold
from tests.serving.conftest import Live, data_uri, opened, png, refused, running, same, wait_for
from tests.serving.test_faults import DRAW, asking

CHAT, GENERATIONS, EDITS = "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def live(loaded: Bagel) -> Iterator[Live]:
    names = ServerOptions(model_name="tiny", aliases=("gpt-image-1", "dall-e-3", "tiny"))
    with running(Bagel(loaded.checkpoint, defaults=loaded.defaults), names) as server:
        yield server


@pytest.fixture(scope="module")
def plain(loaded: Bagel) -> Bagel:
    return Bagel(loaded.checkpoint, defaults=loaded.defaults)


def answer(live: Live, messages: Any, **more: Any) -> str:
    response = live.post(CHAT, {"messages": messages, "max_tokens": 6, **more})
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}]


PART = "messages[0].content[0]"


def said(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part] if isinstance(part, dict) else part}]}


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    "change",
    [
        lambda data: f"data:image/png;base64,{data}",
        lambda data: f"data:image/png;base64,{data.rstrip('=')}",
        lambda data: f"data:;base64,{data}",
        lambda data: f"data:application/octet-stream;base64,{data}",
        lambda data: f"data:None;base64,{data}",
        lambda data: f"DATA:image/jpeg;charset=x; BASE64 ,{data}",
        lambda data: f"data:image/png;base64,{data.translate(str.maketrans('+/', '-_'))}",
        lambda data: f"data:image/png;base64,{data.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        lambda data: "data:image/png;base64,\n" + "\r\n".join(data[i : i + 76] for i in range(0, len(data), 76)) + " ",
        lambda data: "data:image/png," + "".join(f"%{byte:02x}" for byte in base64.b64decode(data)),
    ],
)
def test_data_uris_as_browsers_open_them(change: Any, image: Image.Image) -> None:
    for size in (58, 59, 60):  # files of all lengths modulo 3, with luck and two comments
        file = png(image.resize((size, 40)))
        for padded in (file, file + b"\0", file + b"\0\0"):
            assert from_data_uri(change(base64.b64encode(padded).decode())) == padded


def test_every_way_to_write_a_part(live: Live, plain: Bagel, image: Image.Image) -> None:
    expected = plain.ask(image, "What?", max_new_tokens=6)
    uri = data_uri(image)
    data = uri.partition(",")[2]
    for picture in (
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image_url", "image_url": {"url": uri, "detail": "original"}},
        {"type": "image_url", "image_url": {"url": uri, "detail": ""}},
        {"type": "image_url", "image_url": uri},
        {"type": "input_image", "image_url": uri, "detail": "auto"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}},
    ):
        assert answer(live, user(picture, {"type": "input_text", "text": "What?"})) == expected
    for kind, field in (("text", "text"), ("output_text", "text"), ("refusal", "refusal")):
        assert answer(live, user(picture, {"type": kind, field: "What?"})) == expected


def test_the_limit_of_pixels_holds_a_phones_pictures() -> None:
    assert Limits().image_pixels >= 8064 * 6048


# --------------------------------------------------------------------------------------------------------- blank texts


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "<|im_end|>", [], None, [{"type": "text", "text": " "}]])
def test_blank_texts_are_skipped(live: Live, plain: Bagel, blank: Any) -> None:
    expected = plain.interleave(["What?", "And?"], output="text", max_new_tokens=6)
    for place, role in enumerate(("system", "user", "assistant")):
        messages = [*user("What?"), *user("And?")]
        messages.insert(place, {"role": role, "content": blank})
        assert answer(live, messages) == expected


def test_blank_texts_beside_an_image_are_skipped(live: Live, plain: Bagel, image: Image.Image) -> None:
    shown = {"type": "image_url", "image_url": {"url": data_uri(image)}}
    blank = {"type": "text", "text": " "}
    expected = plain.interleave([image], output="text", max_new_tokens=6)
    assert answer(live, user(shown)) == answer(live, user(shown, blank)) == answer(live, user(blank, shown)) == expected


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        (user(" "), "neither a picture nor a text that is not blank"),
        ([{"role": "system", "content": ""}, {"role": "user", "content": []}], "neither a picture nor a text"),
        (user("<|im_end|>"), r'nothing is left of "<\|im_end\|>" without its special tokens, which are removed'),
    ],
)
def test_with_nothing_to_go_by_a_conversation_is_refused(live: Live, messages: Any, match: str) -> None:
    error = refused(live.post(CHAT, {"messages": messages}), 400, match)
    assert error["param"] == f"messages[{len(messages) - 1}].content"


@pytest.mark.parametrize("prompt", ["<|im_end|>", " <|im_<|im_start|>start|> "])
def test_a_prompt_of_special_tokens_is_quoted(live: Live, image: Image.Image, prompt: str) -> None:
    match = f"the text is {re.escape(repr(prompt))}: special tokens are removed, and nothing is left"
    assert refused(live.post(GENERATIONS, {"prompt": prompt}), 400, match)["param"] == "prompt"
    files = {"image": ("a.png", png(image))}
    assert refused(live.post(EDITS, data={"prompt": prompt}, files=files), 400, match)["param"] == "prompt"


def test_an_answer_is_not_continued(live: Live) -> None:
    messages = [*user("x"), {"role": "assistant", "content": "y"}]
    error = refused(live.post(CHAT, {"messages": messages}), 400, "this server does not continue an answer")
    assert error["param"] == "messages[1].role"


# -------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("path", [CHAT, GENERATIONS, EDITS])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[]", "not a JSON object: send one with Content-Type: application/json"),
        (b"null", "not a JSON object"),
        (b"1", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{", "not valid JSON .*character 1"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 9999 + b"}", "whole number of thousands of digits"),
    ],
)
def test_bodies_that_are_no_json_object(live: Live, path: str, content: bytes, match: str) -> None:
    refused(live.post(path, content=content, headers=JSON), 400, match)


@pytest.mark.parametrize("path", [CHAT, GENERATIONS])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_json_under_another_type(live: Live, path: str, kind: str) -> None:
    body = json.dumps({"prompt": "x", "messages": user("hi")}).encode()
    refused(
        live.post(path, content=body, headers={"content-type": kind}), 400, "send one with Content-Type: application/js"
    )
    refused(live.post(path), 400, "send one with Content-Type: application/json")


def test_edits_say_what_to_send(live: Live) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        answer = live.post(EDITS, content=b'{"prompt": "x"}', headers={"content-type": kind})
        refused(answer, 400, "send multipart/form-data with one or several files, or JSON")


@pytest.mark.parametrize(
    ("path", "body", "param", "match"),
    [
        (CHAT, {}, "messages", "messages is missing"),
        (CHAT, {"messages": []}, "messages", "messages is empty"),
        (CHAT, {"messages": "hi"}, "messages", 'messages is "hi": it must be a list'),
        (CHAT, {"messages": ["hi"]}, "messages[0]", "must be an object"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
        (CHAT, said(5), "messages[0].content", "is 5: it must be a text or a list"),
        (CHAT, said({"type": "image_url", "image_url": 5}), f"{PART}.image_url", "is 5: it must be an object or"),
        (CHAT, said({"type": "image_url", "image_url": "x"}), f"{PART}.image_url", "fetches no pictures"),
        (CHAT, said({"type": "image_url", "image_url": {"url": "data:,x"}}), f"{PART}.image_url.url", "known picture"),
        (CHAT, said({"type": "image", "source": {"data": "!"}}), f"{PART}.source.data", "not valid base64"),
        (CHAT, said({"type": "image_url"}), PART, "it has no picture"),
        (CHAT, said({"type": "text"}), f"{PART}.text", "is missing"),
        (CHAT, said({"type": "video"}), f"{PART}.type", 'is "video": a part must be of type "text"'),
        (CHAT, {"messages": user("x"), "n": "many"}, "n", 'n is "many": it must be a whole number'),
        (CHAT, {"messages": user("x"), "n": 9}, "n", "n is 9"),
        (CHAT, {"messages": user("x"), "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        (CHAT, {"messages": user("x"), "stop": "y" * 2000}, "stop", "stop texts"),
        (CHAT, {"messages": user("x"), "modalities": ["image"], "size": "50x50"}, "size", "multiple of 16"),
        (GENERATIONS, {"prompt": ""}, "prompt", "write something"),
        (GENERATIONS, {"prompt": 5}, "prompt", "prompt is 5: it must be a text"),
        (GENERATIONS, {"prompt": "x", "n": 9}, "n", "n is 9"),
        (GENERATIONS, {"prompt": "x", "size": "50x50"}, "size", "multiple of 16"),
        (GENERATIONS, {"prompt": "x", "size": "4000x4000"}, "size", "size"),
        (GENERATIONS, {"prompt": "x", "num_timesteps": 900}, "num_timesteps", "at most 250"),
        (GENERATIONS, {"prompt": "x", "seed": 2**63 - 1, "n": 2}, "seed", "above"),
        (GENERATIONS, {"prompt": "x", "stream": "perhaps"}, "stream", "must be true or false"),
        (GENERATIONS, {"prompt": "x", "output_compression": 101}, "output_compression", "must be 100 or less"),
        (EDITS, {"prompt": "x"}, "image", "image is missing"),
        (EDITS, {"image": "data:,x"}, "prompt", "prompt is missing"),
        (EDITS, {"prompt": "x", "image": "data:,x"}, "image", "known picture format"),
        (EDITS, {"prompt": "x", "images": [{"file_id": "f"}]}, "images[0]", "give data URIs"),
        (EDITS, {"prompt": "x", "images": [{"image_url": "data:;base64,!"}]}, "images[0].image_url", "base64"),
        (EDITS, {"prompt": "x", "images": ["data:,x"] * 9}, None, "at most 8"),
    ],
)  # fmt: skip
def test_param_is_a_place_in_the_clients_own_body(live: Live, path: str, body: Any, param: str, match: str) -> None:
    assert refused(live.post(path, body), 400, match)["param"] == param


# --------------------------------------------------------------------------------------------------------------- edits


def test_edits_of_a_json_body(live: Live, plain: Bagel, image: Image.Image) -> None:
    one = same_as(plain.edit(image, "night", seed=2))
    uri, other = data_uri(image), data_uri(image.rotate(180))
    for given in (
        {"image": uri},
        {"image": [uri]},
        {"image": {"image_url": uri}},
        {"images": [{"image_url": uri}]},
        {"images": [{"image_url": {"url": uri}}]},
        {"images": [{"b64_json": uri.partition(",")[2]}]},
    ):
        assert one(live.post(EDITS, {"prompt": "night", "seed": 2, **given}))
    both = same_as(plain.edit([image, image.rotate(180)], "night", seed=2))
    assert both(live.post(EDITS, {"prompt": "night", "seed": 2, "images": [uri, {"image_url": other}]}))


def same_as(expected: Any) -> Any:
    def check(response: Any) -> bool:
        assert response.status_code == 200, response.text
        return same(opened(response.json()["data"][0]["b64_json"]), expected)

    return check


def test_edits_of_forms(live: Live, plain: Bagel, image: Image.Image) -> None:
    """Blank fields are not given, pictures may be numbered, and a data URI is a picture, too."""
    other = image.rotate(180)
    blank = dict.fromkeys(
        ("n", "size", "seed", "stream", "mask", "quality", "user", "num_timesteps", "cfg_interval"), ""
    )
    given = {"prompt": "night", "seed": "2"}
    one = same_as(plain.edit(image, "night", seed=2))
    assert one(live.post(EDITS, data={**blank, **given}, files={"image": ("a.png", png(image))}))
    assert one(live.post(EDITS, data={**given, "image": data_uri(image)}))
    two = same_as(plain.edit([image, other], "night", seed=2))
    for fields in (("image[0]", "image[1]"), ("image[]", "image[]"), ("image", "image")):
        files = [(name, ("a.png", png(own))) for name, own in zip(fields, (image, other), strict=True)]
        assert two(live.post(EDITS, data=given, files=files))
    turned = [("image[1]", ("b.png", png(other))), ("image[0]", ("a.png", png(image)))]
    assert two(live.post(EDITS, data=given, files=turned))
    files = {"image": ("a.png", png(image))}
    assert refused(live.post(EDITS, data={"prompt": " "}, files=files), 400, "prompt is missing")["param"] == "prompt"


# ------------------------------------------------------------------------------------------- fields that say "nothing"


def test_minus_one_is_none(live: Live, plain: Bagel) -> None:
    body = {"messages": user("Say."), "seed": -1, "top_k": -1, "max_tokens": -1, "max_completion_tokens": -1}
    response = live.post(CHAT, body).json()
    assert response["choices"][0]["message"]["content"] == plain.ask(None, "Say.")
    assert response["usage"]["completion_tokens_limit"] == 12  # the checkpoint's own
    assert live.post(GENERATIONS, {"prompt": "x", "seed": -1, "max_think_tokens": -1}).json()["data"][0]["seed"] >= 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_tokens_are_as_many_as_there_are(live: Live, name: str, stream: bool) -> None:
    value = 30_000 if name == "max_new_tokens" else 10**12
    body = {"messages": user("Say."), name: value, "stream": stream, "stop": ["e", "a", " "]}
    response = live.post(CHAT, {**body, **({"stream_options": {"include_usage": True}} if stream else {})})
    assert response.status_code == 200, response.text
    usage = json.loads(response.text.split("data: ")[-2]) if stream else response.json()
    assert usage["usage"]["completion_tokens_limit"] == Limits().new_tokens


def test_fields_without_effect_are_named(live: Live, image: Image.Image) -> None:
    client = live.openai()
    raw = client.images.with_raw_response.generate(
        prompt="a car", quality="high", style="vivid", user="me", moderation="low", extra_body=FEW
    )
    assert raw.headers["x-bagel-ignored"] == "quality, style, user"
    edit = client.images.with_raw_response.edit(
        image=("a.png", png(image)), prompt="x", input_fidelity="high", quality="low", extra_body=FEW
    )
    assert sorted(edit.headers["x-bagel-ignored"].split(", ")) == ["input_fidelity", "quality"]
    for stream in (False, True):
        chat = live.post(
            CHAT,
            {
                "messages": user("x"),
                "max_tokens": 2,
                "stream": stream,
                "frequency_penalty": 0.5,
                "presence_penalty": 0,
                "verbosity": "low",
                "metadata": {"a": "b"},
            },
        )
        assert chat.headers["x-bagel-ignored"] == "frequency_penalty, verbosity, metadata"
    assert "x-bagel-ignored" not in live.post(CHAT, {"messages": user("x"), "max_tokens": 2}).headers


FEW = {"num_timesteps": 2}


def test_effort_switches_thinking(live: Live) -> None:
    def thinks(**fields: Any) -> bool:
        sent = {"messages": user("x"), "max_tokens": 3, **fields}
        tokens: int = live.post(CHAT, sent).json()["usage"]["prompt_tokens"]
        return tokens > 10  # the system prompt for thinking was read

    assert [thinks(reasoning_effort=effort) for effort in ("none", "minimal", "low", "high")] == [0, 0, 1, 1]
    assert not thinks(reasoning_effort="high", think=False)
    assert not thinks(think=False, reasoning_effort="high")


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"logprobs": True},
        {"logit_bias": {"5": -100}},
        {"response_format": {"type": "json_schema"}},
        {"audio": {"voice": "x"}},
    ],
)
def test_what_clients_rely_on_is_not_ignored(live: Live, field: dict[str, Any]) -> None:
    (name,) = field
    assert refused(live.post(CHAT, {"messages": user("x"), **field}), 400, f"no {name}")["param"] == name


def test_a_strict_server_ignores_nothing_that_asks_for_something(loaded: Bagel) -> None:
    bagel = Bagel(loaded.checkpoint, defaults=loaded.defaults)
    with running(bagel, ServerOptions(model_name="tiny", strict=True)) as live:
        for field in ({"quality": "high"}, {"style": "vivid"}, {"input_fidelity": "high"}):
            (name,) = field
            assert refused(live.post(GENERATIONS, {"prompt": "x", **field}), 400, f"no {name}")["param"] == name
        for field in ({"reasoning_effort": "low"}, {"verbosity": "low"}, {"frequency_penalty": 1}):
            (name,) = field
            assert refused(live.post(CHAT, {"messages": user("x"), **field}), 400, f"no {name}")["param"] == name
        neutral = {"quality": "auto", "user": "me", **FEW}
        assert live.post(GENERATIONS, {"prompt": "x", **neutral}).headers["x-bagel-ignored"] == "user"


def test_a_prompt_outside_of_what_the_checkpoint_knows_gets_a_hint(loaded: Bagel, image: Image.Image) -> None:
    scope = Scope(about="cars", words=("a", "red", "car"))
    defaults = dataclasses.replace(loaded.defaults, scope=scope)
    with running(Bagel(loaded.checkpoint, defaults=defaults)) as live:
        hint = "this model has never read 'corgi': it knows cars."
        assert live.post(GENERATIONS, {"prompt": "a red corgi", **FEW}).headers["x-bagel-hint"] == hint
        assert "x-bagel-hint" not in live.post(GENERATIONS, {"prompt": "a red car", **FEW}).headers
        body = {"messages": user("a 汽车"), "max_tokens": 2}
        for stream in (False, True):
            assert r"'\u6c7d\u8f66'" in live.post(CHAT, {**body, "stream": stream}).headers["x-bagel-hint"]
        edit = live.post(EDITS, {"prompt": "a corgi", "image": data_uri(image), **FEW})
        assert edit.headers["x-bagel-hint"] == hint


# ---------------------------------------------------------------------------------------------------- routes and names


def test_head_is_get_without_a_body(live: Live) -> None:

    for path in (
        "/",
        "/health",
        "/ready",
        "/metrics",
        "/version",
        "/v1/models",
        "/v1/models/tiny",
        "/docs",
        "/nowhere",
    ):
        head, get = httpx2.head(live.url + path), live.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert live.metric('bagel_http_requests_total{method="HEAD",route="/health",status="200"}') == 1


def test_the_reference_needs_no_other_server(live: Live) -> None:
    for path in ("/docs", "/redoc"):
        page = live.get(path).text
        assert "//" not in re.sub(r"<!--.*?-->", "", page.split("<script>")[0], flags=re.DOTALL).replace(
            "<!DOCTYPE", ""
        )
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert any(link.endswith(".js") for link in links)
        for link in links:
            assert link.startswith("/"), link
            assert live.get(link).status_code == 200
    assert live.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_the_first_address_says_where_things_are(live: Live) -> None:
    found = live.get("/").json()
    assert (found["model"], found["version"]) == ("tiny", __version__)
    for name in ("docs", "openapi", "models", "health", "ready", "metrics"):
        assert live.get(found[name]).status_code == 200
    assert live.get("/version").json() == {"version": __version__}


def test_a_model_has_several_names(live: Live) -> None:
    client = live.openai()
    names = ["tiny", "gpt-image-1", "dall-e-3"]
    assert [model.id for model in client.models.list()] == names
    for name in names:
        assert client.models.retrieve(name).id == name
        messages: Any = user("x")
        assert client.chat.completions.create(model=name, messages=messages, max_tokens=2).model == name
        assert client.images.generate(model=name, prompt="x", extra_body=FEW).data
    sentence = "the model 'gpt-9' does not exist here: this server has 'tiny' and 'gpt-image-1' and 'dall-e-3'"
    assert refused(live.post(GENERATIONS, {"model": "gpt-9", "prompt": "x"}), 404, sentence)["param"] == "model"


# -------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_leaves_one_line(
    bagel: Bagel, hold: Hold, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    hold.after(3)
    with running(bagel) as live:
        with asking(live, json.dumps({**DRAW, "num_timesteps": 100, "n": 2, "stream": stream}).encode()):
            wait_for(lambda: live.service.present == 2)
        wait_for(lambda: "bagel_mot.serving" in {record.name for record in caplog.records})
        hold.release()
        wait_for(lambda: live.service.present == 0)
    gc.collect()
    lines = [record for record in caplog.records if record.name.startswith(("bagel_mot", "asyncio", "uvicorn"))]
    assert [record.levelname for record in lines if record.levelno > logging.INFO] == []
    (line,) = [record.getMessage() for record in lines if "req_" in record.getMessage()]
    assert "POST /v1/images/generations 499" in line


# ----------------------------------------------------------------------------------------------------------- odd bodies


ODD: list[Any] = [None, "", " ", "x", -1, 0, 1e308, 10**30, True, [], [None], {}, {"a": 1}, [[]], "\ud800", "💥" * 50]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("messages", "model", "modalities", "n", "max_tokens", "stream", "stream_options", "temperature", "top_p"),
        *("top_k", "seed", "stop", "think", "size", "tools", "response_format", "logit_bias", "quality", "user"),
        *("prompt", "image", "images", "output_format", "output_compression", "partial_images", "cfg_interval"),
    ],
)
def test_no_odd_value_is_a_fault_of_the_server(live: Live, image: Image.Image, name: str) -> None:
    bodies = {
        CHAT: {"messages": user("x"), "max_tokens": 2},
        GENERATIONS: {"prompt": "x", **FEW, "size": "16x16"},
        EDITS: {"prompt": "x", **FEW, "image": data_uri(image)},
    }
    for (path, body), value in itertools.product(bodies.items(), ODD):
        if path == CHAT and name in ("prompt", "image", "images", "output_format", "output_compression"):
            continue
        content = json.dumps({**body, name: value}).encode()
        response = live.post(path, content=content, headers=JSON)
        assert response.status_code < 500, (path, name, value, response.text)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    for value in ODD:
        odd = [
            {"role": value, "content": "x"},
            {"role": "user", "content": value},
            {"role": "user", "content": [value]},
        ]
        odd += [{"role": "user", "content": [{"type": kind, key: value}]} for kind, key in PARTS]
        for message in odd if name == "messages" else ():
            content = json.dumps({"messages": [message], "max_tokens": 2}).encode()
            assert live.post(CHAT, content=content, headers=JSON).status_code < 500, message


PARTS = [("text", "text"), ("refusal", "refusal"), ("image_url", "image_url"), ("image", "source"), ("x", "type")]

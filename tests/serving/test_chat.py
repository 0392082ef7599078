"""/v1/chat/completions through the real client of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from bagel_mot import Bagel
from tests.serving.conftest import Live, data_uri, opened, refused, running, same


@pytest.fixture(scope="module")
def live(loaded: Bagel) -> Iterator[Live]:
    with running(Bagel(loaded.checkpoint, defaults=loaded.defaults)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(loaded: Bagel) -> Bagel:
    """The same model, asked directly."""
    return Bagel(loaded.checkpoint, defaults=loaded.defaults)


def shown(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(image)}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


# --------------------------------------------------------------------------------------------------------------- text


def test_answers_are_those_of_the_model_alone(live: Live, plain: Bagel, image: Image.Image) -> None:
    completion = live.openai().chat.completions.create(
        model="tiny", messages=[user(shown(image), said("What is it?"))], max_tokens=9
    )
    expected = plain.ask(image, "What is it?", max_new_tokens=9, return_result=True)
    choice = completion.choices[0]
    assert choice.message.content == expected.text
    assert choice.finish_reason == ("stop" if expected.complete else "length")
    assert completion.model == "tiny"
    assert completion.object == "chat.completion"


def test_usage_counts_what_was_read_and_written(live: Live, image: Image.Image) -> None:
    stats = live.bagel.engine.stats
    for content in ("Who is it?", [shown(image.rotate(90)), said("How many are there here?")]):
        read, written = stats.prefill_tokens, stats.written_tokens
        completion = live.openai().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}], max_tokens=7
        )
        usage = completion.usage
        assert usage is not None
        assert usage.prompt_tokens == stats.prefill_tokens - read
        assert usage.completion_tokens == stats.written_tokens - written
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        details = usage.prompt_tokens_details
        assert details is not None
        assert (details.image_tokens or 0) > 0 if isinstance(content, list) else details.image_tokens == 0


def test_finish_reason_and_stop(live: Live, spoken: Callable[[str], None]) -> None:
    client = live.openai()
    spoken("one two three")
    messages: Any = [user("Count.")]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=100)
    assert whole.usage is not None
    tokens = whole.usage.completion_tokens  # the end token included
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("one two three", "stop")
    exact = client.chat.completions.create(model="tiny", messages=messages, max_tokens=tokens)
    assert exact.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=tokens - 1)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one two three", "length")
    for stop in (" two", [" three", " two"]):
        stopped = client.chat.completions.create(model="tiny", messages=messages, max_tokens=100, stop=stop)
        assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one", "stop")


def test_temperature_samples_and_zero_does_not(live: Live, plain: Bagel) -> None:
    create = live.openai().chat.completions.create
    messages: Any = [user("Say something.")]

    def text(**more: Any) -> str:
        return create(model="tiny", messages=messages, max_tokens=12, **more).choices[0].message.content or ""

    greedy = plain.ask(None, "Say something.", max_new_tokens=12)
    assert text() == text(temperature=0) == greedy
    sampled = plain.ask(None, "Say something.", max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9, seed=4)
    assert text(temperature=1.5, top_p=0.9, seed=4) == sampled != greedy
    assert text(temperature=1.5, seed=4, extra_body={"do_sample": False}) == greedy
    alone = plain.ask(None, "Say something.", max_new_tokens=12, do_sample=True, temperature=1.0, top_p=0.8, seed=4)
    assert text(top_p=0.8, seed=4) == alone


def test_n_answers_with_seeds_counting_up(live: Live, plain: Bagel) -> None:
    completion = live.openai().chat.completions.create(
        model="tiny", messages=[user("Say.")], n=3, seed=7, temperature=2.0, max_tokens=8
    )
    alone = [
        plain.ask(None, "Say.", do_sample=True, temperature=2.0, seed=seed, max_new_tokens=8) for seed in (7, 8, 9)
    ]
    assert [choice.message.content for choice in completion.choices] == alone
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert [choice.model_extra["seed"] for choice in completion.choices if choice.model_extra] == [7, 8, 9]


def test_a_conversation_is_read_in_order(live: Live, plain: Bagel, image: Image.Image) -> None:
    other = image.rotate(180)
    completion = live.openai().chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            user(said("Turn it."), shown(image)),
            {"role": "assistant", "content": "", "images": [shown(other)]},  # type: ignore[list-item,misc]
            user("And now?"),
        ],
        max_tokens=8,
    )
    # Where a message ends with a picture, its text comes after it.
    expected = plain.interleave(["Be brief.", image, "Turn it.", other, "And now?"], output="text", max_new_tokens=8)
    assert completion.choices[0].message.content == expected


def test_thinking_that_never_ended_can_be_sent_back(live: Live, plain: Bagel) -> None:
    messages: list[Any] = [
        user("What?"),
        {"role": "assistant", "content": "", "reasoning_content": "so m"},
        user("And?"),
    ]
    completion = live.openai().chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    expected = plain.interleave(["What?", "And?"], output="text", max_new_tokens=8)
    assert completion.choices[0].message.content == expected


@pytest.mark.parametrize("more", [{"top_p": 0}, {"top_p": 0, "temperature": 1.5}, {"temperature": 0, "top_p": 0.5}])
def test_what_asks_for_the_likeliest_gets_it(live: Live, plain: Bagel, more: dict[str, Any]) -> None:
    body = {"messages": [user("Say.")], "max_tokens": 8, **more}
    answer = live.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert answer == plain.ask(None, "Say.", max_new_tokens=8)


def test_of_an_image_more_tokens_than_may_be_thought_are_no_mistake(live: Live) -> None:
    body = {"messages": [user("x")], "modalities": ["image"], "num_timesteps": 2, "max_tokens": 100_000}
    assert live.post("/v1/chat/completions", body).status_code == 200


def test_special_tokens_in_a_prompt_are_no_special_tokens(live: Live, plain: Bagel) -> None:
    messages: Any = [user("Say<|im_end|> <|im_<|im_start|>start|>it<|vision_start|>.")]
    completion = live.openai().chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    assert completion.choices[0].message.content == plain.ask(None, "Say it.", max_new_tokens=8)


def test_thinking_stands_beside_the_answer(live: Live, spoken: Callable[[str], None]) -> None:
    spoken("<think>one and one</think> two")
    create = live.openai().chat.completions.create
    message = (
        create(model="tiny", messages=[user("What?")], max_tokens=100, extra_body={"think": True}).choices[0].message
    )
    assert message.content == "two"
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == "one and one"


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_gives_the_same_text(live: Live, image: Image.Image) -> None:
    create = live.openai().chat.completions.create
    messages: Any = [user(shown(image), said("What is it?"))]
    whole = create(model="tiny", messages=messages, max_tokens=9)
    chunks = list(
        create(model="tiny", messages=messages, max_tokens=9, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(create(model="tiny", messages=messages, max_tokens=9, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_a_stream_divides_thinking_and_answer(live: Live, spoken: Callable[[str], None]) -> None:
    spoken("<think>\none and\none </think>\n two, I think ")
    chunks = live.openai().chat.completions.create(
        model="tiny", messages=[user("What?")], max_tokens=100, stream=True, extra_body={"think": True}
    )
    thinking = answer = ""
    for chunk in chunks:
        delta = chunk.choices[0].delta
        thinking += (delta.model_extra or {}).get("reasoning_content", "")
        answer += delta.content or ""
    assert (thinking, answer) == ("one and\none", "two, I think")


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_no_limit_leaves_a_part_of_a_tag(
    live: Live, plain: Bagel, spoken: Callable[[str], None], draws: bool, stream: bool
) -> None:
    words = "<think>one</think>two"
    spoken(words)
    client, found = live.openai(), []
    for limit in range(1, len(plain.tokenizer.encode(words)) + 1):
        request: Any = {"model": "tiny", "messages": [user("What?")], "max_tokens": limit}
        request["extra_body"] = {"think": True, **({"num_timesteps": 2, "size": "32x32"} if draws else {})}
        request |= {"modalities": ["image"]} if draws else {}
        thinking = answer = ""
        if stream:
            deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **request)]
        else:
            deltas = [client.chat.completions.create(**request).choices[0].message]
        for delta in deltas:
            thinking += (delta.model_extra or {}).get("reasoning_content") or ""
            answer += delta.content or ""
        assert "<" not in thinking + answer
        found.append((thinking, answer))
    assert found[-1] == (("one two", "") if draws else ("one", "two"))


# ------------------------------------------------------------------------------------------------------------ pictures


def test_images_when_asked_for(live: Live, plain: Bagel, image: Image.Image) -> None:
    completion = live.openai().chat.completions.create(
        model="tiny",
        messages=[user(said("make it night"), shown(image))],
        modalities=["image"],  # type: ignore[list-item]
        seed=3,
        extra_body={"num_timesteps": 4, "cfg_text_scale": 3},
    )
    message = completion.choices[0].message
    assert message.content is None
    assert message.model_extra is not None
    (part,) = message.model_extra["images"]
    assert part["type"] == "image_url"
    expected = plain.edit(image, "make it night", seed=3, num_timesteps=4, cfg_text_scale=3)
    assert same(opened(part["image_url"]["url"]), expected)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == expected.width * expected.height // 256 + 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_with_its_thinking(live: Live, spoken: Callable[[str], None], stream: bool) -> None:
    spoken("<think> a car </think> in red")
    request: Any = {
        "model": "tiny",
        "messages": [user("a car")],
        "modalities": ["text", "image"],
        "extra_body": {"think": True, "max_think_tokens": 50, "size": "32x32"},
        "seed": 0,
    }
    create = live.openai().chat.completions.create
    if stream:
        deltas = [chunk.choices[0].delta for chunk in create(stream=True, **request)]
        text = "".join(delta.content or "" for delta in deltas)
        images = [image for delta in deltas for image in (delta.model_extra or {}).get("images", [])]
    else:
        message = create(**request).choices[0].message
        text, images = message.content or "", (message.model_extra or {})["images"]
    assert text == "a car in red"
    assert [opened(image["image_url"]["url"]).size for image in images] == [(32, 32)]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role is \"tool\": it must be .system"),
        ({"messages": [{"role": "user", "content": " "}]}, "neither a picture nor a text that is not blank"),
        ({"messages": [{"role": "user", "content": None}]}, "neither a picture nor a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "a part must be of type",
        ),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "last message"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"modalities": []}, "modalities is empty"),
        ({"n": 0}, "n is 0"),
        ({"n": 100}, "n is 100"),
        ({"temperature": 11}, "temperature is 11"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"max_completion_tokens": 3, "max_new_tokens": 4}, "max_completion_tokens and max_new_tokens differ"),
        ({"max_tokens": -5}, "max_tokens is -5: it must be -1 or more"),
        ({"cfg_text_scale": 3}, "cfg_text_scale is no setting of 'ask'"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"tools": [{"type": "function"}]}, "no tools"),
        ({"response_format": {"type": "json_object"}}, "no response_format"),
        ({"stream_options": {"include_usage": True}}, "set stream to true"),
        ({"seed": -2}, "seed is -2"),
        ({"stream": True, "seed": 2**63 - 1, "n": 2}, "above"),
        ({"modalities": ["image"], "size": "47x32"}, "multiple of 16"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"\ud800": 1}, "valid string"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(live: Live, more: dict[str, Any], match: str) -> None:
    body = {"messages": [user("x")], **more}
    content = json.dumps(body).encode()
    refused(
        live.post("/v1/chat/completions", None, content=content, headers={"content-type": "application/json"}),
        400,
        match,
    )


def test_errors_reach_the_client_of_openai(live: Live) -> None:
    client = live.openai()
    with pytest.raises(openai.NotFoundError, match="does not exist here") as found:
        client.chat.completions.create(model="gpt-9", messages=[user("x")])
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature is 11") as refusal:
        client.chat.completions.create(model="tiny", messages=[user("x")], temperature=11)
    assert refusal.value.param == "temperature"


def test_what_says_nothing_is_taken(live: Live) -> None:
    create = live.openai().chat.completions.create
    completion = create(
        model="tiny",
        messages=[user("x")],
        max_tokens=2,
        user="me",
        store=False,
        metadata={"a": "b"},
        frequency_penalty=0,
        presence_penalty=0,
        logprobs=False,
        response_format={"type": "text"},
    )
    assert completion.choices

"""/v1/images/* through the real client of OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.inference.preview import due
from bagel_mot.serving.openai.streams import chosen_previews
from tests.serving.conftest import Live, opened, png, refused, running, same


@pytest.fixture(scope="module")
def live(loaded: Bagel) -> Iterator[Live]:
    with running(Bagel(loaded.checkpoint, defaults=loaded.defaults)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(loaded: Bagel) -> Bagel:
    return Bagel(loaded.checkpoint, defaults=loaded.defaults)


def test_images_are_those_of_the_model_alone(live: Live, plain: Bagel) -> None:
    stats = live.bagel.engine.stats
    read = stats.prefill_tokens
    response = live.openai().images.generate(
        model="tiny", prompt="a red car", n=2, size="32x48", extra_body={"seed": 5, "cfg_interval": [0, 1]}
    )
    expected = plain.generate("a red car", n=2, size=(32, 48), seed=5, cfg_interval=(0, 1))
    assert response.data is not None
    assert all(same(opened(d.b64_json or ""), e) for d, e in zip(response.data, expected, strict=True))
    assert [(d.model_extra or {})["seed"] for d in response.data] == [5, 6]
    assert (response.size, response.output_format, response.background) == ("32x48", "png", "opaque")
    usage = response.usage
    assert usage is not None
    assert usage.input_tokens == stats.prefill_tokens - read  # one read it for both
    assert usage.input_tokens_details.image_tokens == 0
    assert usage.output_tokens == 2 * (2 * 3 + 2)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_png_says_how_it_was_made(live: Live) -> None:
    response = live.openai().images.generate(prompt="a red car", extra_body={"seed": 5})
    assert response.data
    info = opened(response.data[0].b64_json or "").info
    assert (info["prompt"], info["seed"]) == ("a red car", "5")


@pytest.mark.parametrize(("form", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats_and_default_size(live: Live, form: Any, name: str) -> None:
    more: dict[str, Any] = {} if form == "png" else {"output_compression": 50}
    response = live.openai().images.generate(prompt="a car", size="auto", output_format=form, **more)
    assert response.data
    image = opened(response.data[0].b64_json or "")
    assert (image.format, image.size, response.output_format) == (name, (48, 32), form)


def test_streams_with_partial_images(live: Live, plain: Bagel) -> None:
    events: Any = live.openai().images.generate(
        prompt="a red car", stream=True, partial_images=2, n=2, extra_body={"seed": 1, "num_timesteps": 17}
    )
    found = list(events)
    expected = plain.generate("a red car", n=2, seed=1, num_timesteps=17)
    for index in (0, 1):
        own = [event for event in found if event.model_extra["index"] == index]
        assert [event.type for event in own] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert [event.partial_image_index for event in own[:2]] == [0, 1]
        assert all(opened(event.b64_json).size == (48, 32) for event in own)
        assert same(opened(own[2].b64_json), expected[index])
        assert own[2].usage.output_tokens == 2 * 3 + 2
    without: Any = live.openai().images.generate(prompt="a red car", stream=True)
    assert [event.type for event in without] == ["image_generation.completed"]


@pytest.mark.parametrize("timesteps", [2, 3, 5, 10, 25, 50, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_partial_images_are_spread_over_those_there_are(timesteps: int, count: int) -> None:
    given = sum(due(done, timesteps - 1) for done in range(1, timesteps - 1))
    chosen = chosen_previews(timesteps, count)
    assert len(chosen) == min(count, given)
    assert sorted(set(chosen)) == chosen
    assert all(0 <= number < given for number in chosen)


def test_edits_of_one_image_and_of_several(live: Live, plain: Bagel, image: Image.Image) -> None:
    client = live.openai()
    other = image.rotate(180)
    one = client.images.edit(image=("a.png", png(image)), prompt="make it night", extra_body={"seed": 2})
    assert one.data
    assert same(opened(one.data[0].b64_json or ""), plain.edit(image, "make it night", seed=2))
    two = client.images.edit(
        image=[("a.png", png(image)), ("b.png", png(other))],
        prompt="put them together",
        extra_body={"seed": 2, "cfg_interval": [0.2, 0.9], "think": False, "cfg_image_scale": 1.5},
    )
    assert two.data
    expected = plain.edit([image, other], "put them together", seed=2, cfg_interval=(0.2, 0.9), cfg_image_scale=1.5)
    assert same(opened(two.data[0].b64_json or ""), expected)
    assert two.usage is not None
    assert two.usage.input_tokens_details.image_tokens > 0


def test_results_of_one_input_read_it_once(loaded: Bagel, plain: Bagel, image: Image.Image) -> None:
    """Four edits cost the encodings and the prefill tokens of one."""
    read = []
    for n in (1, 4):
        with running(Bagel(loaded.checkpoint, defaults=loaded.defaults)) as live:
            edit = live.openai().images.edit(image=("a.png", png(image)), prompt="x", n=n, extra_body={"seed": 2})
            stats = live.bagel.engine.stats
            read.append((stats.encoded, stats.prefill_tokens))
        assert edit.data
        assert edit.usage is not None
        assert edit.usage.output_tokens == n * 14  # at 64×48
        expected = [plain.edit(image, "x", seed=2 + index) for index in range(n)]
        assert all(same(opened(d.b64_json or ""), e) for d, e in zip(edit.data, expected, strict=True))
    assert read[0] == read[1] == (1, read[0][1])


def test_edits_stream_under_their_own_name(live: Live, image: Image.Image) -> None:
    events: Any = live.openai().images.edit(
        image=("a.png", png(image)), prompt="make it night", stream=True, partial_images=1
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_large_image_is_read_as_the_model_alone_reads_it(live: Live, plain: Bagel, image: Image.Image) -> None:
    large = image.resize((913, 477))
    response = live.openai().images.edit(image=("a.png", png(large)), prompt="x", extra_body={"seed": 2})
    assert response.data
    assert same(opened(response.data[0].b64_json or ""), plain.edit(large, "x", seed=2))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "write something"),
        ({"response_format": "url"}, "no URLs"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": "33x32"}, "multiple of 16"),
        ({"size": "10000x10000"}, "size is 10000"),
        ({"n": 9}, "from 1 to 8"),
        ({"num_timesteps": 900}, "at most 250"),
        ({"cfg_text_scale": "high"}, "cfg_text_scale is 'high'"),
        ({"max_new_tokens": 3}, "no setting of 'generate'"),
        ({"partial_images": 2}, "set stream to true"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"output_compression": 50}, "a PNG loses nothing"),
        ({"output_format": "gif"}, "output_format"),
        ({"negative_prompt": "blur"}, "say in the prompt"),
        ({"background": "transparent"}, "no background"),
        ({"mask": "x"}, "no mask"),
    ],
)
def test_bad_generations_are_refused(live: Live, more: dict[str, Any], match: str) -> None:
    refused(live.post("/v1/images/generations", {"prompt": "x", **more}), 400, match)


@pytest.mark.parametrize(
    ("files", "data", "match"),
    [
        ({}, {"prompt": "x"}, "image is missing"),
        ({"image": b"no picture"}, {"prompt": "x"}, "known picture format"),
        ({"image": None}, {}, "prompt is missing"),
        ({"image": None, "mask": None}, {"prompt": "x"}, "no mask"),
        ({"image": None, "other": None}, {"prompt": "x"}, "only image is one"),
        ({"image": None}, {"prompt": "x", "think": "perhaps"}, "think is 'perhaps'"),
        ({"image": None}, {"prompt": "x", "num_timesteps": "many"}, "num_timesteps is 'many'"),
        ({"image": None}, {"prompt": "x", "image": "/etc/passwd"}, "image is not a file"),
    ],
)
def test_bad_edits_are_refused(
    live: Live, image: Image.Image, files: dict[str, Any], data: dict[str, str], match: str
) -> None:
    content = {name: ("a.png", png(image) if value is None else value) for name, value in files.items()}
    refused(live.post("/v1/images/edits", data=data, files=content), 400, match)


def test_too_many_images_are_refused(live: Live, image: Image.Image) -> None:
    files = [("image", ("a.png", png(image)))] * 9
    refused(live.post("/v1/images/edits", data={"prompt": "x"}, files=files), 400, "[Tt]oo many files")

"""Documents of text to image, edits of several images, thinking, pages, reasoning and self-supervised edits."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bagel_mot.data.documents import OPENERS, Document, ImagePart, TextPart, opened
from bagel_mot.data.draws import Draws, RandomDraws, all_outcomes
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.edit import Compose, EditSession
from bagel_mot.data.tasks.interleaved import ReasoningSteps, ReasoningTrace, WebPage
from bagel_mot.data.tasks.messages import Messages
from bagel_mot.data.tasks.self_edit import KINDS, SelfEdit
from bagel_mot.data.tasks.t2i import TextToImage, plain_captions
from bagel_mot.data.tasks.think import Thinking
from bagel_mot.errors import SettingError
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND

UPRIGHT = OPENERS["upright"]


def one(mapper: Callable[[Any, Draws], Document], row: Any, seed: int = 0) -> Document:
    return mapper(row, RandomDraws(random.Random(seed)))


def short(document: Document) -> list[str]:
    """A document in a line: T text, with ! where it is learnt and + where an image starts after it; images by their
    bytes, N noised, C clean, V for the ViT. In brackets what may be dropped.
    """
    found = []
    for part in document:
        if isinstance(part, TextPart):
            shown = f"T{'!' * part.loss}{'+' * part.starts_image} {part.text}"
        else:
            assert isinstance(part, ImagePart)
            shown = "N" * part.target + "C" * part.vae + "V" * part.vit + f" {part.image!r}"
        found.append(f"({shown})" if part.droppable else shown)
    return found


def test_a_caption_is_one_of_the_texts() -> None:
    row = {"image": b"i", "captions": json.dumps(["one", "two", "one"])}
    found = all_outcomes(lambda draws: tuple(short(TextToImage()(row, draws))))
    assert sum(p for p, texts in found if texts == ("(T one)", "N b'i'")) == Fraction(2, 3)
    plain = TextToImage(captions="caption", read=plain_captions, folder=Path("in"), copies=2)
    document = one(plain, {"image": "a.png", "caption": "a dog"})
    assert document == [
        TextPart("a dog", droppable=True),
        ImagePart(Path("in/a.png"), target=True, copies=2),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"captions": '{"a": "b"}'}, "the row has no image; it has captions"),
        ({"image": None, "captions": "{}"}, "image is null"),
        ({"image": b"i", "captions": None}, "captions is null"),
        ({"image": b"i", "captions": "{"}, "no JSON"),
        ({"image": b"i", "captions": "3"}, "a JSON object with texts is expected"),
        ({"image": b"i", "captions": "[]"}, "has no wording"),
        ({"image": b"i", "captions": '{"a": 3}'}, "a caption is 3, which is a int"),
        ({"image": 3.0, "captions": "{}"}, "an image is of the type float"),
        ({"image": "https://x.org/a.png", "captions": "{}"}, "URLs are not fetched"),
        ({"image": "data:image/png;base64,%%", "captions": "{}"}, "no valid base64"),
        ({"image": {"bytes": None, "path": None}, "captions": "{}"}, "an image is null"),
    ],
)
def test_an_unusable_row_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkipRow, match=reason):
        one(TextToImage(), row)


def test_images_come_in_every_form_that_rows_have() -> None:
    pillow = Image.new("RGB", (2, 2))
    for value, image in [
        ({"bytes": b"x", "path": "y"}, b"x"),
        ({"bytes": None, "path": "y"}, Path("y")),
        (bytearray(b"x"), b"x"),
        ("data:image/png;base64,eHl6", b"xyz"),
        (pillow, pillow),
        (Path("/z"), Path("/z")),
    ]:
        document = one(TextToImage(read=plain_captions), {"image": value, "captions": "c"})
        part = document[1]
        assert isinstance(part, ImagePart)
        assert part.image == image


def test_a_session_takes_wordings_in_lists_or_alone_and_names_of_files() -> None:
    row = {"image_list": ["a.png", "b.png"], "instruction_list": ["make it red"]}
    assert short(one(EditSession(folder=Path("in")), row)) == [
        f"(CV {Path('in/a.png')!r})",
        "(T make it red)",
        f"N {Path('in/b.png')!r}",
    ]
    for broken, reason in [
        ({**row, "image_list": ["a.png"]}, "there is one state in image_list; an edit needs two"),
        ({**row, "image_list": "a.png"}, "image_list is a str; a list is expected"),
        ({**row, "instruction_list": []}, "step 1 has no wording: instruction_list has 0 for 2 states"),
        ({**row, "instruction_list": [[]]}, "step 1 has no wording"),
        ({**row, "instruction_list": [None]}, "step 1 is None; a text, or a list of wordings, is expected"),
    ]:
        with pytest.raises(SkipRow, match=reason):
            one(EditSession(), broken)


def test_several_given_images_become_one() -> None:
    row = {"input_images": [b"a", b"b"], "instruction": ["put a into b"], "output_image": b"c"}
    assert short(one(Compose(), row)) == ["(CV b'a')", "(CV b'b')", "(T put a into b)", "N b'c'"]
    assert short(one(Compose(), {**row, "input_images": b"a"}))[0] == "(CV b'a')"
    with pytest.raises(SkipRow, match="input_images has 0 images; 1 to 8 are taken"):
        one(Compose(), {**row, "input_images": []})
    with pytest.raises(SkipRow, match="output_image has 2 images; one is expected"):
        one(Compose(), {**row, "output_image": [b"c", b"d"]})


def test_thinking_precedes_the_image_or_the_answer() -> None:
    row = {"given": b"a", "question": "q", "thought": "so", "image": b"b", "answer": "42"}
    drawing = Thinking(images="given", starts_image=True)
    start = f"T {SYSTEM_PROMPT_GENERATE}"
    assert short(one(drawing, row)) == [start, "CV b'a'", "T q", "T!+ <think>so</think>", "N b'b'"]
    assert short(one(Thinking(learnt=0.0), row)) == [start, "T q", "T <think>so</think>", "N b'b'"]
    answering = Thinking(images="given", target=None)
    assert short(one(answering, {**row, "thought": "<think>\nso\n</think>"})) == [
        f"T {SYSTEM_PROMPT_UNDERSTAND}",
        "V b'a'",
        "T q",
        "T! <think>\nso\n</think> 42",
    ]
    with pytest.raises(SkipRow, match="a thought is empty"):
        one(drawing, {**row, "thought": " "})


def test_a_page_is_a_stretch_of_images_planned_one_by_one() -> None:
    row = {"images": [b"0", b"1", b"2", b"3", b"4"], "captions": list("abcde"), "texts": [None, "p", "q", "", "s"]}
    outcomes = all_outcomes(lambda draws: tuple(short(WebPage(texts="texts", learnt=0.0, most=3)(row, draws))))
    assert sum(p for p, _ in outcomes) == 1
    found = {tuple(part.split("<think>")[0].strip("( )") for part in document) for _, document in outcomes}
    assert ("CV b'0'", "T p", "T", "N b'1'") in found
    assert ("CV b'1'", "T q", "T", "NCV b'2'", "T", "N b'3'") in found
    assert len(found) == 4 + 3
    texts = {part for _, document in outcomes for part in document if "think" in part}
    assert all(text.startswith("T <think>\n") and text.endswith("\n</think>") for text in texts)
    learnt = short(one(WebPage(learnt=1.0, starts_image=True), row))
    assert all(part.startswith("T!+") for part in learnt if "think" in part)
    with pytest.raises(SkipRow, match="the page has 1 images; 2 or more are taken"):
        one(WebPage(), {"images": [b"0"], "captions": ["a"]})
    with pytest.raises(SkipRow, match="5 images, 1 captions"):
        one(WebPage(), {**row, "captions": ["a"]})


def test_reasoning_in_steps_alternates_words_and_images() -> None:
    row = {"image_list": [b"0", b"1", b"2"], "instruction_list": [["go", "go"]], "output_text_list": ["a", "b", "end"]}
    assert short(one(ReasoningSteps(system="s"), row)) == [
        *("T s", "CV b'0'", "T go", "T!+ a", "NCV b'1'", "T!+ b", "NCV b'2'", "T! end"),
    ]
    row["output_text_list"].pop()
    assert short(one(ReasoningSteps(system=""), {**row, "instruction_list": "go"}))[-2:] == ["T!+ b", "N b'2'"]
    with pytest.raises(SkipRow, match="3 images and 1 thoughts"):
        one(ReasoningSteps(), {**row, "output_text_list": ["a"]})


def test_a_trace_names_its_images_in_marks() -> None:
    row = {
        "Question": "Where? <image_start>[problem_image_1]<image_end>",
        "Text Reasoning Trace": "First. <image_start>[reasoning_image_1]<image_end> So it is left.",
        "Final Answer": "left",
        "problem_image_1": b"p",
        "reasoning_image_1": {"bytes": b"r", "path": None},
    }
    assert short(one(ReasoningTrace(), row)) == [
        *("T Where?", "V b'p'", "T!+ First.", "NCV b'r'", "T! So it is left. Final Answer: left"),
    ]
    ends = {**row, "Text Reasoning Trace": "Look: <image_start>[reasoning_image_1]<image_end>"}
    assert short(one(ReasoningTrace(starts_image=False), ends))[2:] == ["T! Look:", "NCV b'r'", "T! Final Answer: left"]
    with pytest.raises(SkipRow, match="the row has no reasoning_image_1"):
        one(ReasoningTrace(), {k: v for k, v in row.items() if k != "reasoning_image_1"})


def test_images_without_any_mark_come_first() -> None:
    turns = [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "a fox"}]
    row = {"image": [b"1", b"2"], "conversations": turns}
    assert short(one(Conversation(), row)) == ["V b'1'", "V b'2'", "T who?", "T! a fox"]
    turns[0]["value"] = "who <image>?"
    assert short(one(Conversation(), row)) == ["T who", "V b'1'", "T ?", "T! a fox"]
    assert short(one(Conversation(), {**row, "conversations": turns[1:]})) == ["T! a fox"]


def message(role: str, *items: Any) -> dict[str, Any]:
    made = [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]
    return {"role": role, "content": made}


def test_messages_draw_edit_and_answer() -> None:
    image = {"type": "image", "image": {"bytes": b"i", "path": None}}
    linked = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eHl6"}}
    beside = {"type": "image"}
    drawing = {"messages": [message("user", "a fox"), message("assistant", beside)], "images": [b"fox"]}
    assert short(one(Messages(), drawing)) == ["(T a fox)", "N b'fox'"]
    edit = {"messages": [message("user", linked, "bluer"), message("assistant", image)]}
    assert short(one(Messages(), edit)) == ["(CV b'xyz')", "(T bluer)", "N b'i'"]
    chat = [{"role": "system", "content": "be short"}, message("user", image, "who?"), message("assistant", "a fox")]
    assert short(one(Messages(), {"messages": chat})) == ["T be short", "V b'i'", "T who?", "T! a fox"]
    both = [*chat, message("user", "draw it"), message("assistant", "Here:", image, "Done.")]
    assert short(one(Messages(starts_image=True), {"messages": both})) == [
        *("T be short", "CV b'i'", "T who?", "T! a fox", "T draw it", "T!+ Here:", "NCV b'i'", "T! Done."),
    ]
    for messages, reason in [
        ([message("user", "hello")], "the assistant gives no answer"),
        ([message("tool", "x")], "there are system, user and assistant"),
        ([{"role": "user"}], "it needs role and content"),
        ([message("user", {"type": "audio"})], "there are the types text, image and image_url"),
        ([message("assistant", beside)], "has no image, nor has images"),
        ("hello", "a list is expected"),
    ]:
        with pytest.raises(SkipRow, match=reason):
            one(Messages(), {"messages": messages})


def image_of(part: Any) -> np.ndarray:
    return np.asarray(opened(part.image, UPRIGHT)).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_is_made_of_one_image(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    mapper = pickle.loads(pickle.dumps(SelfEdit(kinds=(kind,), folder=tmp_path)))
    before, text, after = one(mapper, {"image": "a.png"}, seed=3)
    assert isinstance(text, TextPart)
    assert isinstance(before, ImagePart)
    assert (before.vae, before.vit, before.droppable, before.target) == (True, True, True, False)
    whole, spoiled = (image_of(before), image_of(after)) if kind == "zoom" else (image_of(after), image_of(before))
    assert (whole == levels).all()
    assert spoiled.shape == whole.shape
    assert (spoiled != whole).any()
    same, gray = (spoiled == whole).all(2), (spoiled == 128).all(2)
    if kind == "colourise":
        assert (spoiled == spoiled[..., :1]).all()
    elif kind in ("upscale", "deblur"):
        assert spoiled.std() < 0.8 * whole.std()
    elif kind == "inpaint":
        assert (same | gray).all()
        assert 0.03 < gray.mean() < 0.3
    elif kind == "outpaint":
        assert (same | gray).all()
        assert 0.25 - 0.05 < same.mean() < 0.7
    else:
        left, right, top, bottom = map(int, re.findall(r"(\d+)%", text.text))
        box = (left * 60 // 100, top * 40 // 100, right * 60 // 100, bottom * 40 // 100)
        enlarged = Image.fromarray(levels).resize((60, 40), Image.Resampling.BICUBIC, box=box)
        assert (spoiled == np.asarray(enlarged)).all()
        assert 30 <= right - left <= 60


def test_an_unknown_kind_of_edit_is_refused() -> None:
    with pytest.raises(SettingError, match=r"'colorise' is not a kind .* did you mean colourise\?"):
        SelfEdit(kinds=("colorise",))

"""`Bagel`: batches that equal what runs alone, seeds, guidance branches, lists, errors, results and loading."""

from __future__ import annotations

import gc
import io
import json
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot.checkpoint.official import Checkpoint, load_checkpoint
from bagel_mot.checkpoint.opening import open_checkpoint, stored_weights
from bagel_mot.errors import (
    BagelError,
    CheckpointError,
    ContextLengthError,
    DeviceError,
    ImageError,
    PromptError,
    SettingError,
    SizeError,
)
from bagel_mot.inference import loading
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.batch import naming
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.engine import runner
from bagel_mot.inference.loading import choose_precision
from bagel_mot.inference.prepare import Preparer
from bagel_mot.inference.request import Recorder
from bagel_mot.inference.result import Result, save_image
from bagel_mot.model.cache import Chunk
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE
from bagel_mot.serving.limits import BusyError
from bagel_mot.task import Task


def run_together(bagel: Bagel, jobs: list[tuple[list[Any], dict[str, Any]]]) -> list[tuple[Result, Recorder]]:
    """Runs requests of any kind in one engine; each job is (inputs, arguments of `interleave`)."""
    recorders = [Recorder() for _ in jobs]
    tickets = [
        bagel.submit(inputs, recorder=recorder, **arguments)
        for (inputs, arguments), recorder in zip(jobs, recorders, strict=True)
    ]
    return [(ticket.result(), recorder) for ticket, recorder in zip(tickets, recorders, strict=True)]


def mixed_jobs(golden: Any) -> list[tuple[list[Any], dict[str, Any]]]:
    wide, tall, tiny = (golden.image(name) for name in ("wide", "tall", "tiny"))
    return [
        (["a red circle"], {"seed": 1}),
        (
            ["a much longer text about a blue square"],
            {"seed": 2, "size": (64, 64), "num_timesteps": 9, "cfg_text_scale": 2.0},
        ),
        ([wide, "make the sky darker"], {"seed": 3, "cfg_renorm_type": "channel"}),
        ([wide, tall, "both"], {"seed": 4, "num_timesteps": 3}),
        ([tiny, "What is it?"], {"output": "text"}),
        (["Hello"], {"output": "text", "do_sample": True, "temperature": 1.5, "seed": 7, "max_new_tokens": 20}),
        (["a cat"], {"seed": 1, "cfg_text_scale": 1.0}),
        (["a cat"], {"seed": 1, "cfg_text_scale": 1.0, "eta": 1.0}),
        (["three"], {"seed": 5, "think": True, "max_think_tokens": 6, "enable_taylorseer": True, "num_timesteps": 12}),
        ([tall, "How many?"], {"output": "text", "think": True, "max_new_tokens": 7}),
    ]


def test_a_batch_equals_its_parts_alone(bagel: Bagel, golden: Any) -> None:
    jobs = mixed_jobs(golden)
    together = run_together(bagel, jobs)
    for job, (result, recorder) in zip(jobs, together, strict=True):
        ((alone, own),) = run_together(bagel, [job])
        assert result.raw_text == alone.raw_text
        assert recorder.tokens == own.tokens
        assert (recorder.latent is None) == (job[1].get("output") == "text")
        if recorder.latent is not None:
            assert own.latent is not None
            assert golden.error(recorder.latent, own.latent) < 1e-5
        if own.logits:
            assert golden.error(torch.stack(recorder.logits), torch.stack(own.logits)) < 1e-5
        assert result.evaluations == alone.evaluations


@pytest.mark.parametrize(("taylorseer", "tolerance"), [(False, 1e-5), (True, 5e-5)])
def test_long_guided_edits_together_and_alone(bagel: Bagel, golden: Any, taylorseer: bool, tolerance: float) -> None:
    """Guidance multiplies what rounding does, and extrapolation does so again."""
    settings = {"num_timesteps": 50, "cfg_text_scale": 4.0, "cfg_image_scale": 2.0, "enable_taylorseer": taylorseer}
    jobs: list[tuple[list[Any], dict[str, Any]]] = [
        ([golden.image(name), text], {"seed": seed, **settings})
        for seed, (name, text) in enumerate([("wide", "darker"), ("tall", "add a bird"), ("tiny", "in red, please")])
    ]
    for job, (result, recorder) in zip(jobs, run_together(bagel, jobs), strict=True):
        ((alone, own),) = run_together(bagel, [job])
        assert recorder.latent is not None
        assert own.latent is not None
        assert golden.error(recorder.latent, own.latent) < tolerance
        levels = [np.array(found.image).astype(int) for found in (result, alone)]
        assert np.abs(levels[0] - levels[1]).max() <= 1


def test_same_seed_same_image_whatever_the_place(bagel: Bagel) -> None:
    alone = np.array(bagel.generate("a cat", seed=3)).astype(int)
    batch = bagel.generate(
        ["a dog", "a cat", "a cat", "a bird"], seed=[0, 3, 4, 3], size=[(64, 64), (48, 32), (48, 32), None]
    )
    assert np.abs(np.array(batch[1]).astype(int) - alone).max() <= 1
    assert np.abs(np.array(batch[2]).astype(int) - alone).max() > 1


def test_fresh_noise_follows_the_seed_and_eta(bagel: Bagel) -> None:
    def drawn(**settings: Any) -> np.ndarray:
        return np.array(bagel.generate("a cat", num_timesteps=6, **settings))

    assert np.array_equal(drawn(seed=3, eta=0.7), drawn(seed=3, eta=0.7))
    assert np.array_equal(drawn(seed=3, eta=0.0), drawn(seed=3)), "the published way is the default"
    images = [drawn(seed=3), drawn(seed=3, eta=0.7), drawn(seed=3, eta=1.0), drawn(seed=4, eta=1.0)]
    assert not any(np.array_equal(a, b) for a, b in combinations(images, 2))


def test_drawn_seeds_are_reported_and_repeat(bagel: Bagel) -> None:
    first = bagel.generate("a cat", return_result=True)
    second = bagel.generate("a cat", return_result=True)
    assert first.seed != second.seed
    again = bagel.generate("a cat", seed=first.seed)
    assert np.array_equal(np.array(again), np.array(first.image))


def test_n_images_count_their_seeds_up(bagel: Bagel) -> None:
    results = bagel.generate(["a cat", "a dog"], n=2, seed=[5, 9], return_result=True)
    assert [(r.prompt, r.seed) for r in results] == [("a cat", 5), ("a cat", 6), ("a dog", 9), ("a dog", 10)]
    results = bagel.generate("a cat", n=np.int64(2), seed=np.int64(5), return_result=True)
    assert [(r.seed, type(r.seed)) for r in results] == [(5, int), (6, int)]
    drawn = bagel.generate("a cat", n=2, return_result=True)
    assert drawn[0].seed != drawn[1].seed


# ------------------------------------------------------------------------------------------------- guidance branches


@pytest.mark.parametrize(
    ("inputs", "settings", "per_step"),
    [
        (["a cat"], {"cfg_interval": (0, 1)}, 2),
        (["a cat"], {"cfg_interval": (0, 1), "cfg_image_scale": 2.0}, 2),  # without image is the full context
        (["a cat"], {"cfg_text_scale": 1.0, "cfg_image_scale": 2.0}, 1),
        (["PICTURE", "darker"], {"cfg_interval": (0, 1)}, 3),
        (["PICTURE", "darker"], {"cfg_interval": (0, 1), "cfg_image_scale": 1.0}, 2),
        (["PICTURE"], {"cfg_interval": (0, 1)}, 2),  # without text is the full context
        (["a cat", "a dog"], {"cfg_interval": (0, 1), "cfg_image_scale": 2.0}, 2),
    ],
)
def test_no_branch_runs_twice(
    bagel: Bagel, golden: Any, inputs: list[str], settings: dict[str, Any], per_step: int
) -> None:
    given = [golden.image("wide") if item == "PICTURE" else item for item in inputs]
    result = bagel.interleave(given, return_result=True, num_timesteps=4, **settings)
    assert result.evaluations == 3 * per_step
    stats = bagel.engine.stats
    tokens = result.image.width * result.image.height // bagel.config.latent_stride**2 + 2
    assert stats.noised_tokens == 3 * per_step * tokens


def test_steps_without_guidance_run_one_branch(bagel: Bagel) -> None:
    result = bagel.generate("a cat", num_timesteps=5, timestep_shift=1.0, cfg_interval=(0.6, 1.0), return_result=True)
    assert result.evaluations == 2 + 2 + 1 + 1  # at 1, 0.75 | 0.5, 0.25


def test_unused_branches_are_not_read(bagel: Bagel, golden: Any) -> None:
    """Without image guidance the texts are not read a second time."""
    prefilled = []
    for scale in (1.0, 2.0):
        before = bagel.engine.stats.prefill_tokens
        bagel.edit(golden.image("wide"), "darker", cfg_image_scale=scale)
        prefilled.append(bagel.engine.stats.prefill_tokens - before)
    text = bagel.runtime.text("darker").und_len
    assert prefilled[1] - prefilled[0] == text


def test_taylorseer_saves_evaluations(bagel: Bagel) -> None:
    result = bagel.generate("a cat", num_timesteps=21, enable_taylorseer=True, cfg_interval=(0, 1), return_result=True)
    assert result.evaluations == 2 * 10  # 0–4, 7, 10, 13, 16, 19 of 20


def test_taylorseer_leaves_the_next_request_alone(bagel: Bagel) -> None:
    before = np.array(bagel.generate("a cat", seed=1))
    bagel.generate("a cat", seed=1, enable_taylorseer=True, num_timesteps=12)
    assert np.array_equal(np.array(bagel.generate("a cat", seed=1)), before)


def test_one_forward_pass_a_step(bagel: Bagel, golden: Any) -> None:
    """All branches of all requests stand in one pass."""
    bagel.edit([golden.image("wide")] * 3, ["darker", "red", "a hat"], num_timesteps=6, seed=0)
    stats = bagel.engine.stats
    # The image with the first text, the other texts behind it, texts alone; then steps, one later for the others.
    assert stats.forwards == 1 + 1 + 1 + 5
    assert stats.forward_ops == 3 * (1 + 1 + 5 * 3)


@pytest.mark.parametrize("taylorseer", [False, True])
def test_one_head_call_a_step(bagel: Bagel, monkeypatch: pytest.MonkeyPatch, taylorseer: bool) -> None:
    """All branches of all requests share one, and extrapolated steps need no step of the engine."""
    model, calls = type(bagel.checkpoint.model), 0
    velocity = model.velocity

    def counted(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return velocity(self, hidden)

    monkeypatch.setattr(model, "velocity", counted)
    bagel.generate(["a", "b", "c"], num_timesteps=9, cfg_interval=(0, 1), enable_taylorseer=taylorseer)
    assert calls == 8
    computed = 6 if taylorseer else 8  # 0–4 and 7
    assert bagel.engine.stats.steps == 1 + computed + 1


def test_tokens_of_all_requests_are_chosen_together(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    choose = runner.choose_tokens

    def counted(logits: torch.Tensor, choices: Any) -> list[int]:
        rows.append(len(choices))
        return choose(logits, choices)

    monkeypatch.setattr(runner, "choose_tokens", counted)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": [False, True, True], "seed": [1, 2, 3], "top_k": 20}
    questions = ["What?", "How?", "Why is it so?"]
    together = bagel.ask(None, questions, **settings)
    assert rows == [3] * 5
    for i, question in enumerate(questions):
        own = {"max_new_tokens": 5, "do_sample": i > 0, "seed": i + 1, "top_k": 20}
        assert bagel.ask(None, question, **own) == together[i]


# ------------------------------------------------------------------------------------------------------ what is given


def test_forms_of_edit(bagel: Bagel, golden: Any) -> None:
    wide, tall = golden.image("wide"), golden.image("tall")
    assert bagel.edit(str(wide), "red").size == (96, 48)
    assert bagel.edit([wide, tall], "red").size == (32, 96)  # one request, the last picture's size
    assert bagel.edit(wide, "red", size=(48, 48)).size == (48, 48)
    assert [i.size for i in bagel.edit([wide, tall], ["red", "blue"])] == [(96, 48), (32, 96)]
    assert [i.size for i in bagel.edit([[tall, wide], tall], ["red", "blue"])] == [(96, 48), (32, 96)]
    assert [i.size for i in bagel.edit(wide, ["red", "blue"])] == [(96, 48)] * 2
    assert [i.size for i in bagel.edit([[wide], [tall]], "red")] == [(96, 48), (32, 96)]
    assert len(bagel.edit(wide, "red", seed=[1, 2, 3])) == 3


def test_forms_of_ask(bagel: Bagel, golden: Any) -> None:
    wide = golden.image("wide")
    alone = bagel.ask(wide, "What is it?")
    assert isinstance(alone, str)
    assert bagel.ask(Image.open(wide), "What is it?") == alone
    assert bagel.ask(np.array(Image.open(wide).convert("RGB")), "What is it?") == alone
    assert bagel.ask(np.array(Image.open(wide).convert("RGB")) / 255, "What is it?") == alone
    assert bagel.ask(wide.read_bytes(), "What is it?") == alone
    assert bagel.ask(io.BytesIO(wide.read_bytes()), "What is it?") == alone
    assert bagel.ask([wide, None, [wide, wide]], ["What is it?"] * 3)[0] == alone
    assert isinstance(bagel.ask(None, "Hello"), str)
    assert bagel.ask(wide, []) == bagel.generate([]) == bagel.generate([], seed=[]) == []


def test_special_methods_are_interleave(bagel: Bagel, golden: Any) -> None:
    wide = golden.image("wide")
    assert np.array_equal(bagel.generate("a cat", seed=1), bagel.interleave(["a cat"], seed=1))
    assert np.array_equal(bagel.edit(wide, "red", seed=1), bagel.interleave([wide, "red"], seed=1))
    assert bagel.ask(wide, "red?") == bagel.interleave([wide, "red?"], output="text")


def test_streaming_equals_not_streaming(bagel: Bagel, golden: Any) -> None:
    wide = golden.image("wide")
    for settings in (
        {},
        {"do_sample": True, "temperature": 2.0, "seed": 4},
        {"stop": ["e", "x"], "max_new_tokens": 30},
    ):
        whole = bagel.ask(wide, "What?", **settings)
        pieces = list(bagel.ask(wide, "What?", stream=True, **settings))
        assert "".join(pieces) == whole
        heard: list[str] = []
        assert bagel.ask(wide, "What?", on_text=heard.append, **settings) == whole == "".join(heard)
    assert len(list(bagel.ask(wide, "What?", stream=True))) > 3


def test_an_abandoned_stream_ends_its_request(bagel: Bagel) -> None:
    stream = bagel.ask(None, "What?", stream=True, max_new_tokens=100)
    next(stream)
    assert not bagel.engine.idle
    stream.close()
    bagel.engine.step()
    assert bagel.engine.idle


def test_stop_texts_cut_the_answer(bagel: Bagel) -> None:
    whole = bagel.ask(None, "What?", max_new_tokens=30)
    middle = whole[len(whole) // 2]
    assert bagel.ask(None, "What?", max_new_tokens=30, stop=middle) == whole[: whole.index(middle)]


def test_answers_end_at_the_end_token(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    spoken("two cats")
    result = bagel.ask(None, "What?", return_result=True)
    assert (result.text, result.thinking) == ("two cats", "")
    assert bagel.ask(None, "What?", max_new_tokens=1) == bagel.tokenizer.decode(bagel.tokenizer.encode("two cats")[:1])


def test_thinking_is_told_from_the_answer(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    spoken("<think>one and one</think> two")
    result = bagel.ask(None, "What?", think=True, max_new_tokens=100, return_result=True)
    assert (result.text, result.thinking) == ("two", "one and one")
    assert result.raw_text == "<think>one and one</think> two"
    assert "".join(bagel.ask(None, "What?", think=True, max_new_tokens=100, stream=True)) == result.raw_text
    assert bagel.ask(None, "What?", max_new_tokens=100) == result.raw_text  # not asked to think: nothing is cut


def test_thoughts_change_the_image_and_are_reported(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    plain = bagel.generate("a cat", seed=1)
    images = []
    for thought in ("a red cat", "a blue dog"):
        spoken(f"<think>{thought}</think>")
        heard: list[str] = []
        result = bagel.generate("a cat", seed=1, think=True, on_text=heard.append, return_result=True)
        assert result.thinking == thought == result.image.info["thinking"]
        assert "".join(heard) == result.raw_text == f"<think>{thought}</think>"
        images.append(np.array(result.image))
    assert not np.array_equal(*images)
    assert not np.array_equal(images[0], np.array(plain))


def test_progress_counts_all_steps(bagel: Bagel) -> None:
    seen: list[tuple[int, int]] = []
    bagel.generate(["a", "b"], num_timesteps=[4, 6], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_a_failing_callback_fails_its_call_only(bagel: Bagel) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        bagel.generate("a", progress=fail)
    assert bagel.engine.idle
    bagel.generate("a")


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b, i: b.generate(""), PromptError, "the text is ''"),
        (lambda b, i: b.generate(["a cat", " \n"]), PromptError, "the text is"),
        (lambda b, i: b.generate(3), PromptError, "a text is needed, not 3"),
        (lambda b, i: b.ask(i, ""), PromptError, "the text is"),
        (lambda b, i: b.edit(i, ["a", "  "]), PromptError, "the text is"),
        (lambda b, i: b.edit(None, "red"), PromptError, "no picture to edit"),
        (lambda b, i: b.edit([], "red"), PromptError, "no picture to edit"),
        (lambda b, i: b.edit([i], ["red", "blue"]), PromptError, "2 texts but 1 pictures"),
        (lambda b, i: b.interleave([]), PromptError, "neither text nor picture"),
        (lambda b, i: b.interleave(["a"], output="video"), SettingError, "output is 'video'"),
        (lambda b, i: b.generate("a", size=(50, 64)), SizeError, "the width 50 must be a multiple of 16, at most 128"),
        (lambda b, i: b.generate("a", size=(64, 144)), SizeError, "the height 144"),
        (lambda b, i: b.generate("a", size=(0, 64)), SizeError, "the width 0"),
        (lambda b, i: b.generate("a", steps=4), SettingError, "no setting 'steps'"),
        (lambda b, i: b.generate("a", cfg_text_scale=-1), SettingError, "cfg_text_scale is -1"),
        (lambda b, i: b.ask(i, "a", cfg_text_scale=4), SettingError, "no setting of 'ask'"),
        (lambda b, i: b.generate(["a", "b"], seed=[1, 2, 3]), SettingError, "seed is a list of 3: the batch has 2"),
        (lambda b, i: b.generate("a", seed=[]), SettingError, "seed is an empty list: give one value, or one for each"),
        (lambda b, i: b.ask(i, "a", temperature=[]), SettingError, "temperature is an empty list"),
        (lambda b, i: b.generate(["a", "b"], seed=[]), SettingError, "seed is a list of 0: the batch has 2 requests"),
        (lambda b, i: b.generate("a", seed=int("9" * 401)), SettingError, "seed is 9+…: it must be"),
        (lambda b, i: b.generate("a", num_timesteps=10**400), SettingError, "num_timesteps is 1"),
        (lambda b, i: b.generate("a", cfg_text_scale=10**400), SettingError, "cfg_text_scale is 1"),
        (lambda b, i: b.generate("a", cfg_interval=(0.5, 0.5)), SettingError, "two numbers, low < high"),
        (lambda b, i: b.generate("a", n=0), SettingError, "n is 0"),
        (lambda b, i: b.generate(["a", "b"], on_text=print), SettingError, "a batch of 2"),
        (lambda b, i: b.ask(i, ["a", "b"], stream=True), SettingError, "single question"),
        (lambda b, i: b.ask("missing.png", "a"), ImageError, "missing.png"),
        (lambda b, i: b.edit(b"no picture", "a"), ImageError, "not in a known picture format"),
        (lambda b, i: b.generate("long " * 400), ContextLengthError, "the model has 512"),
        (lambda b, i: b.ask([i] * 600, "a"), ContextLengthError, "the model has 512"),
        (lambda b, i: b.interleave(["a"], noise=torch.zeros(3, 3)), SettingError, "the noise is"),
    ],
)
def test_errors_come_before_any_work(
    bagel: Bagel, golden: Any, call: Callable[..., Any], error: type[BagelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(bagel, golden.image("tiny"))
    assert bagel.engine.idle
    assert bagel.engine.stats.steps == 0


def test_an_endless_thought_leaves_room_for_the_image(bagel: Bagel, spoken: Callable[[Any], None]) -> None:
    spoken("a " * 600)
    result = bagel.generate("word " * 40, think=True, return_result=True)
    assert result.thinking.startswith("a a a")
    assert result.image.size == (48, 32)


def test_text_ends_where_the_positions_end(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    spoken("a " * 400)
    prompt = "b " * 450
    used = bagel.runtime.text(prompt).advance
    recorder = Recorder()
    bagel.interleave([prompt], output="text", max_new_tokens=1000, recorder=recorder)
    # One is left for the end token: an answer is as long here as in a session, where it is read again.
    assert used + len(recorder.tokens) + 1 == bagel.config.decoder.max_position_embeddings


def test_what_is_to_be_generated_must_have_room(bagel: Bagel) -> None:
    """Each text is one token too long for what is to follow it; with one token less it runs."""
    steps = bagel.engine.stats.steps

    def longest(least: int, first: str = "") -> str:
        """Each digit is a token; with start and end token it leaves room for `least`."""
        used = bagel.runtime.text(first).advance if first else 0
        return "1" * (bagel.config.decoder.max_position_embeddings - used - least - 2)

    cases: list[tuple[str, Callable[[str], Any]]] = [
        (longest(2), lambda text: bagel.generate(text)),
        (longest(3), lambda text: bagel.ask(None, text)),
        (longest(3), lambda text: next(bagel.ask(None, text, stream=True))),
        (longest(5, SYSTEM_PROMPT_GENERATE), lambda text: bagel.generate(text, think=True)),
    ]
    for text, act in cases:
        with pytest.raises(ContextLengthError, match="would take 513 positions or more, the model has 512"):
            act(text + "1")
        assert bagel.engine.stats.steps == steps
        act(text)
        steps = bagel.engine.stats.steps


@pytest.mark.parametrize("think", [False, True])
def test_an_image_is_drawn_in_the_memory_reserved(
    bagel: Bagel, golden: Any, spoken: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, think: bool
) -> None:
    """What is drawn stands in one piece with what it follows."""
    sizes: list[int] = []
    original = Chunk.__init__

    def count(self: Chunk, config: Any, capacity: int, *rest: Any) -> None:
        sizes.append(capacity)
        original(self, config, capacity, *rest)

    monkeypatch.setattr(Chunk, "__init__", count)
    spoken("a red one")
    bagel.generate("a " * 100, size=(128, 128), num_timesteps=2, think=think, max_think_tokens=20)
    image = 8 * 8 + 2
    # The full context and the one without text; with the system prompt that one goes on from the full one.
    assert len(sizes) == 2
    assert sizes[1] == image
    sizes.clear()
    bagel.edit(golden.image("tiny"), "red", size=(128, 128), num_timesteps=2, think=think)
    # Texts have a context of their own, which is no larger than they need (or goes on from the system prompt).
    assert len(sizes) == 3
    assert sizes[1] == image
    if not think:
        assert sizes[2] == bagel.runtime.text("red").und_len + image


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b, i: b.generate(["a cat", " \n"]), PromptError, r"request 2 of 2 \(index 1\): the text is"),
        (lambda b, i: b.generate(["a", "b", 3]), PromptError, r"request 3 of 3 \(index 2\): a text is needed"),
        (lambda b, i: b.edit(i, ["a", None]), PromptError, r"request 2 of 2 \(index 1\): a text is needed"),
        (lambda b, i: b.edit([i, "no.png"], ["a", "b"]), ImageError, r"request 2 of 2 \(index 1\): .*no.png"),
        (lambda b, i: b.ask([i, b"x"], ["a", "b"]), ImageError, r"request 2 of 2 \(index 1\): "),
        (lambda b, i: b.generate("a", seed=[1, -1]), SettingError, r"request 2 of 2 \(index 1\): seed is -1"),
        (lambda b, i: b.generate(["a", "1" * 600], n=3), ContextLengthError, r"request 2 of 2 \(index 1\): "),
        (lambda b, i: b.generate("a", size=[(16, 16), (8, 8)]), SizeError, r"request 2 of 2 \(index 1\): "),
        (lambda b, i: b.generate(["1" * 600], n=3), ContextLengthError, "^the context"),
    ],
)
def test_errors_name_their_request(
    bagel: Bagel, golden: Any, call: Callable[..., Any], error: type[BagelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(bagel, golden.image("tiny"))
    assert bagel.engine.stats.steps == 0


def test_errors_of_any_constructor_name_their_request() -> None:
    for error in (BusyError("full", 3), SettingError("wrong")):
        expected = pytest.raises(type(error), match=r"^request 2 of 3 \(index 1\): (full|wrong)$")
        with expected as caught, naming("request", 1, 3):
            raise error
        assert caught.value is error
    with pytest.raises(KeyError) as other, naming("request", 1, 3):
        raise KeyError("k")
    assert other.value.__notes__ == ["This was request 2 of 3 (index 1)."]


def test_failures_name_their_request(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    from bagel_mot.inference.steps import respond

    def failing(runtime: Any, history: Any, request: Any, listener: Any) -> Any:
        if request.seed == 5:
            raise OSError("lost")
        return (yield from original(runtime, history, request, listener))

    original = respond.follow
    monkeypatch.setattr(respond, "follow", failing)
    with pytest.raises(OSError, match="lost") as caught:
        bagel.generate(["a", "b", "c"], seed=[0, 4, 9], n=2, num_timesteps=2)
    assert caught.value.__notes__ == ["This was request 2 of 3 (index 1)."]


# ----------------------------------------------------------------------------------------------------------- results


def test_results_say_how_they_were_made(bagel: Bagel, tmp_path: Path) -> None:
    result = bagel.generate("a cat", seed=7, num_timesteps=3, return_result=True)
    assert (result.prompt, result.seed, result.evaluations) == ("a cat", 7, 4)
    assert result.settings["num_timesteps"] == 3
    assert result.settings["size"] == (48, 32)
    assert result.seconds > 0
    assert result.value is result.image
    for path in (tmp_path / "new" / "a.png", tmp_path / "a.jpg"):
        save_image(result.image, path)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert np.array_equal(np.array(image), np.array(result.image))
        assert image.info["prompt"] == "a cat"
        assert image.info["seed"] == "7"
        assert json.loads(image.info["settings"])["size"] == [48, 32]
        again = bagel.generate(image.info["prompt"], seed=int(image.info["seed"]), **json.loads(image.info["settings"]))
    assert np.array_equal(np.array(again), np.array(result.image))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (48, 32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "new"]
    with pytest.raises(ValueError, match="known picture format"):
        save_image(result.image, tmp_path / "a.xyz")


# ----------------------------------------------------------------------------------------------------------- loading


def test_from_pretrained(golden: Any) -> None:
    bagel = Bagel.from_pretrained(golden.checkpoint, device="cpu")
    assert (bagel.device.type, bagel.dtype) == ("cpu", torch.float32)
    assert bagel.generate("a cat", num_timesteps=2).size == (128, 128)


def test_from_pretrained_reads_the_checkpoints_defaults(golden: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden.checkpoint, folder)
    (folder / "bagel_defaults.json").write_text('{"generate": {"size": [32, 32], "num_timesteps": 3}}')
    bagel = Bagel.from_pretrained(folder)
    assert bagel.generate("a cat").size == (32, 32)
    assert bagel.engine.stats.forwards == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not a checkpoint: give 'mini'"),
        ("  ", "'' is not a checkpoint"),
        ("photos/rgb.png", "'photos/rgb.png' is not a checkpoint but a file of another kind: give 'mini'"),
        ("photos/model", "is not a checkpoint: there is no such file or folder"),  # begins with a folder that is here
        ("owner/model.safetensors", "there is no such file or folder"),
        ("./owner/model", "there is no such file or folder"),
        ("../model", "there is no such file or folder"),
        ("/owner/model", "there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        ("owner/model/", "there is no such file or folder"),
        ("~/model", "there is no such file or folder"),
        ("~nobody7/x", "begins with ~nobody7, which is nobody's home here"),
        ("x" * 5000, "cannot be a path: it is too long"),
    ],
)
def test_what_is_written_as_a_path_is_never_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    def asked(text: str, **_: object) -> Path:
        raise AssertionError(f"the hub was asked for {text}")

    monkeypatch.setattr(loading, "download", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/rgb.png")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        loading.find_checkpoint(name)
    with pytest.raises(AssertionError, match="asked for owner/model-7.B"):
        loading.find_checkpoint(" owner/model-7.B ")


def test_names_are_found_with_blanks_and_at_home(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(golden.checkpoint, tmp_path / "ck")
    assert loading.find_checkpoint(" mini ") == loading.MINI_FOLDER
    assert loading.find_checkpoint("~/ck") == loading.find_checkpoint(Path("~/ck")) == tmp_path / "ck"
    bagel = Bagel.from_pretrained("~/ck")
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    save_image(image, "~/photo.png")
    assert (tmp_path / "photo.png").is_file()
    session = bagel.session()
    session.add(Path("~/photo.png"))
    session.save("~/talk")
    assert (tmp_path / "talk" / "session.json").is_file()
    assert len(bagel.load_session("~/talk").history) == 1
    assert bagel.ask("~/photo.png", "What?") == bagel.ask(image, "What?")
    with pytest.raises(ImageError, match="begins with ~nobody7"):
        bagel.ask("~nobody7/photo.png", "What?")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
    (tmp_path / "photo.png").write_bytes(pointer)
    with pytest.raises(ImageError, match=r"the picture '~/photo.png' is a Git LFS pointer, not the picture itself"):
        bagel.ask("~/photo.png", "What?")


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint: give 'mini'"):
        Bagel.from_pretrained("nowhere")
    with pytest.raises(CheckpointError):
        Bagel.from_pretrained(tmp_path)

    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    with pytest.raises(CheckpointError, match=r"'owner/name' .* could not be reached .*no route to host"):
        Bagel.from_pretrained("owner/name")


def test_hub_names_are_downloaded(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **_: object) -> Path:
        asked.append(name)
        return golden.checkpoint

    monkeypatch.setattr("bagel_mot.inference.loading.download", download)
    assert Bagel.from_pretrained("owner/name.v2").config.max_latent_size == 8
    assert asked == ["owner/name.v2"]


def test_unknown_devices_and_dtypes(golden: Any) -> None:
    for arguments in (
        {"device": "gpu"},
        {"device": "cuda:99"},
        {"device": "meta"},
        {"precision": "int9"},
        {"precision": torch.int16},
    ):
        with pytest.raises(DeviceError, match=r"device is|precision is"):
            Bagel.from_pretrained(golden.checkpoint, **arguments)


def test_automatic_precision(golden: Any) -> None:
    stored = stored_weights(open_checkpoint(golden.checkpoint))
    assert choose_precision("auto", torch.device("cpu"), stored).activations is torch.float32
    assert choose_precision("auto", torch.device("mps"), stored).activations is torch.bfloat16
    assert choose_precision("float16", torch.device("cpu"), stored).activations is torch.float16


@pytest.mark.parametrize(
    ("native", "limit", "expected"),
    [
        (True, 10**9, torch.bfloat16),
        (False, 10**9, torch.float32),
        (True, 1, torch.bfloat16),
        (False, 1, torch.float16),
    ],
)
def test_automatic_precision_on_gpus(
    golden: Any, monkeypatch: pytest.MonkeyPatch, native: bool, limit: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "_LARGE", limit)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    stored = stored_weights(open_checkpoint(golden.checkpoint))
    assert choose_precision("auto", torch.device("cuda"), stored).activations is expected


def test_a_small_autoencoder_stays_in_full_precision(golden: Any, bagel: Bagel) -> None:
    half = Bagel.from_pretrained(golden.checkpoint, device="cpu", precision="bfloat16")
    assert half.dtype is torch.bfloat16
    ours, theirs = half.checkpoint.autoencoder.state_dict(), bagel.checkpoint.autoencoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    image = half.generate("a cat", num_timesteps=2, seed=0, size=(32, 32))
    assert image.size == (32, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close(golden: Any, bagel: Bagel, defaults: Defaults, dtype: torch.dtype) -> None:
    half = Bagel(load_checkpoint(golden.checkpoint, precision=dtype), defaults=defaults)
    recorders = Recorder(), Recorder()
    for model, recorder in zip((bagel, half), recorders, strict=True):
        model.interleave([golden.image("wide"), "darker"], seed=0, num_timesteps=3, recorder=recorder)
        assert model.ask(golden.image("wide"), "What?", max_new_tokens=2) is not None
    latents = [recorder.latent for recorder in recorders]
    assert latents[1].dtype == torch.float32
    assert golden.error(latents[1], latents[0]) < 0.05


def test_loading_and_drawing_import_no_compiler_and_no_library_of_an_extra() -> None:
    """Each of them would take as long to import as all that is needed."""
    slow = ("torch._dynamo", "torch._inductor", "transformers", "gradio", "fastapi", "bitsandbytes")
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):  # earlier versions import it by themselves
        slow = (*slow, "sympy")
    code = f"""
import sys
from bagel_mot import Bagel
bagel = Bagel.from_pretrained("mini", device="cpu")
bagel.ask(bagel.generate("a cup", num_timesteps=2, seed=0), "What?", max_new_tokens=2)
print([name for name in {slow} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_compiled_equals_eager(golden: Any, bagel: Bagel, defaults: Defaults) -> None:
    compiled = Bagel(load_checkpoint(golden.checkpoint, precision=torch.float32), defaults=defaults, compile=True)
    recorders = Recorder(), Recorder()
    for model, recorder in zip((bagel, compiled), recorders, strict=True):
        model.interleave([golden.image("wide"), "darker"], seed=0, recorder=recorder)
    assert golden.error(recorders[1].latent, recorders[0].latent) < 1e-4
    assert compiled.ask(golden.image("wide"), "What?") == bagel.ask(golden.image("wide"), "What?")


def test_official_defaults_apply_without_a_file(checkpoint: Checkpoint) -> None:
    bagel = Bagel(checkpoint)
    prepare = Preparer(bagel.runtime)
    assert prepare.request(Task.GENERATE, prepare.inputs(["a"], Task.GENERATE), {}).settings.num_timesteps == 50


def test_a_model_that_is_dropped_is_gone_at_once() -> None:
    """Not when garbage is collected: the next one may need its memory."""
    loaded = Bagel.from_pretrained("mini", device="cpu")
    loaded.ask(None, "hello", max_new_tokens=2)
    model = weakref.ref(loaded.checkpoint.model)
    gc.disable()
    try:
        del loaded
        assert model() is None
    finally:
        gc.enable()

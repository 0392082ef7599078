"""Whole tasks: both sides give the same, texts have the lengths asked for, and every figure is in the report."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bagel_mot.bench import config_named, random_autoencoder, random_model
from bagel_mot.bench.plain_autoencoder import plain_decode, plain_encode
from bagel_mot.bench.plain_tasks import PlainPipeline
from bagel_mot.bench.settings import BenchSettings
from bagel_mot.bench.tasks import ByteTokenizer, TaskRunner, WholeTask, brief, whole_tasks
from bagel_mot.inference.request import Recorder
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder

CPU = torch.device("cpu")
SMALL = BenchSettings(side=32, timesteps=4, answer=5, text=40, following=6)
TASKS = {task.name.split(",")[0]: task for task in whole_tasks(SMALL, 1024)}


def networks() -> tuple[BagelModel, Autoencoder]:
    """Weights so large that a context or a token that was forgotten would show."""
    config = config_named("golden")
    model = random_model(config, torch.float32, CPU, vision=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model, random_autoencoder(config.vae, torch.float32, CPU)


@pytest.fixture(scope="module")
def runner() -> TaskRunner:
    return TaskRunner(*networks(), networks(), SMALL.side)


def pipeline(runner: TaskRunner) -> PlainPipeline:
    assert runner.plain is not None
    return runner.plain


@pytest.mark.parametrize("name", ["text to image", "edit"])
def test_both_sides_draw_the_same_image(runner: TaskRunner, name: str) -> None:
    task, recorder = TASKS[name], Recorder()
    drawn = runner.bagel.submit(list(task.inputs), recorder=recorder, **task.settings).result()
    assert recorder.latent is not None
    _, tokens = pipeline(runner).draw(runner.request(task))
    torch.testing.assert_close(recorder.latent, tokens, rtol=1e-3, atol=1e-3)
    assert drawn.image is not None
    assert drawn.image.size == (32, 32)
    assert tokens.std() > 0.5  # an image that depends on its inputs, not one of zeros


@pytest.mark.parametrize(("name", "length"), [("ask about an image", 5), ("text of 40 tokens", 6)])
def test_both_sides_write_the_same_tokens(runner: TaskRunner, name: str, length: int) -> None:
    task, recorder = TASKS[name], Recorder()
    result = runner.bagel.submit(list(task.inputs), output="text", recorder=recorder, **task.settings).result()
    tokens = pipeline(runner).write(runner.request(task))
    assert recorder.tokens[1:] == tokens[: len(recorder.tokens) - 1]
    assert len(tokens) == result.completion_tokens == length
    assert len(set(tokens)) > 1


def test_texts_have_the_number_of_tokens_asked_for(runner: TaskRunner) -> None:
    for text in (40, 250, 1000):
        (*_, task) = whole_tasks(replace(SMALL, text=text), 64)
        assert runner.request(task).prompt_tokens == text


def test_the_end_token_is_never_the_likeliest(runner: TaskRunner) -> None:
    hidden = torch.randn(200, runner.bagel.config.decoder.hidden_size)
    with torch.inference_mode():
        logits = runner.bagel.engine.model.logits(hidden)
    end = ByteTokenizer.of_rows(logits.shape[1]).special.eos
    assert not (logits.argmax(-1) == end).any()


def test_rows_without_a_byte_are_written_as_question_marks() -> None:
    tokenizer = ByteTokenizer.of_rows(424)
    assert tokenizer.vocab_size == 424
    assert tokenizer.decode([*tokenizer.encode("né"), 300, 423]) == "né??"


def test_images_are_no_larger_than_the_position_table() -> None:
    drawing, edit, ask, _ = whole_tasks(BenchSettings(), 64)
    assert drawing.settings["size"] == (64, 64)
    assert all(task.inputs[0].size == (64, 64) for task in (edit, ask))  # type: ignore[union-attr]
    assert [task.name for task in whole_tasks(BenchSettings(), 1024)] == [
        "text to image, 512×512, 8 timesteps",
        "edit, 512×512, 8 timesteps",
        "ask about an image, 512×512, 64 tokens",
        "text of 1000 tokens, 64 more",
    ]


@torch.inference_mode()
def test_the_plain_autoencoder_computes_the_same() -> None:
    autoencoder = random_autoencoder(config_named("golden").vae, torch.float32, CPU)
    pixels = torch.rand(3, 40, 24) * 2 - 1
    latent = plain_encode(autoencoder, pixels)
    torch.testing.assert_close(latent, autoencoder.encode(pixels[None])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        plain_decode(autoencoder, latent), autoencoder.decode(latent[None])[0], rtol=1e-4, atol=1e-4
    )


def test_a_measured_task_has_every_figure(runner: TaskRunner) -> None:
    found = runner.measure(TASKS["edit"], 2, CPU, full_depth=3.0)
    assert len(found["runs"]["ours"]) == len(found["runs"]["plain"]) == 2
    assert found["seconds"]["ours"] == min(found["runs"]["ours"])
    assert found["speedup"] == found["seconds"]["plain"] / found["seconds"]["ours"]
    assert sum(found["where"].values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in found["where"].values())
    assert found["seconds"]["ours"] < found["full_depth_seconds"] <= 3 * found["seconds"]["ours"]


def test_nothing_is_kept_from_one_run_to_the_next(runner: TaskRunner) -> None:
    def read(task: WholeTask) -> int:
        stats = runner.bagel.engine.stats
        before = stats.prefill_tokens
        runner.ours(task)
        return stats.prefill_tokens - before

    for task in TASKS.values():
        assert read(brief(task)) == read(brief(task)) >= runner.request(task).prompt_tokens

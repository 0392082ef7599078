"""Numbers that are not finite: what is made from them reaches nobody, and others at work do not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.checkpoint.official import Checkpoint, load_checkpoint
from bagel_mot.errors import NotFiniteError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.request import Recorder

DAMAGED = r"the weight \S+ holds infinite values or values that are not numbers, so there is no result"
OVERFLOW = r"the numbers overflowed in float16 and are not finite.*load the model with precision bfloat16 or float32"
MARK = "~"  # its embedding is what is damaged


def damaged(checkpoint: Checkpoint, defaults: Defaults, change: Callable[[Any], Tensor]) -> Bagel:
    """The recorded model with a NaN in the tensor that `change` chooses."""
    own = copy.copy(checkpoint)
    own.model, own.autoencoder = copy.deepcopy(checkpoint.model), copy.deepcopy(checkpoint.autoencoder)
    with torch.no_grad():
        change(own).view(-1)[0] = float("nan")
    return Bagel(own, defaults=defaults)


@pytest.fixture
def broken(checkpoint: Checkpoint, defaults: Defaults) -> Bagel:
    """A model with one NaN in a matrix that every text goes through."""
    return damaged(checkpoint, defaults, lambda own: own.model.decoder.layers[1].und.up.weight)


@pytest.fixture
def marked(checkpoint: Checkpoint, defaults: Defaults) -> Bagel:
    """A model that fails where it reads MARK, and nowhere else."""
    (token,) = checkpoint.tokenizer.encode(MARK)
    return damaged(checkpoint, defaults, lambda own: own.model.decoder.embed_tokens.weight[token])


@pytest.fixture
def narrow(golden: Any, defaults: Defaults) -> Bagel:
    """A whole model in float16 whose activations leave its range."""
    checkpoint = load_checkpoint(golden.checkpoint, precision=torch.float16)
    with torch.no_grad():
        for layer in checkpoint.model.decoder.layers:
            layer.und.mlp_norm.weight.fill_(2e3)
            layer.und.down.weight.fill_(3e2)
    return Bagel(checkpoint, defaults=defaults)


PHOTO = Image.new("RGB", (48, 32), (200, 30, 30))
TASKS: dict[str, Callable[[Bagel], Any]] = {
    "text": lambda bagel: bagel.ask(PHOTO, "What?"),
    "text, sampled": lambda bagel: bagel.ask(None, "What?", do_sample=True, top_k=3, repetition_penalty=1.3),
    "text, streamed": lambda bagel: list(bagel.ask(None, "What?", stream=True)),
    "thinking": lambda bagel: bagel.generate("a red car", think=True),
    "image": lambda bagel: bagel.generate("a red car"),
    "edit": lambda bagel: bagel.edit(PHOTO, "blue"),
    "session": lambda bagel: bagel.session().generate_image("a red car"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_weight_is_named_and_nothing_made_with_it_comes_out(broken: Bagel, task: str) -> None:
    with pytest.raises(NotFiniteError, match=DAMAGED) as caught:
        TASKS[task](broken)
    assert "language_model.model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert broken.engine.idle


@pytest.mark.parametrize("task", TASKS)
def test_an_overflow_names_the_precision_and_wider_ones(narrow: Bagel, task: str) -> None:
    with pytest.raises(NotFiniteError, match=OVERFLOW):
        TASKS[task](narrow)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_damaged_autoencoder_is_named(checkpoint: Checkpoint, defaults: Defaults, part: str) -> None:
    bagel = damaged(checkpoint, defaults, lambda own: getattr(own.autoencoder, part).conv_in.weight)
    with pytest.raises(NotFiniteError, match=rf"{part}\.conv_in\.weight of ae\.safetensors"):
        bagel.edit(PHOTO, "blue")


def test_no_preview_and_no_latent_of_such_numbers(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = damaged(checkpoint, defaults, lambda own: own.model.latent_out.weight)
    previews: list[Image.Image] = []
    recorder = Recorder()
    ticket = bagel.submit(["a red car"], on_preview=previews.append, recorder=recorder)
    with pytest.raises(NotFiniteError, match=r"llm2vae\.weight"):
        ticket.result()
    assert not previews
    assert recorder.latent is None


def test_the_previewer_makes_nothing_of_such_a_latent(bagel: Bagel) -> None:
    latent = torch.zeros(bagel.config.vae.z_channels, 4, 6)
    assert bagel.runtime.previewer(latent) is not None
    latent[0, 1, 2] = float("inf")
    assert bagel.runtime.previewer(latent) is None


def test_neighbours_in_a_batch_do_not_notice(marked: Bagel, bagel: Bagel) -> None:
    texts, images = ["a red car", f"a {MARK} car", "a blue circle"], {"seed": 3}
    tickets = [marked.submit([text], output=output, **images) for output in ("image", "text") for text in texts]
    marked.engine.run_until(tickets)
    alone = [bagel.submit([text], output=output, **images) for output in ("image", "text") for text in texts]
    bagel.engine.run_until(alone)
    for ticket, other, text in zip(tickets, alone, texts * 2, strict=True):
        if MARK in text:
            with pytest.raises(NotFiniteError, match=r"embed_tokens\.weight"):
                ticket.result()
        else:
            got, expected = ticket.result(), other.result()
            assert got.text == expected.text
            assert (got.image is None) == (expected.image is None)
            assert got.image is None or got.image.tobytes() == expected.image.tobytes()


def test_a_session_keeps_nothing_poisoned_and_goes_on(marked: Bagel, bagel: Bagel) -> None:
    session, other = marked.session(), bagel.session()
    for one in (session, other):
        one.add("a red car")
    with pytest.raises(NotFiniteError):
        session.add(f"and {MARK}")
    with pytest.raises(NotFiniteError):
        session.generate_text(f"What is {MARK}?")
    with pytest.raises(NotFiniteError):
        session.generate_image(MARK)
    assert len(session.history) == 1
    assert session.ask("What?") == other.ask("What?")


def test_a_drawing_that_cannot_be_read_does_not_join_the_session(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = damaged(checkpoint, defaults, lambda own: own.autoencoder.encoder.conv_in.weight)
    session = bagel.session()
    with pytest.raises(NotFiniteError):
        session.generate_image("a red car")
    assert not session.history
    assert session.ask("What?") is not None


def test_shared_beginnings_are_not_kept_with_such_numbers(checkpoint: Checkpoint, defaults: Defaults) -> None:
    bagel = damaged(checkpoint, defaults, lambda own: own.model.vit.patch_embedding.weight)
    bagel.share_prefixes(10_000)
    with pytest.raises(NotFiniteError, match="patch_embedding"):
        bagel.ask(PHOTO, "What?")
    assert bagel.runtime.prefixes.tokens == 0


class Waits(TorchDispatchMode):
    """Counts the reads of single numbers, for which a host would wait for its device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def test_a_token_costs_no_further_transfer(bagel: Bagel) -> None:
    from bagel_mot.inference.decode import choose_tokens
    from bagel_mot.inference.engine.ops import TokenChoice
    from bagel_mot.inference.settings import GenerationSettings

    choices = [TokenChoice(GenerationSettings(), torch.Generator()) for _ in range(3)]
    logits = torch.randn(3, 50)
    logits[1, 7] = float("inf")
    with Waits() as waits:
        tokens = choose_tokens(logits, choices)
    assert waits.count == 0
    assert tokens == [int(logits[0].argmax()), -1, int(logits[2].argmax())]


def test_a_file_that_overflows_only_when_it_is_read_in_float16_says_so(golden: Any, defaults: Defaults) -> None:
    checkpoint = load_checkpoint(golden.checkpoint, precision=torch.float16)
    with torch.no_grad():
        checkpoint.model.decoder.layers[0].und.up.weight[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match=r"anew, or load the model with precision bfloat16 or float32"):
        Bagel(checkpoint, defaults=defaults).ask(None, "What?")


def test_loading_names_the_tensor(golden: Any, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from bagel_mot.errors import CheckpointError

    for file, name in (("ema.safetensors", "vae2llm.weight"), ("ae.safetensors", "decoder.conv_out.bias")):
        folder = tmp_path / file
        shutil.copytree(golden.checkpoint, folder)
        tensors = load_file(folder / file)
        tensors[name].view(-1)[0] = float("-inf")
        save_file(tensors, folder / file)
        with pytest.raises(CheckpointError, match=rf"{file}: {name} holds infinite values"):
            Bagel.from_pretrained(folder)

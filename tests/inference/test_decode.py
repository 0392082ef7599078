"""The choice of tokens against brute force, and text given out piece by piece."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.decode import TextStream, choose_tokens, penalised, token_probabilities
from bagel_mot.inference.engine.ops import TokenChoice
from bagel_mot.inference.settings import GenerationSettings


def settings(**values: Any) -> GenerationSettings:
    return GenerationSettings(do_sample=True, **{"temperature": 1.0, **values})


def choose_token(
    logits: Tensor, tokens: list[int], s: GenerationSettings, generator: torch.Generator, vocab_size: int
) -> int:
    """One text alone."""
    (token,) = choose_tokens(logits[None, :vocab_size], [TokenChoice(s, generator, tokens)])
    return token


def probabilities(logits: Tensor, tokens: list[int], s: GenerationSettings) -> Tensor:
    """One text alone, its penalty included."""
    return token_probabilities(penalised(logits[None], [tokens], [s.repetition_penalty]), [s])[0]


def brute_force(logits: list[float], history: list[int], s: GenerationSettings) -> list[float]:
    """The same probabilities with plain lists, in float64."""
    scores = list(logits)
    for token in set(history):
        scores[token] = (
            scores[token] / s.repetition_penalty if scores[token] > 0 else scores[token] * s.repetition_penalty
        )
    scores = [score / s.temperature for score in scores]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = order[: s.top_k] if s.top_k else order
    top = max(scores)
    weights = {i: math.exp(scores[i] - top) for i in kept}
    total = sum(weights.values())
    chosen, mass = [], 0.0
    for i in kept:
        chosen.append(i)
        mass += weights[i] / total
        if mass >= s.top_p:
            break
    total = sum(weights[i] for i in chosen)
    return [weights[i] / total if i in chosen else 0.0 for i in range(len(scores))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 4, 100])
@pytest.mark.parametrize("top_p", [0.01, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_probabilities_against_brute_force(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    s = settings(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    for _ in range(5):
        logits = torch.randn(12) * 2
        got = probabilities(logits, [3, 3, 7], s)
        expected = torch.tensor(brute_force(logits.double().tolist(), [3, 7], s))
        assert torch.allclose(got, expected, atol=1e-5)
        assert got.sum().item() == pytest.approx(1, abs=1e-5)


def test_top_k_keeps_k_of_equal_scores() -> None:
    assert (probabilities(torch.zeros(10), [], settings(top_k=3)) > 0).sum() == 3


def test_sampled_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0])
    s = settings(top_k=4)
    generator = torch.Generator().manual_seed(3)
    count = 4000
    drawn = torch.tensor([choose_token(logits, [], s, generator, vocab_size=4) for _ in range(count)])
    expected = logits[:4].softmax(-1)
    found = torch.bincount(drawn, minlength=4) / count
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_ids_beyond_the_vocabulary_are_never_chosen() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 9.0, 9.0])
    generator = torch.Generator().manual_seed(0)
    assert choose_token(logits, [], GenerationSettings(), generator, vocab_size=3) == 2
    assert {choose_token(logits, [], settings(), generator, vocab_size=3) for _ in range(100)} == {0, 1, 2}


def test_greedy_temperature_zero_and_penalty() -> None:
    logits = torch.tensor([1.0, 3.0, 2.9, -1.0])
    generator = torch.Generator().manual_seed(0)
    assert choose_token(logits, [], GenerationSettings(), generator, 4) == 1
    assert choose_token(logits, [], settings(temperature=0.0), generator, 4) == 1
    assert choose_token(logits, [1], GenerationSettings(repetition_penalty=1.2), generator, 4) == 2
    negative = torch.tensor([-1.0, -1.1, -5.0])  # a penalty makes negative scores lower too
    assert choose_token(negative, [0], GenerationSettings(repetition_penalty=1.2), generator, 3) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-7, 1e-6])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_p": 1e-300}], ids=str)
def test_tiny_temperatures_are_greedy(temperature: float, filters: dict[str, Any]) -> None:
    logits = torch.tensor([1.0, 3e4, 2.9, -3e4])
    generator = torch.Generator().manual_seed(0)
    s = settings(temperature=temperature, **filters)
    assert {choose_token(logits, [], s, generator, 4) for _ in range(10)} == {1}


def test_extreme_penalties_and_shares_can_be_sampled() -> None:
    logits = torch.tensor([1.0, 3.0, 2.9, -1.0])
    generator = torch.Generator().manual_seed(0)
    assert choose_token(logits, [], settings(top_p=1e-300), generator, 4) == 1
    for penalty in (1e-300, 1e-39):  # what was used becomes likelier without end
        s = settings(repetition_penalty=penalty)
        assert {choose_token(logits, [2, 3], s, generator, 4) for _ in range(10)} == {2}
        assert probabilities(logits, [1, 2], s).tolist() == [0.0, 0.5, 0.5, 0.0]


def test_a_batch_chooses_what_its_texts_choose_alone() -> None:
    """Also what `torch.multinomial` would draw from the same generator, on the CPU."""
    logits = torch.randn(7, 300) * 3
    kinds = [
        settings(),
        settings(top_k=5),
        GenerationSettings(),
        settings(top_p=0.7, temperature=0.4),
        GenerationSettings(repetition_penalty=1.3),
        settings(top_k=9, top_p=0.5, repetition_penalty=1.2),
        settings(temperature=0.0),
    ]
    used = [[int(row.argmax()), 3] for row in logits]

    def choices(seed: int = 5) -> list[TokenChoice]:
        return [TokenChoice(s, torch.Generator().manual_seed(seed), u) for s, u in zip(kinds, used, strict=True)]

    together = choose_tokens(logits, choices())
    assert together == [choose_tokens(row[None], [own])[0] for row, own in zip(logits, choices(), strict=True)]
    for row in (0, 1, 3, 5):
        generator = torch.Generator().manual_seed(5)
        drawn = torch.multinomial(probabilities(logits[row], used[row], kinds[row]), 1, generator=generator)
        assert together[row] == int(drawn)


def test_same_seed_same_tokens() -> None:
    logits = torch.randn(30, 50)

    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [choose_token(row, [], settings(), generator, 50) for row in logits]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [
        "a red circle, then 3 blue squares.",
        "naïve 猫 — жёлтый 🐈‍⬛ end",
        "stop",
        "",
        "ababababac abac",
        "st stop sto",
    ]


@pytest.mark.parametrize("stop", [(), ("stop",), ("abac", "bb"), ("猫",), (".", "e"), ("\n", "zzz", " ")])
def test_stream_is_the_text_cut_before_the_first_stop(
    checkpoint: Checkpoint, texts: list[str], stop: tuple[str, ...]
) -> None:
    for text in texts:
        stream = TextStream(checkpoint.tokenizer, stop)
        pieces = []
        for token in checkpoint.tokenizer.encode(text):
            pieces.append(stream.add(token))
            if stream.stopped:
                break
        pieces.append(stream.finish())
        whole = checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(text))
        places = [whole.find(s) for s in stop if s in whole]
        assert "".join(pieces) == stream.text == (whole[: min(places)] if places else whole)
        assert stream.stopped == bool(places)


def test_random_streams_against_find(checkpoint: Checkpoint) -> None:
    rng = random.Random(0)
    letters = {c: checkpoint.tokenizer.encode(c) for c in "ab"}
    for _ in range(300):
        text = "".join(rng.choice("ab") for _ in range(rng.randint(0, 12)))
        stop = tuple("".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3)))
        stream = TextStream(checkpoint.tokenizer, stop)
        for token in itertools.chain.from_iterable(letters[c] for c in text):
            stream.add(token)
        stream.finish()
        # Token by token a stop text counts as soon as it is complete; of those complete at once, the earliest place.
        expected = text
        for end in range(len(text) + 1):
            places = [text[:end].find(s) for s in stop if s in text[:end]]
            if places:
                expected = text[: min(places)]
                break
        assert stream.text == expected


def test_pieces_come_as_soon_as_they_are_certain(checkpoint: Checkpoint) -> None:
    stream = TextStream(checkpoint.tokenizer, ("XY",))
    given = [stream.add(token) for c in "aXbXY" for token in checkpoint.tokenizer.encode(c)]
    assert given == ["a", "", "Xb", "", ""]
    assert stream.stopped
    assert stream.text == "aXb"


def test_an_unfinished_character_ends_as_replacement(checkpoint: Checkpoint) -> None:
    tokens = checkpoint.tokenizer.encode("🐈")
    assert len(tokens) > 1
    stream = TextStream(checkpoint.tokenizer)
    assert stream.add(tokens[0]) == ""
    assert stream.finish() == "\ufffd"

"""Text decoding: the choice of the next token, stop texts, and text as it becomes known. Per request, not per batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.tokenizer import Tokenizer

# Below this the likeliest token is taken: one whose logit is lower by 1e-4 would have a probability below e⁻¹⁰⁰, and
# float32 would soon take the temperature itself for 0.
MIN_TEMPERATURE = 1e-6
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def token_probabilities(logits: Tensor, history: Sequence[int], settings: GenerationSettings) -> Tensor:
    """The probabilities that sampling draws from.

    In this order: repetition penalty, temperature, top-k, top-p, each on what the one before left.

    Args:
        logits: (V,) of the next token.
        history: tokens that this text has so far, which the repetition penalty is about.
        settings: `repetition_penalty`, `temperature` (at least MIN_TEMPERATURE), `top_k`, `top_p`.

    Returns: (V,) float32, summing to 1.
    """
    scores = penalised(logits.float(), history, settings.repetition_penalty)
    scores = (scores - scores.max()) / settings.temperature  # from the likeliest down: what overflows is −∞, never NaN
    if 0 < settings.top_k < scores.numel():
        kept = scores.topk(settings.top_k).indices  # by index: of equal scores no more than k stay
        scores = torch.full_like(scores, float("-inf")).index_copy(0, kept, scores[kept])
    probabilities = scores.softmax(-1)
    if settings.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        # The likeliest has nothing before it: it stays, also where float32 takes top_p for 0.
        ordered = ordered.masked_fill(before >= max(settings.top_p, torch.finfo(torch.float32).tiny), 0.0)
        probabilities = torch.zeros_like(probabilities).index_copy(0, order, ordered / ordered.sum())
    return probabilities


def penalised(logits: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Logits (V,) with those of tokens in `history` divided by `penalty` where positive, multiplied where negative.

    Source: Keskar et al. 2019 (CTRL).
    """
    if penalty == 1 or not history:
        return logits
    used = torch.tensor(sorted(set(history)), device=logits.device)
    scores = logits[used]
    changed = torch.where(scores > 0, scores / penalty, scores * penalty)
    largest = torch.finfo(changed.dtype).max  # a tiny penalty would make infinities, which no softmax takes
    return logits.index_copy(0, used, changed.clamp(max=largest))


def choose_token(
    logits: Tensor, history: Sequence[int], settings: GenerationSettings, generator: torch.Generator, vocab_size: int
) -> int:
    """The next token: the likeliest, or one drawn at random.

    Args:
        logits: (V,) of the next token. The embedding may have more rows than there are tokens: the rest is never
            chosen.
        history: tokens that this text has so far.
        settings: how to choose.
        generator: the request's own, on the CPU.
        vocab_size: the number of tokens.
    """
    logits = logits[:vocab_size].float()
    if not settings.do_sample or settings.temperature < MIN_TEMPERATURE:
        return int(penalised(logits, history, settings.repetition_penalty).argmax())
    probabilities = token_probabilities(logits.cpu(), history, settings)
    return int(torch.multinomial(probabilities, 1, generator=generator))


class TextStream:
    """Text of a growing list of tokens, given out piece by piece, and cut before the first stop text.

    A piece is held back for as long as it may turn out to begin a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stop = tuple(stop)
        self._held = ""
        self._given: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return "".join(self._given)

    def add(self, token: int) -> str:
        """Takes a token; returns what is now certain, possibly ""."""
        return self._advance(self._detokenizer.add(token))

    def finish(self) -> str:
        """No token will follow: returns the rest."""
        last = self._advance(self._detokenizer.finish())
        if self.stopped:
            return last
        rest, self._held = self._held, ""
        self._given.append(rest)
        return last + rest

    def _advance(self, piece: str) -> str:
        if self.stopped:
            return ""
        self._held += piece
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            certain, self._held = self._held[: min(found)], ""
            self.stopped = True
        else:
            keep = self._longest_beginning()
            certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._given.append(certain)
        return certain

    def _longest_beginning(self) -> int:
        """How many characters at the end of what is held back begin a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            ending = self._held[-count:]
            if any(stop.startswith(ending) for stop in self._stop):
                return count
        return 0


def split_thinking(text: str) -> tuple[str, str]:
    """Divides a text written with thinking into (thinking, answer), without the tags.

    Where the thinking never ends, all is thinking and the answer is empty; where no tag stands, all is the answer.
    """
    before, closed, after = text.partition(THINK_CLOSE)
    if not closed and not text.lstrip().startswith(THINK_OPEN):
        return "", text
    return before.strip().removeprefix(THINK_OPEN).strip(), after.strip()

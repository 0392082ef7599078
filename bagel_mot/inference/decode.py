"""Text decoding: the choice of the next tokens, stop texts, and text as it becomes known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bagel_mot.inference.engine.ops import TokenChoice
from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.model.finite import finite_rows
from bagel_mot.tokenizer import Tokenizer

# Below this the likeliest token is taken: one whose logit is lower by 1e-4 would have a probability below e⁻¹⁰⁰, and
# float32 would soon take the temperature itself for 0.
MIN_TEMPERATURE = 1e-6
NOT_FINITE = -1  # no token has this id


def choose_tokens(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
    """The next token of each text: the likeliest, or one drawn at random. One transfer from the device for all.

    Args:
        logits: (R, V) float32 of the next tokens.
        choices: one for each row.

    Returns: R ids below V; NOT_FINITE in place of each that would follow from logits that are not finite.
    """
    finite = finite_rows(logits)
    logits = penalised(logits, [choice.tokens for choice in choices], [c.settings.repetition_penalty for c in choices])
    chosen = logits.argmax(-1)
    sampled = [row for row, choice in enumerate(choices) if samples(choice.settings)]
    if sampled:
        # Nothing is waited for here, as `torch.multinomial` would; on the CPU both choose the same.
        probabilities = token_probabilities(logits[sampled], [choices[row].settings for row in sampled])
        generators = [choices[row].generator for row in sampled]
        noise = [torch.empty(logits.shape[1], device=one.device).exponential_(generator=one) for one in generators]
        chosen[sampled] = (probabilities / torch.stack(noise).to(logits.device)).argmax(-1)
    found: list[int] = chosen.where(finite, NOT_FINITE).tolist()
    return found


def samples(settings: GenerationSettings) -> bool:
    """Whether tokens are drawn at random."""
    return settings.do_sample and settings.temperature >= MIN_TEMPERATURE


def token_probabilities(scores: Tensor, settings: Sequence[GenerationSettings]) -> Tensor:
    """The probabilities that sampling draws from.

    In this order: temperature, top-k, top-p, each on what the one before left.

    Args:
        scores: (R, V) float32 logits after the repetition penalty.
        settings: `temperature` (at least MIN_TEMPERATURE), `top_k` and `top_p` of each row.

    Returns: (R, V) float32, each row summing to 1.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=scores.device, dtype=torch.float32)[:, None]

    # From the likeliest down: what overflows is −∞, never NaN.
    scores = (scores - scores.amax(-1, keepdim=True)) / column([one.temperature for one in settings])
    for row, one in enumerate(settings):
        if 0 < one.top_k < scores.shape[1]:
            kept = scores[row].topk(one.top_k).indices  # by index: of equal scores no more than k stay
            scores[row] = torch.full_like(scores[row], float("-inf")).index_copy(0, kept, scores[row, kept])
    probabilities = scores.softmax(-1)
    limited = [row for row, one in enumerate(settings) if one.top_p < 1]
    if limited:
        ordered, order = probabilities[limited].sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        # The likeliest has nothing before it: it stays, also where float32 takes top_p for 0.
        tiny = torch.finfo(torch.float32).tiny
        ordered = ordered.masked_fill(before >= column([max(settings[row].top_p, tiny) for row in limited]), 0.0)
        kept_share = ordered / ordered.sum(-1, keepdim=True)
        probabilities[limited] = torch.zeros_like(kept_share).scatter(-1, order, kept_share)
    return probabilities


def penalised(logits: Tensor, used: Sequence[Sequence[int]], penalties: Sequence[float]) -> Tensor:
    """Logits with those of used tokens divided by a penalty where positive, multiplied where negative.

    Source: Keskar et al. 2019 (CTRL).

    Args:
        logits: (R, V) float32.
        used: the tokens that the text of each row has so far.
        penalties: one for each row; 1 changes nothing.

    Returns: (R, V) float32.
    """
    places = [
        (row, token, penalty)
        for row, (tokens, penalty) in enumerate(zip(used, penalties, strict=True))
        if penalty != 1
        for token in sorted(set(tokens))
    ]
    if not places:
        return logits
    rows, tokens, factors = (torch.tensor(values, device=logits.device) for values in zip(*places, strict=True))
    scores = logits[rows, tokens]
    changed = torch.where(scores > 0, scores / factors, scores * factors)
    largest = torch.finfo(changed.dtype).max  # a tiny penalty would make infinities, which no softmax takes
    return logits.index_put((rows, tokens), changed.clamp(max=largest))


class TextStream:
    """The text of a growing list of tokens, piece by piece, cut before the first stop text.

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
        """All pieces so far."""
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
            ends = range(len(self._held))  # the first from which on the text begins a stop text
            cut = next((i for i in ends if any(stop.startswith(self._held[i:]) for stop in self._stop)), len(ends))
            certain, self._held = self._held[:cut], self._held[cut:]
        self._given.append(certain)
        return certain

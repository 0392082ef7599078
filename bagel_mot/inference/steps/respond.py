"""Whole results: an image or a text that follows a history, and a history made from a prompt."""

from __future__ import annotations

import time

from bagel_mot.inference.engine.ops import Steps
from bagel_mot.inference.history import History
from bagel_mot.inference.request import IMAGE_POSITIONS, Listener, Request, TextInput
from bagel_mot.inference.result import Result
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.steps.draw import draw
from bagel_mot.inference.steps.read import begin, read
from bagel_mot.inference.steps.write import Written, write
from bagel_mot.inference.thinking import split_thinking

_LIKELY_TEXT = 256  # tokens of a text that may become longer, for which memory is taken beforehand


def respond(runtime: Runtime, request: Request, listener: Listener) -> Steps[Result]:
    """A request that stands alone: reads its inputs and generates what follows."""
    began = time.perf_counter()
    expected = request.prompt_tokens + min(request.max_text_tokens, _LIKELY_TEXT) + 2 + request.noised_tokens
    history = yield from begin(runtime, request.inputs, expected)
    # Held until this request is done: others that begin alike go on from here.
    lent = runtime.prefixes.lend(request.prompt[0], history.copy())
    result, _ = yield from follow(runtime, history, request, listener)
    del lent
    result.seconds = time.perf_counter() - began
    return result


def follow(
    runtime: Runtime, history: History, request: Request, listener: Listener
) -> Steps[tuple[Result, TextInput | None]]:
    """Generates what follows a history. Thinking before an image becomes part of the history, the result does not.

    Returns: the result, and the answer as it can be read behind the history; None where an image was drawn.
    """
    began, answer = time.perf_counter(), None
    written: Written | None = None
    if request.task.draws:
        if request.settings.think:
            written = yield from write(runtime, history, request, listener, "thought", leave=IMAGE_POSITIONS)
            yield from read(runtime, history, [written.input])
        drawing = yield from draw(runtime, history, request, listener)
        result = _result(history, request, written)
        thinking, rest = ("", "") if written is None else split_thinking(result.raw_text, written.ended)
        # A thought without its tags is a thought all the same: what follows is an image.
        result.image, result.thinking = drawing.image, f"{thinking} {rest}".strip()
        result.settings["size"] = request.size
        result.evaluations = drawing.evaluations
        result.image.info.update(result.metadata())
    else:
        written = yield from write(runtime, history, request, listener, "answer")
        answer, text = written.input, written.input.content
        result = _result(history, request, written)
        result.thinking, result.text = split_thinking(text, written.ended) if request.settings.think else ("", text)
    result.seconds = time.perf_counter() - began
    return result, answer


def _result(history: History, request: Request, written: Written | None) -> Result:
    prompt = "\n".join(turn.content for turn in history.turns if turn.kind == "text" and isinstance(turn.content, str))
    result = Result(prompt=prompt, seed=request.seed)
    result.settings = {**request.settings.as_dict(request.task), "seed": request.seed}
    if written is not None:
        result.raw_text = written.input.content
        result.completion_tokens, result.complete = written.tokens, written.complete
    return result

"""Writing: a text that follows a history, token by token."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch

from bagel_mot.inference.decode import TextStream
from bagel_mot.inference.engine.ops import ForwardOp, Output, Steps, TokenChoice
from bagel_mot.inference.history import History
from bagel_mot.inference.request import Kind, Listener, Request, TextInput
from bagel_mot.inference.runtime import Runtime
from bagel_mot.sequence import TextSegment


@dataclass(frozen=True)
class Written:
    """A text that was written.

    Attributes:
        input: the text up to its end token, the limit or the first stop text, to be read behind the history.
        tokens: the tokens it took to write it, the end token included.
        complete: whether it ended by itself or at a stop text, not at the limit.
        ended: whether it ended by itself: neither the limit nor a stop text cut it.
    """

    input: TextInput
    tokens: int
    complete: bool
    ended: bool


def write(
    runtime: Runtime, history: History, request: Request, listener: Listener, kind: Kind, leave: int = 0
) -> Steps[Written]:
    """Writes a text that follows a history, which stays as it is; the cache of the tokens is dropped.

    It is dropped, since a context holds texts as they are read: the tokens of a text that is read need not be those
    that it was written with, and its end token has to be read in any case.

    Args:
        request: the settings, and the limit of tokens, which is lower where the text, with its start and end token,
            would find no room.
        kind: the text's part in its conversation.
        leave: rotary positions to be left behind the text.
    """
    special, recorder = runtime.special, listener.recorder
    context = history.context.fork()
    room = runtime.room(context) - leave
    max_tokens = min(request.max_text_tokens, room - 2)
    context.bound(context.length + 1 + max_tokens)
    stream = TextStream(runtime.tokenizer, request.settings.stop)
    generator = torch.Generator(runtime.engine.model.device).manual_seed(request.seed)
    choice = TokenChoice(request.settings, generator, record=recorder is not None)
    token, ended = special.bos, False
    while True:
        op = ForwardOp(context, (TextSegment((token,)),), Output.TOKEN, record=False, choice=choice)
        yield [op]
        if recorder is not None and choice.logits is not None:
            recorder.tokens.append(token)
            recorder.logits.append(choice.logits)
        if len(choice.tokens) >= max_tokens:  # the last token was read for its logits alone
            break
        token = op.result
        ended = token == special.eos
        if ended:
            break
        choice.tokens.append(token)
        _tell(listener, stream.add(token))
        if stream.stopped or (len(choice.tokens) >= max_tokens and recorder is None):
            break
    _tell(listener, stream.finish())
    text = _fitting(runtime, kind, stream.text, room)
    return Written(
        text, len(choice.tokens) + ended, ended or stream.stopped, ended=ended and text.content == stream.text
    )


def _tell(listener: Listener, piece: str) -> None:
    if piece and listener.on_text is not None:
        listener.on_text(piece)


def _fitting(runtime: Runtime, kind: Kind, text: str, room: int) -> TextInput:
    """A text, or as much of its beginning as takes no more than `room` positions (3 or more) when it is read.

    That may be more than it took to write it, such as where it holds broken characters.
    """
    segment = runtime.text(text)
    if segment.advance > room:
        beyond = bisect_right(range(len(text)), room, key=lambda length: runtime.text(text[:length]).advance)
        text = text[: beyond - 1]
        segment = runtime.text(text)
    return TextInput(kind, text, segment)

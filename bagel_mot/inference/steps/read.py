"""Reading: texts and images become part of a history, in one prefill, and what others have read is gone on from."""

from __future__ import annotations

from collections.abc import Sequence

from bagel_mot.images import to_pixels
from bagel_mot.inference.engine.ops import EncodeOp, ForwardOp, Steps, WaitOp
from bagel_mot.inference.history import History, Turn
from bagel_mot.inference.prefixes import worth_keeping
from bagel_mot.inference.request import ImageInput, Input, TextInput, keys_of
from bagel_mot.inference.runtime import Runtime
from bagel_mot.model.cache import Context
from bagel_mot.sequence import Segment, segment_length, vae_segment, vit_segment


def read(runtime: Runtime, history: History, inputs: Sequence[Input], *, keep: bool = False) -> Steps[None]:
    """Adds texts and images to a history, all in one prefill.

    An image is encoded once, however often it comes; it becomes a clean VAE image, unless it enters as ViT image alone,
    and a ViT image.

    Args:
        keep: says that the history outlives the request, so that its numbers are checked here.

    Raises:
        NotFiniteError: numbers of a history that is kept are not finite. Others show in what follows from them.
    """
    encoded = [one for one in inputs if isinstance(one, ImageInput) and one.vae_tokens]
    encodings = {id(one): EncodeOp(to_pixels(one.image)) for one in encoded}
    if encodings:
        yield list(encodings.values())
    turns = []
    for one in inputs:
        segments: list[Segment] = []
        if isinstance(one, TextInput):
            segments.append(one.segment)
        else:
            if id(one) in encodings:
                segments.append(vae_segment(encodings[id(one)].result, runtime.config.latent_patch_size))
            segments.append(vit_segment(to_pixels(one.vit_image), runtime.config.vit.patch_size))
        turns.append(Turn(one.kind, one.content, tuple(segments)))
    op = ForwardOp(history.context, tuple(segment for turn in turns for segment in turn.segments))
    yield [op]
    if keep and not op.result:
        raise runtime.engine.runner.overflow.error()
    history.turns += tuple(turns)  # their segments are part of the context by now


def read_again(runtime: Runtime, history: History) -> Steps[History]:
    """The same history, its cache computed anew: weights were changed since.

    Raises:
        NotFiniteError: see `read`.
    """
    other = History(runtime.engine.new_context(), keeps_growing=history.keeps_growing)
    if segments := tuple(segment for turn in history.turns for segment in turn.segments):
        op = ForwardOp(other.context, segments)
        yield [op]
        if not op.result:
            raise runtime.engine.runner.overflow.error()
    other.turns = history.turns
    return other


def begin(runtime: Runtime, inputs: Sequence[Input], expected: int) -> Steps[History]:
    """A history that has read `inputs`, going on from what other requests have read, or are reading, where they begin
    alike.

    Args:
        expected: tokens that the context will hold in all, about.
    """
    prefixes, keys = runtime.prefixes, keys_of(inputs)
    while (pending := prefixes.pending(keys)) is not None:
        yield [WaitOp(prefixes.under_way, pending)]
    with prefixes.reading(keys):
        history = prefixes.find(keys)
        common = worth_keeping(keys) if prefixes.max_tokens else 0
        if common and (history is None or len(history.turns) < common):
            # A history that is kept has no memory to spare: it stays when this request is over.
            history = history or History(runtime.engine.new_context(sum(one.tokens for one in inputs[:common])))
            yield from read(runtime, history, inputs[len(history.turns) : common], keep=True)
            prefixes.keep(keys[:common], history)
            history = history.copy()
        history = history or History(runtime.engine.new_context(expected))
        history.context.expect(expected)
        if len(history.turns) < len(inputs):
            yield from read(runtime, history, inputs[len(history.turns) :])
    return history


def read_alone(runtime: Runtime, context: Context, segments: tuple[Segment, ...], room: int) -> Steps[Context]:
    """A context that has read `segments` behind `context`, of which it holds none yet: that of another request that has
    read the same segments, if there is one.

    Args:
        context: the context before the segments; an empty one is replaced by one of the right size.
        segments: the texts that are read.
        room: tokens that are to follow in one piece.
    """
    prefixes = runtime.prefixes
    key = tuple(map(id, (*context.segments, *segments)))
    while key in prefixes.under_way:
        yield [WaitOp(prefixes.under_way, key)]
    if (known := prefixes.contexts.get(key)) is not None:
        return known.fork()
    with prefixes.reading(key):
        if not context.length:  # memory for this branch alone, not for the whole conversation
            context = runtime.engine.new_context(sum(map(segment_length, segments)) + room)
        yield [ForwardOp(context, segments)]
        prefixes.contexts[key] = context
    return context

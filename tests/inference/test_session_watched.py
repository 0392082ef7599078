"""Turns of a session that somebody watches, and ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest
from PIL import Image

from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine.ticket import Ticket


def test_an_image_is_looked_at_as_it_forms(bagel: Bagel) -> None:
    plain, watched = bagel.session(), bagel.session()
    looks: list[Image.Image] = []
    for session in (plain, watched):
        session.add("a cat")
    image = plain.generate_image(seed=1)
    same = watched.generate_image(seed=1, on_preview=looks.append)
    assert len(looks) == 3, "one after each of four steps but the last"
    assert all(look.width * 32 == look.height * 48 for look in looks), "of the picture's proportions"
    assert same.tobytes() == image.tobytes()


def _draw(session: Any, **told: Any) -> Any:
    return session.generate_image(num_timesteps=40, **told)


def _write(session: Any, **told: Any) -> Any:
    return session.generate_text(**told)


def _ask(session: Any, **told: Any) -> Any:
    return session.ask("and now?", **told)


def _stream(session: Any, **told: Any) -> Any:
    del told["on_text"]
    for piece in session.ask("and now?", stream=True, **told):
        told["on_submit"].__self__[0].cancel()
        assert piece
    return None


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_that_cannot_be_handed_over_is_not_worked_on(bagel: Bagel, stream: bool) -> None:
    def refuse(ticket: Ticket[Any]) -> None:
        raise KeyError("not wanted")

    session = bagel.session()
    session.add("a cat")
    turn = partial(session.ask, "and now?", stream=True) if stream else session.generate_image
    with pytest.raises(KeyError, match="not wanted"):
        list(turn(on_submit=refuse))
    assert bagel.engine.idle
    assert len(session.history) == 1


@pytest.mark.parametrize("generate", [_draw, _write, _ask, _stream])
def test_a_cancelled_turn_leaves_the_session_as_it_was(
    bagel: Bagel, spoken: Callable[[str], None], generate: Callable[..., Any]
) -> None:
    spoken("a long answer that has many tokens")
    session = bagel.session()
    session.add("a cat")
    before, tokens = session.history, session.tokens
    tickets: list[Ticket[Any]] = []
    said: list[Any] = []

    def told(*news: Any) -> None:
        said.append(news)
        if len(said) == 2:
            tickets[0].cancel()

    own = {"progress": told} if generate is _draw else {"on_text": told}
    with pytest.raises(CancelledError):
        generate(session, on_submit=tickets.append, **own)
    assert len(tickets) == 1
    assert len(said) == (0 if generate is _stream else 2), "no step after the one in which it was cancelled"
    assert bagel.engine.idle
    assert (session.history, session.tokens) == (before, tokens)
    assert session.ask("still there?", max_new_tokens=100) == "a long answer that has many tokens"
    session.undo()
    session.undo()
    assert session.history == before

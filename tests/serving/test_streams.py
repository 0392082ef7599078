"""What a stream is made of: its events, and what is kept for a slow reader."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from PIL import Image

from bagel_mot.inference.request import Request
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.serving.openai.streams import Channel, End, Preview, Text, event
from bagel_mot.task import Task
from tests.serving.coroutines import run_coroutine


def test_a_slow_reader_gets_all_text_and_the_newest_look() -> None:
    order = Request(Task.GENERATE, (), GenerationSettings(num_timesteps=50), 0, (32, 32))

    async def run() -> tuple[list[Any], int]:
        channel = Channel(previews=3)
        told = [channel.listen(index, order) for index in (0, 1)]
        assert told[0].on_text is not None
        assert told[1].on_text is not None
        assert told[0].on_preview is not None
        for number in range(100):
            told[number % 2].on_text(f"{number} ")  # type: ignore[misc]
        looks = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(8)]
        for look in looks:
            told[0].on_preview(look)
        future: Future[Result] = Future()
        future.set_result(Result(text="done"))
        channel.end(0, future)
        assert await channel.next() is not None  # whatever was posted is there after one turn of the loop
        await asyncio.sleep(0)
        found = [await channel.next(), await channel.next(), await channel.next()]
        assert await channel.next(timeout=0.01) is None
        return found, channel.dropped

    found, dropped = run_coroutine(run())
    assert isinstance(found[0], Text)
    assert found[0].text == "".join(f"{number} " for number in range(1, 100, 2))
    assert isinstance(found[1], Preview)
    assert (found[1].number, dropped) == (2, 2)
    assert isinstance(found[2], End)
    assert found[2].result().text == "done"


def test_events_are_lines() -> None:
    assert event({"a": "x\ny"}, "kind") == b'event: kind\ndata: {"a":"x\\ny"}\n\n'
    assert event("[DONE]") == b"data: [DONE]\n\n"
    assert b"\\u" not in event({"a": "ä"})

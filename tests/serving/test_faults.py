"""When something goes wrong for one, the others do not notice; and a server that is told to go finishes its work."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.errors import SettingError
from bagel_mot.inference.engine.ops import ForwardOp
from bagel_mot.inference.engine.runner import Runner
from bagel_mot.inference.engine.scheduler import Scheduler
from bagel_mot.serving.openai.app import create_app
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import BusyError, LimitError, Limits, Service
from tests.holding import Hold
from tests.serving.conftest import Live, opened, refused, running, same, wait_for
from tests.serving.coroutines import run_coroutine

DRAW = {"prompt": "a red car", "seed": 1, "num_timesteps": 5}
MARK = "7" * 30  # in the prompt of the request that is to fail


@pytest.fixture
def failing(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, str], None]:
    """Makes every pass fail that has a row of a request to draw at so many steps."""
    forward = Runner.forward

    def fail(error: Exception, where: str) -> None:
        marked: set[int] = set()

        def broken(runner: Runner, batch: list[ForwardOp]) -> None:
            for op in batch:
                if any(len(getattr(s, "ids", ())) > 29 for s in (*op.context.segments, *op.segments)):
                    marked.add(id(op.owner))
            late = where == "reading" or any(getattr(s, "noised", False) for op in batch for s in op.segments)
            if late and any(id(op.owner) in marked for op in batch):
                raise error
            forward(runner, batch)

        monkeypatch.setattr(Runner, "forward", broken)

    return fail


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("where", ["reading", "drawing"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError("secret of the house"), 500),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), 503),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), 503),
        (MemoryError(), 503),
    ],
)
def test_a_failing_request_fails_alone(
    bagel: Bagel,
    loaded: Bagel,
    failing: Callable[[Exception, str], None],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    where: str,
) -> None:
    expected = Bagel(loaded.checkpoint, defaults=loaded.defaults).generate("a red car", seed=1, num_timesteps=5)
    failing(error, where)
    with running(bagel) as live, ThreadPoolExecutor(6) as pool:
        good = [pool.submit(live.post, "/v1/images/generations", DRAW) for _ in range(4)]
        bad = pool.submit(live.post, "/v1/images/generations", {**DRAW, "prompt": MARK})
        streamed = pool.submit(live.post, "/v1/images/generations", {**DRAW, "prompt": MARK, "stream": True})
        failure = refused(bad.result(), status, "memory" if status == 503 else "failed at this request")
        assert "secret" not in json.dumps(failure)
        assert ("retry-after" in bad.result().headers) == (status == 503)
        last = json.loads(streamed.result().text.strip().rpartition("data: ")[2])
        assert last["error"]["message"] == failure["message"]
        for one in good:
            assert same(opened(one.result().json()["data"][0]["b64_json"]), expected)
        wait_for(lambda: live.bagel.engine.idle and live.service.present == 0)
        assert live.post("/v1/images/generations", DRAW).status_code == 200  # and so do later ones
    assert type(error).__name__ in caplog.text
    assert "secret" not in caplog.text


def test_numbers_that_overflow_are_told_in_a_sentence_and_fail_alone(
    bagel: Bagel, loaded: Bagel, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = copy.copy(loaded.checkpoint)
    checkpoint.model = copy.deepcopy(checkpoint.model)
    (token,) = checkpoint.tokenizer.encode("~")
    with torch.no_grad():
        checkpoint.model.decoder.embed_tokens.weight[token] = float("nan")
    ask = {"messages": [{"role": "user", "content": "~"}]}
    with running(Bagel(checkpoint, defaults=loaded.defaults)) as live, ThreadPoolExecutor(6) as pool:
        good = [pool.submit(live.post, "/v1/images/generations", DRAW) for _ in range(3)]
        bad = pool.submit(live.post, "/v1/images/generations", {**DRAW, "prompt": "~"})
        text = pool.submit(live.post, "/v1/chat/completions", ask)
        streamed = pool.submit(live.post, "/v1/chat/completions", {**ask, "stream": True})
        for one in (bad, text):
            failure = refused(one.result(), 500, r"embed_tokens\.weight holds infinite values")
            assert failure["code"] == "not_finite"
        assert "holds infinite values" in streamed.result().text
        for one in good:
            assert same(opened(one.result().json()["data"][0]["b64_json"]), bagel.generate("a red car", seed=1))
    assert "holds infinite values" in caplog.text


class Panic(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize(("kind", "status"), [(ValueError, 500), (Panic, 503)])
def test_a_broken_step_does_not_end_the_thread(
    bagel: Bagel, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], status: int
) -> None:
    def broken(*_: Any) -> list[Any]:
        raise kind("no step today")

    with running(bagel) as live:
        monkeypatch.setattr(Scheduler, "admit", broken)
        refused(live.post("/v1/images/generations", DRAW), status, "failed at this request" if status == 500 else "")
        monkeypatch.undo()
        assert live.post("/v1/images/generations", DRAW).status_code == 200


# -------------------------------------------------------------------------------------------------- clients that leave


@contextmanager
def asking(live: Live, body: bytes) -> Iterator[None]:
    """A client that asks for images, and leaves at the end."""
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        yield


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(bagel: Bagel, loaded: Bagel, hold: Hold, stream: bool) -> None:
    expected = Bagel(loaded.checkpoint, defaults=loaded.defaults).generate("a red car", seed=1, num_timesteps=5)
    hold.after(3)
    with running(bagel) as live, ThreadPoolExecutor(4) as pool:
        body = json.dumps({**DRAW, "num_timesteps": 250, "n": 2, "stream": stream}).encode()
        with asking(live, body):
            wait_for(lambda: live.service.present == 2)
            other = pool.submit(live.post, "/v1/images/generations", DRAW)
            wait_for(lambda: live.service.present == 3)
        wait_for(lambda: live.service.present == 1)
        hold.release()
        assert same(opened(other.result().json()["data"][0]["b64_json"]), expected)
        wait_for(lambda: live.service.present == 0 and bagel.engine.idle)
    assert hold.made < 50, "and not after 250 steps"


def test_a_client_that_leaves_before_its_turn_gives_up_its_place(bagel: Bagel, hold: Hold) -> None:
    hold.after(3)
    with running(bagel) as live, ThreadPoolExecutor(4) as pool:
        bagel.engine.max_active_cost = 200  # one such picture
        first = pool.submit(live.post, "/v1/images/generations", {**DRAW, "size": "128x128", "num_timesteps": 60})
        wait_for(lambda: bagel.engine.active == 1)
        with asking(live, json.dumps({**DRAW, "size": "128x128"}).encode()):
            wait_for(lambda: live.service.present == 2)
        wait_for(lambda: live.service.present == 1)
        assert bagel.engine.active == 1
        hold.release()
        assert first.result().status_code == 200


def test_a_slow_reader_holds_up_nobody_and_misses_no_text(bagel: Bagel, spoken: Callable[[str], None]) -> None:
    """The reader takes nothing at all until the others are done. Asked of the app itself, since between two sockets
    there is always some room.
    """
    text = " ".join(map(str, range(40)))
    spoken(text)
    service = Service(bagel, memory=1 << 30)
    app = create_app(service, ServerOptions(model_name="tiny"))

    def body(**more: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, **more}).encode()

    async def ask(content: bytes, path: str, begin: asyncio.Event | None) -> bytes:
        sent, asked, left = bytearray(), False, asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await left.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            if begin is not None:
                await begin.wait()
            sent.extend(message.get("body", b""))

        headers = [(b"content-type", b"application/json"), (b"host", b"x")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "app": app}
        await app(scope, receive, send)  # type: ignore[arg-type]
        return bytes(sent)

    async def run() -> None:
        begin = asyncio.Event()
        chat, images = "/v1/chat/completions", "/v1/images/generations"
        slow = asyncio.create_task(ask(body(max_tokens=200), chat, begin))
        looks = json.dumps({**DRAW, "num_timesteps": 30, "stream": True, "partial_images": 3}).encode()
        slow_image = asyncio.create_task(ask(looks, images, begin))
        others = await asyncio.gather(*(ask(body(max_tokens=200), chat, None) for _ in range(3)))
        assert not slow.done()
        while service.present:  # it was worked on all the same
            await asyncio.sleep(0.01)
        begin.set()
        late = await slow
        for answer in (late, *others):
            chunks = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: {")]
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert late.count(b"data: ") < others[0].count(b"data: ") / 3  # in few large pieces
        drawn = await slow_image
        assert drawn.count(b"event: image_generation.completed") == 1
        assert drawn.count(b"event: image_generation.partial_image") == 1  # the newest alone
        assert b'"partial_image_index":2' in drawn

    run_coroutine(run())
    assert b"bagel_dropped_previews_total 2.0" in app.state.bagel.metrics.text()
    service.stop()


# --------------------------------------------------------------------------------------------------- the queue's limits


def test_a_full_queue_refuses_with_a_time_to_retry(bagel: Bagel, hold: Hold) -> None:
    hold.after(0)
    with running(bagel, queue=2) as live, ThreadPoolExecutor(4) as pool:
        first = [pool.submit(live.post, "/v1/images/generations", DRAW) for _ in range(2)]
        wait_for(lambda: live.service.present == 2)
        for stream in (False, True):
            answer = live.post("/v1/images/generations", {**DRAW, "stream": stream})
            assert refused(answer, 429, "2 of 2 places are taken")["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        hold.release()
        assert [one.result().status_code for one in first] == [200, 200]
        refused(live.post("/v1/images/generations", {**DRAW, "n": 3}), 400, "from 1 to 2")
        assert live.post("/v1/images/generations", {**DRAW, "n": 2}).status_code == 200
        assert live.service.present == 0


def test_what_the_memory_never_holds_is_refused_at_once(bagel: Bagel) -> None:
    with running(bagel, memory=12 << 20) as live:
        error = refused(live.post("/v1/images/generations", {**DRAW, "size": "128x128"}), 400, "memory for")
        assert error["code"] == "limit_exceeded"
        assert bagel.engine.stats.steps == 0
        assert live.post("/v1/images/generations", DRAW).status_code == 200
    small = Service(bagel, memory=1 << 20)
    with pytest.raises(LimitError, match=f"tokens of cache, this service has memory for {small.capacity.cache_tokens}"):
        small.start(["x"], output="text", max_new_tokens=4000)
    assert small.present == 0


def test_edits_think_as_long_as_the_checkpoint_says(loaded: Bagel, image: Image.Image) -> None:
    edit = {**loaded.defaults.of("edit"), "max_think_tokens": 4}
    short = dataclasses.replace(loaded.defaults, tasks={**loaded.defaults.tasks, "edit": edit})
    service = Service(Bagel(loaded.checkpoint, defaults=short), memory=1 << 30)
    for inputs, tokens in (([image, "x"], 4), (["x"], 6)):
        request = service.check(inputs, "image", {"think": True})
        assert request.settings.max_think_tokens == tokens
    service.stop()


def test_what_no_pass_holds_is_refused_at_once(bagel: Bagel, image: Image.Image) -> None:
    service = Service(bagel, memory=1 << 30)
    whole = service.capacity
    service.capacity = dataclasses.replace(whole, step_pixels=1000)
    service.check([image, "x"], "text", {})
    with pytest.raises(LimitError, match="a picture given is read at"):
        service.check([image, "x"], "image", {"size": (16, 16)})
    service.capacity = dataclasses.replace(whole, step_tokens=50)
    with pytest.raises(LimitError, match="needs a pass of 66 tokens, this service has memory for 50"):
        service.check(["x"], "image", {"size": (128, 128)})
    service.capacity = dataclasses.replace(whole, step_tokens=5)
    with pytest.raises(LimitError, match=r"needs a pass of \d+ tokens, this service has memory for 5"):
        service.check([image, "x"], "text", {})
    service.check(["x" * 60], "text", {"max_new_tokens": 51})  # texts are read in parts


def test_requests_have_the_room_that_sessions_leave(bagel: Bagel, hold: Hold) -> None:
    service = Service(bagel, memory=1 << 30)
    room, held = service.capacity.cache_tokens, 0
    service.count_sessions(lambda: held)
    held = room - 50
    with pytest.raises(BusyError, match=f"open conversations hold {held} of {room}"):
        service.start(["x"], size="128x128")
    assert service.present == 0
    bagel.engine.max_active_cost, held = 400, 0
    hold.after(5)
    first = service.start(["x"], size="128x128", num_timesteps=100)
    wait_for(lambda: bagel.engine.active == 1)
    second = service.start(["x"], size="128x128", num_timesteps=100)
    wait_for(lambda: bagel.engine.active == 2)
    held = 300
    third = service.start(["x"], size="32x32", num_timesteps=3)
    hold.after(20)
    wait_for(lambda: hold.made > 20)
    assert bagel.engine.waiting == 1
    held = 0
    hold.release()
    third.tickets[0].result(120)
    for started in (first, second):
        started.cancel()
    service.stop()


def test_what_is_over_is_let_go_of_while_earlier_requests_go_on(bagel: Bagel, hold: Hold) -> None:
    service = Service(bagel, memory=1 << 30)
    hold.after(30)
    first = service.start(["x"], size="128x128", num_timesteps=250)
    job = service.start(["x"], size="32x32", num_timesteps=3).tickets[0]
    job.result(120)
    over = weakref.ref(job)
    del job
    wait_for(lambda: gc.collect() >= 0 and over() is None)
    assert not first.tickets[0].done()
    first.cancel()
    hold.release()
    service.stop()


def test_a_model_has_one_service_at_a_time(bagel: Bagel) -> None:
    service = Service(bagel, memory=1 << 30)
    limits = bagel.engine.max_step_tokens, bagel.engine.max_active_cost
    with pytest.raises(SettingError, match="this model has a service already: use that one, or stop it first"):
        Service(bagel, memory=1 << 20)
    assert limits == (bagel.engine.max_step_tokens, bagel.engine.max_active_cost)
    service.count_sessions(lambda: 100)
    assert service.session_tokens == 100
    service.close()
    with pytest.raises(SettingError, match="stop it first"):  # requests of the first may still be at work
        Service(bagel, memory=1 << 29)
    service.stop()
    second = Service(bagel, memory=1 << 29)
    assert second.session_tokens == 0, "sessions of the one before are not the second one's"
    second.stop()


def test_first_come_first_served(bagel: Bagel) -> None:
    """Where only one finds room at a time, they end in the order in which they came."""
    service = Service(bagel, memory=1 << 30)
    bagel.engine.max_active_cost = 200
    ended: list[int] = []
    started = []
    for number in range(4):
        one = service.start(["x"], size="128x128", num_timesteps=3, seed=number)
        one.tickets[0].add_done_callback(lambda _, number=number: ended.append(number))  # type: ignore[misc]
        started.append(one)
    for one in started:
        one.tickets[0].result(120)
    assert ended == [0, 1, 2, 3]
    service.stop()


def test_the_service_and_threads_of_its_users_share_the_engine(bagel: Bagel, image: Image.Image) -> None:
    """As when a page in the same process asks, too."""
    service = Service(bagel, memory=1 << 30)
    started = service.start(["a red car"], n=3, seed=1)

    def ask() -> str:
        with service.place():
            return bagel.ask(image, "What?")

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        texts = {future.result(120) for future in asked}
    images = [job.result(120).image for job in started.tickets]
    alone = Bagel(bagel.checkpoint, defaults=bagel.defaults)
    assert texts == {alone.ask(image, "What?")}
    for image, expected in zip(images, alone.generate("a red car", n=3, seed=1), strict=True):
        assert image is not None
        assert same(image, expected)
    service.stop()
    with pytest.raises(BusyError, match="shutting down"):
        service.start(["x"])


@pytest.mark.parametrize("output", ["text", "image"])
@pytest.mark.parametrize("think", [False, True])
def test_prompts_are_counted_as_they_are_read(bagel: Bagel, image: Image.Image, output: Any, think: bool) -> None:
    service = Service(bagel, memory=1 << 30)
    settings = {"cfg_text_scale": 1} if output == "image" else {}  # no other branch reads anything
    started = service.start(["Look.", image, "What is it?"], output=output, think=think, **settings)
    result = started.tickets[0].result(120)
    thought = 0
    if output == "image" and think:
        thought = bagel.runtime.text(result.raw_text).und_len
    assert started.request.prompt_tokens + thought == bagel.engine.stats.prefill_tokens
    assert result.completion_tokens == bagel.engine.stats.written_tokens
    service.stop()


def test_limits_of_images(bagel: Bagel, image: Image.Image) -> None:
    service = Service(bagel, limits=Limits(images=1, image_pixels=3000, text_characters=5), memory=1 << 30)
    service.check([image, "x"], "text", {})
    for inputs, match in (
        ([image, image, "x"], "2 pictures"),
        ([image.resize((100, 100)), "x"], "at most 3000"),
        (["abc", "def"], "6 characters"),
    ):
        with pytest.raises(ValueError, match=match):
            service.start(inputs, output="text")
    with pytest.raises(LimitError, match="513 texts and pictures: this service takes at most 512"):
        service.start([""] * 513, output="text")
    with pytest.raises(LimitError, match="stop texts have 1025 characters"):
        service.start(["x"], output="text", stop=["a"] * 1025)
    with pytest.raises(LimitError, match="n is 9"):
        service.start(["x"], n=9)
    assert service.present == 0


# ------------------------------------------------------------------------------------------------------------- the end


@pytest.fixture
def process(tiny: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """`bagel serve` as a process."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "bagel_mot", "serve", "-c", str(tiny), "--port", "0", *arguments]
        found = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        )
        begun.append(found)
        assert found.stderr is not None
        line = found.stderr.readline()
        assert "listens at http://127.0.0.1:" in line, line + found.stderr.read()
        return found, line.split("listens at ")[1].split()[0]

    yield start
    for one in begun:
        one.kill()
        one.wait()
        if one.stderr is not None:
            one.stderr.close()


@contextmanager
def streaming(url: str) -> Iterator[Iterator[str]]:
    """The lines of a stream that takes many steps, at work."""
    body = {**DRAW, "num_timesteps": 250, "size": "128x128", "n": 8, "stream": True, "partial_images": 3}
    with httpx2.stream("POST", f"{url}/v1/images/generations", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: image_generation.partial_image"
        yield lines


@pytest.mark.slow
def test_sigterm_finishes_what_is_at_work(process: Callable[..., Any]) -> None:
    server, url = process()
    assert httpx2.get(f"{url}/ready").json() == {"status": "ready", "model": "tiny", "requests": 0}
    with streaming(url) as lines:
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{url}/ready").status_code == 503)
        answer = httpx2.post(f"{url}/v1/images/generations", json=DRAW)
        assert refused(answer, 503, "shutting down")["code"] == "shutting_down"
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx2.get(f"{url}/health").status_code == 200
        assert list(lines).count("event: image_generation.completed") == 8
    assert server.wait(120) == 0
    assert server.stderr is not None
    log = server.stderr.read()
    assert "shutting down: 8 requests" in log
    assert "a red car" not in log
    assert "Traceback" not in log


def test_a_second_signal_ends_at_once(process: Callable[..., Any]) -> None:
    server, url = process("--log-prompts")
    with streaming(url):
        server.send_signal(signal.SIGINT)
        wait_for(lambda: httpx2.get(f"{url}/ready").status_code == 503)
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 128 + signal.SIGINT
    assert server.stderr is not None
    assert "a red car" in server.stderr.read()

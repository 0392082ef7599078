"""A server on the recorded model, on a free port, and clients for it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI
from PIL import Image, ImageChops

from bagel_mot import Bagel
from bagel_mot.serving.edge.run import Server, address_of, listen
from bagel_mot.serving.openai.app import create_app
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Limits, Service
from tests.holding import Hold, held_engines

GOLDEN = Path(__file__).parents[1] / "golden"
GUARD = 600.0  # seconds after which something will not happen any more, however busy the machine is


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded checkpoint, with defaults that make small pictures in four steps and short answers."""
    folder = Path(shutil.copytree(GOLDEN / "checkpoint", tmp_path_factory.mktemp("serving") / "tiny"))
    short = {"num_timesteps": 5, "max_think_tokens": 6}
    defaults = {
        "generate": {"size": [48, 32], **short},
        "edit": short,
        "ask": {"max_new_tokens": 12},
        "vae_transform": {"max_size": 64, "min_size": 32},
        "vit_transform": {"max_size": 70, "min_size": 28},
    }
    (folder / "bagel_defaults.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> Bagel:
    return Bagel.from_pretrained(tiny, precision="float32", device="cpu")


@dataclass
class Live:
    """A server at work in a thread."""

    service: Service
    url: str
    server: Server
    thread: threading.Thread
    keys: tuple[str, ...] = field(default=())

    @property
    def bagel(self) -> Bagel:
        return self.service.bagel

    def openai(self, **more: Any) -> OpenAI:
        key = self.keys[0] if self.keys else "none"
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": key, "max_retries": 0, "timeout": 60, **more})

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=60, **more)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def same(a: Image.Image, b: Image.Image) -> bool:
    """Whether two pictures are the same up to what rounding makes of requests that were computed together."""
    levels = ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema()
    return a.size == b.size and max(high for _, high in levels) <= 2


def refused(response: httpx2.Response, status: int, match: str) -> dict[str, Any]:
    """It is OpenAI's error object, and its message one sentence."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(match, error["message"]), error["message"]
    assert "Traceback" not in response.text
    return error


def wait_for(condition: Callable[[], bool], seconds: float = GUARD) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def running(bagel: Bagel, options: ServerOptions | None = None, **limits: Any) -> Iterator[Live]:
    memory = limits.pop("memory", 1 << 30)
    service = Service(bagel, limits=Limits(**limits), memory=memory)
    options = options or ServerOptions(model_name="tiny")
    with listen("127.0.0.1", 0) as listening:
        url, begun = address_of(listening), threading.Event()
        server = Server(create_app(service, options), service, begun.set)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_for(lambda: begun.is_set() or not thread.is_alive(), GUARD)
            assert begun.is_set(), "the server ended before it began"
            yield Live(service, url, server, thread, options.api_keys)
        finally:
            server.should_exit = True
            thread.join(GUARD)
            service.stop()
            assert not thread.is_alive()


@pytest.fixture
def bagel(loaded: Bagel) -> Bagel:
    """A fresh engine on the loaded weights."""
    return Bagel(loaded.checkpoint, defaults=loaded.defaults)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    with held_engines(monkeypatch) as hold:
        yield hold


@pytest.fixture
def live(bagel: Bagel) -> Iterator[Live]:
    with running(bagel) as server:
        yield server


@pytest.fixture(scope="session")
def image() -> Image.Image:
    """Something to look at: a shaded ground with a bar."""
    image = Image.linear_gradient("L").resize((60, 44)).convert("RGB")
    image.paste((200, 30, 30), (10, 10, 30, 40))
    return image


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def opened(encoded: str) -> Image.Image:
    """A picture from base64, or a data URI."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded.rpartition(",")[2])))
    image.load()
    return image


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch, loaded: Bagel) -> Callable[[str], None]:
    """Makes the model say a given text next, whatever it read, and then the end token."""
    from bagel_mot.inference.engine import runner

    def say(text: str) -> None:
        tokens = [*loaded.tokenizer.encode(text), loaded.tokenizer.special.eos]

        def choose(logits: Any, choices: Any) -> list[int]:
            return [tokens[min(len(choice.tokens), len(tokens) - 1)] for choice in choices]

        monkeypatch.setattr(runner, "choose_tokens", choose)

    return say

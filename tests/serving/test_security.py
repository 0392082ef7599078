"""Keys, limits, hosts, addresses, files, logs: what strangers must not be able to do."""

from __future__ import annotations

import asyncio
import base64
import errno
import http.server
import io
import logging
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import httpx2
import openai
import pytest
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.errors import BagelError, ImageError
from bagel_mot.serving.edge import fetch as fetching
from bagel_mot.serving.edge import security
from bagel_mot.serving.edge.fetch import allowed_url, fetch, is_public
from bagel_mot.serving.edge.metrics import ServerMetrics
from bagel_mot.serving.edge.run import check_exposure, is_loopback, listen
from bagel_mot.serving.edge.security import is_key
from bagel_mot.serving.openai import routes as working
from bagel_mot.serving.openai.app import create_app
from bagel_mot.serving.openai.errors import ApiError
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Service
from tests.serving.conftest import Live, data_uri, png, refused, running, wait_for
from tests.serving.coroutines import run_coroutine

ASK = "/v1/chat/completions"
DRAW = {"prompt": "x", "num_timesteps": 2}


def about(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}],
        "max_tokens": 2,
        "seed": 0,
    }


# ---------------------------------------------------------------------------------------------------------------- keys


def test_keys(bagel: Bagel) -> None:
    options = ServerOptions(model_name="tiny", api_keys=("first-key", "second-key"))
    with running(bagel, options) as live:
        for header in (None, "Bearer wrong", "Bearer", "Basic first-key", "first-key", "Bearer first-key2"):
            headers = {} if header is None else {"Authorization": header}
            for answer in (
                live.get("/v1/models", headers=headers),
                live.get("/metrics", headers=headers),
                live.post("/v1/images/generations", DRAW, headers=headers),
                live.get("/v1/unknown", headers=headers),
            ):
                error = refused(answer, 401, "no valid API key")
                assert error["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert bagel.engine.stats.steps == 0
        for key in options.api_keys:
            assert live.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert live.openai().models.list().data[0].id == "tiny"
        with pytest.raises(openai.AuthenticationError):
            live.openai(api_key="other").models.list()
        assert [live.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


def test_every_key_is_compared() -> None:
    assert is_key("b", ("a", "b"))
    assert not is_key("ä\udc80", ("a", "b"))
    assert not is_key("", ("a",))
    assert not is_key("a", ())


@pytest.mark.parametrize(
    ("host", "inside"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_without_keys_only_this_machine_is_served(host: str, inside: bool) -> None:
    assert is_loopback(host) == inside
    check_exposure(host, ("key",), False)
    check_exposure(host, (), True)
    if inside:
        check_exposure(host, (), False)
    else:
        with pytest.raises(BagelError, match="there is no API key"):
            check_exposure(host, (), False)


def test_a_port_in_use_is_refused_in_a_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BagelError, match=f"port {port} of 127.0.0.1 cannot be listened at .*in use"):
            listen("127.0.0.1", port)
    with pytest.raises(BagelError, match="cannot be listened at"):
        listen("no.such.host.invalid", 0)


def test_names_of_this_machine_alone(bagel: Bagel) -> None:
    """A web page may give its own name this machine's address; then the browser sends that name."""
    options = ServerOptions(model_name="tiny", allowed_hosts=("localhost", "127.0.0.1", "[::1]"))
    with running(bagel, options) as live:
        assert live.get("/v1/models").status_code == 200
        for host in ("localhost", "localhost:80", "[::1]:8000", "LOCALHOST"):
            assert live.get("/v1/models", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
            refused(live.get("/v1/models", headers={"Host": host}), 403, "must not be addressed")


def test_cors_is_off_unless_allowed(loaded: Bagel) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}

    def fresh() -> Bagel:
        return Bagel(loaded.checkpoint, defaults=loaded.defaults)

    with running(fresh()) as live:
        assert "access-control-allow-origin" not in live.get("/health", headers=asked).headers
        assert httpx2.options(f"{live.url}{ASK}", headers=asked).status_code == 405
    options = ServerOptions(model_name="tiny", cors_origins=("https://a.example",), api_keys=("k",))
    with running(fresh(), options) as live:
        answer = httpx2.options(
            f"{live.url}{ASK}", headers={**asked, "Access-Control-Request-Headers": "authorization"}
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = {**asked, "Origin": "https://b.example"}
        assert "access-control-allow-origin" not in live.get("/health", headers=other).headers


# -------------------------------------------------------------------------------------------------------------- bodies


def test_bodies_too_large(bagel: Bagel) -> None:
    options = ServerOptions(model_name="tiny", max_body_bytes=2000)
    with running(bagel, options) as live:
        headers = {"Content-Type": "application/json"}
        refused(live.post(ASK, about("data:" + "x" * 3000)), 413, "too large")

        def chunks() -> Iterator[bytes]:
            for _ in range(10):
                yield b"x" * 1000

        refused(live.post(ASK, content=chunks(), headers=headers), 413, "too large")
        files = {"image": ("a.png", b"x" * 3000)}
        refused(live.post("/v1/images/edits", data={"prompt": "x"}, files=files), 413, "too large")
        assert live.post("/v1/images/generations", DRAW).status_code == 200


def test_bodies_of_all_requests_are_bounded(bagel: Bagel) -> None:
    options = ServerOptions(model_name="tiny", max_body_bytes=2000)
    with running(bagel, options) as live:
        port = int(live.url.rpartition(":")[2])
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        uploads = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        try:
            for upload in uploads:
                upload.sendall(head + b"Content-Length: 1900\r\n\r\n{")
            wait_for(lambda: live.post("/v1/images/generations", {**DRAW, "user": "x" * 1800}).status_code == 429)
            assert live.get("/health").status_code == 200
        finally:
            for upload in uploads:
                upload.close()
        wait_for(lambda: live.post("/v1/images/generations", {**DRAW, "user": "x" * 1800}).status_code == 200)


def test_a_body_that_stops_coming_is_given_up(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few clients that send nothing would keep everybody out."""
    monkeypatch.setattr(security, "STALLED_SECONDS", 0.3)
    with running(bagel, ServerOptions(model_name="tiny", max_body_bytes=2000)) as live:
        port = int(live.url.rpartition(":")[2])
        for path, kind, begun in (
            ("generations", "application/json", b"{"),
            ("edits", "multipart/form-data; boundary=x", b"--x\r\n"),
        ):
            head = (
                f"POST /v1/images/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nConnection: close\r\n"
                "Content-Length: 1900\r\n\r\n"
            ).encode()
            uploads = [socket.create_connection(("127.0.0.1", port), timeout=120) for _ in range(8)]
            for upload in uploads:
                upload.sendall(head + begun)
            answers = [b"".join(iter(partial(upload.recv, 4096), b"")) for upload in uploads]
            assert all(b" 408 " in answer and b"did not come" in answer for answer in answers), answers
            assert live.post("/v1/images/generations", {**DRAW, "user": "x" * 1800}).status_code == 200
            for upload in uploads:
                upload.close()


def test_a_body_may_take_longer_than_that_as_long_as_it_comes(bagel: Bagel) -> None:
    service = Service(bagel, memory=1 << 30)
    app = create_app(service, ServerOptions(model_name="tiny"))
    left = [b'{"prompt": ', b'"x"', b", ", b'"num_timesteps"', b": ", b"2", b"}"]
    statuses = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        now, passed = loop.time, 0.0
        loop.time = lambda: now() + passed  # type: ignore[method-assign]  # the client moves it on

        async def receive() -> dict[str, Any]:
            nonlocal passed
            if not left:
                await asyncio.Event().wait()
            passed += security.STALLED_SECONDS / 2
            await asyncio.sleep(0)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        path = "/v1/images/generations"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(b"content-type", b"application/json"), (b"host", b"x")], "http_version": "1.1"}
        await app({**scope, "scheme": "http", "root_path": "", "app": app}, receive, send)  # type: ignore[arg-type]

    run_coroutine(run())
    assert statuses[0] == 200
    service.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such option")
def test_a_client_that_takes_nothing_is_left() -> None:
    with listen("127.0.0.1", 0, stalled=0.5) as listening, socket.socket() as client:
        listening.listen()
        client.connect(listening.getsockname())
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(120)
            with pytest.raises(TimeoutError) as raised:
                _ = [connection.sendall(bytes(1 << 20)) for _ in range(100)]
        assert raised.value.errno == errno.ETIMEDOUT  # said by the system, not by our own patience


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def test_images_too_large_are_refused_before_they_are_decoded(
    live: Live, monkeypatch: pytest.MonkeyPatch, image: Image.Image
) -> None:
    decoded: list[tuple[int, int]] = []
    load = Image.Image.load

    def noted(image: Image.Image) -> Any:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", noted)
    for size in ((10000, 10000), (60000, 60000)):
        uri = f"data:image/png;base64,{base64.b64encode(bomb(*size)).decode()}"
        refused(live.post(ASK, about(uri)), 400, "too large")
        files = {"image": ("a.png", bomb(*size))}
        refused(live.post("/v1/images/edits", data={"prompt": "x"}, files=files), 400, "too large")
    assert decoded == []


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("file:///etc/passwd", "fetches no pictures"),
        ("/etc/passwd", "fetches no pictures"),
        ("https://example.org/a.png", "fetches no pictures"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,ÄÄ", "not valid base64"),
        ("data:image/png,abc", "known picture format"),
        ("data:text/html;base64,aGk=", "known picture format"),
        ("data:image/png;base64,aGk=", "known picture format"),
        ("data:", "must be data:image/png;base64"),
        ("", "it has no picture"),
    ],
)
def test_addresses_of_images_that_are_refused(loaded: Bagel, url: str, match: str, shared: Live) -> None:
    refused(shared.post(ASK, about(url)), 400, match)


@pytest.fixture(scope="module")
def shared(loaded: Bagel) -> Iterator[Live]:
    with running(Bagel(loaded.checkpoint, defaults=loaded.defaults)) as server:
        yield server


def test_nothing_is_read_before_the_door(shared: Live) -> None:
    refused(shared.post(ASK, content=b"{", headers={"Content-Type": "application/json"}), 400, "not valid JSON")
    refused(shared.post(ASK, content=b"[" * 100000, headers={"Content-Type": "application/json"}), 400, ".")
    refused(
        shared.post(ASK, content=b'{"seed":' + b"9" * 9999 + b"}", headers={"Content-Type": "application/json"}),
        400,
        ".",
    )
    refused(shared.post(ASK, content=b"{}", headers={"Content-Type": "text/plain"}), 400, ".")
    refused(shared.get("/nowhere"), 404, "nothing at '/nowhere'")
    refused(shared.get(ASK), 405, "GET is not answered")
    refused(shared.get("/v1/models/other"), 404, "does not exist here")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(shared.post("/v1/images/edits", content=b"--x\r\nbroken", headers=broken), 400, ".")


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x",
        "file:///etc/passwd",
        "https://b.example/x",
        "https://a.example:8443/x",
        "https://me@a.example/x",
        "https://a.example.b.example/x",
        "https://a.example@b.example/x",
        "//a.example/x",
        "a.example/x",
        "https://[::1/x",
        "http://b.example:80/x",
    ],
)
def test_only_allowed_hosts(url: str) -> None:
    with pytest.raises(ImageError):
        allowed_url(url, ["a.example", "b.example:8443"])


def test_allowed_hosts() -> None:
    for url in ("https://a.example/x?y=1", "http://A.example/x", "https://a.example:443/x", "https://b.example:8443/"):
        assert allowed_url(url, ["a.example", "B.example:8443"]).host in ("a.example", "b.example")


@pytest.fixture
def web(image: Image.Image) -> Iterator[str]:
    """A web server on this machine: its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.png")
                self.end_headers()
                return
            self.send_response(200 if self.path in ("/a.png", "/large", "/slow") else 404)
            self.end_headers()
            if self.path == "/a.png":
                self.wfile.write(png(image))
            if self.path == "/large":
                self.wfile.write(b"x" * 5000)
            if self.path == "/slow":
                self.wfile.write(b"x")
                self.wfile.flush()
                threading.Event().wait(2)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


def test_private_addresses_are_never_asked(web: str) -> None:
    for host in (web, web.replace("localhost", "127.0.0.1")):
        with pytest.raises(ImageError, match="not on the public internet"):
            run_coroutine(fetch(f"http://{host}/a.png", [host]))


def test_what_is_fetched_is_bounded(web: str, monkeypatch: pytest.MonkeyPatch, image: Image.Image) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: address in ("127.0.0.1", "::1"))
    assert run_coroutine(fetch(f"http://{web}/a.png", [web])) == png(image)
    monkeypatch.setattr(fetching, "MAX_BYTES", 4000)
    for path, match in (
        ("moved", "302, a redirect"),
        ("none", "status 404"),
        ("large", "more than"),
        ("slow", "within 0.5 seconds"),
    ):
        if path == "slow":
            monkeypatch.setattr(fetching, "SECONDS", 0.5)
        with pytest.raises(ImageError, match=match):
            run_coroutine(fetch(f"http://{web}/{path}", [web]))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"localhost:{closed.getsockname()[1]}"
        with pytest.raises(ImageError, match="cannot be fetched"):
            run_coroutine(fetch(f"http://{host}/a.png", [host]))


def test_few_images_are_fetched_at_once(loaded: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def slow(url: str, hosts: object) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.01)
        now -= 1
        return url.encode()

    monkeypatch.setattr(working, "fetch", slow)
    service = Service(loaded)
    state = working.AppState(service, ServerOptions(), ServerMetrics(service))

    async def ask_all() -> None:
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(working.ImageInputs(state).file, f"https://example.org/{number}.png", "x")

    run_coroutine(ask_all())
    assert most == 8
    service.close()


def test_what_requests_have_fetched_together_is_bounded(loaded: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    large_file = bytes(fetching.MAX_BYTES)

    async def large(url: str, hosts: object) -> bytes:
        return large_file

    monkeypatch.setattr(working, "fetch", large)
    service = Service(loaded)
    state = working.AppState(service, ServerOptions(), ServerMetrics(service))

    async def ask() -> None:
        with working.ImageInputs(state) as first, working.ImageInputs(state) as second:
            kept = [await first.file(f"https://example.org/{number}.png", "x") for number in range(16)]
            with pytest.raises(ApiError, match="try again later") as refused:
                await second.file("https://example.org/17.png", "x")
            assert (len(kept), refused.value.status) == (16, 429)
        with working.ImageInputs(state) as third:
            await third.file("https://example.org/18.png", "x")

    run_coroutine(ask())
    assert state.fetched_bytes == 0
    service.close()


def test_the_address_that_was_checked_is_the_one_that_is_asked(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to another address a moment later gains nothing."""
    asked: list[str] = []
    resolve = fetching.anyio.getaddrinfo

    async def changing(host: Any, port: Any, **more: Any) -> Any:
        asked.append(host)
        assert len(asked) == 1, "the name was resolved again"
        return await resolve("127.0.0.1", port, **more)

    monkeypatch.setattr(fetching.anyio, "getaddrinfo", changing)
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    port = web.rpartition(":")[2]
    data = run_coroutine(fetch(f"http://changing.invalid:{port}/a.png", [f"changing.invalid:{port}"]))
    assert Image.open(io.BytesIO(data)).format == "PNG"
    assert asked == ["changing.invalid"]


def test_allowed_images_reach_the_model(
    bagel: Bagel, web: str, monkeypatch: pytest.MonkeyPatch, image: Image.Image
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    with running(bagel, ServerOptions(model_name="tiny", allowed_urls=(web,))) as live:
        fetched = live.post(ASK, about(f"http://{web}/a.png")).json()
        given = live.post(ASK, about(data_uri(image))).json()
        assert fetched["choices"] == given["choices"]
        refused(live.post(ASK, about("http://169.254.169.254/")), 400, "alone: send a data URI")


# ----------------------------------------------------------------------------------------------------------------- logs


@pytest.mark.parametrize("wanted", [False, True])
def test_logs_carry_prompts_only_if_wanted(bagel: Bagel, caplog: pytest.LogCaptureFixture, wanted: bool) -> None:
    caplog.set_level(logging.DEBUG, "bagel_mot")
    with running(bagel, ServerOptions(model_name="tiny", log_prompts=wanted)) as live:
        answer = live.post("/v1/images/generations", {"prompt": "a very private car", "num_timesteps": 2})
        live.post("/v1/images/generations", {"prompt": "a very private car", "num_timesteps": 1})
        number = answer.headers["x-request-id"]
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("bagel_mot"))
    assert f"{number} POST /v1/images/generations 200" in text
    assert "POST /v1/images/generations 400" in text
    assert ("private" in text) == wanted


def test_methods_that_a_client_makes_up_are_not_kept(live: Live) -> None:
    for method in ("GET", "DELETE", "MADEUP1", "MADEUP2"):
        httpx2.request(method, f"{live.url}/health")
    text = live.get("/metrics").text
    assert "MADEUP" not in text
    assert 'method="any",route="/health",status="405"} 2.0' in text
    assert 'method="DELETE",route="/health",status="405"} 1.0' in text


def test_metrics_say_what_happened(bagel: Bagel, loaded: Bagel) -> None:
    other = Bagel(loaded.checkpoint, defaults=loaded.defaults)
    with running(bagel) as live, running(other) as beside:  # two apps in one process
        live.post("/v1/images/generations", {**DRAW, "n": 2, "size": "32x32"})
        live.post("/v1/images/generations", {**DRAW, "n": 0})
        usage = live.post(ASK, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}).json()["usage"]
        text = live.get("/metrics").text
        assert 'bagel_results_total{task="generate"} 2.0' in text
        route = 'method="POST",route="/v1/images/generations"'
        assert f'bagel_http_requests_total{{{route},status="200"}} 1.0' in text
        assert f'bagel_http_requests_total{{{route},status="400"}} 1.0' in text
        assert f'bagel_completion_tokens_total{{kind="text",task="ask"}} {usage["completion_tokens"]:.1f}' in text
        assert 'bagel_completion_tokens_total{kind="image",task="generate"} 12.0' in text
        assert live.metric("bagel_engine_steps_total") == bagel.engine.stats.steps > 0
        assert live.metric("bagel_requests_present") == 0
        assert beside.metric("bagel_engine_steps_total") == 0

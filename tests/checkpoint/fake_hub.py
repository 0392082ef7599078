"""A small hub on this machine: the few answers that huggingface_hub asks for, and the ways in which they go wrong."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """One repository, "owner/name", at one commit.

    Attributes:
        files: contents by name.
        large: names of those that the hub stores as large files, with SHA-256.
        requests: (method, path, first byte asked for) in order.
        sent: bytes of content that were asked for, by file.
        cut: after how many bytes the connection is closed, by file, for as many requests as are listed.
        changed: contents that are sent instead of the right ones.
        no_ranges: files are sent from their beginning, whatever is asked.
        gated, token: files are only given to who has the token.
        bare: files are listed without sizes and checksums, as by mirrors that ignore what they are asked for.
        down: every request is answered with this status.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.large = {name for name in files if name.endswith((".safetensors", ".gguf"))}
        self.requests: list[tuple[str, str, int]] = []
        self.sent: dict[str, int] = {}
        self.cut: dict[str, list[int]] = {}
        self.changed: dict[str, bytes] = {}
        self.no_ranges = self.gated = self.bare = False
        self.token = "right"
        self.down = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def received(self, name: str) -> list[int]:
        """First bytes asked for in the requests for the content of a file."""
        return [first for method, path, first in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def running(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def be_the_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub ask this hub, and keep what it gets in a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Version 0.30 has copies of its own.
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what did not fill one is asked for again
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        end = int(asked[2]) + 1 if asked and asked[2] else None
        hub.requests.append((self.command, path, first))
        if hub.down:
            return self._send(hub.down, {}, b"down", body)
        api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", path)
        resolve = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        found = api or resolve
        if found is None or found[1] != "owner/name":
            return self._send(401, {"X-Error-Code": "RepoNotFound"}, b"Repository not found", body)
        if found[2] not in (None, "main", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"Revision not found", body)
        if api:
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(self._info()).encode(), body)
        assert resolve is not None
        name = resolve[3]
        if hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(403, {"X-Error-Code": "GatedRepo"}, b"Access is restricted", body)
        if name not in hub.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found", body)
        whole = hub.files[name]
        etag = hashlib.sha256(whole).hexdigest() if name in hub.large else git_hash(whole)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in hub.large:
            headers |= {"X-Linked-Size": str(len(whole)), "X-Linked-ETag": f'"{etag}"'}
        content = hub.changed.get(name, whole)
        if asked and not hub.no_ranges:
            last = min(end or len(content), len(content)) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            if body:
                hub.sent[name] = hub.sent.get(name, 0) + last + 1 - first
            return self._send(206, headers, content[first : last + 1], body, name)
        if body:
            hub.sent[name] = hub.sent.get(name, 0) + len(content)
        self._send(200, headers, content, body, name)

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.server.files.items():
            file: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if name in self.server.large:
                sha256 = hashlib.sha256(content).hexdigest()
                file["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append({"rfilename": name} if self.server.bare else file)
        return {"id": "owner/name", "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        cuts = self.server.cut.get(name)
        if cuts:
            self.wfile.write(content[: cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(content)

"""`bagel serve`: its options, what it prints, what it refuses, and a session with mini."""

from __future__ import annotations

import base64
import builtins
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from PIL import Image
from typer.testing import CliRunner

from bagel_mot.cli import app
from bagel_mot.cli.serving import name_of
from bagel_mot.serving.limits import Limits
from bagel_mot.serving.options import ServerOptions


def refused(*arguments: str, match: str, env: dict[str, str] | None = None) -> None:
    """Status 2 and one sentence on standard error."""
    result = CliRunner().invoke(app, ["serve", *arguments], env={"BAGEL_API_KEYS": "", **(env or {})})
    assert result.exit_code == 2, result.output
    assert re.search(match, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_help_says_the_defaults() -> None:
    result = CliRunner().invoke(app, ["serve", "--help-all"], env={"COLUMNS": "200"})
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", result.stdout).split())
    for option in ("host", "port", "api-key", "no-auth", "allow-url", "cors", "max-queue", "log-prompts"):
        assert f"--{option}" in text
    assert "--memory" in text
    assert "--strict" in text
    assert "--served-model-name" in text
    assert "BAGEL_API_KEYS" in text
    limits = Limits()
    for value in (limits.queue, limits.images, limits.image_pixels, limits.timesteps, limits.new_tokens, 8000):
        assert f"default: {value}" in text
    assert ServerOptions().max_body_bytes == 64 << 20
    assert "default: 64" in text


def test_bad_input_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.cli.serving.load", lambda *_: pytest.fail("it was loaded"))
    refused("--host", "0.0.0.0", match="there is no API key")
    refused("--api-key", " ", match="API key is empty")
    refused("--served-model-name", " ", match="name of the model is empty")
    refused("--host", "0.0.0.0", match="not ASCII", env={"BAGEL_API_KEYS": "schlüssel"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused("--port", port, match=f"port {port} of 127.0.0.1 cannot be listened at")


def test_a_checkpoint_that_is_not_there() -> None:
    refused("--port", "0", "-c", "/nowhere", match="/nowhere")


def test_without_its_packages_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("bagel_mot.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    refused(match=r'serving needs fastapi: run pip install .*\[serve\]"\.$')


def test_names_of_checkpoints(tmp_path: Path) -> None:
    assert name_of("mini") == "mini"
    assert name_of("ByteDance-Seed/BAGEL-7B-MoT") == "ByteDance-Seed/BAGEL-7B-MoT"
    assert name_of(str(tmp_path)) == tmp_path.name


@pytest.fixture(scope="module")
def mini() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`bagel serve` with mini, as in the documentation, with a key in the environment."""
    names = ["--served-model-name", "mini", "--served-model-name", "gpt-image-1"]
    command = [sys.executable, "-m", "bagel_mot", "serve", "--port", "0", *names]
    environment = {**os.environ, "BAGEL_API_KEYS": "one two", "COLUMNS": "200"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.match(r"mini listens at (http://127\.0\.0\.1:\d+) ", line)
        assert found, line
        yield process, found[1]
        process.kill()


def opened(encoded: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded or "")))


def test_draw_edit_and_ask_with_mini(mini: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    url = mini[1]
    client = OpenAI(base_url=f"{url}/v1", api_key="two", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mini", "gpt-image-1"]
    drawn = client.images.generate(
        model="gpt-image-1", quality="high", prompt="a red car", extra_body={"seed": 0, "num_timesteps": 6}
    ).data
    assert drawn
    path = tmp_path / "car.png"
    path.write_bytes(base64.b64decode(drawn[0].b64_json or ""))
    with path.open("rb") as file:
        edited = client.images.edit(image=file, prompt="make it night", extra_body={"num_timesteps": 4}).data
    assert edited
    assert opened(edited[0].b64_json).size == opened(drawn[0].b64_json).size
    answer = client.chat.completions.create(
        model="mini",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{drawn[0].b64_json}"}},
                    {"type": "text", "text": "What colour is the car?"},
                ],
            }
        ],
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_curl_as_in_the_documentation(mini: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    """The blocks of docs/http.md that call curl, against a live server."""
    url, page = mini[1], Path(__file__).parents[2] / "docs" / "http.md"
    text = page.read_text(encoding="utf-8")
    # However a block is marked: what calls curl is run here, since it needs a server.
    blocks = [code for code in re.findall(r"^```[^\n]+\n(.*?)^```$", text, re.M | re.S) if code.startswith("curl ")]
    assert len(blocks) == len(re.findall(r"^curl ", text, re.M)) >= 4
    for block in blocks:
        script = block.replace("http://127.0.0.1:8000", url).replace("curl ", "curl -sS --fail-with-body ")
        script = script.replace("curl ", 'curl -H "Authorization: Bearer one" ')
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, block + done.stdout + done.stderr
    assert opened(base64.b64encode((tmp_path / "car.png").read_bytes()).decode()).format == "PNG"


def test_it_ends_when_it_is_told_to(mini: tuple[subprocess.Popen[str], str]) -> None:
    process, url = mini
    assert httpx2.get(f"{url}/health").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0

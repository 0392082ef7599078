"""`bagel chat`: an interleaved session in the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bagel_mot.cli.options import (
    INTERRUPTED,
    command,
    complain,
    notes,
    progress_bar,
)
from bagel_mot.cli.weights import Weights, load, print_hint, with_weights
from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.files import make_writable_folder, user_path, writing
from bagel_mot.inference.settings import MAX_SEED, SETTINGS, parse_settings
from bagel_mot.inference.thinking import ThinkingStream
from bagel_mot.task import Task

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel
    from bagel_mot.inference.session import Session

_HELP = """\
TEXT              say something; the model answers
/image PATH       show a picture
/draw [TEXT]      draw what TEXT says, or what follows from the conversation
/set NAME VALUE   change a setting from now on, such as /set num_timesteps 25 or /set cfg_interval 0.2 0.9;
                  /set alone lists what is set, `bagel generate --help-all` and `bagel ask --help-all` what there is
/undo             take back the last turn: what was drawn or said, and the text that asked for it
/save FOLDER      keep the conversation
/load FOLDER      continue a kept one
/help             this list
/quit             leave"""

_ANOTHER = "start with another --output folder"


def _tell(text: str) -> None:
    """Prints a line at once: whoever reads along through a pipe waits for it."""
    print(text, flush=True)


@command
@with_weights
def chat(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the pictures drawn.", metavar="FOLDER")
    ] = Path("bagel-chat"),
    think: Annotated[bool, typer.Option("--think/--no-think", help="Think before each picture and answer.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first thing generated; counts up with each.", min=0)
    ] = None,
    *,
    weights: Weights,
) -> None:
    """Talk, show images, have images drawn: one conversation, each turn computed once.

    /help lists the commands; /set changes any setting that `bagel generate --help-all` or `bagel ask --help-all` shows.
    """
    seed = parse_settings(Task.GENERATE, {"seed": seed})["seed"]
    is_new = not output.exists()
    with writing(output, _ANOTHER):
        make_writable_folder(output)
    try:
        bagel = load(weights)
        TerminalChat(bagel, output, think=think, seed=seed).run()
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # images were drawn
                output.rmdir()


def typed_path(text: str) -> Path:
    """The path that a person typed, or dropped on the terminal, which may have put it in quotes or written backslashes
    before its blanks: these go where no file has the literal name.
    """
    literal = user_path(text)
    if literal.exists():
        return literal
    with contextlib.suppress(ValueError):  # a quotation mark that is not closed
        words = shlex.split(text)
        if len(words) == 1 and (os.sep == "/" or text[:1] in "'\""):  # elsewhere backslashes part folders
            return user_path(words[0])
    return literal


class TerminalChat:
    """A session at the terminal: its commands, the settings of its turns, and where its images go."""

    def __init__(self, bagel: Bagel, output: Path, *, think: bool = False, seed: int | None = None) -> None:
        self.bagel, self.output, self.seed = bagel, output, seed
        self.session: Session = bagel.session(think=think)
        self.settings: dict[str, Any] = {}
        self.notes = notes()
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._add_image,
            "/draw": self._draw,
            "/set": self._set,
            "/undo": self._undo,
            "/save": self._save,
            "/load": self._load,
            "/help": self._help,
        }

    def run(self) -> None:
        """Reads lines until /quit or the end of input. Ctrl-C stops what runs; at the prompt it leaves."""
        interactive = sys.stdin.isatty()
        if interactive:
            self.notes.print("/help lists the commands, /quit leaves", style="dim")
        while True:
            try:
                line = input("you> " if interactive else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None
            if line == "/quit":
                return
            if line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """Does what one line says. A line that fails leaves the conversation as it was."""
        word, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self._say(line)
            elif word in self._commands:
                self._commands[word](rest.strip())
            else:
                raise PromptError(f"there is no command {word}: /help lists them.")
        except BagelError as error:
            complain(error)
        except KeyboardInterrupt:
            self.notes.print("\nstopped", style="dim")

    def _say(self, text: str) -> None:
        print_hint(self.bagel, text)
        own = self._own(Task.ASK)
        thinks, stream = own.get("think", self.session.think), ThinkingStream()

        def show(thinking: str, answer: str) -> None:
            self.notes.print(thinking, end="", style="dim", markup=False, soft_wrap=True)
            print(answer, end="", flush=True)

        def take(piece: str) -> None:
            show(*stream.add(piece)) if thinks else show("", piece)

        result = self.session.ask(text, on_text=take, return_result=True, **own)
        if thinks:
            show(*stream.finish(result))
        _tell("")
        self._count_up()

    def _draw(self, text: str) -> None:
        """Draws on a fork, which becomes the session once the image is saved."""
        from bagel_mot.inference.result import save_image

        print_hint(self.bagel, text)
        session = self.session.fork()
        with progress_bar("drawing") as progress:
            result = session.generate_image(
                text or None, progress=progress, return_result=True, **self._own(Task.GENERATE)
            )
        self._count_up()
        if result.thinking:
            self.notes.print(result.thinking, style="dim", markup=False)
        assert result.image is not None
        taken = [int(path.stem) for path in self.output.glob("*.png") if path.stem.isdecimal()]
        path = self.output / f"{max(taken, default=0) + 1:03d}.png"
        with writing(path, _ANOTHER):
            save_image(result.image, path)
        self.session = session
        _tell(f"{path}  seed {result.seed}  {result.seconds:.1f} s")

    def _own(self, task: Any) -> dict[str, Any]:
        """The settings from /set that a task takes, and the next seed."""
        own = {name: value for name, value in self.settings.items() if task in SETTINGS[name].tasks}
        if self.seed is not None:
            own["seed"] = self.seed
        return own

    def _count_up(self) -> None:
        """Moves on to the next seed, after something was generated."""
        if self.seed is not None:
            self.seed = min(self.seed + 1, MAX_SEED)

    def _add_image(self, path: str) -> None:
        if not path:
            raise PromptError("/image needs the path of a picture, such as /image car.png.")
        self.session.add(typed_path(path))
        self.notes.print(f"{path}: {self.session.tokens} tokens so far", style="dim", markup=False)

    def _set(self, text: str) -> None:
        import yaml

        if not text:
            _tell("\n".join(f"{name}={value}" for name, value in self.settings.items()) or "nothing is set")
            return
        name, raw = (part.strip() for part in re.split(r"\s*=\s*|\s+", f"{text} ", maxsplit=1))
        if not raw:
            raise SettingError(f"{text!r} has no value: write name=value, such as num_timesteps=25.")
        name = name.replace("-", "_")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError:
            value = raw
        task = SETTINGS[name].tasks[0] if name in SETTINGS else Task.GENERATE
        if name in SETTINGS and SETTINGS[name].kind == "interval" and isinstance(value, str):
            with contextlib.suppress(ValueError):  # else what was typed is what the error names
                value = [float(end) for end in value.replace(",", " ").split()]
        parsed = parse_settings(task, {name: value})
        if parsed.get("think") and not self.session.think:
            raise SettingError("think cannot be switched on in a chat begun without it: start one with --think.")
        if name == "seed":
            self.seed = parsed["seed"]
        else:
            self.settings |= parsed

    def _undo(self, _: str) -> None:
        """Takes a whole turn back: with what was drawn or said, the text that asked for it."""
        before = self.session.history
        self.session.undo()
        left = self.session.history
        if before[-1].kind in ("drawing", "answer") and left and left[-1].kind == "text":
            self.session.undo()
        self.notes.print(f"{len(self.session.history)} turns left", style="dim")

    def _save(self, folder: str) -> None:
        if not folder:
            raise PromptError("/save needs a folder, such as /save monday.")
        with writing(folder, "name another folder"):
            self.session.save(typed_path(folder))
        _tell(f"saved to {folder}")

    def _load(self, folder: str) -> None:
        if not folder:
            raise PromptError("/load needs the folder of a saved conversation.")
        self.session = self.bagel.load_session(typed_path(folder))
        if self.settings.get("think") and not self.session.think:
            del self.settings["think"]  # it would make every turn fail
        self.notes.print(f"{len(self.session.history)} turns", style="dim")

    def _help(self, _: str) -> None:
        _tell(_HELP)

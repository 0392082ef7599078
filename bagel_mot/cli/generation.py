"""`bagel generate`, `edit` and `ask`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bagel_mot.cli.lists import AnswerLists, ImageLists, is_list, run_list, with_answer_lists, with_image_lists
from bagel_mot.cli.options import (
    JsonOption,
    command,
    notes,
    progress_bar,
    with_settings,
    write_json,
)
from bagel_mot.cli.weights import Weights, load, print_hint, with_weights
from bagel_mot.errors import PromptError, SettingError
from bagel_mot.files import check_writable, writing
from bagel_mot.inference.thinking import ThinkingStream
from bagel_mot.task import Task

if TYPE_CHECKING:
    from bagel_mot.inference.result import Result

OutputOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option(
        "--output",
        "-o",
        help="The picture's file (.png, .jpg, .webp), by default out.png; several get numbers.",
        metavar="FILE",
    ),
]
_DEFAULT_OUTPUT = Path("out.png")
_ANOTHER = "give another output file"
CountOption = Annotated[int, typer.Option("-n", help="Pictures for each prompt, with seeds that count up.", min=1)]


@command
@with_settings(Task.GENERATE)
@with_image_lists
@with_weights
def generate(
    *,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="What to draw; several prompts run as one batch. - is standard input.", metavar="PROMPT"),
    ] = None,
    output: OutputOption = None,
    n: CountOption = 1,
    json: JsonOption = None,
    weights: Weights,
    lists: ImageLists,
    **settings: Any,
) -> None:
    """Draw images from texts.

    bagel generate "a red car under a yellow sun" -o car.png --seed 0
    """
    if is_list(lists, has_output=output is not None):
        if prompts:
            raise PromptError(f"there is the prompt {prompts[0]!r} and a file of prompts: leave one of them.")
        return run_list(Task.GENERATE, lists, weights, settings, n=n, json=json)
    if not prompts:
        raise PromptError('a prompt is missing: write it as in bagel generate "a red car", or give a file with --from.')
    output = output or _DEFAULT_OUTPUT
    _check_output(output)
    prompts = _typed(prompts)
    bagel = load(weights, ("generate",))
    print_hint(bagel, *prompts)
    with progress_bar("drawing") as progress:
        results = bagel.generate(prompts, n=n, progress=progress, return_result=True, **settings)
    _deliver(results, output, json)


@command
@with_settings(Task.EDIT)
@with_image_lists
@with_weights
def edit(
    *,
    images: Annotated[list[str] | None, typer.Argument(help="One or more pictures.", metavar="IMAGE...")] = None,
    instruction: Annotated[
        str | None, typer.Argument(help="The change; - is standard input.", metavar="INSTRUCTION")
    ] = None,
    output: OutputOption = None,
    n: CountOption = 1,
    json: JsonOption = None,
    weights: Weights,
    lists: ImageLists,
    **settings: Any,
) -> None:
    """Change an image as a text says.

    bagel edit car.png "make it night" -o night.png
    """
    if is_list(lists, has_output=output is not None):
        given = _all_images(images, instruction)
        return run_list(Task.EDIT, lists, weights, settings, n=n, images=given, json=json)
    if instruction is None:
        raise PromptError(
            'the instruction is missing: write it as in bagel edit car.png "make it night", or give a file with --from.'
        )
    _check_not_a_file(images, instruction, "the instruction for it")
    if not images:
        raise PromptError(f"a picture to change is missing: write its file before the instruction {instruction!r}.")
    output = output or _DEFAULT_OUTPUT
    _check_output(output)
    [instruction] = _typed([instruction])
    bagel = load(weights)
    print_hint(bagel, instruction)
    with progress_bar("drawing") as progress:
        results = bagel.edit([images], [instruction], n=n, progress=progress, return_result=True, **settings)
    _deliver(results, output, json)


@command
@with_settings(Task.ASK)
@with_answer_lists
@with_weights
def ask(
    *,
    images: Annotated[list[str] | None, typer.Argument(help="Pictures, if any.", metavar="IMAGE")] = None,
    question: Annotated[
        str | None, typer.Argument(help="A question about them; - is standard input.", metavar="QUESTION")
    ] = None,
    json: JsonOption = None,
    weights: Weights,
    lists: AnswerLists,
    **settings: Any,
) -> None:
    """Ask about images. The answer is printed as it is written; with --think, the thinking on standard error.

    bagel ask car.png "How many cars are there?"
    """
    if is_list(lists):
        return run_list(Task.ASK, lists, weights, settings, images=_all_images(images, question), json=json)
    if question is None:
        raise PromptError(
            'the question is missing: write it as in bagel ask car.png "How many cars are there?", or give a file with '
            "--from."
        )
    _check_not_a_file(images, question, "the question about it")
    [question] = _typed([question])
    bagel = load(weights, ("understand",))
    print_hint(bagel, question)
    quiet, thinking = json == "-", bool(settings.get("think"))
    thoughts = ThinkingStream()
    result = bagel.ask(
        images or None,
        question,
        on_text=None if quiet else (lambda piece: _print_thought(thoughts.add(piece)[0])) if thinking else _print_piece,
        return_result=True,
        **settings,
    )
    if thinking and not quiet:
        _print_thought(thoughts.finish(result)[0])
        print(file=sys.stderr)
    if not quiet:
        print(result.text if thinking else "")
    write_json(json, _facts(result))


def _all_images(images: list[str] | None, last: str | None) -> list[str]:
    """The arguments of a command whose texts come from a file: images, the last one too.

    Raises:
        PromptError: the last one is no file, but a text.
    """
    if last is not None and not os.path.isfile(last):
        raise PromptError(f"there is the text {last!r} and a file of texts: leave one of them.")
    return [*(images or ()), *([] if last is None else [last])]


def _check_not_a_file(images: list[str] | None, text: str, missing: str) -> None:
    """Checks that the last argument is not an image whose text was forgotten.

    Raises:
        PromptError: it is.
    """
    from PIL import Image

    # After an image only a name like that of another one is taken for it: a text may also be the name of some file.
    if os.path.isfile(text) and (not images or Path(text).suffix.lower() in Image.registered_extensions()):
        raise PromptError(f"{text} is a file, and {missing} is missing: write it after the picture.")


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _print_thought(piece: str) -> None:
    notes().print(piece, end="", style="dim", markup=False, soft_wrap=True)


def _typed(texts: list[str]) -> list[str]:
    """The texts, with standard input in place of a `-`.

    Raises:
        PromptError: `-` is given twice, or standard input is empty or not text.
    """
    if "-" not in texts:
        return texts
    if texts.count("-") > 1:
        raise PromptError("- is given more than once: standard input can be read only once.")
    try:
        read = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not text: {error}.") from error
    if not read:
        raise PromptError("- reads a text from standard input, which is empty.")
    return [read if text == "-" else text for text in texts]


def _check_output(path: Path) -> None:
    """Checks, before minutes of work, that the image can be written; makes its folder if that is missing.

    Raises:
        SettingError: the name's suffix is not that of an image format.
        BagelError: the folder cannot be made, or nothing can be written in it.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise SettingError(f"output is {str(path)!r}: its name must end in .png, .jpg or .webp.")
    with writing(path, _ANOTHER):
        check_writable(path)


def numbered(path: Path, count: int) -> list[Path]:
    """Names for `count` images: the path itself, or with numbers before its suffix."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def _facts(result: Result) -> dict[str, Any]:
    facts = {
        "prompt": result.prompt,
        "seed": result.seed,
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }
    if result.thinking:
        facts["thinking"] = result.thinking
    if result.image is None:
        return {**facts, "text": result.text}
    return {**facts, "size": list(result.image.size), "evaluations": result.evaluations}


def _deliver(results: list[Result], output: Path, json: str | None) -> None:
    from bagel_mot.inference.result import save_image

    listing = []
    for path, result in zip(numbered(output, len(results)), results, strict=True):
        assert result.image is not None
        with writing(path, _ANOTHER, ValueError):
            save_image(result.image, path)
        listing.append({"file": str(path), **_facts(result)})
        if json != "-":
            if result.thinking:
                notes().print(result.thinking, style="dim", markup=False)
            print(f"{path}  seed {result.seed}  {result.seconds:.1f} s")
    write_json(json, listing)

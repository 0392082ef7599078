"""Names for the images of a list: by the place of their line, or as benchmarks want their images laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bagel_mot.errors import DataError, SettingError, did_you_mean
from bagel_mot.task import Task


@dataclass(frozen=True)
class Naming:
    """One way of naming images.

    Attributes:
        name: the value of `--naming`.
        about: the files, in words.
        tasks: the tasks that it is for.
        folder: the paths below the output folder of a line's images: a function of the line's object, its place among
            the lines (from 0) and the number of images.
        needs: keys that each line must have for its name.
        keeps: other keys that lines of that benchmark have; they mean nothing to the model. None allows any.
        texts: further names of the key `prompt` in that benchmark's files.
        image: a further name of the key `images` in that benchmark's files.
        source_copy: a suffix of the name under which the first input is saved beside the image, or None.
        metadata: whether the line's object is written to `metadata.jsonl` in the folder above the image's.
        single: whether there is but one image for each line.
    """

    name: str
    about: str
    tasks: tuple[Task, ...]
    folder: Callable[[Mapping[str, Any], int, int], list[str]]
    needs: tuple[str, ...] = ()
    keeps: tuple[str, ...] | None = ()
    texts: tuple[str, ...] = ()
    image: str | None = None
    source_copy: str | None = None
    metadata: bool = False
    single: bool = False


def _part(row: Mapping[str, Any], key: str) -> str:
    """A value of a line as one part of a path.

    Raises:
        DataError: it cannot be that.
    """
    value = row[key]
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or text in (".", "..") or any(sign in text for sign in '/\\\0:*?"<>|') or len(text) > 200:
        raise DataError(f"{key} is {value!r}: it becomes part of a file's name, so write letters, digits, - and _.")
    return text


def _numbered(stem: str, count: int) -> list[str]:
    return [f"{stem}.png"] if count == 1 else [f"{stem}-{number}.png" for number in range(1, count + 1)]


def _lines(row: Mapping[str, Any], index: int, count: int) -> list[str]:
    return _numbered(f"{index + 1:05}", count)


def _geneval(row: Mapping[str, Any], index: int, count: int) -> list[str]:
    return [f"{index:05}/samples/{number:05}.png" for number in range(count)]


def _wise(row: Mapping[str, Any], index: int, count: int) -> list[str]:
    return [f"{_part(row, 'prompt_id')}.png"]


def _gedit(row: Mapping[str, Any], index: int, count: int) -> list[str]:
    task, language, key = (_part(row, name) for name in ("task_type", "instruction_language", "key"))
    return [f"fullset/{task}/{language}/{key}.png"]


def _imgedit(row: Mapping[str, Any], index: int, count: int) -> list[str]:
    return [f"{_part(row, 'key')}.png"]


# The layouts are facts of the benchmarks' own scripts and scorers.
NAMINGS = {
    naming.name: naming
    for naming in (
        Naming("lines", "00001.png, by the place of the line", tuple(Task), _lines),
        Naming(
            "geneval",
            "00000/samples/00000.png and 00000/metadata.jsonl, by the place of the line from 0",
            (Task.GENERATE,),
            _geneval,
            keeps=None,
            metadata=True,
        ),
        Naming(
            "wise",
            "PROMPT_ID.png",
            (Task.GENERATE,),
            _wise,
            needs=("prompt_id",),
            keeps=("Explanation", "Category", "Subcategory", "Hint"),
            texts=("Prompt",),
            single=True,
        ),
        Naming(
            "gedit",
            "fullset/TASK_TYPE/LANGUAGE/KEY.png, and KEY_SRCIMG.png with the source",
            (Task.EDIT,),
            _gedit,
            needs=("key", "task_type", "instruction_language"),
            keeps=("Intersection_exist",),
            image="input_image",
            source_copy="_SRCIMG",
            single=True,
        ),
        Naming(
            "imgedit",
            "KEY.png",
            (Task.EDIT,),
            _imgedit,
            needs=("key",),
            keeps=("edit_type",),
            image="id",
            single=True,
        ),
    )
}


def naming_of(name: str, task: Task) -> Naming:
    """The naming of that name for a task.

    Raises:
        SettingError: there is none.
    """
    known = [one for one in NAMINGS.values() if task in one.tasks]
    found = NAMINGS.get(name)
    if found is None:
        raise SettingError(f"there is no naming {name!r}: {did_you_mean(name, [one.name for one in known])}")
    if found not in known:
        others = ", ".join(one.name for one in known)
        raise SettingError(f"the naming {name} is not for {task}: for that there is {others}.")
    return found


def paths(naming: Naming, row: Mapping[str, Any], index: int, count: int) -> list[str]:
    """The paths of a line's images below the output folder, with slashes.

    Raises:
        DataError: the line lacks what its name is made of, or asks for several images where the layout has one.
    """
    if naming.single and count > 1:
        raise DataError(f"n is {count}: the naming {naming.name} has one image for each line.")
    if missing := [key for key in naming.needs if key not in row]:
        raise DataError(f"there is no {missing[0]}: the naming {naming.name} needs it for the file's name.")
    if "output" not in row:
        return naming.folder(row, index, count)
    if naming.name != "lines":
        raise DataError(f"there is an output: the naming {naming.name} names the file already, so leave one of them.")
    return _chosen(row["output"], count)


def _chosen(output: Any, count: int) -> list[str]:
    """The paths of images that the line itself names.

    Raises:
        DataError: that is no path of a PNG, JPEG or WebP file below the output folder.
    """
    path = PurePosixPath(output) if isinstance(output, str) and output and "\0" not in output else None
    if path is None or path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path):
        raise DataError(f"output is {output!r}: it must be a path below the output folder, such as cars/red.png.")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise DataError(f"output is {output!r}: it must end in .png, .jpg or .webp.")
    if count == 1:
        return [str(path)]
    return [str(path.with_stem(f"{path.stem}-{number}")) for number in range(1, count + 1)]


def check_distinct(numbers: Sequence[int], names: Sequence[Sequence[str]]) -> None:
    """Checks that no two lines write the same file.

    Args:
        numbers: the numbers of the lines.
        names: the paths of each line's images.

    Raises:
        DataError: two lines do.
    """
    owner: dict[str, int] = {}
    for number, own in zip(numbers, names, strict=True):
        for name in own:
            # Some file systems do not tell capital letters from small ones.
            if (first := owner.setdefault(name.lower(), number)) != number:
                raise DataError(f"line {number}: its image would be {name}, which line {first} writes too.")

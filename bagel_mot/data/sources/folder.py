"""A plain folder as a source of training data, as people have it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, must_be
from bagel_mot.data.dataset import DataGroup, Dataset
from bagel_mot.data.documents import OPENERS, ImageRules
from bagel_mot.data.image_places import ImagePlace
from bagel_mot.data.mapping import TASKS, RowMapper
from bagel_mot.data.readers.folder import CaptionedImages, ImagePairs, image_files
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.remote import is_on_the_web, is_remote
from bagel_mot.data.sources.base import FileSource, Source, SourceConfig
from bagel_mot.data.tasks.edit import Compose
from bagel_mot.data.tasks.t2i import TextToImage, plain_captions
from bagel_mot.errors import DataError
from bagel_mot.files import user_path

FolderTask = Literal["t2i", "edit", "chat", "think"]


def _on_this_machine(given: Any) -> Any:
    if isinstance(given, str) and (is_remote(given) or is_on_the_web(given)):
        raise DataError(
            f"{given} is an address; a folder of this machine is expected: download it, or mount it, or read rows by "
            "data.kind: parquet or jsonl, whose files may lie in stores"
        )
    return given


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """A folder of images with captions, of pairs of images with instructions, of conversations, or of thoughts.

    Attributes:
        path: the folder; for conversations and thoughts also a JSONL file, in whose folder the images are looked for.
        task: the task: "t2i" draws images from their captions, "edit" changes images, "chat" answers, "think" thinks
            before it draws or answers; by default the one that the folder holds data for.
        target_copies: noised copies of each image that is to be drawn, each at its own timestep; text to image alone.
        images: the way to open images: "upright", turned by their EXIF orientation and over white, or "published", as
            the published scripts do.
    """

    kind: Literal["folder"] = "folder"
    path: Annotated[
        Path,
        must_be("the name of a folder"),
        AfterValidator(lambda path: user_path(path, DataError)),
        BeforeValidator(_on_this_machine),
    ]
    task: FolderTask | None = None
    target_copies: Count = 1
    images: Literal["upright", "published"] = "upright"

    def open(self, seed: int) -> Source:
        dataset = self._dataset(self.task or found_task(self.path))
        dataset.reader.units()  # an empty folder is known before anything is loaded
        return FileSource([DataGroup(dataset.name, [dataset])])

    def _dataset(self, task: FolderTask) -> Dataset:
        rules, name = ImageRules(opener=OPENERS[self.images]), str(self.path)
        if task in ("chat", "think"):
            files = _row_files(self.path, "conversations" if task == "chat" else "thoughts")
            place = ImagePlace((self.path if self.path.is_dir() else self.path.parent,), anywhere=True)
            of_rows = TASKS[task]
            return Dataset(name, JsonlReader(files), RowMapper(task, of_rows.columns, place, of_rows.mapper()), rules)
        if task == "edit":
            return Dataset(name, ImagePairs(self.path), Compose("before", "instruction", "after"), rules)
        mapper = TextToImage("image", "captions", plain_captions, copies=self.target_copies)
        return Dataset(name, CaptionedImages(self.path), mapper, rules)


def found_task(path: Path) -> FolderTask:
    """The task that a folder, or a file, holds data for.

    Raises:
        DataError: there is nothing of the kind, or data for several tasks.
    """
    found: dict[FolderTask, str] = {}
    if path.is_file() or (path.is_dir() and list(path.glob("*.jsonl"))):
        found["chat"] = "conversations (*.jsonl)"
    files = image_files(path) if not path.is_file() else []
    parts = [(file, file.relative_to(path).parts[:-1]) for file in files]
    if any(file.stem.endswith(".before") or "before" in folders for file, folders in parts):
        found["edit"] = "pairs of images before and after an edit"
    if any(file.with_suffix(".txt").exists() and not {"before", "after"} & set(folders) for file, folders in parts):
        found["t2i"] = "images with captions"
    if not found:
        there = f"{len(files)} images but no text" if files else "no image"
        raise DataError(
            f"{path} has {there}: it must hold images with a text file of the same name each, pairs NAME.before.png "
            "and NAME.after.png with NAME.txt, or conversations in *.jsonl"
        )
    if len(found) > 1:
        raise DataError(f"{path} has {' and '.join(found.values())}: say which with task, one of {', '.join(found)}")
    return next(iter(found))


def _row_files(path: Path, what: str) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no *.jsonl with {what}, one JSON object a line")
    return files

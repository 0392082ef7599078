"""Documents of what a checkpoint knows already, trained in between so that fine-tuning does not make it forget.

A few hundred images of one thing teach a model that everything looks like it. Samples of what it could before keep that
(prior preservation, as in DreamBooth, arXiv 2208.12242): from the data that the checkpoint was trained on, where they
are at hand, else images that the model itself draws of prompts before the training begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, PlainValidator, SerializeAsAny
from pydantic.dataclasses import dataclass
from rich.progress import track

from bagel_mot.checkpoint.side_files import REPLAY_FILE
from bagel_mot.config import Count, Flag, Positive, Section, must_be
from bagel_mot.data.documents import Document, FramesPart, ImagePart
from bagel_mot.data.readers.folder import read_lines
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.base import IndexedSource, Source, SourceConfig
from bagel_mot.data.sources.folder import FolderConfig
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.files import user_path, write_atomically, write_text
from bagel_mot.inference.api import Bagel
from bagel_mot.parallel.launch import Launch, current

REPLAY_FOLDER = "replay"
_DRAWN_TOGETHER = 8

_ReplayData = Annotated[SerializeAsAny[SourceConfig], PlainValidator(read_source_config)]
_File = Annotated[Path, must_be("the name of a file"), AfterValidator(lambda path: user_path(path, RecipeError))]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Section):
    """A source of data that is trained in between; by default the one that the checkpoint names, if any.

    Attributes:
        weight: samples of it for each sample of the data.
        data: a source of data, as in the recipe's `data`.
        prompts: a text file with a prompt a line, of which the model draws images before the training begins.
        images: the number of images that are drawn.
        distil: whether its images teach the velocity that the checkpoint itself predicts, in place of their own, which
            is noisier (learning without forgetting, arXiv 1606.09282). Each step has one more pass forward. It needs
            adapters, beside which the checkpoint is still there.
    """

    weight: Positive = 2.0
    data: _ReplayData | None = None
    prompts: _File | None = None
    images: Count = 200
    distil: Flag = False

    def __post_init__(self) -> None:
        if self.data is not None and self.prompts is not None:
            raise ValueError("replay has data and prompts: give one of them")

    def source(self, checkpoint_files: Mapping[str, bytes], init: Path | str, output: Path, seed: int) -> Source | None:
        """The source that is trained in between; None where none is known.

        Args:
            checkpoint_files: contents of the files beside the checkpoint's weights, by name.
            init: the checkpoint that draws images of the prompts.
            output: the run's folder, where they are kept.
            seed: the seed of the run.

        Raises:
            RecipeError: the prompts cannot be read.
            CheckpointError: the checkpoint's own file is malformed.
        """
        if self.prompts is not None:
            folder = output / REPLAY_FOLDER
            draw_images(init, self.prompts, folder, self.images, current())
            return FolderConfig(path=folder, task="t2i").open(seed)
        if self.data is not None:
            return self.data.open(seed)
        if REPLAY_FILE not in checkpoint_files:
            return None
        return _read_source(checkpoint_files[REPLAY_FILE]).open(seed)


class LatentsOnly(IndexedSource):
    """The documents of a source that hold an image in latents. The gen expert sees no token of the others: where it
    alone trains they would teach nothing, and take the places of those that do.

    Args:
        source: an endless supply of documents.
    """

    _STRIDE = 1 << 40  # between the indices that are tried for one document, so that no two documents try the same
    _TRIES = 100

    def __init__(self, source: IndexedSource) -> None:
        self.source, self.name = source, source.name

    def __call__(self, index: int) -> Document:
        """The document of an index or, if it has no latents, of the first of further indices that has."""
        for number in range(self._TRIES):
            document = self.source(index + number * self._STRIDE)
            if has_latents(document):
                break
        return document


def has_latents(document: Document) -> bool:
    """Whether a document holds an image in latents, clean or noised."""
    return any(isinstance(part, ImagePart | FramesPart) and (part.target or part.vae) for part in document)


def _read_source(content: bytes) -> SourceConfig:
    try:
        return read_source_config(yaml.safe_load(content))
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{REPLAY_FILE} of the checkpoint names no source of data: {error}") from error


def draw_images(init: Path | str, prompts: Path, folder: Path, count: int, launch: Launch | None = None) -> None:
    """Draws images of prompts, in their order and from the first again, as a folder with captions. Images that are
    there already stay. Of several processes each draws its share, and all wait until the folder is complete.

    Raises:
        RecipeError: the file has no prompts.
    """
    lines = read_lines(prompts)
    if not isinstance(lines, list):
        raise RecipeError(f"replay.prompts is {prompts}: {lines.sentence}")
    launch = launch or Launch()
    own = range(launch.rank, count, launch.world)
    missing = [number for number in own if not (folder / f"{number:05d}.png").exists()]
    if missing:
        _draw(init, lines, folder, missing)
    launch.wait_for_all(f"images in {folder}")


def _draw(init: Path | str, lines: list[str], folder: Path, missing: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Bagel.from_pretrained(init) as bagel:
        parts = [missing[start : start + _DRAWN_TOGETHER] for start in range(0, len(missing), _DRAWN_TOGETHER)]
        for part in track(parts, "drawing images of what the model knows"):
            wanted: list[str] = [lines[number % len(lines)] for number in part]
            drawn: list[Any] = bagel.generate(wanted, seed=part)
            for number, prompt, image in zip(part, wanted, drawn, strict=True):
                write_text(folder / f"{number:05d}.txt", prompt + "\n")
                write_atomically(folder / f"{number:05d}.png", image.save)

"""Clips: the frames of a video file, or of a folder with a file for each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from PIL import Image

from bagel_mot.data.documents import AnyImage, FrameFile, LazyImage, Opener
from bagel_mot.data.draws import Draws
from bagel_mot.data.remote import AnyPath, RemoteFrame, RemotePath
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.errors import ImageError
from bagel_mot.video import read_frames, video_info

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass
class _Decoded:
    """The chosen frames of a video, decoded together when the first of them is needed."""

    path: AnyPath
    numbers: tuple[int, ...]
    images: dict[int, Image.Image] = field(default_factory=dict)

    def frame(self, number: int) -> Image.Image:
        if not self.images:
            self.images = dict(zip(self.numbers, read_frames(self.path, self.numbers), strict=True))
        return self.images[number]


@dataclass(frozen=True)
class VideoFrame(LazyImage):
    """A frame of a video file."""

    video: _Decoded
    number: int

    def make(self, opener: Opener) -> Image.Image:
        return self.video.frame(self.number)


@dataclass(frozen=True)
class Clip:
    """The chosen frames of a clip in order, and the number of each in it, from 0."""

    frames: tuple[AnyImage, ...]
    numbers: tuple[int, ...]


def choose_clip(path: AnyPath, sampler: FrameSampler, draws: Draws, whole: bool | None = None) -> Clip:
    """Frames of a video file or of a folder.

    A folder that has no more frames than are wanted gives all of them, once.

    Args:
        path: the file or the folder.
        sampler: the rule by which frames are chosen.
        draws: the random decisions.
        whole: whether `path` is a folder; by default the disk is asked.

    Raises:
        SkipRow: it is missing or has no frames.
    """
    if path.is_dir() if whole is None else whole:
        return _of_folder(path, sampler, draws)
    try:
        info = video_info(path)
    except ImageError as error:
        raise SkipRow("a video cannot be read", str(error)) from error
    numbers = sampler.choose(sampler.wanted(draws), info.frames, draws, info.fps)
    if not numbers:
        raise SkipRow(
            "a video is too short",
            f"the video {path} has {info.frames} frames at {info.fps:g} a second, which is too short for "
            f"{sampler.sample}",
        )
    decoded = _Decoded(path, tuple(dict.fromkeys(numbers)))
    return Clip(tuple(VideoFrame(decoded, number) for number in numbers), tuple(numbers))


def _of_folder(path: AnyPath, sampler: FrameSampler, draws: Draws) -> Clip:
    files = frame_files(path)
    if sampler.rate is not None:
        raise SkipRow(
            "a folder of frames has no frame rate",
            f"{path} is a folder of frames, which has no frame rate: sample them by rand or middle, not "
            f"{sampler.sample}",
        )
    wanted = sampler.wanted(draws)
    numbers = list(range(len(files))) if len(files) <= wanted else sampler.choose(wanted, len(files), draws)
    return Clip(tuple(frame_image(files[number]) for number in numbers), tuple(numbers))


def frame_image(file: AnyPath) -> LazyImage:
    """The frame of a clip that is a file of its own."""
    return RemoteFrame(file) if isinstance(file, RemotePath) else FrameFile(file)


def frame_files(path: AnyPath) -> list[AnyPath]:
    """The files of a folder's frames, in the order of the last number in their names.

    Raises:
        SkipRow: the folder is missing, or holds no images.
    """
    try:
        files: list[AnyPath] = [file for file in path.iterdir() if file.suffix.lower() in _IMAGES]
    except OSError as error:
        raise SkipRow(
            "a folder of frames is missing", f"the folder of frames {path} cannot be read ({error.strerror})"
        ) from error
    if not files:
        raise SkipRow("a folder of frames is empty", f"the folder of frames {path} has no images in it")
    return sorted(files, key=lambda file: (_number(file), file.name))


def _number(file: AnyPath) -> int:
    found = _NUMBER.search(file.stem)
    return int(found[1]) if found else -1

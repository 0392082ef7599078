"""Video files: their length, and single frames of them, by PyAV, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.images import MAX_IMAGE_PIXELS
from bagel_mot.installation import install_command

MAX_FRAMES = 200_000
"""The most frames of a video: almost two hours at 30 a second."""


@dataclass(frozen=True)
class VideoInfo:
    """A video's number of frames, and how many of them make a second."""

    frames: int
    fps: float


def video_info(path: Path) -> VideoInfo:
    """The length of a video; its packets are counted, and nothing is decoded.

    Raises:
        ImageError: it is missing, damaged, without frames, or beyond the limits.
    """
    with _opened(path) as (container, stream):
        frames = 0
        for packet in container.demux(stream):
            frames += packet.size > 0
            if frames > MAX_FRAMES:
                raise ImageError(f"the video {path} has more than {MAX_FRAMES} frames: cut it into shorter ones")
        if not frames:
            raise ImageError(f"the video {path} has no frames: save it anew")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ImageError(f"the video {path} does not say how many frames make a second: save it anew")
        return VideoInfo(frames, float(rate))


def read_frames(path: Path, numbers: Sequence[int]) -> list[Image.Image]:
    """Frames of a video, RGB, by their numbers from 0 in order of display, which must not fall.

    A video whose last frames cannot be decoded gives the last one that can in their place.

    Raises:
        ImageError: it is missing, or damaged so that no frame can be decoded.
    """
    found: dict[int, Image.Image] = {}
    wanted, last = set(numbers), None
    with _opened(path) as (container, stream):
        stream.thread_type = "NONE"  # processes decode side by side
        for number, frame in enumerate(container.decode(stream)):
            last = frame
            if number in wanted:
                found[number] = frame.to_image()
            if len(found) == len(wanted):
                break
        if last is None:
            raise ImageError(f"the video {path} has no frame that can be decoded: save it anew")
        if len(found) < len(wanted):
            end = last.to_image()
            found |= dict.fromkeys(wanted - found.keys(), end)
    return [found[number] for number in numbers]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and the first video stream of a file."""
    try:
        import av
    except ImportError as error:
        raise ImageError(f"the video {path} needs PyAV: {install_command('video')}") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(f"the file {path} has no video in it")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MAX_IMAGE_PIXELS:
                raise ImageError(
                    f"the video {path} has {width}×{height} pixels a frame; 1 to {MAX_IMAGE_PIXELS} are accepted"
                )
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"the video {path} cannot be read ({reason}): save it anew, as MP4 for example") from error

"""Video files: their length, and single frames of them, by PyAV, within limits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.files import Readable
from bagel_mot.images import MAX_IMAGE_PIXELS
from bagel_mot.installation import install_command

MAX_FRAMES = 200_000
"""The most frames of a video: almost two hours at 30 a second."""


@dataclass(frozen=True)
class VideoInfo:
    """A video's number of frames, and how many of them make a second."""

    frames: int
    fps: float


def video_info(path: Readable) -> VideoInfo:
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


def read_frames(path: Readable, numbers: Sequence[int]) -> list[Image.Image]:
    """Frames of a video, RGB, by their numbers from 0 in order of display.

    Decoding begins at the last key frame before each, so a few frames of a long video cost little. A video whose last
    frames cannot be decoded gives the last one that can in their place.

    Raises:
        ImageError: it is missing, or damaged so that no frame can be decoded.
    """
    wanted = sorted(set(numbers))
    with _opened(path) as (container, stream):
        stream.thread_type = "NONE"  # processes decode side by side
        times, keys = _times(container, stream)
        container.seek(0)
        if times:
            images = _by_time(container, stream, [times[min(n, len(times) - 1)] for n in wanted], keys)
        else:
            images = _by_number(container, stream, wanted)
        found = dict(zip(wanted, images, strict=False))
    if not found:
        raise ImageError(f"the video {path} has no frame that can be decoded: save it anew")
    end = found[max(found)]
    return [found.get(number, end) for number in numbers]


def _times(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """The times of all frames in order of display, and those of key frames, in units of the stream; none where the file
    does not tell them all.
    """
    packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
    if any(time is None for time, _ in packets):
        return [], []
    times = sorted(time for time, _ in packets)
    return times, sorted(time for time, is_key in packets if is_key) or times[:1]


def _by_time(container: Any, stream: Any, times: Sequence[int], keys: Sequence[int]) -> Iterator[Image.Image]:
    """The frames at rising times, each decoded from the last key frame before it."""
    frames, last = _decoded(container, stream), None
    for time in times:
        key = keys[max(bisect_right(keys, time) - 1, 0)]
        if key > (keys[0] if last is None else last.pts):
            container.seek(key, stream=stream)
            frames = _decoded(container, stream)
        while last is None or last.pts < time:
            if (frame := next(frames, None)) is None:
                break
            last = frame
        if last is None:
            return
        yield last.to_image()


def _by_number(container: Any, stream: Any, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """The frames of rising numbers, counted as they are decoded; the last one if there are not so many."""
    frames, last, count = container.decode(stream), None, 0
    for number in numbers:
        for frame in islice(frames, number + 1 - count):
            last, count = frame, count + 1
        if last is None:
            return
        yield last.to_image()


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames from here on that say their time."""
    return (frame for frame in container.decode(stream) if frame.pts is not None)


@contextmanager
def _opened(path: Readable) -> Iterator[tuple[Any, Any]]:
    """The container and the first video stream of a file."""
    try:
        import av
    except ImportError as error:
        raise ImageError(f"the video {path} needs PyAV: {install_command('video')}") from error
    try:
        with av.open(str(path) if isinstance(path, Path) else path.open("rb")) as container:
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

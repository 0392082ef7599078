"""The choice of frames: which ones of a clip a sample shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bagel_mot.data.draws import Draws

_FPS = re.compile(r"fps(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class FrameSampler:
    """The number of frames that are taken of a clip, and the rule that chooses them.

    Attributes:
        max_num_frames: the most frames; with `fpsX` no limit if it is not positive.
        min_num_frames: the fewest; the number is uniform between both, whatever the clip's length.
        sample: "rand", a random frame of each of as many equal intervals; "middle", the middle one of each; or "fpsX",
            X frames a second.
    """

    max_num_frames: int
    min_num_frames: int = 8
    sample: str = "rand"

    def __post_init__(self) -> None:
        rate = _FPS.fullmatch(self.sample)
        if self.sample not in ("rand", "middle") and not (rate and float(rate[1])):
            raise ValueError(f"sample is {self.sample!r}; there are rand, middle and fpsX, such as fps2 or fps0.5")
        if rate is None and not 1 <= self.min_num_frames <= self.max_num_frames:
            raise ValueError(
                f"min_num_frames is {self.min_num_frames} and max_num_frames {self.max_num_frames}; "
                "min_num_frames must be at least 1 and max_num_frames not less"
            )

    @property
    def rate(self) -> float | None:
        """Frames a second; None if another rule applies."""
        found = _FPS.fullmatch(self.sample)
        return float(found[1]) if found else None

    def wanted(self, draws: Draws) -> int:
        """The number of frames that is wanted of a clip."""
        return 0 if self.rate is not None else draws.between(self.min_num_frames, self.max_num_frames)

    def choose(self, wanted: int, available: int, draws: Draws, fps: float | None = None) -> list[int]:
        """The frames of a clip in order, as their numbers from 0; a clip that is too short repeats its last one.

        In the random choice no interval's last frame is ever taken, as published. Where an interval has one frame only
        any subset of the clip may come instead.

        Args:
            wanted: the number of frames, as `wanted` draws it.
            available: the number of frames of the clip, at least 1.
            draws: the random decisions.
            fps: the frames a second of the clip, which `fpsX` needs.
        """
        if (rate := self.rate) is not None:
            assert fps is not None
            seconds = np.arange(1 / (2 * rate), available / fps + 1 / (2 * rate), 1 / rate)
            frames = [int(frame) for frame in np.round(seconds * fps) if frame < available]
            return frames[: self.max_num_frames] if self.max_num_frames > 0 else frames
        number = min(wanted, available)
        bounds = np.linspace(0, available, number + 1).astype(int).tolist()
        intervals = [(first, last - 1) for first, last in pairwise(bounds)]
        if self.sample == "middle":
            frames = [(first + last) // 2 for first, last in intervals]
        elif all(first < last for first, last in intervals):
            frames = [first + draws.below(last - first) for first, last in intervals]
        else:
            frames = draws.subset(available, number)
        return frames + frames[-1:] * (wanted - number)

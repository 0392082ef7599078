"""Documents of any kind, written out: a row is a list of parts, which are texts, images and videos with their marks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bagel_mot.data.documents import AnyImage, Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.clips import choose_clip
from bagel_mot.data.tasks.fields import field_of, image_of, text_of, wordings_of
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.data.tasks.video import group_bounds
from bagel_mot.errors import SettingError, did_you_mean

_CONTENTS = ("text", "image", "video")
_FLAGS = {
    "text": ("loss", "droppable", "starts_image"),
    "image": ("target", "vae", "vit", "droppable"),
    "video": ("target", "vae", "vit", "droppable", "frames", "groups"),
}
_ITEMS = list[TextPart | ImagePart | FramesPart]


@dataclass(frozen=True)
class Parts:
    """Maps a list of parts, each with one of `text`, `image` and `video`, and flags.

    A text has `loss`, `droppable` and `starts_image`, all false where they are left out; it may be a list of wordings.
    An image has `target`, `vae`, `vit` and `droppable`. Where `vae` and `vit` are left out, an image that is to be
    drawn is shown clean in both forms if anything follows it; a given one is shown in both forms in a row that has
    something to be drawn, and to the ViT alone in others.
    A video has those of an image, `frames`, the number of them, and `groups`: "one", by default, or "random". One that
    is to be drawn is frames in groups, as `VideoGeneration` has them; a given one is an image for each frame.

    Attributes:
        parts: the name of the field: a list, or a text of JSON with a list.
        images: the name of a field with a list of images, to which an `image` that is a number refers, from 0.
        image: makes an image of a value.
        path: makes the path of a video of its name.
        sampler: the choice of a video's frames where `frames` is left out.
    """

    parts: str = "parts"
    images: str = "images"
    image: Callable[[Any], AnyImage] = image_of
    path: Callable[[str], AnyPath] = Path
    sampler: FrameSampler = FrameSampler(8, 8)  # noqa: RUF009 - it is frozen

    def __call__(self, row: Row, draws: Draws) -> Document:
        parts = [self._checked(part) for part in self._listed(field_of(row, self.parts))]
        draws_any = any(part.get("target") for _, part in parts)
        document: _ITEMS = []
        for number, (kind, part) in enumerate(parts):
            followed = number + 1 < len(parts)
            shown = followed if part.get("target") else draws_any
            if kind == "text":
                text = draws.choice(wordings_of(part["text"], "a text"))
                document.append(TextPart(text, *(bool(part.get(flag)) for flag in _FLAGS["text"])))
            elif kind == "image":
                vit = shown if part.get("target") else True
                document.append(self._image(self._of(part["image"], row), part, shown, vit))
            else:
                document += self._video(part, shown, draws)
        if not any(part.loss if isinstance(part, TextPart) else part.target for part in document):
            raise SkipRow("nothing is learnt", "no text of the row has loss, and no image or video is a target")
        return document

    def _listed(self, value: Any) -> Sequence[Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise SkipRow(
                    "parts are no JSON", f"{self.parts} is {value!r:.80}, which is no JSON ({error})"
                ) from error
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            raise SkipRow(
                "parts are no list", f"{self.parts} is {value!r:.80}; a list with at least one part is expected"
            )
        return value

    def _checked(self, part: Any) -> tuple[str, Mapping[str, Any]]:
        """The kind of a part, and its keys without nulls, such as Parquet has for keys that other parts have."""
        if not isinstance(part, Mapping):
            raise SkipRow(
                "a part is malformed", f"a part is {part!r:.80}; an object with text, image or video is expected"
            )
        there = {key: value for key, value in part.items() if value is not None}
        kinds = [kind for kind in _CONTENTS if kind in there]
        if len(kinds) != 1:
            raise SkipRow(
                "a part is malformed",
                f"a part has {' and '.join(kinds) or 'none of text, image and video'}; it must have exactly one",
            )
        flags = _FLAGS[kinds[0]]
        for key, value in there.items():
            if key != kinds[0] and key not in flags and value is not False:
                raise SkipRow("a part has an unknown key", f"a {kinds[0]} has {key}; {did_you_mean(key, flags)}")
            if key in flags[:4] and not isinstance(value, bool):
                raise SkipRow(
                    "a part is malformed", f"{key} of a {kinds[0]} is {value!r:.40}; true or false is expected"
                )
        return kinds[0], there

    def _of(self, value: Any, row: Row) -> AnyImage:
        if isinstance(value, int) and not isinstance(value, bool):
            images = field_of(row, self.images)
            if not 0 <= value < len(images):
                raise SkipRow(
                    "an image has no such number", f"an image is number {value}, and {self.images} has {len(images)}"
                )
            value = images[value]
        return self.image(value)

    def _image(self, image: AnyImage, part: Mapping[str, Any], vae: bool, vit: bool) -> ImagePart:
        return ImagePart(
            image,
            target=part.get("target", False),
            vae=part.get("vae", vae),
            vit=part.get("vit", vit),
            droppable=part.get("droppable", False),
        )

    def _video(self, part: Mapping[str, Any], shown: bool, draws: Draws) -> _ITEMS:
        count = part.get("frames")
        if count is not None and (not isinstance(count, int) or count < 1):
            raise SkipRow("a part is malformed", f"frames of a video is {count!r}; a number of frames is expected")
        groups = part.get("groups", "one")
        if groups not in ("one", "random"):
            raise SkipRow("a part is malformed", f"groups of a video is {groups!r}; one or random is expected")
        try:
            sampler = self.sampler if count is None else FrameSampler(count, count)
        except SettingError as error:
            raise SkipRow("a part is malformed", str(error)) from error
        clip = choose_clip(self.path(text_of(part["video"], "a video")), sampler, draws)
        once = dict(zip(clip.numbers, clip.frames, strict=True))  # a short clip repeats its last frame
        numbers, frames = tuple(once), tuple(once.values())
        if not part.get("target"):
            return [
                ImagePart(
                    frame,
                    vae=part.get("vae", False),
                    vit=part.get("vit", True),
                    droppable=part.get("droppable", False),
                    share=len(frames),
                )
                for frame in frames
            ]
        bounds = group_bounds(len(frames), draws) if groups == "random" else [0, len(frames)]
        found: _ITEMS = []
        for first, last in pairwise(bounds):
            within = last < len(frames)
            found.append(
                FramesPart(
                    frames[first:last],
                    numbers[first:last],
                    target=True,
                    vae=True if within else part.get("vae", shown),
                    droppable=part.get("droppable", False),
                    following=numbers[last] if within else None,
                )
            )
        return found

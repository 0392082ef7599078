"""Results of requests, and images that remember how they were made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, PngImagePlugin

from bagel_mot.files import user_path, write_atomically
from bagel_mot.version import __version__

METADATA = ("prompt", "seed", "thinking", "settings", "software")


@dataclass
class Result:
    """An image or a text, with the facts of its making.

    Attributes:
        image: the image, or None.
        text: the answer without its thinking, or "".
        thinking: the thinking before it, without its tags; "" if there is none.
        raw_text: the text as the model wrote it, tags and all: the answer, or the thinking before an image.
        completion_tokens: tokens that this text took, its end token included.
        complete: whether it ended by itself or at a stop text, not at a limit.
        prompt: the texts given, joined by line breaks.
        seed: the seed of all randomness.
        settings: the settings that applied, by name.
        seconds: the time from the request's first step to its last, other requests' work in these steps included.
        evaluations: branch evaluations of the model that the image took.
    """

    image: Image.Image | None = None
    text: str = ""
    thinking: str = ""
    raw_text: str = ""
    completion_tokens: int = 0
    complete: bool = True
    prompt: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    evaluations: int = 0

    @property
    def value(self) -> Image.Image | str:
        """The image if there is one, else the text."""
        return self.text if self.image is None else self.image

    def metadata(self) -> dict[str, str]:
        """The facts that an image file holds about itself, as texts."""
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        found = {
            "prompt": self.prompt,
            "seed": str(self.seed),
            "thinking": self.thinking,
            "settings": json.dumps(settings),
            "software": f"bagel {__version__}",
        }
        return {name: text for name, text in found.items() if text}


def png_info(image: Image.Image) -> PngImagePlugin.PngInfo:
    """The metadata in `image.info`, for a PNG file."""
    info = PngImagePlugin.PngInfo()
    for name in METADATA:
        if isinstance(text := image.info.get(name), str):
            info.add_itxt(name, text)
    return info


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image; into a PNG also what `image.info` says of how it was made. The format follows from the name.

    Raises:
        ValueError: the name does not end in an image format that Pillow writes.
        OSError: the file cannot be written.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    extension = path.suffix.lower()
    if extension not in Image.registered_extensions():
        raise ValueError(f"{path} does not end in a known picture format: name it .png, .jpg or .webp.")
    options = {"pnginfo": png_info(image)} if extension == ".png" else {}
    write_atomically(path, lambda file: image.save(file, format=Image.registered_extensions()[extension], **options))

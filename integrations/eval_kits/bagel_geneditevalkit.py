"""GenEditEvalKit has `bagel serve` draw and edit: its two kinds of models, and a command that fills a folder.

In `infer/custom_models/load_model.py` of the kit, two lines behind its table `MODEL_SETTINGS` make them known:

    from bagel_geneditevalkit import MODELS
    [MODEL_SETTINGS[task].update(models) for task, models in MODELS.items()]

The command needs no kit:

    python bagel_geneditevalkit.py requests.jsonl images --workers 4

Each line of the file is {"prompt": …, "out": "a/1.png", "images": […], "seed": 0, …}: with `images` it is an edit, and
every other field is a setting of `bagel serve`. Files that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from bagel_client import BagelClient, ServerError
from PIL import Image


class BagelImages:
    """A served model that draws and edits. It may be used by several threads at once.

    Args:
        url, model, key, timeout: see `BagelClient`.
        **settings: settings of every request, such as `num_timesteps` or `cfg_text_scale`.
    """

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 600.0,
        **settings: Any,
    ) -> None:
        self.client, self.settings = BagelClient(url, model, key, timeout=timeout), settings

    def generate(self, prompt: str, seed: int = 0, **settings: Any) -> Image.Image:
        """The image that is drawn from a text.

        Raises: ServerError.
        """
        return _opened(self.client.generate(prompt, seed=seed, **{**self.settings, **settings}))

    def edit(
        self, images: Sequence[Image.Image | Path | str], prompt: str, seed: int = 0, **settings: Any
    ) -> Image.Image:
        """The image that is made from others by an instruction.

        Raises: ServerError; OSError if a file cannot be read.
        """
        data = [_data(image) for image in images]
        return _opened(self.client.edit(data, prompt, seed=seed, **{**self.settings, **settings}))

    def make(self, request: Mapping[str, Any], folder: Path) -> bool:
        """Makes the image of one line of a file of requests; returns whether it was not there yet.

        Raises: ServerError; OSError if a file cannot be read or written; ValueError if the line is no request.
        """
        fields = dict(request)
        try:
            prompt, path = str(fields.pop("prompt")), folder / str(fields.pop("out"))
        except KeyError as error:
            raise ValueError(f"a request lacks {error}: {json.dumps(request, ensure_ascii=False)[:200]}") from error
        if path.is_file():
            return False
        images = fields.pop("images", None)
        made = self.edit(images, prompt, **fields) if images else self.generate(prompt, **fields)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
        os.close(handle)
        try:
            made.save(temporary)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return True


class BagelServeT2I:
    """A model of the kit that draws.

    Attributes:
        model_name: its name.
        width, height: the size of the blank image that the kit saves where it is told to go on after a failure.

    Args:
        model_path: the server's address, which ends in /v1; see `BagelClient` for None.
        **settings: settings of every request; what `--custom_model_kwargses` names comes here, too.
    """

    model_name = "bagel-serve"

    def __init__(self, model_path: str | None = None, **settings: Any) -> None:
        self._images = BagelImages(model_path, **settings)
        width, _, height = str(settings.get("size", "1024x1024")).partition("x")
        self.width, self.height = int(width), int(height)

    def generate(self, prompt: str, seed: int = 42) -> Image.Image:
        """The image that is drawn from a text.

        Raises: ServerError.
        """
        return self._images.generate(prompt, seed).convert("RGB")


class BagelServeEdit:
    """A model of the kit that edits; see `BagelServeT2I`."""

    model_name = "bagel-serve"

    def __init__(self, model_path: str | None = None, **settings: Any) -> None:
        self._images = BagelImages(model_path, **settings)

    def generate(self, input_list: Sequence[Image.Image | str], seed: int = 42) -> Image.Image:
        """The image that is made from the images of a list by its texts, which are joined by blanks.

        Raises: ServerError.
        """
        images = [part for part in input_list if isinstance(part, Image.Image)]
        texts = [part for part in input_list if isinstance(part, str)]
        return self._images.edit(images, " ".join(texts), seed).convert("RGB")


def _settings(name: str, **settings: Any) -> dict[str, Any]:
    return {"model_path": None, "module": "bagel_geneditevalkit", "class": name, "model_kwargs": settings}


MODELS = {
    task: {"bagel-serve": _settings(name), "bagel-serve-think": _settings(name, think=True)}
    for task, name in (("t2i", "BagelServeT2I"), ("edit", "BagelServeEdit"))
}
"""The models for the kit's table `MODEL_SETTINGS`, by task and name."""


def _data(image: Image.Image | Path | str) -> bytes:
    if isinstance(image, Image.Image):
        file = BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    return Path(image).read_bytes()


def _opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the images of a file of requests. Returns 1 if some could not be made, which are named."""
    parser = argparse.ArgumentParser(description="Have bagel serve draw or edit what a file asks for.")
    parser.add_argument("requests", type=Path, help="one JSON object a line: prompt, out, and images for an edit")
    parser.add_argument("folder", type=Path, help="where the images go")
    parser.add_argument("--url", help="the server's address, which ends in /v1")
    parser.add_argument("--model", help="the model's name there")
    parser.add_argument("--workers", type=int, default=4, help="requests at the same time")
    given = parser.parse_args(arguments)
    try:
        lines = [line for line in given.requests.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        parser.error(f"{given.requests} is no file of requests: {error}")
    images = BagelImages(given.url, given.model)

    def make(row: Mapping[str, Any]) -> str | None:
        try:
            images.make(row, given.folder)
        except (ServerError, OSError, ValueError) as error:
            return f"{row.get('out') if isinstance(row, dict) else row}: {error}"
        return None

    with ThreadPoolExecutor(max(given.workers, 1)) as pool:
        failed = [sentence for sentence in pool.map(make, rows) if sentence]
    for sentence in failed:
        print(sentence, file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

"""Nodes that load a checkpoint, draw, edit, ask and think."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bridge import Watch, to_arrays, to_images
from .settings import ANSWER_SETTINGS, DRAWING_SETTINGS, Widget, seed_widget

if TYPE_CHECKING:
    from bagel_mot import Bagel

MODEL = "BAGEL_MODEL"
TOGETHER, EACH = "one picture from all", "each picture by itself"
MAX_IMAGES = 64

Values = dict[str, Any]


def text_widget(about: str) -> Widget:
    """A field for a text of some lines."""
    return "STRING", {"default": "", "multiline": True, "dynamicPrompts": True, "tooltip": about}


def drawing_settings() -> dict[str, Widget]:
    """The optional input for settings of drawing or editing."""
    return {
        "settings": (DRAWING_SETTINGS, {"tooltip": "From Drawing or Editing Settings; by default the checkpoint's."})
    }


def answer_settings() -> dict[str, Widget]:
    """The optional input for settings of answers."""
    return {"settings": (ANSWER_SETTINGS, {"tooltip": "From Answer Settings; by default the checkpoint's."})}


class BagelLoad:
    """Loads a checkpoint. The last one stays loaded, whatever ComfyUI keeps of the workflow."""

    DESCRIPTION = "Loads a BAGEL checkpoint. The last one stays in memory."
    CATEGORY = "BAGEL"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)

    _loaded: tuple[tuple[str, ...], Bagel] | None = None  # of the class: shared by all nodes

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        more_gpus = [f"cuda:{number}" for number in range(1, torch.cuda.device_count())]
        name = "mini (embedded), a folder in the official layout, or a hub id such as ByteDance-Seed/BAGEL-7B-MoT."
        return {
            "required": {
                "checkpoint": ("STRING", {"default": "mini", "tooltip": name}),
                "device": (
                    ["auto", "cpu", "cuda", *more_gpus, "mps"],
                    {"default": "auto", "tooltip": "auto: the best one available."},
                ),
                "precision": (
                    ["auto", "float32", "bfloat16", "float16", "int8", "fp8", "int4", "nf4"],
                    {"default": "auto", "tooltip": "auto: bfloat16 on GPUs and for large checkpoints, else float32."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, **_: Any) -> str:
        """The state of a local folder, which training, for one, may have written anew."""
        return files_state(checkpoint or "")

    def load(self, checkpoint: str, device: str, precision: str) -> tuple[Bagel]:
        """Loads the checkpoint, unless it is the last one and its files are unchanged.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeviceError: the device is not available here.
        """
        from bagel_mot import Bagel

        key = (checkpoint, device, precision, files_state(checkpoint))
        if BagelLoad._loaded is None or BagelLoad._loaded[0] != key:
            BagelLoad._loaded = None  # first, or both would be in memory for a while
            BagelLoad._loaded = key, Bagel.from_pretrained(checkpoint, device=device, precision=precision)
        return (BagelLoad._loaded[1],)


def files_state(checkpoint: str) -> str:
    """Names, sizes and times of the files of a local folder; "" for other checkpoints, which do not change."""
    folder = Path(checkpoint).expanduser()
    if not checkpoint or not folder.is_dir():
        return ""
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)


class BagelGenerate:
    """Draws images from a text, which is read once."""

    DESCRIPTION = "Draws pictures from a text. Several have seeds that count up from the one given."
    CATEGORY = "BAGEL"
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        count = {"default": 1, "min": 1, "max": MAX_IMAGES, "tooltip": "Pictures, drawn as one batch."}
        return {
            "required": {
                "model": (MODEL, {}),
                "prompt": text_widget("What to draw."),
                "seed": seed_widget(),
                "count": ("INT", count),
            },
            "optional": drawing_settings(),
        }

    def generate(
        self, model: Bagel, prompt: str, seed: int, count: int, settings: Values | None = None
    ) -> tuple[Tensor]:
        images = model.generate([prompt], n=count, seed=seed, progress=Watch().step, **(settings or {}))
        return (to_images(images),)


class BagelEdit:
    """Draws images from images and an instruction."""

    DESCRIPTION = "Changes pictures as a text says: each of a batch by itself, or one new picture from all of them."
    CATEGORY = "BAGEL"
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        about = "What to do with several pictures. By itself, each is drawn with the same seed."
        return {
            "required": {
                "model": (MODEL, {}),
                "images": ("IMAGE", {}),
                "instruction": text_widget("What to do with the pictures."),
                "batch": ([TOGETHER, EACH], {"default": TOGETHER, "tooltip": about}),
                "seed": seed_widget(),
            },
            "optional": drawing_settings(),
        }

    def edit(
        self, model: Bagel, images: Tensor, instruction: str, batch: str, seed: int, settings: Values | None = None
    ) -> tuple[Tensor]:
        arrays = to_arrays(images)
        given = [[array] for array in arrays] if batch == EACH else [arrays]
        instructions = [instruction] * len(given)
        drawn = model.edit(given, instructions, seed=seed, progress=Watch().step, **(settings or {}))
        return (to_images(drawn),)


class BagelAsk:
    """Answers a question about images, or without any."""

    DESCRIPTION = "Answers a question about all pictures of a batch, or without any."
    CATEGORY = "BAGEL"
    FUNCTION = "ask"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("answer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL, {}),
                "question": text_widget("The question."),
                "seed": seed_widget(),
            },
            "optional": {"images": ("IMAGE", {}), **answer_settings()},
        }

    def ask(
        self, model: Bagel, question: str, seed: int, images: Tensor | None = None, settings: Values | None = None
    ) -> tuple[str]:
        answer = model.ask(to_arrays(images) or None, question, seed=seed, on_text=Watch().text, **(settings or {}))
        return (answer,)


class BagelThinkAndDraw:
    """Thinks in words, then draws."""

    DESCRIPTION = "Thinks in words about a text, and pictures if there are any, then draws."
    CATEGORY = "BAGEL"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "thinking")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL, {}),
                "prompt": text_widget("What to draw, or what to do with the pictures."),
                "seed": seed_widget(),
            },
            "optional": {"images": ("IMAGE", {}), **drawing_settings()},
        }

    def draw(
        self, model: Bagel, prompt: str, seed: int, images: Tensor | None = None, settings: Values | None = None
    ) -> tuple[Tensor, str]:
        watch = Watch()
        result = model.interleave(
            [*to_arrays(images), prompt],
            think=True,
            seed=seed,
            progress=watch.step,
            on_text=watch.text,
            return_result=True,
            **(settings or {}),
        )
        return to_images([result.image]), result.thinking


class BagelThinkAndAnswer:
    """Thinks in words, then answers."""

    DESCRIPTION = "Thinks in words about a question, and pictures if there are any, then answers."
    CATEGORY = "BAGEL"
    FUNCTION = "answer"
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("answer", "thinking")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return BagelAsk.INPUT_TYPES()

    def answer(
        self, model: Bagel, question: str, seed: int, images: Tensor | None = None, settings: Values | None = None
    ) -> tuple[str, str]:
        result = model.ask(
            to_arrays(images) or None,
            question,
            think=True,
            seed=seed,
            on_text=Watch().text,
            return_result=True,
            **(settings or {}),
        )
        return result.text, result.thinking

"""Nodes that load a checkpoint, draw, edit, ask and think."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bagel_mot.checkpoint.precision import NAMES, parse_precision
from bagel_mot.errors import BagelError
from bagel_mot.files import parse_size
from bagel_mot.inference.loading import MINI
from bagel_mot.placement.plan import PREFERENCES

from .bridge import Watch, to_arrays, to_images
from .models import TASKS, ModelHandle
from .places import files_state, listed, located
from .settings import ANSWER_SETTINGS, DRAWING_SETTINGS, Widget, seed_widget

MODEL = "BAGEL_MOT_MODEL"
OFFICIAL = "ByteDance-Seed/BAGEL-7B-MoT"
TOGETHER, EACH = "one picture from all", "each picture by itself"
MAX_IMAGES = 64
REFERENCES = 4

Values = dict[str, Any]
HIDDEN = {"unique_id": "UNIQUE_ID"}


def text_widget(about: str) -> Widget:
    """A field for a text of some lines."""
    return "STRING", {"default": "", "multiline": True, "dynamicPrompts": True, "tooltip": about}


def model_input() -> tuple[str, dict[str, Any]]:
    """The input for a model."""
    return MODEL, {"tooltip": "From BAGEL Load."}


def drawing_settings() -> dict[str, Widget]:
    """The optional input for settings of drawing or editing."""
    return {
        "settings": (DRAWING_SETTINGS, {"tooltip": "From Drawing or Editing Settings; by default the checkpoint's."})
    }


def answer_settings() -> dict[str, Widget]:
    """The optional input for settings of answers."""
    return {"settings": (ANSWER_SETTINGS, {"tooltip": "From Answer Settings; by default the checkpoint's."})}


def references(first: int = 1) -> dict[str, Widget]:
    """Optional inputs for images, which may have different sizes, unlike those of one batch."""
    names = ["images", *(f"images_{number}" for number in range(2, REFERENCES + 1))]
    about = "A picture, or a batch of them; of any size."
    return {name: ("IMAGE", {"tooltip": about}) for name in names[first - 1 :]}


def given_arrays(images: dict[str, Tensor]) -> list[Any]:
    """The images of the sockets that are linked, in the order of the sockets."""
    return to_arrays(*(images.get(name) for name in references()))


def check_text(text: str | None, what: str) -> bool | str:
    """ComfyUI's answer on a text before anything runs; a text that comes over a link is None."""
    return (
        f"{what} is empty: write something that the model can go by." if text is not None and not text.strip() else True
    )


def draw(
    model: ModelHandle, requests: Sequence[list[Any]], seeds: Sequence[int], node: str | None, settings: Values
) -> list[Any]:
    """The results of requests that run as one batch, with progress and previews.

    Args:
        model: the model.
        requests: texts and images of each.
        seeds: the seed of each.
        node: ComfyUI's id of the node.
        settings: settings by name.
    """
    watch = Watch(node, len(requests))
    bagel = model.load(watch)
    callbacks = {"on_step": watch.step, "on_preview": watch.preview, "on_text": watch.text}
    tickets = [
        bagel.submit(inputs, seed=seed, **callbacks, **settings) for inputs, seed in zip(requests, seeds, strict=True)
    ]
    bagel.engine.run_until(tickets)
    return [ticket.result() for ticket in tickets]


class BagelLoad:
    """Names a checkpoint; it is loaded when it is used. One is in memory at a time."""

    DESCRIPTION = "Chooses a BAGEL checkpoint. One is in memory at a time; ComfyUI's Unload Models lets it go."
    CATEGORY = "BAGEL"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The checkpoint, for the other nodes.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        more_gpus = [f"cuda:{number}" for number in range(1, torch.cuda.device_count())]
        name = "mini (embedded), what lies in models/bagel, or the official weights, 29 GB that are downloaded there."
        other = "A folder, a file with weights in one, or a hub id: used instead of the list if it is not empty."
        tasks = "What it is for: answering alone leaves out nearly half of the weights, drawing from texts the encoder."
        compiled = "Compile the layers: the first run of each kind takes minutes, those after it less time."
        preferred = "With precision auto: what to choose by where several ways of running fit."
        places = "Where layers go that do not fit on the device: main memory, the disk, or nowhere."
        return {
            "required": {
                "checkpoint": (
                    [*dict.fromkeys([MINI, *listed(), OFFICIAL])],
                    {"default": MINI, "tooltip": name},
                ),
                "device": (
                    ["auto", "cpu", "cuda", *more_gpus, "mps"],
                    {"default": "auto", "tooltip": "auto: the best one available."},
                ),
                "precision": (
                    ["auto", *NAMES],
                    {
                        "default": "auto",
                        "tooltip": "auto: the fastest that fits; for small checkpoints float32 or bfloat16.",
                    },
                ),
            },
            "optional": {
                "other": ("STRING", {"default": "", "tooltip": other}),
                "offload": (["auto", "none", "cpu", "disk"], {"default": "auto", "tooltip": places}),
                "memory": ("STRING", {"default": "", "tooltip": "Memory to use at most on the GPU, such as 12GB."}),
                "tasks": ([*TASKS], {"default": "all", "tooltip": tasks}),
                "compile": ("BOOLEAN", {"default": False, "tooltip": compiled}),
                "prefer": ([*PREFERENCES], {"default": "quality", "tooltip": preferred}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        checkpoint: str | None = None,
        precision: str | None = None,
        other: str | None = "",
        memory: str | None = "",
    ) -> bool | str:
        """Takes any checkpoint and precision that the library takes, not the listed ones alone."""
        if checkpoint is not None and not checkpoint.strip() and other is not None and not other.strip():
            return "the checkpoint is empty: choose one, such as mini."
        try:
            if precision not in (None, "auto"):
                parse_precision(str(precision))
            if memory is not None and memory.strip():
                parse_size(memory.strip())
        except BagelError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, other: str | None = None, **_: Any) -> str:
        """The state of a local checkpoint, which training, for one, may have written anew."""
        return files_state((other or "").strip() or checkpoint or "")

    def load(
        self,
        checkpoint: str,
        device: str,
        precision: str,
        other: str = "",
        offload: str = "auto",
        memory: str = "",
        tasks: str = "all",
        compile: bool = False,
        prefer: str = "quality",
    ) -> tuple[ModelHandle]:
        """The handle of a checkpoint."""
        name = located(other if other.strip() else checkpoint)
        limit = memory.strip() or None
        return (ModelHandle(name, device, precision, offload, limit, tasks, compile, prefer, files_state(name)),)


class BagelGenerate:
    """Draws images from a text, which is read once."""

    DESCRIPTION = "Draws pictures from a text. Several have seeds that count up from the one given."
    CATEGORY = "BAGEL"
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The pictures drawn, as one batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        count = {"default": 1, "min": 1, "max": MAX_IMAGES, "tooltip": "Pictures, drawn as one batch."}
        return {
            "required": {
                "model": model_input(),
                "prompt": text_widget("What to draw."),
                "seed": seed_widget(),
                "count": ("INT", count),
            },
            "optional": drawing_settings(),
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:
        return check_text(prompt, "the prompt")

    def generate(
        self,
        model: ModelHandle,
        prompt: str,
        seed: int,
        count: int,
        settings: Values | None = None,
        unique_id: str | None = None,
    ) -> tuple[Tensor]:
        seeds = range(seed, seed + count)
        results = draw(model, [[prompt]] * count, seeds, unique_id, settings or {})
        return (to_images([result.image for result in results]),)


class BagelEdit:
    """Draws images from images and an instruction."""

    DESCRIPTION = "Changes pictures as a text says: each of a batch by itself, or one new picture from all of them."
    CATEGORY = "BAGEL"
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The pictures drawn, as one batch.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        about = "What to do with several pictures. By itself, each is drawn with the same seed."
        return {
            "required": {
                "model": model_input(),
                "images": references()["images"],
                "instruction": text_widget("What to do with the pictures."),
                "batch": ([TOGETHER, EACH], {"default": TOGETHER, "tooltip": about}),
                "seed": seed_widget(),
            },
            "optional": {**references(2), **drawing_settings()},
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, instruction: str | None = None) -> bool | str:
        return check_text(instruction, "the instruction")

    def edit(
        self,
        model: ModelHandle,
        instruction: str,
        batch: str,
        seed: int,
        settings: Values | None = None,
        unique_id: str | None = None,
        **images: Tensor,
    ) -> tuple[Tensor]:
        arrays = given_arrays(images)
        given = [[array, instruction] for array in arrays] if batch == EACH else [[*arrays, instruction]]
        results = draw(model, given, [seed] * len(given), unique_id, settings or {})
        return (to_images([result.image for result in results]),)


class BagelAsk:
    """Answers a question about images, or without any."""

    DESCRIPTION = "Answers a question about all pictures of a batch, or without any."
    CATEGORY = "BAGEL"
    FUNCTION = "ask"
    RETURN_TYPES: tuple[str, ...] = ("STRING",)
    RETURN_NAMES: tuple[str, ...] = ("answer",)
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("The answer.",)
    THINKS = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": model_input(),
                "question": text_widget("The question."),
                "seed": seed_widget("fixed"),
            },
            "optional": {**references(), **answer_settings()},
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, question: str | None = None) -> bool | str:
        return check_text(question, "the question")

    def ask(
        self,
        model: ModelHandle,
        question: str,
        seed: int,
        settings: Values | None = None,
        unique_id: str | None = None,
        **images: Tensor,
    ) -> tuple[str, ...]:
        watch = Watch(unique_id)
        result = model.load(watch).ask(
            given_arrays(images) or None,
            question,
            seed=seed,
            on_text=watch.text,
            return_result=True,
            **({"think": True} if self.THINKS else {}),
            **(settings or {}),
        )
        return (result.text, result.thinking) if self.THINKS else (result.text,)


class BagelThinkAndAnswer(BagelAsk):
    """Thinks in words, then answers."""

    DESCRIPTION = "Thinks in words about a question, and pictures if there are any, then answers."
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("answer", "thinking")
    OUTPUT_TOOLTIPS = ("The answer.", "The thoughts before it.")
    THINKS = True


class BagelThinkAndDraw:
    """Thinks in words, then draws."""

    DESCRIPTION = "Thinks in words about a text, and pictures if there are any, then draws."
    CATEGORY = "BAGEL"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "thinking")
    OUTPUT_TOOLTIPS = ("The picture drawn.", "The thoughts before it.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": model_input(),
                "prompt": text_widget("What to draw, or what to do with the pictures."),
                "seed": seed_widget(),
            },
            "optional": {**references(), **drawing_settings()},
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:
        return check_text(prompt, "the prompt")

    def draw(
        self,
        model: ModelHandle,
        prompt: str,
        seed: int,
        settings: Values | None = None,
        unique_id: str | None = None,
        **images: Tensor,
    ) -> tuple[Tensor, str]:
        inputs = [*given_arrays(images), prompt]
        (result,) = draw(model, [inputs], [seed], unique_id, {"think": True, **(settings or {})})
        return to_images([result.image]), result.thinking

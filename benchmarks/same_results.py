"""Whether two versions of the code make the same of the same seeds: `mini` draws, edits, answers, and holds a session.

    python benchmarks/same_results.py record before.pt      # with one version checked out
    python benchmarks/same_results.py record after.pt       # with the other
    python benchmarks/same_results.py compare before.pt after.pt

Images are compared level by level, latents and logits by their relative error. One thread, so that sums have one order.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bagel_mot import Bagel
from bagel_mot.inference.request import Recorder

CLOSE = 1e-5  # relative error of a latent or of logits whose arithmetic has changed its order

PROMPTS = (
    "a red car below a yellow sun",
    "three blue stars",
    "a cup",
    "a green house to the left of a tree",
    "two fish at night",
    "a boat",
    "a purple key",
    "four small flowers",
    "a cat and a dog",
    "a big yellow moon",
)
DRAWING: tuple[dict[str, Any], ...] = (
    {"think": True, "max_think_tokens": 60},
    {"cfg_text_scale": 5.0, "num_timesteps": 20},
    {"eta": 0.0},
    {"enable_taylorseer": True, "num_timesteps": 30},
    {"size": (96, 64)},
    {"cfg_interval": (0.2, 0.9)},
    {"cfg_renorm_type": "channel"},
    {"cfg_renorm_type": "text_channel", "cfg_renorm_min": 0.3},
    {"timestep_shift": 1.0},
    {"cfg_text_scale": 1.0},
)
EDITS = ("make it night", "remove the car", "add a red star above", "make it green", "replace it with a house")
EDITING: tuple[dict[str, Any], ...] = (
    {"cfg_text_scale": 3.0, "cfg_image_scale": 1.5},
    {"think": True, "max_think_tokens": 60},
    {"cfg_text_scale": 2.5, "cfg_image_scale": 2.0, "enable_taylorseer": True, "num_timesteps": 30},
    {"eta": 0.0},
    {"size": (64, 96)},
)
QUESTIONS = (
    "How many cars are there?",
    "What colour is it?",
    "What is in the picture?",
    "Is there a star?",
    "Is the sun above the car?",
)
ANSWERING: tuple[dict[str, Any], ...] = (
    {},
    {"think": True, "max_new_tokens": 80},
    {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.2, "max_new_tokens": 40},
)


def levels(image: Image.Image) -> torch.Tensor:
    """An image as (height, width, 3) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB")))


def one(bagel: Bagel, inputs: Sequence[Any], output: str, seed: int, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """One result, and everything about it that is compared."""
    recorder = Recorder()
    result = bagel.interleave(inputs, output=output, recorder=recorder, seed=seed, **settings)
    facts = {
        "result": levels(result) if isinstance(result, Image.Image) else result,
        "latent": recorder.latent,
        "tokens": recorder.tokens,
        "logits": torch.stack(recorder.logits) if recorder.logits else None,
    }
    return result, facts


def session(bagel: Bagel, image: Image.Image, *, think: bool) -> list[Any]:
    """A session of six turns, one of them taken back."""
    chat = bagel.session(think=think)
    chat.add(image)
    found: list[Any] = []
    for turn, (text, settings) in enumerate(
        [
            ("make the car blue", {}),
            ("make it night", {}),
            ("add a star", {"cfg_text_scale": 3, "cfg_image_scale": 1.5}),
        ]
    ):
        chat.add(text)
        found.append(levels(chat.generate_image(seed=turn + 1, **settings)))
        found.append(chat.ask("How many stars are there?", max_new_tokens=60))
    chat.undo()
    found.append(chat.generate_text(max_new_tokens=60, do_sample=True, temperature=0.7, seed=5))
    return [*found, chat.tokens]


def record() -> dict[str, Any]:
    """Everything that is compared, by name."""
    torch.set_num_threads(1)
    bagel = Bagel.from_pretrained("mini", device="cpu")
    found: dict[str, Any] = {}
    images = []
    for i, settings in enumerate([{}] * 10 + list(DRAWING)):
        image, found[f"generate {i}"] = one(bagel, [PROMPTS[i % 10]], "image", i, **settings)
        images.append(image)
    for i, settings in enumerate([{}] * 15 + list(EDITING)):
        given = images[i : i + 1] if i % 4 else [images[i], images[(i + 3) % 20]]
        _, found[f"edit {i}"] = one(bagel, [*given, EDITS[i % 5]], "image", 100 + i, **settings)
    for i, image in enumerate(images):
        settings = {"max_new_tokens": 60, **ANSWERING[i % 4]}
        _, found[f"ask {i}"] = one(bagel, [image, QUESTIONS[i % 5]], "text", 200 + i, **settings)
    found["session"] = session(bagel, images[0], think=False)
    found["session, thinking"] = session(bagel, images[0], think=True)
    sizes = [(64, 64), (96, 64), (64, 96), (64, 64), (128, 64), (64, 64)]
    batch = bagel.generate(
        list(PROMPTS[:6]),
        seed=[1, 2, 3, 4, 5, 6],
        size=sizes,
        cfg_text_scale=[3, 1, 4, 5, 2, 3],
        num_timesteps=[10, 20, 30, 15, 36, 25],
        eta=[0, 0.7, 1, 0, 0.5, 0.7],
    )
    found["batch"] = [levels(image) for image in batch]
    found["edits of one image"] = [levels(image) for image in bagel.edit(images[0], list(EDITS[:3]), n=2, seed=7)]
    return found


def differences(name: str, before: Any, after: Any) -> list[tuple[str, str]]:
    """("equal", "close" or "other", what it is about) for everything inside two records."""
    if isinstance(before, dict | list | tuple) and type(before) is type(after) and len(before) == len(after):
        parts = before.items() if isinstance(before, dict) else enumerate(before)
        return [one for key, part in parts for one in differences(f"{name} · {key}", part, after[key])]
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or before.shape != after.shape:
        return [("equal" if repr(before) == repr(after) else "other", f"{name}: {before!r} and {after!r}")]
    if torch.equal(before, after):
        return [("equal", name)]
    if before.dtype == torch.uint8:
        off = (before.int() - after.int()).abs()
        return [("other", f"{name}: {int((off > 0).sum())} levels differ, by {int(off.max())} at most")]
    error = float((before - after).norm() / before.norm())
    return [("close" if error < CLOSE else "other", f"{name}: relative error {error:.1e}")]


def main() -> None:
    """Records, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("file", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        torch.save(record(), options.file)
        return
    before, after = (torch.load(file, weights_only=True) for file in (options.before, options.after))
    found = differences("all", before, after)
    for kind, what in found:
        if kind != "equal":
            print(f"{kind}: {what}")
    counts = Counter(kind for kind, _ in found)
    print(f"{counts['equal']} equal, {counts['close']} within {CLOSE}, {counts['other']} other")
    sys.exit(counts["other"] > 0)


if __name__ == "__main__":
    main()

"""How many images a second of processor time make into packs: `python benchmarks/data.py [--images 400] [--side 512]
[--workers 0 1 2] [--rounds 3]`.

JPEG files of photograph-like content (about 80 kB at 512 × 512) are drawn into a temporary folder and turned into packs
by the very classes that training uses. What is counted for each image: the file is read, decoded whole, turned upright
and into sRGB, resized by Pillow's bicubic filter for the encoder that takes it (`t2i`: 512 × 512 stays so; `chat`:
518 × 518 for the ViT; `edit`: both for the source, the first for the target), made into uint8 levels or patches, its
text tokenized, sent to the main process where workers do this, and laid out in packs of 32,768 tokens. Scaling to
[-1, 1] and encoding happen on the device that trains and are not counted.

The number is images for each second of processor time of all processes together, after the first pack, so that it is
nearly the same on a busy machine; the best of the rounds is told, since other work can only slow it. Seconds by the
clock are told beside it and mean something on a quiet machine alone. Writes benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Document, Dropout, ImagePart, ImageRules, SampleBuilder, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.feed import GroupItem, SampleFeed, SampleMaker
from bagel_mot.data.mixing import BySamples
from bagel_mot.data.packer import PublishedPackConfig
from bagel_mot.data.readers.base import Reader, Row, Unit
from bagel_mot.data.streams import PackStream
from bagel_mot.data.supply import RowSupply, SampleGroup
from bagel_mot.data.workers import Workers
from bagel_mot.files import write_text
from bagel_mot.images import ImageTransform, open_image, patchify, to_levels
from bagel_mot.inference.loading import find_checkpoint
from bagel_mot.sequence import PackSpec
from bagel_mot.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "data.json"
VAE, VIT = ImageTransform(512, 256, 16), ImageTransform(518, 224, 14)
CAPTION = "a street at night in the rain, with the lights of the shops on the wet stones and a cat that waits at a door"


class Files(Reader):
    """Image files, each a row."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    def units(self) -> Sequence[Unit]:
        return [Unit("files", len(self.files))]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        return ({"file": file} for file in self.files[start:])


def generated(row: Row, draws: Draws) -> Document:
    """Text to image: one form, for the autoencoder."""
    return [TextPart(CAPTION), ImagePart(row["file"], target=True)]


def understood(row: Row, draws: Draws) -> Document:
    """An image and an answer: one form, for the ViT."""
    return [ImagePart(row["file"], vit=True), TextPart(CAPTION, loss=True)]


def edited(row: Row, draws: Draws) -> Document:
    """An edit to itself: both forms before it, and one after."""
    source = ImagePart(row["file"], vae=True, vit=True)
    return [source, TextPart(CAPTION), ImagePart(row["file"], target=True)]


KINDS = {"t2i": (generated, 1), "chat": (understood, 1), "edit": (edited, 2)}  # images opened for each row


def photo(side: int, rng: np.random.Generator) -> bytes:
    """A JPEG file with the smooth colours and the grain of a photograph, of about 80 kB at 512 × 512."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
    grain = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(grain).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def processor_seconds(processes: Sequence[int]) -> float:
    """The processor time of this process and of others that run, by their numbers (Linux)."""
    return time.process_time() + sum(time.clock_gettime(~process << 3 | 2) for process in processes)


def packed(files: Sequence[Path], kind: str, workers: int, tokenizer: Tokenizer) -> tuple[float, float, float]:
    """Images from files to packs, behind the first pack: for each second of processor time of all processes, for each
    one of this process alone, and by the clock.
    """
    mapper, images = KINDS[kind]
    rules = ImageRules(vae=VAE, vit=VIT, vit_of_original=True)
    supply = RowSupply(kind, (Dataset(kind, Files(files), mapper, rules),))
    builder = SampleBuilder(tokenizer, VAE, VIT, 16, 14, Dropout(0.0, 0.0, 0.0))
    spec = PackSpec(tokenizer.special, 70, 64, 588, 64)
    pool: Workers[GroupItem, Any] = Workers(SampleMaker((supply,), builder, spec, 0), workers)
    stream = PackStream(
        SampleFeed([SampleGroup(kind, supply)], BySamples([1.0], ""), pool, 0), spec, PublishedPackConfig()
    )
    try:
        stream.next_batch()  # the processes are there, the files in memory
        rows, begun, used, here = 0, time.perf_counter(), processor_seconds(pool.processes), time.process_time()
        while rows * images < len(files):
            rows += len(stream.next_batch().datasets)
        done = rows * images
        return (
            done / (processor_seconds(pool.processes) - used),
            done / (time.process_time() - here),
            done / (time.perf_counter() - begun),
        )
    finally:
        pool.close()


def milliseconds(stage: Callable[[], object], rounds: int = 50) -> float:
    """The median CPU time of a stage."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        stage()
        times.append(1e3 * (time.process_time() - begun))
    return statistics.median(times)


def stages(data: bytes) -> dict[str, float]:
    """The milliseconds of each stage of one image."""
    image = open_image(data)
    large, small = VIT.resize(image), VAE.resize(image)
    return {
        "decode": milliseconds(lambda: open_image(data)),
        "resize for the autoencoder": milliseconds(lambda: VAE.resize(image)),
        "levels": milliseconds(lambda: to_levels(small)),
        "resize for the ViT": milliseconds(lambda: VIT.resize(image)),
        "patches": milliseconds(lambda: patchify(to_levels(large).permute(2, 0, 1), 14)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory(LARGEST_KEPT_IN_TRAINING)  # as a run does
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_folder(find_checkpoint("mini"))
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"stages_ms": stages(photo(args.side, rng)), "kinds": []}
    for name, taken in found["stages_ms"].items():
        print(f"{name:28} {taken:6.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:05}.jpg" for number in range(args.images)]
        for file in files:
            file.write_bytes(photo(args.side, rng))
        for kind in KINDS:
            for workers in args.workers:
                rounds = [packed(files, kind, workers, tokenizer) for _ in range(args.rounds)]
                rates = [max(numbers) for numbers in zip(*rounds, strict=True)]
                names = ("images_per_cpu_second", "images_per_cpu_second_of_the_main_process", "images_per_second")
                found["kinds"].append({"kind": kind, "workers": workers, **dict(zip(names, rates, strict=True))})
                print(
                    f"{kind:5} {workers} workers: {rates[0]:5.0f} images for each second of processor time "
                    f"({rates[1]:6.0f} of the main process alone), {rates[2]:5.0f} a second by the clock",
                    flush=True,
                )
    load = os.getloadavg()[0]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "pillow": PIL.__version__}
    facts = {"images": args.images, "side": args.side, "rounds": args.rounds, "load": load, **machine}
    write_text(RESULT, json.dumps({**found, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()

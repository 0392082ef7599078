"""How fast rows become packs: `python benchmarks/data.py [--images 400] [--side 512] [--workers 0 1 2]`.

JPEG files are drawn into a temporary folder, decoded, resized, cut into patches and packed, by the very classes that
training uses. Prints images a second and, with worker processes, those of each; without any, images for each second of
CPU time as well; and the stages of one image. Writes benchmarks/results/data.json. The machine should be quiet.
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
from PIL import Image

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


def packed(files: Sequence[Path], kind: str, workers: int, tokenizer: Tokenizer) -> tuple[float, float]:
    """Images a second from files to packs, behind the first pack, and images for each second of CPU time here."""
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
        rows, begun, used = 0, time.perf_counter(), time.process_time()
        while rows * images < len(files):
            rows += len(stream.next_batch().datasets)
        return rows * images / (time.perf_counter() - begun), rows * images / (time.process_time() - used)
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
    args = parser.parse_args()
    tokenizer = Tokenizer.from_folder(find_checkpoint("mini"))
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "stages_ms": stages(photo(args.side, rng)),
        "images_per_second": {},
        "images_per_cpu_second": {},
    }
    for name, taken in found["stages_ms"].items():
        print(f"{name:28} {taken:6.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:05}.jpg" for number in range(args.images)]
        for file in files:
            file.write_bytes(photo(args.side, rng))
        for kind in KINDS:
            for workers in args.workers:
                rate, by_cpu = packed(files, kind, workers, tokenizer)
                if not workers:
                    found["images_per_cpu_second"][kind] = by_cpu
                    print(f"{kind:5} {by_cpu:7.0f} images for each second of CPU time")
                found["images_per_second"][f"{kind}, {workers} workers"] = rate
                print(
                    f"{kind:5} {workers} workers {rate:7.0f} images/s, {rate / max(workers, 1):5.0f} a process",
                    flush=True,
                )
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "pillow": PIL.__version__}
    RESULT.write_text(json.dumps({**found, "images": args.images, "side": args.side, **machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()

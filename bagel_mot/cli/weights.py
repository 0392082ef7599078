"""The options of every command that loads a model, and loading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape

from bagel_mot.cli.help import MORE
from bagel_mot.cli.options import notes, progress_bar, with_options

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

ALL_TASKS = ("generate", "edit", "understand")
_PANEL = "Model and memory"


def _option(*names: str, about: str, metavar: str) -> Any:
    return typer.Option(*names, help=about, metavar=metavar, rich_help_panel=_PANEL)


CheckpointOption = Annotated[
    str,
    _option(
        "--checkpoint",
        "-c",
        about="mini (embedded), a folder in the official layout or a file with weights in one, or a hub id.",
        metavar="NAME",
    ),
]
DeviceOption = Annotated[str, _option("--device", about="auto, cpu, cuda, cuda:1 or mps.", metavar="DEVICE")]
PrecisionOption = Annotated[
    str,
    _option(
        "--precision",
        about="auto, float32, bfloat16, float16, or for the decoder's matrices int8, int8-dynamic, fp8, fp8-dynamic, "
        f"int4 (lossy), nf4 (lossy).{MORE}Other parts may follow, as in int8,head=int8,activations=float16: head, vit, "
        "embedding, activations, autoencoder.",
        metavar="PRECISION",
    ),
]
OffloadOption = Annotated[
    str,
    _option(
        "--offload",
        about="Where to keep layers that do not fit on the device: cpu (main memory), disk, none, or auto.",
        metavar="PLACE",
    ),
]
MemoryOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    _option(
        "--memory", about="Memory to use at most on each GPU, or of the machine on a CPU, such as 12GB.", metavar="SIZE"
    ),
]
PreferOption = Annotated[
    str,
    _option(
        "--prefer",
        about="What is chosen where nothing else is said: quality (the fastest that loses no accuracy), speed or "
        "memory.",
        metavar="ORDER",
    ),
]
AdapterOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation at run time
    _option(
        "--adapter",
        about="An adapter to load beside the model: its folder, that of a run that trains one, or a hub id; a strength "
        "may follow, as in runs/dogs:0.5. Repeatable.",
        metavar="PLACE",
    ),
]


@dataclass(frozen=True)
class Weights:
    """The values of the options of every command that loads a model."""

    checkpoint: CheckpointOption = "mini"
    device: DeviceOption = "auto"
    precision: PrecisionOption = "auto"
    offload: OffloadOption = "auto"
    memory: MemoryOption = None
    prefer: PreferOption = "quality"
    adapter: AdapterOption = None


with_weights = with_options(Weights, "weights")
"""Gives a command these options, which become its argument `weights`."""


def load(weights: Weights, tasks: Sequence[str] = ALL_TASKS) -> Bagel:
    """Loads a model for some tasks, with a bar while it comes, and a message on how it runs if that was chosen."""
    from bagel_mot.inference.adapters import named, with_strength
    from bagel_mot.inference.api import Bagel

    typed = [with_strength(text) for text in weights.adapter or ()]
    adapters = named([place for place, _ in typed])
    console, name = notes(), weights.checkpoint
    with progress_bar(f"loading {name}", in_bytes=True) as bar:
        bagel = Bagel.from_pretrained(
            name,
            device=weights.device,
            precision=weights.precision,
            tasks=tasks,
            offload=weights.offload,
            memory=weights.memory,
            prefer=weights.prefer,
            adapters=adapters,
            # Without a terminal the hub's own lines say how a download goes.
            progress=(lambda doing, *count: bar(*count, f"{doing} {name}")) if console.is_terminal else None,
        )
    if adapters:
        bagel.set_adapters(dict(zip(adapters, (strength for _, strength in typed), strict=True)))
    if bagel.plan is not None:
        console.print(f"running in {escape(bagel.plan.sentence())}", soft_wrap=True)
    return bagel


def print_hint(bagel: Bagel, *texts: str) -> None:
    """Says on standard error, once, if one of the texts is outside what the model knows."""
    hint = next(filter(None, map(bagel.hint, texts)), None)
    if hint is not None:
        notes().print(f"note: {hint}", style="dim", markup=False, soft_wrap=True)

"""`python tools/embed.py RUN`: makes a training run's newest checkpoint the embedded model.

The autoencoder may come from a run of its own that sharpened the decoder alone. The settings in `bagel_defaults.json`
were chosen for `mini`, not by a run: they stay.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from bagel_mot.checkpoint.official import load_autoencoder, load_checkpoint, save_checkpoint
from bagel_mot.errors import BagelError, CheckpointError
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.training.checkpoints import latest


def embed(run: Path, autoencoder: Path | None = None, folder: Path = MINI_FOLDER) -> None:
    """Writes weights, tokenizer and configuration into `folder`, each file whole or not at all.

    Args:
        run: of a unified model, or one of its checkpoints.
        autoencoder: of an autoencoder whose encoder is the one the model was trained on.
        folder: the package's own, which exists.

    Raises:
        CheckpointError: one of them is no checkpoint, or the encoders differ.
    """
    checkpoint = load_checkpoint(latest(run), precision=torch.float32)
    images = checkpoint.autoencoder
    if autoencoder is not None:
        images = load_autoencoder(latest(autoencoder))
        trained_on = checkpoint.autoencoder.encoder.state_dict()
        encoder = images.encoder.state_dict()
        same = encoder.keys() == trained_on.keys() and all(
            torch.equal(encoder[name], tensor) for name, tensor in trained_on.items()
        )
        if not same or images.config != checkpoint.config.vae:
            raise CheckpointError(
                f"the encoder or the scale of {autoencoder} is not the one that {run} was trained on: "
                "train the decoder alone, with trainable: [decoder.*]"
            )
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        save_checkpoint(
            temporary,
            checkpoint.config,
            model=checkpoint.model.state_dict(),
            autoencoder=images.state_dict(),
            tokenizer=checkpoint.tokenizer,
        )
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)


def main(
    run: Annotated[Path, typer.Argument(help="Output folder of a unified model's run, or one of its checkpoints.")],
    autoencoder: Annotated[
        Path | None, typer.Option(help="Output folder of a run that sharpened its decoder, such as runs/mini-decoder.")
    ] = None,
) -> None:
    """Make a training run's newest checkpoint the embedded model."""
    try:
        embed(run, autoencoder)
    except BagelError as error:
        typer.echo(f"bagel: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)

"""The model or server that the options name, which answers the items."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bagel_mot.cli.evaluation.options import SERVER_KEY, How
from bagel_mot.cli.weights import Weights, load
from bagel_mot.files import user_path

if TYPE_CHECKING:
    from bagel_mot.evaluation.base import Benchmark
    from bagel_mot.evaluation.respondents.base import Respondent
    from bagel_mot.parallel.launch import Launch


def model_name(how: How, weights: Weights) -> str:
    """The name of the model that answers, which a run's folder is called by."""
    return how.server_model or Path(weights.checkpoint).name or weights.checkpoint


def open_predictions(how: How, path: Path, benchmark: Benchmark) -> Respondent:
    """The answers of another program, which are checked now."""
    from bagel_mot.evaluation.respondents.predictions import PredictionsRespondent

    return PredictionsRespondent(user_path(path), benchmark, how.limit)


def open_respondent(how: How, weights: Weights, launch: Launch) -> Respondent:
    if how.server is not None and how.server_model is not None:
        from bagel_mot.evaluation.http import ModelServer
        from bagel_mot.evaluation.respondents.server import ServerRespondent

        return ServerRespondent(ModelServer(how.server, os.environ.get(SERVER_KEY)), how.server_model)
    from bagel_mot.checkpoint.official import fingerprint, folder_of
    from bagel_mot.evaluation.respondents.local import LocalRespondent
    from bagel_mot.inference.loading import find_checkpoint

    if launch.world > 1 and weights.device == "auto":
        import torch

        if torch.cuda.is_available():
            weights = dataclasses.replace(weights, device=f"cuda:{launch.local_rank % torch.cuda.device_count()}")
    bagel = load(weights)
    facts = {
        "model": model_name(how, weights),
        "checkpoint": weights.checkpoint,
        "fingerprint": fingerprint(folder_of(find_checkpoint(weights.checkpoint))),
        "precision": bagel.checkpoint.precision.name,
        **({"adapters": weights.adapter} if weights.adapter else {}),
    }
    return LocalRespondent(bagel, facts)

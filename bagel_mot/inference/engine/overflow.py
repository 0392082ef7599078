"""The reason for numbers that are not finite: a damaged weight, or a precision that is too narrow."""

from __future__ import annotations

import torch

from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.side_files import AUTOENCODER_FILE
from bagel_mot.errors import NotFiniteError
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.finite import first_not_finite
from bagel_mot.model.vae import Autoencoder

_WIDER = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}


class OverflowReport:
    """Says why numbers are not finite. Weights are looked through only then, and once.

    Args:
        model: the model.
        autoencoder: the autoencoder.
    """

    def __init__(self, model: BagelModel, autoencoder: Autoencoder) -> None:
        self._model, self._autoencoder = model, autoencoder
        self._reason: str | None = None

    def error(self) -> NotFiniteError:
        """The error of a request whose numbers are not finite."""
        if self._reason is None:
            self._reason = self._find()
        return NotFiniteError(self._reason)

    def _find(self) -> str:
        if (found := first_not_finite(self._model)) is not None:
            return _damaged(official_name(found[0]), found[1].dtype)
        if (found := first_not_finite(self._autoencoder)) is not None:
            return _damaged(f"{found[0]} of {AUTOENCODER_FILE}", found[1].dtype)
        types = {self._model.dtype, self._autoencoder.dtype}
        narrowest = min(types, key=lambda type: torch.finfo(type).max)
        name = str(narrowest).removeprefix("torch.")
        if narrowest in _WIDER:
            advice = f"load the model with precision {_WIDER[narrowest]}"
        else:
            advice = "the weights are whole, so the checkpoint or the settings are at fault"
        return f"the numbers overflowed in {name} and are not finite, so there is no result: {advice}."


def _damaged(name: str, type: torch.dtype) -> str:
    wider = ", or load the model with precision bfloat16 or float32" if type == torch.float16 else ""
    return (
        f"the weight {name} holds infinite values or values that are not numbers, so there is no result: download or "
        f"convert the checkpoint anew{wider}."
    )

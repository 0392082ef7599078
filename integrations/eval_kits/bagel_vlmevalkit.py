"""VLMEvalKit asks `bagel serve`: models for its table `supported_VLM`.

    PYTHONPATH=integrations/eval_kits python -m bagel_vlmevalkit --model bagel --data MME

runs VLMEvalKit with these models; its own options follow. Two lines at the end of `vlmeval/config.py` do the same for
every way to start it: `from bagel_vlmevalkit import MODELS` and `supported_VLM.update(MODELS)`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bagel_client import BagelClient, Part, ServerError
from vlmeval.api.base import BaseAPI

_EMPTY = " "  # VLMEvalKit takes an empty answer for a failure, and asks again


class BagelServe(BaseAPI):
    """A served model. Images and texts keep the order in which a data set gives them.

    Args:
        url, model, key, timeout: see `BagelClient`.
        settings: fields of each request, such as `max_tokens`, `think` or `vit_min_size`.
        retry: how often VLMEvalKit asks while there is no answer.
        **kwargs: what `BaseAPI` takes, such as `wait`; others become settings.
    """

    is_api = True
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 600.0,
        settings: Mapping[str, Any] | None = None,
        retry: int = 5,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        self.client = BagelClient(url, model, key, timeout=timeout, tries=1)
        self.settings = dict(settings or {})
        super().__init__(retry=retry, verbose=verbose, **kwargs)

    def generate_inner(self, inputs: Sequence[Mapping[str, Any]], **kwargs: Any) -> tuple[int, str, str]:
        """The code, 0 for an answer, the answer, and what happened. `inputs` are parts, or messages with parts."""
        kwargs.pop("dataset", None)
        if inputs and "role" in inputs[0]:
            messages = [(message["role"], _parts(message["content"])) for message in inputs]
        else:
            messages = [("user", _parts(inputs))]
        if self.system_prompt:
            messages.insert(0, ("system", [self.system_prompt]))
        try:
            return 0, self.client.answer(messages, **{**self.settings, **kwargs}) or _EMPTY, "answered"
        except ServerError as error:
            # VLMEvalKit tells the cause with --verbose alone. Warnings of the same words come once, not at each try.
            warnings.warn(str(error), stacklevel=1)
            return error.status or -1, self.fail_msg, str(error)


def _parts(values: Sequence[Mapping[str, Any]]) -> list[Part]:
    return [Path(part["value"]) if part["type"] == "image" else str(part["value"]) for part in values]


MODELS = {
    # VLMEvalKit's options --retry and --verbose reach a model that has these keywords.
    "bagel": partial(BagelServe, retry=5, verbose=False),
    "bagel-think": partial(BagelServe, retry=5, verbose=False, settings={"think": True}),
}
"""The models by the name that `--model` takes."""


def main() -> None:
    """Runs VLMEvalKit with these models: the module `vlmeval.run`, or `run.py` of a checkout, from whose folder this
    is started.
    """
    from vlmeval.config import supported_VLM
    from vlmeval.smp import load_env

    try:
        run = importlib.import_module("vlmeval.run")
    except ModuleNotFoundError as error:
        if error.name != "vlmeval.run":
            raise
        run = importlib.import_module("run")
    supported_VLM.update(MODELS)
    load_env()  # the judge's key, from VLMEvalKit's own file
    run.main()


if __name__ == "__main__":
    main()

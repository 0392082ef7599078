"""The options of `bagel eval` beside those of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

SERVER_KEY = "BAGEL_SERVER_KEY"
_PROTOCOL = "Protocol and judge"
_MINI = "Of mini alone"
_RUN = "Run"


def _option(panel: str, *names: str, about: str, **more: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel=panel, **more)


@dataclasses.dataclass(frozen=True)
class How:
    """The options of a run beside those of the model."""

    # fmt: off
    data: Annotated[Path | None, _option(_PROTOCOL, "--data", about="The folder of the benchmark's data, as its authors publish it; of several benchmarks, the folder that holds theirs by name.", metavar="DIR")] = None  # noqa: E501
    protocol: Annotated[str, _option(_PROTOCOL, "--protocol", about="published: as the published scripts do, faults included; fixed: their faults mended; upstream: as the benchmark's own authors do.", metavar="NAME")] = "published"  # noqa: E501
    variant: Annotated[str | None, _option(_PROTOCOL, "--variant", about="A split or language, such as cn.", metavar="NAME")] = None  # noqa: E501
    think: Annotated[bool, _option(_PROTOCOL, "--think", about="Let the model think first.")] = False
    judge: Annotated[str | None, _option(_PROTOCOL, "--judge", about="The address of an OpenAI-compatible server with the judge; the key is taken from BAGEL_JUDGE_KEY.", metavar="URL")] = None  # noqa: E501
    judge_model: Annotated[str | None, _option(_PROTOCOL, "--judge-model", about="The judge's name there; by default the one that the benchmark names.", metavar="NAME")] = None  # noqa: E501
    judge_texts: Annotated[Path | None, _option(_PROTOCOL, "--judge-texts", about="Your copy of criterion texts that cannot be shipped, where they are not with the data.", metavar="DIR")] = None  # noqa: E501
    limit: Annotated[int | None, _option(_PROTOCOL, "--limit", about="Only the first items; of mini, of each row.", min=1, metavar="N")] = None  # noqa: E501
    server: Annotated[str | None, _option(_RUN, "--server", about=f"Ask this OpenAI-compatible server instead of a local model; the key is taken from {SERVER_KEY}.", metavar="URL")] = None  # noqa: E501
    server_model: Annotated[str | None, _option(_RUN, "--server-model", about="The model's name on the server.", metavar="NAME")] = None  # noqa: E501
    out: Annotated[Path | None, _option(_RUN, "--out", about="The folder of results, scores and images; the same command goes on where it was. By default evaluations/MODEL.", metavar="DIR")] = None  # noqa: E501
    workers: Annotated[int, _option(_RUN, "--workers", about="Processes that share the items, each with a model of its own (torchrun does the same).", min=1, metavar="N")] = 1  # noqa: E501
    batch: Annotated[int | None, _option(_RUN, "--batch", about="Requests that run together: 25 of mini, 8 of others.", min=1)] = None  # noqa: E501
    retry: Annotated[bool, _option(_RUN, "--retry", about="Score again what the judge gave no number for.")] = False
    scores: Annotated[Path | None, _option(_RUN, "--scores", about="Report the scores in this file of the benchmark's own scorer, such as GenEval's results.jsonl; no model is loaded.", metavar="FILE")] = None  # noqa: E501
    predictions: Annotated[Path | None, _option(_RUN, "--predictions", about="Score the answers in this table of VLMEvalKit (index, prediction; .xlsx, .tsv or .csv); no model is loaded.", metavar="FILE")] = None  # noqa: E501
    vlmevalkit: Annotated[Path | None, _option(_RUN, "--vlmevalkit", about="Also write the answers into this folder as VLMEvalKit keeps predictions, MODEL_DATASET.xlsx and .tsv.", metavar="DIR")] = None  # noqa: E501
    results_only: Annotated[bool, _option(_RUN, "--results-only", about="Answer and draw, but do not score.")] = False
    every_checkpoint: Annotated[Path | None, _option(_MINI, "--every-checkpoint", about="Score every checkpoint of this training run, and plot the abilities over training tokens.", metavar="RUN")] = None  # noqa: E501
    rows: Annotated[list[str] | None, _option(_MINI, "--rows", about="Only this row, such as draw/counting, or group, such as edit; repeatable.", metavar="ROW")] = None  # noqa: E501
    items: Annotated[int | None, _option(_MINI, "--items", about="Items in each row: 200.", min=1)] = None
    seed: Annotated[int | None, _option(_MINI, "--seed", about="Seed of the items: 0.", min=0)] = None
    # fmt: on

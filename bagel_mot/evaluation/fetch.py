"""`bagel eval fetch`: the data set of a benchmark from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkInfo


def fetch(info: BenchmarkInfo, folder: Path) -> Path:
    """Downloads a benchmark's data into a folder, with the hub's own progress; what is there already is kept.

    Raises: DataError if the hub does not have it, with where it is to be had; or if the download fails.
    """
    if info.hub is None:
        raise DataError(f"{info.name} is not on the hub: {info.source}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(info.hub, repo_type="dataset", local_dir=folder))
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{info.hub} could not be fetched ({first}); the same command goes on with what is there."
        ) from error

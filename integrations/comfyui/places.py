"""The places of checkpoints in ComfyUI: models/bagel, and the folders that extra_model_paths.yaml adds under `bagel`.

They are listed by name; a checkpoint of the hub has the name that it has there, OWNER/NAME, before and after it is
downloaded into the first of these folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bagel_mot.checkpoint.hub.download import cached_whole, download
from bagel_mot.checkpoint.opening import model_file
from bagel_mot.checkpoint.write import ByteProgress
from bagel_mot.errors import CheckpointError
from bagel_mot.files import user_path
from bagel_mot.inference.loading import locate

FOLDER = "bagel"
_COMING = ".incomplete"  # the end of a folder's name while its files are downloaded
_WEIGHTS = (".safetensors", ".gguf")
_CAME: set[Path] = set()  # folders that this process has downloaded


def register() -> None:
    """Tells ComfyUI of the folder models/bagel. Without ComfyUI it does nothing."""
    try:
        import folder_paths  # type: ignore[import-not-found]  # there inside ComfyUI only
    except ImportError:
        return
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def listed() -> list[str]:
    """The names of the checkpoints in ComfyUI's folders: folders that hold a whole one, and files of weights."""
    return sorted({name for root in _roots() for name in _checkpoints(root)})


def located(checkpoint: str) -> str:
    """The path of a listed checkpoint; any other name as it is."""
    name = checkpoint.strip()
    found = next((root / name for root in _roots() if name and (root / name).exists()), None)
    return name if found is None else str(found)


def fetched(checkpoint: str, progress: ByteProgress) -> str:
    """The path of a checkpoint, which is downloaded into ComfyUI's first folder if it is on the hub alone.

    Args:
        checkpoint: "mini", a path or a hub id.
        progress: told bytes received and bytes in all. What it raises ends the download, which is continued the next
            time.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be downloaded.
    """
    found = locate(located(checkpoint))
    if isinstance(found, Path):
        return str(found)
    if (cached := cached_whole(found)) is not None:
        return str(cached)
    roots = _roots()
    if not roots:  # outside of ComfyUI the hub's cache is the place
        return str(download(found, progress=progress))
    folder = roots[0] / found
    coming = folder.with_name(folder.name + _COMING)
    download(found, folder=coming, progress=progress)
    try:
        if not folder.exists():  # else another process was quicker
            coming.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{coming} cannot be renamed to {folder.name}: {error.strerror}.") from error
    _CAME.add(folder)
    return str(folder)


def files_state(checkpoint: str) -> str:
    """Names, sizes and times of the files of a local checkpoint, a folder or a file in one; "" for other checkpoints,
    which do not change. What this process has downloaded keeps the state that it had before, so that nothing is loaded
    and drawn a second time only because the files have come.
    """
    path = user_path(located(checkpoint)) if checkpoint.strip() else Path()
    folder = path.parent if path.is_file() else path
    if (
        not checkpoint.strip()
        or folder in _CAME
        or not folder.is_dir()
        or (folder == path.parent and not path.is_file())
    ):
        return ""
    files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)


def weights_size(place: str) -> int:
    """The bytes of the files with weights of a checkpoint: of all in its folder, since the autoencoder is beside."""
    path = Path(place)
    folder = path.parent if path.is_file() else path
    return sum(file.stat().st_size for file in folder.glob("*") if file.suffix in _WEIGHTS)


def _roots() -> list[Path]:
    try:
        import folder_paths
    except ImportError:
        return []
    return [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]


def _checkpoints(root: Path) -> Iterator[str]:
    """The names in one of ComfyUI's folders, down to those of the hub, OWNER/NAME."""
    for path in root.glob("*"):
        if path.is_file():
            if path.suffix in _WEIGHTS:
                yield path.name
        elif _is_whole(path):
            yield path.name
        else:
            yield from (f"{path.name}/{inner.name}" for inner in path.glob("*") if _is_whole(inner))


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that is not on its way."""
    if not (folder / "llm_config.json").is_file() or folder.name.endswith(_COMING):
        return False
    try:
        model_file(folder)
    except CheckpointError:  # several files of weights, or none
        return any(file.suffix in _WEIGHTS for file in folder.glob("*"))
    return True

"""The one owner of the weights, and the light handles of models and sessions that travel between nodes.

ComfyUI keeps the outputs of earlier prompts, so an output must not hold weights: the handle of a model says which one
it is, and the owner loads it when it is used. Only one model is loaded at a time; another one, or ComfyUI's own "unload
models" (`/free`), lets it go. Handles keep sessions as texts and images, the owner keeps them with their cache.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from bagel_mot.files import user_path

if TYPE_CHECKING:
    from bagel_mot import Bagel, Session

FOLDER = "bagel"
"""The folder of models in ComfyUI: models/bagel, and those that extra_model_paths.yaml adds."""


@dataclass(frozen=True)
class ModelHandle:
    """A model that is loaded when it is used.

    Attributes:
        checkpoint: "mini", a path or a hub id.
        device, precision, offload, memory: arguments of `Bagel.from_pretrained`.
        state: the state of the checkpoint's files when the handle was made.
    """

    checkpoint: str
    device: str = "auto"
    precision: str = "auto"
    offload: str = "auto"
    memory: str | None = None
    state: str = ""

    def load(self) -> Bagel:
        """The model, loaded now if it is not yet.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeviceError: the device is not available here, or the model does not fit.
        """
        return OWNER.model(self)


@dataclass(frozen=True, eq=False)
class SessionHandle:
    """A conversation after one of its turns.

    Attributes:
        model: the model that it is held with.
        think, understanding: the options that it was opened with.
        items: (kind, content) of each turn.
    """

    model: ModelHandle
    think: bool = False
    understanding: bool = False
    items: tuple[tuple[Any, Any], ...] = ()

    def fork(self) -> Session:
        """A session that goes on from here; what it has read is read again only after its model was unloaded.

        Raises: see `ModelHandle.load`.
        """
        return OWNER.session(self).fork()

    def then(self, session: Session) -> SessionHandle:
        """The handle of a fork that has gone on."""
        items = tuple((turn.kind, turn.content) for turn in session.history)
        handle = SessionHandle(self.model, self.think, self.understanding, items)
        OWNER.sessions[handle] = session
        return handle


@dataclass
class Owner:
    """Holds the model that is loaded, and the sessions that were read with it.

    Attributes:
        handle: the handle of that model; None while there is none.
        sessions: sessions with their cache, for as long as ComfyUI keeps their handles.
    """

    handle: ModelHandle | None = None
    sessions: WeakKeyDictionary[SessionHandle, Session] = field(default_factory=WeakKeyDictionary)
    _bagel: Bagel | None = None

    def model(self, handle: ModelHandle) -> Bagel:
        """The model of a handle. What was loaded before goes first, and so do ComfyUI's own models on the device."""
        if self._bagel is None or self.handle != handle:
            from bagel_mot import Bagel

            self.unload()
            _make_room(handle.device)
            self._bagel = Bagel.from_pretrained(
                handle.checkpoint,
                device=handle.device,
                precision=handle.precision,
                offload=handle.offload,
                memory=handle.memory,
            )
            self.handle = handle
        return self._bagel

    def session(self, handle: SessionHandle) -> Session:
        """The session of a handle, read anew if its model was unloaded meanwhile."""
        bagel = self.model(handle.model)
        if handle not in self.sessions:
            self.sessions[handle] = _restored(bagel, handle)
        return self.sessions[handle]

    def unload(self) -> None:
        """Lets the model and all caches go."""
        self._bagel = self.handle = None
        self.sessions.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


OWNER = Owner()


def _restored(bagel: Bagel, handle: SessionHandle) -> Session:
    if not handle.items:
        return bagel.session(think=handle.think, understanding=handle.understanding)
    from bagel_mot import Session
    from bagel_mot.inference.session_store import SavedSession

    return Session.restore(bagel, SavedSession(handle.think, handle.understanding, [], handle.items))


def _make_room(device: str) -> None:
    """Lets ComfyUI's own models leave an accelerator before BAGEL is loaded there."""
    try:
        import comfy.model_management as management  # type: ignore[import-not-found]  # there inside ComfyUI only
    except ImportError:
        return
    if device != "cpu":
        management.unload_all_models()
        management.soft_empty_cache()


def follow_comfyui() -> None:
    """Makes ComfyUI's `unload_all_models`, which `/free` and its buttons call, let BAGEL go too, and registers the
    folder of models. Without ComfyUI it does nothing.
    """
    try:
        import comfy.model_management as management
        import folder_paths  # type: ignore[import-not-found]
    except ImportError:
        return
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    unload_all = management.unload_all_models
    if getattr(unload_all, "lets_bagel_go", False):
        return

    def unload_all_models(*args: Any, **more: Any) -> Any:
        OWNER.unload()
        return unload_all(*args, **more)

    unload_all_models.lets_bagel_go = True  # type: ignore[attr-defined]
    management.unload_all_models = unload_all_models


def listed() -> list[str]:
    """The checkpoints in ComfyUI's folders for BAGEL, by name: folders with a configuration, and files of weights."""
    return sorted({name for root in _roots() for name in _checkpoints(root)})


def located(checkpoint: str) -> str:
    """The path of a listed checkpoint; any other name as it is."""
    name = checkpoint.strip()
    found = next((root / name for root in _roots() if name and (root / name).exists()), None)
    return name if found is None else str(found)


def _roots() -> list[Path]:
    try:
        import folder_paths
    except ImportError:
        return []
    return [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]


def _checkpoints(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return [
        path.name
        for path in root.iterdir()
        if (path.is_dir() and (path / "llm_config.json").is_file()) or path.suffix in (".safetensors", ".gguf")
    ]


def files_state(checkpoint: str) -> str:
    """Names, sizes and times of the files of a local checkpoint, a folder or a file in one; "" for other checkpoints,
    which do not change.
    """
    path = user_path(located(checkpoint))
    folder = path.parent if path.is_file() else path
    if not checkpoint.strip() or not folder.is_dir() or (folder == path.parent and not path.is_file()):
        return ""
    files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)

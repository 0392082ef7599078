"""The one owner of the weights, and the light handles of models and sessions that travel between nodes.

ComfyUI keeps the outputs of earlier prompts, so an output must not hold weights: the handle of a model says which one
it is, and the owner loads it when it is used. Only one model is loaded at a time, and only while ComfyUI keeps a handle
of it: another model, ComfyUI's own "unload models" (`/free`), models that need the room, or a cache that drops the
handles let it go. Handles keep sessions as texts and images, the owner keeps them with their cache.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from .bridge import Watch
from .memory import clean_up, device_in_comfyui, make_room, same_device
from .places import fetched, files_state, located, weights_size

if TYPE_CHECKING:
    from bagel_mot import Bagel, Session

TASKS = {
    "all": ("generate", "edit", "understand"),
    "draw from texts": ("generate",),
    "answer": ("understand",),
}
"""What a model can be loaded for: parts that its tasks do not need are left out."""


@dataclass(frozen=True)
class ModelHandle:
    """A model that is loaded when it is used.

    Attributes:
        checkpoint: "mini", a path or a hub id.
        device, precision, offload, memory, compile, prefer: arguments of `Bagel.from_pretrained`.
        tasks: the tasks that it is for, of TASKS.
        state: the state of the checkpoint's files when the handle was made.
    """

    checkpoint: str
    device: str = "auto"
    precision: str = "auto"
    offload: str = "auto"
    memory: str | None = None
    tasks: str = "all"
    compile: bool = False
    prefer: str = "quality"
    state: str = ""

    def load(self, watch: Watch | None = None) -> Bagel:
        """The model, loaded now if it is not yet.

        Args:
            watch: told how far it is; it ends the loading if the run was stopped.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeviceError: the device is not available here, or the model does not fit.
        """
        return OWNER.model(self, watch or Watch())

    def get_ram_usage(self) -> int:
        """The bytes of main memory that the model takes: when it gets short, ComfyUI drops large outputs first."""
        return OWNER.main_memory(self)


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

    def fork(self, watch: Watch | None = None) -> Session:
        """A session that goes on from here; what it has read is read again only after its model was unloaded.

        Raises: see `ModelHandle.load`.
        """
        return OWNER.session(self, watch or Watch()).fork()

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
        handle: what is loaded; None while nothing is.
        sessions: sessions with their cache, for as long as ComfyUI keeps their handles.
    """

    handle: ModelHandle | None = None
    sessions: WeakKeyDictionary[SessionHandle, Session] = field(default_factory=WeakKeyDictionary)
    _bagel: Bagel | None = None
    _kept: dict[int, weakref.ref[ModelHandle]] = field(default_factory=dict)  # handles that ComfyUI keeps of the model

    def model(self, handle: ModelHandle, watch: Watch) -> Bagel:
        """The model of a handle. What was loaded before goes first, and so do ComfyUI's own models on the device."""
        wanted = _of_files(handle)
        if self._bagel is None or self.handle != wanted:
            from bagel_mot import Bagel

            place = fetched(handle.checkpoint, lambda done, total: watch.loading("downloading", done, total))
            self.unload()
            device = device_in_comfyui(handle.device)
            make_room(device, weights_size(place))
            try:
                self._bagel = Bagel.from_pretrained(
                    place,
                    device=device,
                    precision=handle.precision,
                    offload=handle.offload,
                    memory=handle.memory,
                    tasks=TASKS[handle.tasks],
                    compile=handle.compile,
                    prefer=handle.prefer,
                    progress=watch.loading,
                )
            except BaseException:
                clean_up()
                raise
            self.handle = _of_files(handle)  # which are here now
        number = id(handle)
        self._kept[number] = weakref.ref(handle, lambda _: self._dropped(number))
        return self._bagel

    def session(self, handle: SessionHandle, watch: Watch) -> Session:
        """The session of a handle, read anew if its model was unloaded meanwhile."""
        bagel = self.model(handle.model, watch)
        if handle not in self.sessions:
            self.sessions[handle] = _restored(bagel, handle)
        return self.sessions[handle]

    def is_on(self, device: torch.device) -> bool:
        """Whether a model is loaded that takes memory of a device."""
        if self._bagel is None:
            return False
        used = [self._bagel.device, *(self._bagel.plan.devices if self._bagel.plan is not None else ())]
        return any(same_device(device, each) for each in used)

    def main_memory(self, handle: ModelHandle) -> int:
        """The bytes of main memory that the model of a handle takes."""
        if self._bagel is None or self.handle != _of_files(handle):
            return 0
        parts = (self._bagel.checkpoint.model, self._bagel.checkpoint.autoencoder)
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == "cpu")

    def unload(self) -> None:
        """Lets the model and all caches go."""
        self._bagel = self.handle = None
        self._kept.clear()
        self.sessions.clear()
        clean_up()

    def _dropped(self, number: int) -> None:
        """ComfyUI has dropped a handle: without any the model is not needed any more."""
        if self._kept.pop(number, None) is not None and not self._kept:
            self.unload()


OWNER = Owner()


def _of_files(handle: ModelHandle) -> ModelHandle:
    """A handle by which models are compared: with the state of the files, also where these have only just come."""
    return replace(handle, checkpoint=located(handle.checkpoint), state=handle.state or files_state(handle.checkpoint))


def _restored(bagel: Bagel, handle: SessionHandle) -> Session:
    if not handle.items:
        return bagel.session(think=handle.think, understanding=handle.understanding)
    from bagel_mot import Session
    from bagel_mot.inference.session_store import SavedSession

    return Session.restore(bagel, SavedSession(handle.think, handle.understanding, [], handle.items))

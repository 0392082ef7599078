"""ComfyUI's own modules as far as nodes use them: progress, stopping, folders, and the management of models' memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.integrations.comfy import folder_paths


class Stopped(Exception):
    """As ComfyUI's InterruptProcessingException."""


@dataclass(eq=False)
class LoadedModel:
    """One of ComfyUI's own models on a device.

    Attributes:
        size: its bytes.
        device: the device that it takes them of.
        model: itself, as long as it is not collected.
    """

    size: int
    device: torch.device
    model: object = field(default_factory=object)

    def model_loaded_memory(self) -> int:
        return self.size


class Inside:
    """The modules, which note what they are told.

    Attributes:
        bars: progress bars in the order in which they were made, with what they have `seen`.
        texts: (text, node) of texts that were shown.
        previews: how many previews were shown.
        checks, stop_after: how often nodes have asked whether they are stopped, and the time at which they are.
        folders: the folders of models by kind.
        device: the device that ComfyUI computes on.
        memory: the bytes of that device.
        others: what takes some of them beside ComfyUI's own models.
        unloaded: how often all models were made to leave.
    """

    def __init__(self) -> None:
        self.bars: list[Any] = []
        self.texts: list[tuple[str, str]] = []
        self.previews = self.checks = self.unloaded = 0
        self.stop_after: int | None = None
        self.folders: dict[str, list[str]] = {}
        self.device = torch.device("cpu")
        self.memory = 1 << 40
        self.others: Callable[[], int] = lambda: 0
        self.management = self._management()
        utils, root, server = ModuleType("comfy.utils"), ModuleType("comfy"), ModuleType("server")
        inside = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total, self.seen = total, list[tuple[int, int | None]]()
                inside.bars.append(self)

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.seen.append((value, total))
                if preview is not None:
                    kind, image, side = preview
                    assert (kind, image.mode) == ("JPEG", "RGB")
                    assert max(image.size) <= side
                    inside.previews += 1

        utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
        root.utils, root.model_management = utils, self.management  # type: ignore[attr-defined]
        tell = SimpleNamespace(send_progress_text=lambda *told: self.texts.append(told))
        server.PromptServer = SimpleNamespace(instance=tell)  # type: ignore[attr-defined]
        self.modules = [root, utils, self.management, folder_paths(self.folders), server]

    def _management(self) -> Any:
        """The management of memory: models leave while there is less room than is asked for, the largest first."""
        module: Any = ModuleType("comfy.model_management")

        def throw() -> None:
            self.checks += 1
            if self.checks == self.stop_after:  # once: ComfyUI forgets the wish as soon as it has raised
                raise Stopped

        def get_free_memory(device: torch.device) -> int:
            own = sum(loaded.size for loaded in module.current_loaded_models if loaded.device == device)
            return self.memory - own - self.others()

        def free_memory(memory_required: float, device: torch.device, keep_loaded: Sequence[LoadedModel] = ()) -> None:
            for loaded in sorted(module.current_loaded_models, key=lambda each: -each.size):
                if loaded.device == device and loaded not in keep_loaded and get_free_memory(device) < memory_required:
                    module.current_loaded_models.remove(loaded)

        def load_models_gpu(models: Sequence[LoadedModel]) -> None:
            module.free_memory(sum(each.size for each in models), self.device)
            module.current_loaded_models += models

        def unload_all_models() -> None:
            self.unloaded += 1
            module.free_memory(1e30, self.device)

        module.current_loaded_models = []
        module.throw_exception_if_processing_interrupted = throw
        module.get_torch_device = lambda: self.device
        module.get_free_memory, module.free_memory = get_free_memory, free_memory
        module.load_models_gpu, module.unload_all_models = load_models_gpu, unload_all_models
        module.soft_empty_cache = lambda: None
        return module

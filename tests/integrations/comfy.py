"""ComfyUI as far as its nodes can tell: workflows to prompts, validation, execution. Written from its documentation."""

from __future__ import annotations

import gc
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PACK = Path(__file__).parents[2]
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
CONTROLS = ("fixed", "increment", "decrement", "randomize")

Prompt = dict[str, dict[str, Any]]


def load_pack(folder: Path = PACK, name: str = "custom_nodes_bagel_x_mot") -> ModuleType:
    """Imports the root of a node pack as ComfyUI does: by its path, under a name of its own, with its own modules
    imported before.
    """
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = sys.modules.get("folder_paths")
    sys.modules.setdefault("folder_paths", folder_paths({}))
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["folder_paths"]
    return module


def folder_paths(folders: dict[str, list[str]], models: str = "models") -> ModuleType:
    """ComfyUI's module that knows the folders of models.

    Args:
        folders: the folders by kind, those of extra_model_paths.yaml first, since it is read before nodes are loaded.
        models: ComfyUI's own folder of models.
    """

    def add(kind: str, path: str, is_default: bool = False) -> None:
        known = folders.setdefault(kind, [])
        if path not in known:
            known.insert(0, path) if is_default else known.append(path)

    module = ModuleType("folder_paths")
    module.models_dir = models  # type: ignore[attr-defined]
    module.add_model_folder_path = add  # type: ignore[attr-defined]
    module.get_folder_paths = lambda kind: folders[kind][:]  # type: ignore[attr-defined]
    return module


class _Shown:
    """Of ComfyUI's own: takes what it is given as the outcome of a run."""

    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, **shown: Any) -> dict[str, Any]:
        return {"ui": shown, "result": ()}


class PreviewImage(_Shown):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}


class SaveImage(_Shown):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}


class PreviewAny(_Shown):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}


class EmptyImage:
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"default": 512}), "height": ("INT", {"default": 512})}}

    def generate(self, width: int, height: int) -> tuple[torch.Tensor]:
        return (torch.zeros(1, height, width, 3),)


CORE: dict[str, type] = {cls.__name__: cls for cls in (PreviewImage, SaveImage, PreviewAny, EmptyImage)}


def inputs_of(node: type) -> dict[str, tuple[Any, dict[str, Any]]]:
    """All inputs of a node class in the order of its widgets, each with its options."""
    types = node.INPUT_TYPES()
    found = {**types["required"], **types.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in found.items()}


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def read_workflow(path: Path, nodes: Mapping[str, type]) -> Prompt:
    """A workflow file of ComfyUI's editor as the prompt that the editor would send.

    Raises:
        AssertionError: the editor would not load it as it is meant.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    links = {link[0]: link[1:] for link in document["links"]}
    by_id = {node["id"]: node for node in document["nodes"]}
    assert document["version"] == 0.4
    assert (document["last_node_id"], document["last_link_id"]) == (max(by_id), max(links))
    prompt: Prompt = {}
    for node in document["nodes"]:
        known = inputs_of(nodes[node["type"]])
        values: dict[str, Any] = {}
        given = list(node["widgets_values"])
        for name, (kind, options) in known.items():
            if not is_widget(kind):
                continue
            values[name] = given.pop(0)
            if options.get("control_after_generate"):
                assert given.pop(0) in CONTROLS, f"{name} lacks its control"
        assert not given, f"{path.name}: node {node['id']} has values of no widget: {given}"
        assert [(i["name"], i["type"]) for i in node["inputs"]] == [
            (name, kind) for name, (kind, _) in known.items() if not is_widget(kind)
        ]
        for slot, entry in enumerate(node["inputs"]):
            if entry["link"] is None:
                continue
            source, out, target, into, kind = links[entry["link"]]
            assert (target, into) == (node["id"], slot)
            assert entry["link"] in by_id[source]["outputs"][out]["links"]
            assert by_id[source]["outputs"][out]["type"] == kind
            values[entry["name"]] = [str(source), out]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    return prompt


def errors_of(prompt: Prompt, nodes: Mapping[str, type]) -> list[str]:
    """What ComfyUI would refuse, before anything runs."""
    errors: list[str] = []
    for number, node in prompt.items():
        cls = nodes[node["class_type"]]
        known = inputs_of(cls)
        given = node["inputs"]
        errors += [f"{number}: {name} is missing" for name in cls.INPUT_TYPES()["required"] if name not in given]
        check = getattr(cls, "VALIDATE_INPUTS", None)
        own = inspect.getfullargspec(check).args[1:] if check else []
        for name, value in given.items():
            kind, options = known[name]
            if isinstance(value, list):
                returned = nodes[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                if kind not in (returned, "*"):
                    errors.append(f"{number}: {name} is {kind}, but gets {returned}")
                continue
            if not is_widget(kind):
                errors.append(f"{number}: {name} is {value!r}, but {kind} comes through a link")
            elif isinstance(kind, list):
                if value not in kind and name not in own:
                    errors.append(f"{number}: {name} is {value!r}, not in {kind}")
            elif kind == "INT" and isinstance(value, str) and value.isdecimal():
                given[name] = int(value)  # ComfyUI turns it into a number
            elif type(value) is not WIDGETS[kind] and not (kind == "FLOAT" and type(value) is int):
                errors.append(f"{number}: {name} is {value!r}, no {kind}")
            elif name not in own and kind in ("INT", "FLOAT"):
                if value < options.get("min", value):
                    errors.append(f"{number}: {name} is smaller than {options['min']}")
                if value > options.get("max", value):
                    errors.append(f"{number}: {name} is bigger than {options['max']}")
        if check is not None:
            constant = {name: None if isinstance(given[name], list) else given[name] for name in own if name in given}
            verdict = check(**constant)
            if verdict is not True:
                errors.append(f"{number}: {verdict}")
    return errors


@dataclass
class _Kept:
    """The result of a node, kept for later prompts.

    Attributes:
        result: what it returned.
        used: the prompt that used it last.
    """

    result: Any
    used: int


class Executor:
    """Runs prompts, and runs again only what has changed, as ComfyUI does.

    Args:
        nodes: the classes of nodes by type.
        cache: the results that are kept: "classic", those of the last prompt; "lru", the `most` that were used last;
            "ram", all, until main memory gets short: the largest then go first, of old prompts above all; "none".
        most: how many "lru" keeps.

    Attributes:
        ran: types of the nodes that the last prompt ran.
        events: what the front end is told, in order: (event, node).
        free_ram: bytes of main memory that are free, for "ram"; a function, since dropping results frees some.
        headroom: "ram" drops results while less is free.
    """

    def __init__(self, nodes: Mapping[str, type], cache: str = "ram", most: int = 0) -> None:
        self.nodes, self.cache, self.most = nodes, cache, most
        self.ran: list[str] = []
        self.events: list[tuple[str, str | None]] = []
        self.free_ram: Callable[[], int] = lambda: 1 << 40
        self.headroom = 1 << 30
        self._kept: dict[str, _Kept] = {}
        self._prompts = 0
        self._running: str | None = None

    def free(self, *, unload_models: bool = False, free_memory: bool = False) -> None:
        """POST /free: models go first, then all outputs; the latter means the former, too."""
        if unload_models or free_memory:
            sys.modules["comfy.model_management"].unload_all_models()
        if free_memory:
            self._kept.clear()
        gc.collect()

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """What the output nodes show, by the number of the node.

        Raises:
            AssertionError: the prompt is refused, or a node's results are not what it declares.
        """
        errors = errors_of(prompt, self.nodes)
        assert errors == []
        outputs = [number for number, node in prompt.items() if getattr(self._class(node), "OUTPUT_NODE", False)]
        assert outputs, "the prompt has no outputs"
        self.ran, self.events = [], [("execution_start", None)]
        self._prompts += 1
        keys = {number: self._key(number, prompt) for number in prompt}
        if self.cache == "classic":  # before anything runs, what the prompt has no use for goes
            self._kept = {key: kept for key, kept in self._kept.items() if key in keys.values()}
        results: dict[str, Any] = {}
        for number, key in keys.items():
            if key in self._kept:
                self._kept[key].used = self._prompts
                results[number] = self._kept[key].result
                self.events.append(("execution_cached", number))
        try:
            with torch.inference_mode():
                for number in outputs:
                    self._run(number, prompt, keys, results)
        except BaseException as error:
            stopped = type(error).__name__ in ("Stopped", "InterruptProcessingException")
            self.events.append(("execution_interrupted" if stopped else "execution_error", self._running))
            raise
        self.events.append(("executing", None))
        shown = {number: results[number]["ui"] for number in outputs}
        results.clear()
        self._shrink()
        return shown

    def _key(self, number: str, prompt: Prompt) -> str:
        return json.dumps([number, self._signature(number, prompt)])

    def _class(self, node: dict[str, Any]) -> Any:
        return self.nodes[node["class_type"]]

    def _signature(self, number: str, prompt: Prompt) -> Any:
        """All that a node's result may follow from."""
        node = prompt[number]
        inputs = {
            name: [self._signature(value[0], prompt), value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        changed = getattr(self._class(node), "IS_CHANGED", None)
        constant = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        return [node["class_type"], inputs, None if changed is None else changed(**constant)]

    def _run(self, number: str, prompt: Prompt, keys: dict[str, str], results: dict[str, Any]) -> Any:
        if number in results:
            return results[number]
        node = prompt[number]
        cls = self._class(node)
        values = {
            name: self._run(value[0], prompt, keys, results)[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        hidden = cls.INPUT_TYPES().get("hidden", {})
        values |= {name: number for name, kind in hidden.items() if kind == "UNIQUE_ID"}
        self._running = number
        self.events.append(("executing", number))
        result = getattr(cls(), cls.FUNCTION)(**values)
        if not isinstance(result, dict):
            assert len(result) == len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES)
            for value, kind in zip(result, cls.RETURN_TYPES, strict=True):
                check_type(value, kind)
        else:
            self.events.append(("executed", number))
        self.ran.append(node["class_type"])
        results[number] = result
        if self.cache != "none":
            self._kept[keys[number]] = _Kept(result, self._prompts)
        return result

    def _shrink(self) -> None:
        """Drops what the cache has no room for."""
        if self.cache == "lru":
            for key in sorted(self._kept, key=lambda key: self._kept[key].used)[: max(0, len(self._kept) - self.most)]:
                del self._kept[key]
        if self.cache == "ram":
            sizes = {key: self._size(kept) for key, kept in self._kept.items()}
            for key in sorted(sizes, key=lambda key: -sizes[key]):
                if self.free_ram() >= self.headroom:
                    break
                del self._kept[key]
                gc.collect()

    def _size(self, kept: _Kept) -> float:
        """What ComfyUI takes a result for: bytes, half of them for images, more with age."""
        size = 0.1
        for output in () if isinstance(kept.result, dict) else kept.result:
            if isinstance(output, torch.Tensor):
                size += 0.5 * output.nbytes
            elif hasattr(output, "get_ram_usage"):
                size += output.get_ram_usage()
        return float(1.3 ** (self._prompts - kept.used) * size)


def check_type(value: Any, kind: str) -> None:
    """
    Raises:
        AssertionError: `value` is not what ComfyUI's other nodes expect of that type.
    """
    if kind == "IMAGE":
        assert value.dtype == torch.float32
        assert value.ndim == 4
        assert value.shape[-1] == 3
        assert value.device.type == "cpu"
        assert 0 <= value.min() <= value.max() <= 1
    elif kind == "STRING":
        assert isinstance(value, str)
    else:
        assert value is not None

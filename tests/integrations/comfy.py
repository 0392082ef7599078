"""ComfyUI as far as its nodes can tell: workflows to prompts, validation, execution. Written from its documentation."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
CONTROLS = ("fixed", "increment", "decrement", "randomize")

Prompt = dict[str, dict[str, Any]]


def load_nodes() -> ModuleType:
    """Imports the folder as ComfyUI does: by its path, under a name of its own."""
    name = "custom_nodes_bagel"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
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


CORE: dict[str, type] = {"PreviewImage": PreviewImage, "SaveImage": SaveImage, "PreviewAny": PreviewAny}


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


class Executor:
    """Runs prompts, and runs again only what has changed, as ComfyUI does. Outputs of earlier prompts are kept by their
    inputs, as its default cache does wherever there is much memory: "classic" keeps one a node.
    """

    def __init__(self, nodes: Mapping[str, type], cache: str = "all") -> None:
        self.nodes, self.cache = nodes, cache
        self.ran: list[str] = []
        self._results: dict[str, Any] = {}

    def free(self) -> None:
        """Forgets all outputs, as `/free` with "free_memory" does."""
        self._results.clear()

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """What the output nodes show, by the number of the node.

        Raises:
            AssertionError: the prompt is refused, or a node's results are not what it declares.
        """
        errors = errors_of(prompt, self.nodes)
        assert errors == []
        outputs = [number for number, node in prompt.items() if getattr(self._class(node), "OUTPUT_NODE", False)]
        assert outputs, "the prompt has no outputs"
        self.ran = []
        with torch.inference_mode():
            for number in outputs:
                self._run(number, prompt)
        return {number: self._results[self._key(number, prompt)]["ui"] for number in outputs}

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

    def _run(self, number: str, prompt: Prompt) -> Any:
        key = self._key(number, prompt)
        if key in self._results:
            return self._results[key]
        node = prompt[number]
        cls = self._class(node)
        values = {
            name: self._run(value[0], prompt)[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        hidden = cls.INPUT_TYPES().get("hidden", {})
        values |= {name: number for name, kind in hidden.items() if kind == "UNIQUE_ID"}
        result = getattr(cls(), cls.FUNCTION)(**values)
        if not isinstance(result, dict):
            assert len(result) == len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES)
            for value, kind in zip(result, cls.RETURN_TYPES, strict=True):
                check_type(value, kind)
        self.ran.append(node["class_type"])
        if self.cache == "classic":
            self._results = {other: kept for other, kept in self._results.items() if json.loads(other)[0] != number}
        self._results[key] = result
        return result


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

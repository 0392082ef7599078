"""The order of the rooms: a lower room never imports a higher one, and no modules import one another in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bagel_mot

ROOT = Path(bagel_mot.__file__).parent
ROOMS = (
    ("errors", "files", "config", "prompts", "scope", "task"),
    ("allocator", "system_files", "threads", "installation", "version"),
    ("images", "video", "tokenizer"),
    ("sequence",),
    ("model",),
    ("checkpoint",),
    ("parallel",),
    ("placement",),
    ("worlds",),
    ("data",),
    ("inference",),
    ("training",),
    ("evaluation",),
    ("rl",),
    ("serving",),
    ("app", "verify", "bench", "demo", "integrations"),
    ("cli", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(name: str, path: Path) -> Iterator[str]:
    """The package's modules that a module imports anywhere: at its top, inside functions, for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if (found := inner if inner in MODULES else node.module) in MODULES:
                    yield found


IMPORTS = {name: sorted(set(imported(name, path)) - {name}) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(name) for name in MODULES if "." in name} <= set(FLOOR)


def test_no_room_imports_a_higher_one() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if "." in name
        for other in others
        if "." not in other or FLOOR[room(other)] > FLOOR[room(name)]
    ]
    assert not upward


def test_no_modules_import_one_another_in_a_circle() -> None:
    # A package's __init__ that gathers names from its own modules is no circle: Python imports it first.
    left = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in IMPORTS.items()}
    while True:
        needed = set().union(*left.values())
        free = [name for name, others in left.items() if not others & left.keys() or name not in needed]
        if not free:
            break
        for name in free:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


def test_the_small_world_needs_nothing_that_uses_it() -> None:
    """Data, training and evaluation draw from `worlds`, which knows none of them, nor any network."""
    allowed = {"errors", "files", "prompts", "worlds"}
    worlds = [name for name in MODULES if name.startswith("bagel_mot.worlds")]
    assert not [f"{name} imports {other}" for name in worlds for other in IMPORTS[name] if room(other) not in allowed]


def test_training_knows_no_world() -> None:
    """A source of data brings what is special to it; training asks for it by `bagel_mot.data`'s protocol alone."""
    training = [name for name in MODULES if name.startswith("bagel_mot.training")]
    special = ("bagel_mot.worlds", "bagel_mot.data.sources.mini", "bagel_mot.evaluation")
    assert not [f"{name} imports {other}" for name in training for other in IMPORTS[name] if other.startswith(special)]
    assert not [name for name in training if "mini" in MODULES[name].read_text(encoding="utf-8").lower().split()]

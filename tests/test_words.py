"""The mechanical part of how this code speaks: docstrings are full sentences that say shapes, and names are unique."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import bagel_mot

ROOT = Path(bagel_mot.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Openings that leave the subject out, so that the reader has to supply it.
NO_SUBJECT = re.compile(r"(Of|What|How|Whom|Whose|That|Those|For|By|As|As in|Most|Args|Attributes|Returns?|Raises):?\b")
# Attribute and argument lines whose text begins so: "seed: of all randomness".
BARE = re.compile(r"^\s+\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*: (?:of|that|for|by|from|in|whom|whose)\b", re.MULTILINE)
# A shape such as (N, hidden), (V,) or (rows·columns, 3); or a scalar's unit.
SHAPE = re.compile(r"\([\w·×²/+−\-* ]+,[^)]*\)|\bscalar\b|\bshape\b")
TENSOR_ROOMS = ("model", "sequence", "inference")


def definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Every class and function of a file that is not nested in a function, with its dotted name."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
        for node in body:
            if isinstance(node, Definition):
                yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(ast.parse(path.read_text(encoding="utf-8")).body, "")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if text := ast.get_docstring(tree):
        yield "module", text
    for name, node in definitions(path):
        if text := ast.get_docstring(node):
            yield name, text
    for before, node in zip(tree.body, tree.body[1:], strict=False):  # the docstring of a constant
        constant = isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(node, ast.Expr)
        if constant and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield ast.unparse(before).split(" = ")[0].split(":")[0], node.value.value


def names_tensors(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's own signature speaks of tensors."""
    hints = [arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints if hint is not None)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=where)
def test_docstrings_are_sentences_with_a_subject(path: Path) -> None:
    bad = [f"{name}: {text.splitlines()[0]!r}" for name, text in docstrings(path) if NO_SUBJECT.match(text)]
    bad += [f"{name}: {line.strip()!r}" for name, text in docstrings(path) for line in BARE.findall(text)]
    assert not bad


@pytest.mark.parametrize("path", [p for p in FILES if where(p).startswith(TENSOR_ROOMS)], ids=where)
def test_public_functions_on_tensors_say_their_shapes(path: Path) -> None:
    bad = []
    for name, node in definitions(path):
        if isinstance(node, ast.ClassDef) or any(part.startswith("_") for part in name.split(".")):
            continue
        text = ast.get_docstring(node) or ""
        if names_tensors(node) and not SHAPE.search(text):
            bad.append(f"{name} names no shape")
        if node.name == "forward" and not re.search(r"Returns:|->", text):
            bad.append(f"{name} does not say what it returns")
    assert not bad


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for name, node in definitions(path):
            if isinstance(node, ast.ClassDef) and not name.startswith("_") and "." not in name:
                places[name].append(where(path))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_packing_is_of_sequences_alone() -> None:
    """`pack` is sequence packing; weights are prepacked for oneDNN, and small integers are joined in bytes."""
    allowed = ("sequence", "data", "training", "verify", "bench", "model/attention", "model/flex", "inference/engine")
    bad = [
        f"{where(path)}: {name}"
        for path in FILES
        if not where(path).startswith(allowed)
        for name, _ in definitions(path)
        if re.search(r"(?<!pre)pack(?!age)", name.lower())
    ]
    assert not bad

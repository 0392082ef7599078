"""The mechanical part of how this code speaks: docstrings and comments are sentences with a subject, public functions
on tensors state shapes, and one name means one thing.

A failure lists `file:line: name: text`. The examples beside each pattern show what to write instead.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bagel_mot

ROOT = Path(bagel_mot.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Openings that leave the subject out, so that the reader has to supply it: "Of one file." is "Size limit of one file.";
# "What Stop does." is "Stops the run."; a docstring that is only "Raises:" lacks its sentence.
NO_SUBJECT = re.compile(r"(Of|What|How|Whom|Whose|That|Those|For|By|As|As in|Most|Args|Attributes|Returns?|Raises):?\b")
# Attribute and argument lines without a noun: "seed: of all randomness" is "seed: the seed of all randomness";
# "progress: as in `generate`" is "progress: see `generate`".
BARE = re.compile(
    r"^\s+\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*: "
    r"(?:of|that|those|for|by|from|in|at|to|with|as|what|how|which|who|whom|whose|when|where)\b.*",
    re.MULTILINE,
)
# Comments are read alone: "# of the plain loop" is "# the plain loop's weights".
COMMENT_OPENING = re.compile(r"#\s*(of|what|whose|whom|that is)\b", re.IGNORECASE)
# Turns of phrase with a plain word of the field: quantised, dequantised, yields, is stored, "is not a number", image.
# In the toy world things do stand in places; quoted texts may say what they like.
IDIOMS = re.compile(
    r"\bfew bits\b|\bbr(?:ought|ings?) back\b|\bgives? out\b|(?<!there )\b(?:is|are) none\b"
    r"|\bof what (?:is|was|were|are|has)\b|\bis no (?:image|size|number|text|name)\b|\b[Pp]ictures?\b|\b[Aa] image\b"
    r"|\bstands? (?:in|on|for|beside|behind|before|first|there)\b"
)
# A shape such as (N, hidden), (V,) or (rows·columns, 3); or a scalar's unit.
_SIZE = r"[\w·×²/+−\-*…]+(?: [·×/+−*-] [\w·²]+)*"
SHAPE = re.compile(rf"\((?:{_SIZE}, )*{_SIZE},(?: {_SIZE})?\)|\bscalar\b|\bshape\b")
# Names of numbers that say their unit themselves.
UNIT = re.compile(r"(?:bytes|len|length|tokens|positions|pixels|seconds|advance|mode)$")
TENSOR_ROOMS = ("model", "sequence", "inference")


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Every class and function of a file that is not nested in a function, with its dotted name; of overloads the
    implementation, which has the docstring.
    """

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
        for node in body:
            if isinstance(node, Definition) and "overload" not in map(ast.unparse, node.decorator_list):
                yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(parsed(path).body, "")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Every docstring with its place: modules, classes and functions however nested, constants, fields."""
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Module | Definition):
            continue
        name = "module" if isinstance(node, ast.Module) else node.name
        if text := ast.get_docstring(node):
            yield f"{where(path)}:{node.body[0].lineno}: {name}", text
        for before, after in zip(node.body, node.body[1:], strict=False):
            is_value = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(before, ast.Assign | ast.AnnAssign) and is_value and isinstance(after.value.value, str):
                target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
                yield f"{where(path)}:{after.lineno}: {ast.unparse(target)}", after.value.value.strip()


def comments(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Every comment with its place, and whether it goes on from the line above."""
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield f"{where(path)}:{token.start[0]}: comment", token.string, token.start[0] == last + 1
            last = token.start[0]


def names_tensors(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's own signature speaks of tensors."""
    hints = [arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints if hint is not None)


@pytest.mark.parametrize("path", FILES, ids=where)
def test_docstrings_are_sentences_with_a_subject(path: Path) -> None:
    bad = [f"{place}: {text.splitlines()[0]!r}" for place, text in docstrings(path) if NO_SUBJECT.match(text)]
    bad += [f"{place}: {line.strip()!r}" for place, text in docstrings(path) for line in BARE.findall(text)]
    assert not bad, "no subject:\n" + "\n".join(bad)


@pytest.mark.parametrize("path", FILES, ids=where)
def test_comments_and_docstrings_use_plain_words(path: Path) -> None:
    bad = [f"{place}: {text}" for place, text, goes_on in comments(path) if COMMENT_OPENING.match(text) and not goes_on]
    lines = [(place, line) for place, text in docstrings(path) for line in text.splitlines()]
    lines += [(place, text) for place, text, _ in comments(path)]
    for place, line in lines:
        found = IDIOMS.search(re.sub(r"\"[^\"]*\"|“[^”]*”", "", line))
        if found and not (place.startswith("worlds/") and found[0].startswith("stand")):
            bad.append(f"{place}: {line.strip()} [{found[0]}]")
    assert not bad, "plainer words:\n" + "\n".join(bad)


@pytest.mark.parametrize("path", [p for p in FILES if where(p).startswith(TENSOR_ROOMS)], ids=where)
def test_public_functions_say_their_shapes_and_units(path: Path) -> None:
    bad = []
    for name, node in definitions(path):
        if isinstance(node, ast.ClassDef) or any(part.startswith("_") for part in name.split(".")):
            continue
        text = ast.get_docstring(node) or ""
        if names_tensors(node) and not SHAPE.search(text):
            bad.append(f"{where(path)}:{node.lineno}: {name} names no shape")
        number = node.returns is not None and ast.unparse(node.returns) in ("int", "float")
        if number and not text and not UNIT.search(node.name):
            bad.append(f"{where(path)}:{node.lineno}: {name} does not say what it counts, or in which unit")
        if node.name == "forward" and not re.search(r"Returns:|->|→", text):
            bad.append(f"{where(path)}:{node.lineno}: {name} does not say what it returns")
    assert not bad, "\n".join(bad)


def test_no_two_classes_have_one_name() -> None:
    """Classes and type aliases alike; a leading underscore makes no other word of a name."""
    places: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for node in parsed(path).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name):
                    places[name.lstrip("_")].add(where(path))
    assert not {name: sorted(found) for name, found in places.items() if len(found) > 1}


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

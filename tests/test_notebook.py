"""The notebooks run from top to bottom, and are kept with their outputs.

`python tests/test_notebook.py NAME` runs one and keeps the outputs anew; trainings that are complete in examples/runs
are not repeated.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = ("inference", "finetune")
MOST_BYTES = 2_000_000
LEAST_IMAGES = {"inference": 10, "finetune": 7}


def path_of(name: str) -> Path:
    return EXAMPLES / f"{name}.ipynb"


def read(name: str) -> Any:
    return nbformat.read(path_of(name), as_version=4)


def execute(notebook: Any, folder: Path) -> None:
    """Runs all cells in a fresh kernel; outputs are put into the notebook.

    Raises:
        CellExecutionError: a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,  # nor how the printed text happened to be cut: the same run is to be the same file
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def keep(name: str) -> None:
    """Runs a notebook and writes it with its outputs, of each picture the PNG alone."""
    notebook = read(name)
    execute(notebook, EXAMPLES)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # without the version that happened to run it
    nbformat.write(notebook, path_of(name))


def code_cells(name: str) -> list[Any]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def outputs(name: str) -> list[Any]:
    return [output for cell in code_cells(name) for output in cell.outputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "finetune":
        (tmp_path / "teach").symlink_to(EXAMPLES / "teach")
        monkeypatch.setenv("BAGEL_LESSON_STEPS", "2")
    notebook = read(name)
    execute(notebook, tmp_path)
    for new, kept in zip(notebook.cells, read(name).cells, strict=True):
        if new.cell_type == "code":  # the words and pictures depend on the weights, what kinds there are does not
            said = [output for output in new.outputs if output.get("name") != "stderr"]  # packages that warn
            assert [output.output_type for output in said] == [output.output_type for output in kept.outputs]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"teach", "runs"} if name == "finetune" else set())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_is_valid(name: str) -> None:
    nbformat.validate(read(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_was_run_once_from_top_to_bottom(name: str) -> None:
    cells = code_cells(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_that_show_something_have_their_output(name: str) -> None:
    for cell in code_cells(name):
        last = cell.source.splitlines()[-1]
        shows = "print(" in cell.source or last.startswith(("row(", "train(", "bagel", "images", "grid"))
        shows = shows or not (last.startswith((" ", ")")) or " = " in last)
        assert bool(cell.outputs) == (shows and not cell.source.startswith(("def ", "import new_"))), cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_an_error_or_a_warning(name: str) -> None:
    assert {output.output_type for output in outputs(name)} == {"stream", "execute_result"}
    assert {output.name for output in outputs(name) if output.output_type == "stream"} == {"stdout"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_images_are_small_pngs(name: str) -> None:
    images = [output.data["image/png"] for output in outputs(name) if "image/png" in output.get("data", {})]
    assert len(images) >= LEAST_IMAGES[name]
    for data in images:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == "PNG"
            assert max(image.size) <= 1000
    assert not any("image/jpeg" in output.get("data", {}) for output in outputs(name))
    assert path_of(name).stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_path_of_a_machine_is_in_it(name: str) -> None:
    notebook = read(name)
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        for text in texts:
            assert not re.search(r"(?<![\w.}])/(home|root|Users|tmp|work|usr|opt|mnt)/|[A-Z]:\\", text), text
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


if __name__ == "__main__":
    keep(sys.argv[1])

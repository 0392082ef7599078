"""The notebook runs from top to bottom, and is kept with its outputs.

`python tests/test_notebook.py` runs it and keeps the outputs anew.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "examples" / "inference.ipynb"
MOST_BYTES = 2_000_000
LEAST_IMAGES = 10


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


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


def keep() -> None:
    """Runs the notebook and writes it with its outputs, of each picture the PNG alone."""
    notebook = read()
    execute(notebook, NOTEBOOK.parent)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version that happened to run it
    nbformat.write(notebook, NOTEBOOK)


def code_cells() -> list[Any]:
    return [cell for cell in read().cells if cell.cell_type == "code"]


def outputs() -> list[Any]:
    return [output for cell in code_cells() for output in cell.outputs]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = read()
    execute(notebook, tmp_path)
    for new, kept in zip(notebook.cells, read().cells, strict=True):
        if new.cell_type == "code":  # the words and pictures depend on the weights, what kinds there are does not
            assert [output.output_type for output in new.outputs] == [output.output_type for output in kept.outputs]
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_is_valid() -> None:
    nbformat.validate(read())


def test_it_was_run_once_from_top_to_bottom() -> None:
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_cells_that_show_something_have_their_output() -> None:
    for cell in code_cells():
        last = cell.source.splitlines()[-1]
        shows = "print(" in cell.source or not last.startswith((" ", ")"))
        assert bool(cell.outputs) == (shows and not cell.source.startswith("def ")), cell.source


def test_no_output_is_an_error_or_a_warning() -> None:
    assert {output.output_type for output in outputs()} == {"stream", "execute_result"}
    assert {output.name for output in outputs() if output.output_type == "stream"} == {"stdout"}


def test_images_are_small_pngs() -> None:
    images = [output.data["image/png"] for output in outputs() if "image/png" in output.get("data", {})]
    assert len(images) >= LEAST_IMAGES
    for data in images:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == "PNG"
            assert max(image.size) <= 1000
    assert not any("image/jpeg" in output.get("data", {}) for output in outputs())
    assert NOTEBOOK.stat().st_size < MOST_BYTES


def test_no_path_of_a_machine_is_in_it() -> None:
    notebook = read()
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
    keep()

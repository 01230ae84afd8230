# SPDX-License-Identifier: BSD-3-Clause
"""The notebooks run from the first cell to the last, and give their stored output, except for the digits of numbers.

`python tests/helpers/documents.py` runs them and stores their output.
"""

import base64
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from documents import NOTEBOOKS, code_cells, outputs, run, without_numbers, write_outputs

LARGEST_FIGURE = 200_000  # bytes


def shown(cell_outputs: list[dict]) -> list[str]:
    """The texts of a cell's output without their numbers, and `figure` for each figure."""
    texts = []
    for output in cell_outputs:
        text = output.get("text") or output["data"].get("text/plain")
        texts.append("figure" if text is None else without_numbers("".join(text)))
    return texts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_is_stored_with(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = code_cells(json.loads(path.read_text()))
    monkeypatch.chdir(tmp_path)
    results = run(["".join(cell["source"]) for cell in cells], path.name)
    assert [shown(outputs(result, 1)) for result in results] == [shown(cell["outputs"]) for cell in cells]
    assert sum(len(result.figures) for result in results) >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_figures_are_small(path: Path) -> None:
    for cell in code_cells(json.loads(path.read_text())):
        for output in cell["outputs"]:
            image = base64.b64decode(output.get("data", {}).get("image/png", ""))
            assert len(image) < LARGEST_FIGURE and (not image or image.startswith(b"\x89PNG"))


def test_both_notebooks_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"first_network", "two_networks"}


# These tests can fail.


def write(path: Path, *sources: str) -> Path:
    cells = [
        {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": s} for s in sources
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_outputs_are_stored(tmp_path: Path) -> None:
    figure = "import matplotlib.pyplot as plt\n_, axes = plt.subplots()"
    path = write(tmp_path / "toy.ipynb", "x = 1.5\nprint('x is', x)", "x + 1", figure, "x = None\nx")
    write_outputs(path)
    cells = code_cells(json.loads(path.read_text()))
    assert [shown(cell["outputs"]) for cell in cells] == [["x is #"], ["#"], ["figure"], []]
    assert cells[1]["outputs"][0]["data"]["text/plain"] == ["2.5"]


@pytest.mark.parametrize("text, same", [("error -1.25e-07,  rank 9", True), ("error 3, rank 9 of", False)])
def test_only_numbers_may_differ(text: str, same: bool) -> None:
    assert (without_numbers(text) == without_numbers("error 0.5, rank 12\n")) == same

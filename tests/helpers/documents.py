# SPDX-License-Identifier: BSD-3-Clause
"""The code of pages and notebooks, run cell by cell in one namespace.

python tests/helpers/documents.py            runs all recipes and notebooks and writes their output into them
python tests/helpers/documents.py FILE ...   the same for these files
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
DPI = 80
RECIPES = sorted((ROOT / "docs/recipes").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


class Result(NamedTuple):
    """The output of a cell: its printed text, the value of its last line, and the figures that it left open, as PNG."""

    printed: str
    value: str | None
    figures: list[bytes]


def run(cells: list[str], name: str) -> list[Result]:
    """Run the cells one after the other, as a notebook does.

    Pyplot draws into memory, no figure stays open, and torch's global random state is restored afterwards.
    """
    plt.switch_backend("agg")
    module = types.ModuleType("__main__")  # classes of the cells look up their module
    with torch.random.fork_rng():
        return [_run_cell(cell, f"<{name}, cell {number}>", module.__dict__) for number, cell in enumerate(cells, 1)]


def _run_cell(source: str, where: str, namespace: dict[str, Any]) -> Result:
    body = ast.parse(source, where).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), where, "exec"), namespace)
        value = None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), namespace)
    figures = []
    for number in plt.get_fignums():
        image = io.BytesIO()
        plt.figure(number).savefig(image, format="png", dpi=DPI, bbox_inches="tight")
        figures.append(image.getvalue())
    plt.close("all")
    return Result(printed.getvalue(), None if value is None else repr(value), figures)


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a Markdown page that are marked with a language."""
    return [text for kind, text in BLOCK.findall(page) if kind == language]


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def without_numbers(text: str) -> str:
    """The text with `#` for every number and one space for every gap. This is the same on every machine."""
    return " ".join(NUMBER.sub("#", text).split())


def outputs(result: Result, count: int) -> list[dict[str, Any]]:
    """The result of the cell number `count` in the form of a notebook file (nbformat 4)."""
    shown: list[dict[str, Any]] = []
    if result.printed:
        shown.append({"name": "stdout", "output_type": "stream", "text": result.printed.splitlines(keepends=True)})
    if result.value is not None:
        data = {"text/plain": result.value.splitlines(keepends=True)}
        shown.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    for figure in result.figures:
        data = {"image/png": base64.b64encode(figure).decode()}
        shown.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return shown


def write_outputs(path: Path) -> None:
    """Run a page or a notebook in an empty folder and write its output into the file.

    In a page, each block marked `text` gets the output of the `python` blocks before it.
    """
    path = path.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = _executed(path) if path.suffix == ".ipynb" else _with_printed(path)
    path.write_text(text)


def _executed(path: Path) -> str:
    notebook = json.loads(path.read_text())
    cells = code_cells(notebook)
    results = run(["".join(cell["source"]) for cell in cells], path.name)
    for count, (cell, result) in enumerate(zip(cells, results, strict=True), 1):
        cell.update(execution_count=count, outputs=outputs(result, count))
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _with_printed(path: Path) -> str:
    page = path.read_text()
    results = iter(run(blocks(page, "python"), path.name))
    waiting: list[str] = []

    def replaced(block: re.Match[str]) -> str:
        if block[1] == "python":
            waiting.append(next(results).printed)
        if block[1] != "text":
            return block[0]
        printed = "".join(waiting)
        waiting.clear()
        return f"```text\n{printed}```"

    return BLOCK.sub(replaced, page)


if __name__ == "__main__":
    for file in [Path(word) for word in sys.argv[1:]] or [*RECIPES, *NOTEBOOKS]:
        write_outputs(file)

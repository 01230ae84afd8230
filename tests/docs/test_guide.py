# SPDX-License-Identifier: BSD-3-Clause
"""Every Python block of the guide, of the first page and of README.md runs in order, in one namespace for each page."""

import re
from pathlib import Path
from typing import Any

import pytest
from here import ROOT

PAGES = [ROOT / "README.md", ROOT / "docs/index.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the number of the line before its first line."""
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


def run(path: Path, until: str | None = None) -> dict[str, Any]:
    """Runs the code of a page and returns what it defines; with `until`, only to the block that defines this name."""
    names: dict[str, Any] = {"__name__": path.stem}
    for before, code in blocks(path.read_text()):
        if until in names:
            break
        exec(compile("\n" * before + code, str(path), "exec"), names)  # tracebacks name the line of the page
    return names


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to run in, with the images that a page reads: digits, in one folder for each class."""
    from PIL import Image

    from rainbow_fast.data import digits

    x, y, x_test, y_test = digits()
    for name, maps, labels in (("train", x[:200], y[:200]), ("val", x_test[:50], y_test[:50])):
        pixels = ((maps - maps.min()) / (maps.max() - maps.min()) * 255).byte()
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = tmp_path / "images" / name / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("error::DeprecationWarning:rainbow_fast", "error::FutureWarning:rainbow_fast")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_runs(path: Path, folders: None) -> None:
    assert len(run(path)) > 1, "a page without code"


def test_printed_sites_are_those_of_the_network() -> None:
    """The list of sites in the page is exactly what its code prints."""
    path = ROOT / "docs/guide/your_network.md"
    shown = str(run(path, until="sites")["sites"])
    assert "\n".join(f"    {line}" for line in shown.splitlines()) in path.read_text()


def test_pages_are_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert [page for page in sorted(pages) if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.M)] == []


def test_block_that_fails_names_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nn = 1\n```\n\n```text\nno Python\n```\n\n```python\nn += 1\nassert n == 3\n```\n"
    )
    with pytest.raises(AssertionError) as failure:
        run(page)
    assert failure.traceback[-1].path == page and failure.traceback[-1].lineno == 12

# SPDX-License-Identifier: BSD-3-Clause
"""The recipes run as they stand on their pages, and print what the pages show, except for the digits of numbers."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from documents import RECIPES, blocks, run, without_numbers, write_outputs


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_prints_what_its_page_says(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = path.read_text()
    monkeypatch.chdir(tmp_path)
    printed = "".join(result.printed for result in run(blocks(page, "python"), path.name))
    assert without_numbers(printed) == without_numbers("".join(blocks(page, "text"))) != ""


def test_all_four_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"fid", "kernel_regression", "kfac", "muon"}


def test_a_page_is_given_what_its_code_prints(tmp_path: Path) -> None:
    page = "# Page\n\n```python\nn = 2\nprint('n:', n)\n```\n\n```bash\nls\n```\n\n```python\nprint(n + 1)\n```\n\n"
    path = tmp_path / "page.md"
    path.write_text(page + "```text\nold\n```\nend\n")
    write_outputs(path)
    assert path.read_text() == page + "```text\nn: 2\n3\n```\nend\n"


def test_a_block_that_fails_is_named() -> None:
    with pytest.raises(AssertionError) as error:
        run(["x = 1", "y = 2\nassert x == y"], "page.md")
    last = error.traceback[-1]
    assert str(last.path).endswith("<page.md, cell 2>") and last.lineno + 1 == 2

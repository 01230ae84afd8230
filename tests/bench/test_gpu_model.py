# SPDX-License-Identifier: BSD-3-Clause
"""The model of the times on a GPU: its counts are those of the documentation, and so is its table."""

import re
from pathlib import Path

import pytest
from gpu_model import A100, BEGIN, END, H100, PER_PRODUCT, Kernel, main, ours_of, table, total
from here import ROOT

PAGE = ROOT / "docs" / "guide" / "gpus.md"


def counted() -> dict[tuple[str, str], tuple[int, int]]:
    """The larger ends of Triton's columns on 9.0 and 8.0 in the table of counts."""
    rows, op = {}, ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.split("|")[1:-1]]
        if len(cells) != 8 or cells[6] != "Triton":
            continue
        op = cells[0] or op
        dtype, _, channels = cells[1].partition(", ")
        name = f"{op.replace('random_features_', 'random_features ')}, {channels}" if channels else op
        rows[name, dtype] = tuple(max(map(int, re.findall(r"\d+", cell))) for cell in (cells[5], cells[4]))
    return rows


def test_counts_are_those_of_the_documentation() -> None:
    rows = counted()
    rows["sample_project_align", "bf16x2"] = tuple(2 * n for n in rows["sample_project_align", "bfloat16"])
    assert rows == PER_PRODUCT


def test_the_table_of_the_page_is_the_one_that_is_computed() -> None:
    inside = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert inside.strip().splitlines() == table()


def test_a_page_gets_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}old\n{END}\nbelow\n")
    main(str(page))
    once = page.read_text()
    main(str(page))
    assert page.read_text() == once == "\n".join(["above", BEGIN, *table(), "", END, "below", ""])
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="wanted the lines"):
        main(str(page))


def test_the_longest_time_counts() -> None:
    """By hand: 2 GB at 3.35 TB/s, 1e12 flops in bfloat16 at 989 TF, or the issue slots of the instructions."""
    assert total(H100, [Kernel(2e9, {"bf16": 1e10})]) == (pytest.approx(2e9 / 3.35e12), "memory")
    assert total(H100, [Kernel(1.0, {"bf16": 1e12})]) == (pytest.approx(1e12 / 989e12), "tensor cores")
    slots = 108 * 4 * 1.41e9  # warp instructions of an A100 in a second
    kernel = ours_of("cross_covariance", "bfloat16", 4096.0 * slots / 15, 0.0)
    assert total(A100, [kernel]) == (pytest.approx(1.0), "instructions")

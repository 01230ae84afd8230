# SPDX-License-Identifier: BSD-3-Clause
"""The study of random chains, once, with short averages and a small width of explicit weights."""

import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.running import run_app
from rainbow_fast.io import read_records
from studies.random_chains.__main__ import RECORDS, app
from studies.random_chains.chain_page import EXPECTED, PANELS

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["random_chains", *words])
    before = torch.get_num_threads()
    code = run_app(app, "random_chains")
    torch.set_num_threads(before)
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_the_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--width", "500", "--layers", "100", "--threads", "1", "--seed", "3", "--out", str(out)]
    code, said, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "") and "random_chains.md" in said
    names = ["random_chains.md", "random_chains.png", "records.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
    records = read_records(out / "records.jsonl")
    numbers = {record["number"]: record for record in records if "number" in record}
    assert set(EXPECTED) <= set(numbers) and {record["panel"] for record in records} == set(PANELS)
    for record in records:
        if "curve" in record:
            columns = [record[name] for name in ("mean", "deviation", "theory", "limit") if record[name] is not None]
            assert all(len(column) == len(record["x"]) and all(map(math.isfinite, column)) for column in columns)
    # levels within sampling of 20 runs or more; theory is to first order in n / d
    for name, tolerance in (
        ("batch norm, mean of layers 15 to 50", 0.01),
        ("log V at width 512, layers 30 to 50", 0.04),
        ("log V at width 32, layers 30 to 50", 0.06),
        ("after burn-in, slope", 0.03),
        ("identity, slope", 0.03),
        ("slope of log gap per layer, layers 20 to 100", 0.003),
        ("mean of 1 / (eigenvalue + 1)", 0.003),
    ):
        assert numbers[name]["mean"] == pytest.approx(numbers[name]["theory"], abs=tolerance), name
    page = (out / "random_chains.md").read_text()
    assert all(page.count(f"*{title.format(width=500)}.*") == 1 for title, *_ in PANELS.values())
    assert (out / "random_chains.png").read_bytes().startswith(b"\x89PNG")


def test_kept_numbers_are_the_expected_ones() -> None:
    """Within three standard errors and 0.02, which is sampling of the expected ones, or 1 % for ranks above 10."""
    numbers = {record["number"]: record for record in read_records(RECORDS) if "number" in record}
    for name, expected in EXPECTED.items():
        value = float(expected.split(" ")[0])
        tolerance = 3 * (numbers[name]["error"] or 0) + (0.01 * value if value > 10 else 0.02)
        assert numbers[name]["mean"] == pytest.approx(value, abs=tolerance), name


def test_the_page_from_kept_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(monkeypatch, capsys, "--page", "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random_chains.md", "random_chains.png"]


def test_short_averages_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said, err = run(monkeypatch, capsys, "--layers", "50", "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "") and "--layers" in err and not (tmp_path / "out").exists()

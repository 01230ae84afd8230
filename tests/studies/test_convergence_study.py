# SPDX-License-Identifier: BSD-3-Clause
"""The study of convergence, once, at small widths."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from rainbow_fast.cli.running import run_app
from rainbow_fast.io import read_records
from studies.convergence.__main__ import app


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["convergence", *words])
    before = torch.get_num_threads()
    code = run_app(app, "convergence")
    torch.set_num_threads(before)
    return code, *capsys.readouterr()


def test_convergence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--widths", "32,64,128,256", "--images", "20", "--networks", "2", "--threads", "1", "--out", str(out)]
    code, said, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "convergence.md",
        "convergence.png",
        "convolutions.png",
        "records.jsonl",
    ]
    every = read_records(out / "records.jsonl")
    half = len(every) // 2
    assert [r["about"]["kind"] for r in every if "about" in r] == ["perceptron", "convolutional network"]
    for listed in (every[:half], every[half:]):
        check(listed)
    page = (out / "convergence.md").read_text()
    assert "64-128-128-10" in page and "1-16-32" in page and "alpha = " in page and "| 4 | to the limit |" in page
    assert "| 2 | kernel |" in said and "| 3 | kernel |" in said
    for name in ("convergence.png", "convolutions.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def check(listed: list) -> None:
    sites = ["2", "4"] if listed[0]["about"]["kind"] == "perceptron" else ["1", "3"]
    measured = [r for r in listed if "width" in r]
    assert [r["site"] for r in listed if "spectrum" in r] == sites and listed[0]["about"]["images"] == 360
    keys = [(r["site"], r["width"], r["network"]) for r in measured]
    assert keys == [(site, width, network) for site in sites for width in (32, 64, 128, 256) for network in (0, 1)]
    assert {r["wide_width"] for r in listed if "spectrum" in r} == {1024}
    assert all(0 < r["asymptote"] < 1 for r in listed if "spectrum" in r)
    for record in measured:
        assert all(0 < record[name] < 2 for name in ("kernel", "between", "limit", "wide", "trained"))


@pytest.mark.parametrize("widths", ["64,32", "0,8", "8,x", ""])
def test_wrong_widths_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, widths: str
) -> None:
    code, said, err = run(monkeypatch, capsys, "--widths", widths, "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "") and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert f"--widths: wanted increasing whole numbers above 0, separated by commas; got {widths!r}" in err


@pytest.mark.parametrize("package, extra", [("matplotlib", "plots"), ("scipy", "analysis")])
def test_extras_are_named_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    code, said, err = run(monkeypatch, capsys, "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "") and not (tmp_path / "out").exists()
    assert f'convergence needs {package}: pip install "rainbow_fast[{extra}]"' in err


def test_analysis_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from rainbow_fast import analysis

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(ImportError, match=r'rainbow_fast.analysis needs scipy: pip install "rainbow_fast\[analysis\]"'):
        exec(compile(Path(str(analysis.__file__)).read_text(), "analysis", "exec"), {})

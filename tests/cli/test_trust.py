# SPDX-License-Identifier: BSD-3-Clause
"""Code runs only if it is named on the command line: with processes in folders that hold files of somebody else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from here import ROOT

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from runs import FEW

Run = Callable[..., tuple[int, str, str]]
SCRIPT = "import sys\nfrom rainbow_fast.cli import main\nsys.exit(main())\n"  # as pip writes it
MODEL = """
from torch import nn
from beside import WIDTH

class Half(nn.Module):
    def forward(self, x):
        return x.clamp(min=0) / 2

def build(width=WIDTH):
    import later
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), Half(), nn.Linear(width, 10))
"""
OWN = ["--module", "mymodel:build", "--pointwise-modules", "mymodel:Half", "--data", "digits"]


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a run, its checkpoint, a module, and modules with names of others. They tell if run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rainbow-fast").write_text(SCRIPT)
    here = shutil.copytree(finished, tmp_path / "here")
    for name in (
        "json",
        "torch",
        "numpy",
        "typer",
        "rich",
        "matplotlib",
        "sklearn",
        "sitecustomize",
        "rainbow_fast",
        "timm",
        "torchvision",
    ):
        (here / f"{name}.py").write_text("open(__file__ + '.ran', 'w')\nraise SystemExit('run from here')\n")
    (here / "mymodel.py").write_text("open(__file__ + '.ran', 'w')\n" + MODEL)
    (here / "beside.py").write_text("WIDTH = 16\n")
    (here / "later.py").write_text("")  # imported when `build` is called
    (here / "evil.py").write_text("open(__file__ + '.ran', 'w')\ndef build(): open(__file__ + '.called', 'w')\n")
    monkeypatch.chdir(here)
    return here


def ran(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".ran", ".called"))


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The console script, in a process of its own."""
    return subprocess.run(
        [sys.executable, folder.parent / "bin" / "rainbow-fast", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_modules_of_the_current_folder_are_not_imported(folder: Path) -> None:
    """But for the one that is named, and what that imports, which must not have the name of an installed module.

    Settings of matplotlib may name programs: with these it would call latex.
    """
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\nsavefig.facecolor: red\n")
    run = command(folder, "sample", "it.safetensors", *FEW, "--out", "out")
    assert (run.returncode, run.stderr) == (0, "") and ran(folder) == []
    run = command(folder, "sample", *OWN, *FEW, "--out", "own")
    assert (run.returncode, run.stderr) == (0, "") and ran(folder) == ["mymodel.py.ran"]


@pytest.mark.parametrize("option", ["--timm", "--torchvision"])
def test_libraries_are_not_imported_from_the_current_folder(folder: Path, option: str) -> None:
    run = command(folder, "sites", option, "nothing-of-this-name")
    assert (run.returncode, run.stdout) == (2, "") and run.stderr.startswith(f"Error: {option}: ")
    assert ran(folder) == []


def edit(folder: Path, **options: object) -> None:
    """Change options in the record of the run."""
    report = json.loads((folder / "run" / "report.json").read_text())
    report["run"]["options"] |= options
    (folder / "run" / "report.json").write_text(json.dumps(report))


def test_a_folder_that_names_code_runs_none(folder: Path) -> None:
    edit(folder, checkpoint=None, module="evil:build", data="digits")
    run = command(folder, "sample", "--resume", "run")
    message = "Error: --module: run/report.json names code, and only code that you name yourself is run: type "
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"{message}--module evil:build as well\n")
    assert ran(folder) == []


@pytest.mark.parametrize(
    "options, words, message",
    [
        ({"pointwise_modules": ["evil:A", "evil:B"]}, [], "evil:A --pointwise-modules evil:B as well"),
        ({"pointwise_modules": ["evil:A"]}, ["--pointwise-modules", "evil:B"], "has ['evil:A'], got ['evil:B']"),
        ({"checkpoint": None, "module": "os:system", "module_args": '{"command": "touch it.ran"}'}, [], "os:system"),
        ({"checkpoint": None, "module": "evil:build"}, ["--module", "mymodel:build"], "has 'evil:build', got 'mymo"),
        ({"module": "evil:build"}, [], "type --module evil:build as well"),
        ({}, ["--module", "evil:build"], "--module: the run in run has None, got 'evil:build'"),
        ({}, ["--pointwise-modules", "evil:A"], "--pointwise-modules: the run in run has [], got ['evil:A']"),
        ({"checkpoint": None, "module": "a\n\x1b[31m:b"}, [], "run/report.json has control characters in a text"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:50],
)  # fmt: skip
def test_code_must_be_typed_and_the_same(
    rainbow_fast: Run, folder: Path, options: dict, words: list[str], message: str
) -> None:
    edit(folder, **options)
    code, out, err = rainbow_fast("sample", "--resume", "run", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert ran(folder) == []


@pytest.mark.parametrize("name", ["results.jsonl", "report.json", "report.txt", "figure.png", "unfinished-1", "state"])
def test_links_in_a_folder_are_not_followed(rainbow_fast: Run, folder: Path, name: str) -> None:
    """They would let the folder choose which file is written."""
    mine, link = folder / "mine", folder / "run" / name
    if name == "state":
        (folder / "run" / "unfinished-1").mkdir()
        link = folder / "run" / "unfinished-1" / "network-0-site-0.safetensors"
    if name == "report.json":
        link.rename(mine)
    elif name.startswith("unfinished"):
        mine.mkdir()
    else:
        mine.write_text("mine")
        link.unlink(missing_ok=True)
    link.symlink_to(mine)
    before = mine.read_bytes() if mine.is_file() else None
    for words in (["--resume", "run"], ["it.safetensors", *FEW, "--out", "run"]):
        code, out, err = rainbow_fast("sample", *words)
        wanted = f"{link.relative_to(folder)} is a symbolic link, wanted a file or nothing"
        assert (code, out) == (2, "") and err == f"Error: {'--resume' if len(words) == 2 else '--out'}: {wanted}\n"
    assert link.is_symlink() and (mine.read_bytes() if mine.is_file() else None) == before


def test_a_run_of_ones_own_module_goes_on_with_its_names(folder: Path) -> None:
    """The record has them, but only to be compared with what is typed."""
    assert command(folder, "sample", *OWN, *FEW, "--out", "out").returncode == 0
    whole = (folder / "out" / "results.jsonl").read_bytes()
    (folder / "out" / "results.jsonl").unlink()
    run = command(folder, "sample", "--resume", "out")
    assert run.returncode == 2 and "type --module mymodel:build as well" in run.stderr
    assert not (folder / "out" / "results.jsonl").exists()
    run = command(folder, "sample", "--resume", "out", *OWN[:4])
    assert (run.returncode, run.stderr) == (0, "") and (folder / "out" / "results.jsonl").read_bytes() == whole


def test_the_current_folder_is_on_the_path_only_during_an_import(
    rainbow_fast: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = list(sys.path)
    (folder / "looks.py").write_text(MODEL + "import sys\nPATH = list(sys.path)\n")
    assert rainbow_fast("sites", "--module", "looks:build")[0] == 0
    assert sys.path == before and sys.modules["looks"].PATH == [*before, str(folder)]
    code, _, err = rainbow_fast("sites", "--module", "looks:nothing")
    assert code == 2 and err.endswith(f"no attribute 'nothing'); looks is {folder / 'looks.py'}\n")
    monkeypatch.syspath_prepend(str(folder))
    before = list(sys.path)
    assert rainbow_fast("sites", "--module", "looks:build")[0] == 0 and sys.path == before
    for name in ("looks", "beside"):
        del sys.modules[name]

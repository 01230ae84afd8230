# SPDX-License-Identifier: BSD-3-Clause
"""Code runs only if it is named on the command line: with processes in folders that hold files of somebody else."""

import json
import shutil
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from here import ROOT, fresh_python

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from runs import FEW

Run = Callable[..., tuple[int, str, str]]
SCRIPT = """  # runs command after command in one process, and prints of each what it ran, its exit code, and its errors
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
sys.path[:] = [path for path in sys.path if path]  # without the current folder, as in the script that pip installs
before = list(sys.path)
from rainbow_fast.cli import main
for words in sys.argv[1:]:
    sys.argv = ["rainbow-fast", *words.split()]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert sys.path == before
    print(repr((sorted(path.name for path in Path().glob("*.ran")), code, errors.getvalue())))
"""
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


def test_modules_of_the_current_folder_are_not_imported(folder: Path) -> None:
    """But for the one that is named, and what that imports, which must not have the name of an installed module.

    Libraries are looked for, and settings of matplotlib may name programs: with these it would call latex.
    """
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\nsavefig.facecolor: red\n")
    libraries = ["--timm", "--torchvision"]
    commands = [["sample", "it.safetensors", *FEW, "--out", "out"]]
    commands += [["sites", option, "nothing-of-this-name"] for option in libraries]
    commands += [["sample", *OWN, *FEW, "--out", "own"]]
    text = fresh_python(SCRIPT, *map(" ".join, commands), folder=folder, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    sampled, *looked, own = map(literal_eval, text.splitlines())
    assert sampled == ([], 0, "") and own == (["mymodel.py.ran"], 0, "")
    for option, (files, code, errors) in zip(libraries, looked, strict=True):
        assert (files, code) == ([], 2) and errors.startswith(f"Error: {option}: ")


def edit(folder: Path, **options: object) -> None:
    """Change options in the record of the run."""
    report = json.loads((folder / "run" / "report.json").read_text())
    report["run"]["options"] |= options
    (folder / "run" / "report.json").write_text(json.dumps(report))


def test_a_folder_that_names_code_runs_none(rainbow_fast: Run, folder: Path) -> None:
    edit(folder, checkpoint=None, module="evil:build", data="digits")
    message = "Error: --module: run/report.json names code, and only code that you name yourself is run: type "
    assert rainbow_fast("sample", "--resume", "run") == (2, "", f"{message}--module evil:build as well\n")
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


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of the folder are imported anew, in this process."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("mymodel", "beside", "later"):
        sys.modules.pop(name, None)


def test_a_run_of_ones_own_module_goes_on_with_its_names(rainbow_fast: Run, folder: Path, own: None) -> None:
    """The record has them, but only to be compared with what is typed."""
    assert rainbow_fast("sample", *OWN, *FEW, "--out", "out")[0] == 0
    whole = (folder / "out" / "results.jsonl").read_bytes()
    (folder / "out" / "results.jsonl").unlink()
    code, _, err = rainbow_fast("sample", "--resume", "out")
    assert code == 2 and "type --module mymodel:build as well" in err
    assert not (folder / "out" / "results.jsonl").exists()
    code, _, err = rainbow_fast("sample", "--resume", "out", *OWN[:4])
    assert (code, err) == (0, "") and (folder / "out" / "results.jsonl").read_bytes() == whole


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

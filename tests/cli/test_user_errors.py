# SPDX-License-Identifier: BSD-3-Clause
"""A user's error ends in one line and exit code 2, never in a traceback. Faults of the package keep their traceback."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from here import threads

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import typer

from rainbow_fast import cli
from rainbow_fast.cli import sampling
from rainbow_fast.cli.running import run_app
from studies.batch_norms.__main__ import app as batch_norms
from studies.cifar10.__main__ import app as cifar10
from studies.convergence.__main__ import app as convergence
from studies.resnet20.__main__ import app as resnet20

Run = Callable[..., tuple[int, str, str]]
CODE = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x):
        if len(x) > 1:
            self.many(x)
        return self.last(self.act(self.first(x.flatten(1))))

    def many(self, x):
        pass

class Raises(Network):
    def many(self, x):
        raise RuntimeError("one sample only\\nof two lines")

class Key(Network):
    def many(self, x):
        raise KeyError("word")

class Exits(Network):
    def many(self, x):
        raise SystemExit(0)

class Wrong(Network):
    def many(self, x):
        self.last(x.flatten(1))

class Large(Network):
    def many(self, x):
        torch.empty(10**14)

class Interrupted(Network):
    def many(self, x):
        raise KeyboardInterrupt

class Random(Network):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))

class Closed(Network):
    def many(self, x):
        raise OSError

def exits():
    raise SystemExit(0)

def lines():
    raise ValueError("the first\\nand the second")

def meta():
    return Network().to("meta")

def script():
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))

def none():
    return nn.Sequential()
"""
DIGITS = ["--data", "digits", "--images", "30", "--factors", "1", "--networks", "1", "--methods", "paper"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's own modules and with files that are something else."""
    (tmp_path / "hostile.py").write_text(CODE)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "spelled.py").write_text("def build(:")
    (tmp_path / "file").write_text("no checkpoint, no data")
    (tmp_path / "taken" / "results.jsonl").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "x.npy", np.zeros((40, 3), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with threads(1):
        yield tmp_path
    for name in ("hostile", "leaves", "spelled"):
        sys.modules.pop(name, None)


def of(name: str, *words: str) -> list[str]:
    return ["sample", "--module", name, *DIGITS, "--out", "out", *words]


@pytest.mark.parametrize(
    "words, message",
    [
        (of("hostile:Raises"), "the network raised RuntimeError in Raises, line 20 of {folder}/hostile.py: one sample"),
        (of("hostile:Key"), "the network raised KeyError in Key, line 24 of {folder}/hostile.py: 'word'"),
        (of("hostile:Exits"), "the network raised SystemExit in Exits, line 28 of"),
        (of("hostile:Closed"), "the network raised OSError in Closed, line"),
        (of("hostile:Wrong"), "the network raised RuntimeError in Linear, line 32 of {folder}/hostile.py: mat1 and"),
        (of("hostile:Large"), "not enough memory for 400000000000000 bytes"),
        (of("hostile:Random"), "reference: two calls with the same input differ by"),
        (of("hostile:exits"), "--module: hostile:exits() raised SystemExit: 0"),
        (of("hostile:lines"), "--module: hostile:lines() raised ValueError: the first"),
        (of("hostile:meta"), "--module: hostile:meta returned a module on the meta device, wanted one with weights"),
        (of("hostile:script"), "--module: hostile:script returned RecursiveScriptModule, wanted a module that is not"),
        (of("hostile:none"), "reference: no parameters, wanted a network with linear layers"),
        (["sites", "--module", "hostile:none", "--data", "digits"], "reference: no parameters, wanted a network"),
        (of("leaves:build"), "--module: 'leaves:build' cannot be imported (SystemExit: 3)"),
        (of("spelled:build"), "--module: 'spelled:build' cannot be imported (SyntaxError: "),
        (of("hostile:Network", "--module-args", "[" * 10**5), "--module-args: "),
        (of("hostile:Network", "--data", "x.npy"), "--data: the network does not take a sample of shape (3,)"),
        (of("hostile:Network", "--data", "empty"), "--data: no sub-folder in empty, wanted one for each class"),
        (of("hostile:Network", "--data", "file"), "--data: 'file' is no data"),
        (of("hostile:Network", "--weights", "a\x1b[31m.pt"), r"--weights: no file a\x1b[31m.pt"),
        (of("hostile:Network", "--holdout", "x.npy"), "holdout: samples of shape (3,), wanted (1, 8, 8)"),
        (of("hostile:Network", "--out", "file"), "--out: file is a file, wanted a folder"),
        (of("hostile:Network", "--out", "file/in/it"), "--out: file is a file, wanted a folder"),
        (of("hostile:Network", "--out", "taken"), "taken/results.jsonl: Is a directory"),
        (of("hostile:Network", "--factors", "1e30"), "factor=1e+30: wanted at most 2^56 neurons at site"),
        (of("hostile:Network", "--factors", ""), "--factors: wanted numbers above 0, separated by commas; got ''"),
        (of("hostile:Network", "--networks", "9999999"), "networks=9999999: wanted 1 <= networks <= 1048576"),
        (of("hostile:Network", "--networks", "9" * 6), "--networks: wanted at most 100000 networks of all widths and"),
        (of("hostile:Network", "--networks", "two"), "Invalid value for '--networks'"),
        (of("hostile:Network", "--threads", "0"), "threads=0: wanted 1 <= threads <= 1024"),
        (of("hostile:Network", "--threads", "9" * 20), "wanted 1 <= threads <= 1024"),
        (["sample", "--resume", "file"], "--resume: no run of `sample` in file"),
        (["sample", "--resume", "empty"], "--resume: no run of `sample` in empty"),
        (["train", "mlp", "--threads", "0"], "threads=0: wanted 1 <= threads <= 1024"),
        (["train", "mlp", "--widths", "9" * 11], "not enough memory for "),
        (["train", "mlp", "--out", "empty"], "--out: empty is a folder, wanted a file"),
        (["compare", "file", "file"], "file is not a whole safetensors file"),
        (["plan", "--module", "hostile:meta", "--data", "digits"], "--module: hostile:meta returned a module on the"),
        (["demo", "--out", "file"], "--out: file is a file, wanted a folder"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else " ".join(value)[:60],
)  # fmt: skip
def test_errors_are_one_line(rainbow_fast: Run, folder: Path, words: list[str], message: str) -> None:
    code, out, err = rainbow_fast(*words)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and message.format(folder=folder) in err and err.count("\n") == 1


def test_widths_that_no_memory_holds_leave_earlier_results(rainbow_fast: Run, folder: Path) -> None:
    assert rainbow_fast(*of("hostile:Network"))[0] == 0
    before = (folder / "out" / "report.json").read_bytes()
    words = ["--module", "hostile:Network", "--data", "digits", "--images", "30", "--widths", "9" * 15]
    code, out, err = rainbow_fast("sample", *words, "--methods", "calibrated", "--out", "out")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("Error: width=999999999999999: site 'act' with 999999999999999 neurons needs at least 64 PB")
    assert (folder / "out" / "report.json").read_bytes() == before
    assert rainbow_fast("plan", *words)[0] == 0


def test_ctrl_c_in_the_network(rainbow_fast: Run) -> None:
    code, out, err = rainbow_fast(*of("hostile:Interrupted"))
    assert (code, out, err) == (130, "", "Interrupted. The files in the output folder are complete.\n")


def test_a_folder_without_permission(rainbow_fast: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the system's. (root may write everywhere.)"""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("empty"))
    code, _, err = rainbow_fast(*of("hostile:Network", "--out", "empty/new"))
    assert (code, err) == (2, "Error: --out: empty is a folder without permission to write\n")


@pytest.mark.parametrize(
    "app, words, message",
    [
        (cifar10, ["empty"], "no file empty/data_batch_1.bin"),
        (cifar10, ["empty", "--architectures", "resnet"], "--architectures: wanted mlp, cnn or mlp,cnn; got 'resnet'"),
        (cifar10, ["--out", "file"], "--out: file is a file, wanted a folder"),
        (resnet20, ["empty"], "weights: wanted with data, or neither"),
        (resnet20, ["--factors", "x"], "--factors: wanted numbers above 0, separated by commas; got 'x'"),
        (resnet20, ["--out", "file"], "--out: file is a file, wanted a folder"),
        (batch_norms, ["empty"], "weights: wanted with data, or neither"),
        (batch_norms, ["--rates", "0.1,x"], "--rates: wanted numbers above 0, separated by commas; got '0.1,x'"),
        (batch_norms, ["--out", "file"], "--out: file is a file, wanted a folder"),
        (convergence, ["--widths", "4,2"], "--widths: wanted increasing whole numbers above 0"),
        (convergence, ["--page", "--out", "file"], "--out: file is a file, wanted a folder"),
    ],
)  # fmt: skip
def test_errors_of_studies(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    app: typer.Typer,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *words])
    assert run_app(app, "study") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and message in err and err.count("\n") == 1


def test_a_study_without_records_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for name, app in (("batch_norms", batch_norms), ("cifar10", cifar10), ("resnet20", resnet20)):
        monkeypatch.setattr(sys.modules[f"studies.{name}.__main__"], "RECORDS", folder / "nowhere.jsonl")
        monkeypatch.setattr(sys, "argv", ["study", "--out", "new"])
        assert run_app(app, "study") == 2 and not (folder / "new").exists()
        message = f"Error: no records are kept in {folder / 'nowhere.jsonl'}: wanted the data, to make them\n"
        assert capsys.readouterr().err == message


@pytest.mark.parametrize("fault", [KeyError("a key"), RuntimeError("of torch"), AssertionError(), AttributeError("x")])
def test_faults_of_the_package_keep_their_traceback(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """An error that neither the user's network nor a line of the package raises."""

    def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(sampling, "load_reference", broken)
    with pytest.raises(type(fault)):
        rainbow_fast(*of("hostile:Network"))


@pytest.mark.parametrize("error", [ValueError(), MemoryError(), PermissionError(13, "Permission denied", "the/file")])
def test_no_error_is_silent(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """An error without a message is reported by its name."""

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sampling, "load_reference", broken)
    code, _, err = rainbow_fast(*of("hostile:Network"))
    told = {
        ValueError: "ValueError",
        MemoryError: "not enough memory for data or widths of this size",
        PermissionError: "the/file: Permission denied",
    }
    assert (code, err) == (2, f"Error: {told[type(error)]}\n")


def test_warnings_are_one_line_each(rainbow_fast: Run) -> None:
    """The same for errors of the planning, which come before the bar."""
    code, _, err = rainbow_fast(*of("hostile:Network", "--images", "12"))
    assert code == 0 and len(err.splitlines()) == len(set(err.splitlines())) >= 1
    assert all(line.startswith("Warning: site 'act': 12 samples for 8 channels") for line in err.splitlines())


def test_a_terminal_without_the_signs(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks have a mean and a deviation; the sign between them is not in ASCII."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    code, _, err = rainbow_fast(*of("hostile:Network", "--networks", "2"))
    assert code == 0 and b" ? " in written.getvalue(), err


def process(code: str, *words: str) -> subprocess.CompletedProcess:
    """Runs a command in a new process, with its standard output as `code` leaves it."""
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom rainbow_fast.cli import main\nmain()", *words],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_a_process_of_a_wrong_network(folder: Path) -> None:
    run = process("", *of("hostile:Raises"))
    wanted = f"Error: the network raised RuntimeError in Raises, line 20 of {folder}/hostile.py: one sample only\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", wanted)


def test_a_closed_pipe_is_silent() -> None:
    closed = "import os\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)"
    run = process(closed, "info")
    assert run.returncode != 0 and run.stderr == ""

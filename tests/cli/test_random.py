# SPDX-License-Identifier: BSD-3-Clause
"""The commands `random ...`: tables, JSON, files, and messages for wrong words."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast import random_networks as rn
from rainbow_fast.ops.gaussian import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]


def test_lyapunov(rainbow_fast: Run, tmp_path: Path) -> None:
    words = ["random", "lyapunov", 20, "--layers", 6, "--k", 15, "--runs", 2, "--seed", 3, "--variance", 0.05]
    code, out, err = rainbow_fast(*words, "--out", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    estimate = rn.lyapunov_estimate(20, 6, 15, runs=2, seed=3, variance=0.05)
    assert "width 20, 6 layers, 2 runs" in out and f"{estimate.mean[0]:.6f}" in out and "..." in out
    rows = [line.split()[0] for line in out.splitlines() if line.split() and line.split()[0].isdigit()]
    assert rows == ["1", "2", "3", "4", "5", "6", "10", "11", "12", "13", "14", "15"]
    folder = tmp_path / "new" / "folder"
    assert out.endswith(f"{folder}: lyapunov.json, lyapunov.png\n")
    read = json.loads((folder / "lyapunov.json").read_text())
    assert read == estimate.to_dict() | {"variance": 0.05, "seed": 3, "dtype": "float64"}
    assert (folder / "lyapunov.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["lyapunov.json", "lyapunov.png"]


def test_lyapunov_prints_json_and_writes_nothing(
    rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = rainbow_fast("random", "lyapunov", 5, "--layers", 4, "--every", 2, "--dtype", "float32", "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1 and list(tmp_path.iterdir()) == []
    read = json.loads(out)
    assert (read["d"], read["layers"], read["every"], read["dtype"]) == (5, 4, 2, "float32")
    assert len(read["exponents"]) == 1 and read["theory"] == rn.lyapunov_exponents(5).tolist()


def test_a_short_table_has_all_rows(rainbow_fast: Run) -> None:
    _, out, _ = rainbow_fast("random", "lyapunov", 3, "--layers", 2)
    assert "width 3, 2 layers, 1 run\n" in "\n".join(line.rstrip() for line in out.splitlines())
    assert "..." not in out and "-0.635181" in out


def test_spectrum(rainbow_fast: Run, tmp_path: Path) -> None:
    """The numbers are those of the library, for Gaussian samples of variance 1 / inputs."""
    words = ["random", "spectrum", 60, 40, "--inputs", 30, "--activation", "tanh", "--seed", 3]
    code, out, err = rainbow_fast(*words, "--out", tmp_path)
    assert (code, err) == (0, "") and "tanh, 60 samples, 40 features" in out
    assert out.endswith(f"{tmp_path}: spectrum.json, spectrum.png\n")
    X = gaussian(60, 30, seed=3, stream=1) / 30**0.5
    values, limit = (
        rn.feature_spectrum(X, 40, activation="tanh", seed=3),
        rn.LimitingSpectrum.of_features(X, 40, activation="tanh"),
    )
    read = json.loads((tmp_path / "spectrum.json").read_text())
    assert read["eigenvalues"] == values.tolist() and read["limit"]["atom"] == limit.atom == pytest.approx(1 / 3)
    assert read["limit"]["edges"] == limit.edges().tolist() and read["limit"]["moments"] == list(limit.moments())
    x = torch.tensor(read["limit"]["x"], dtype=torch.float64)
    assert read["limit"]["density"] == limit.density(x).tolist()
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in out.splitlines() if line.split()[-2:-1]}
    assert rows["largest"] == [f"{values.max():.6g}", f"{limit.edges().max():.6g}"]
    assert rows["mean"] == [f"{values.mean():.6g}", f"{limit.moments()[0]:.6g}"]
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = rainbow_fast(*words, "--json")
    assert json.loads(out) == read


def test_no_command_prints_the_help(rainbow_fast: Run) -> None:
    code, out, err = rainbow_fast("random")
    assert code == 2 and "lyapunov" in out and err == ""


@pytest.mark.parametrize(
    "words, message",
    [
        (["random", "bogus"], "No such command"),
        (["random", "lyapunov"], "Missing argument"),
        (["random", "lyapunov", "0"], "d=0: wanted d >= 1"),
        (["random", "lyapunov", "4", "--k", "5"], "k=5: wanted 1 <= k <= 4"),
        (["random", "lyapunov", "4", "--layers", "0"], "layers=0: wanted 1 <= layers <= 1048576"),
        (["random", "lyapunov", "4", "--runs", "0"], "runs=0: wanted 1 <= runs <= 4096"),
        (["random", "lyapunov", "4", "--variance", "nan"], "variance=nan: wanted a number above 0"),
        (["random", "lyapunov", "4", "--every", "99"], "every=99: wanted at most 13 layers between frames"),
        (["random", "lyapunov", "4", "--dtype", "int8"], "--dtype: wanted float64 or float32, got 'int8'"),
        (["random", "lyapunov", "4", "--threads", "0"], "threads=0: wanted 1 <= threads <= 1024"),
        (["random", "lyapunov", "4", "--out", "{file}"], "is a file, wanted a folder"),
        (["random", "spectrum", "4"], "Missing argument"),
        (["random", "spectrum", "0", "4"], "samples=0: wanted samples >= 1"),
        (["random", "spectrum", "4", "0"], "features=0: wanted features >= 1"),
        (["random", "spectrum", "4", "4", "--inputs", "0"], "inputs=0: wanted inputs >= 1"),
        (["random", "spectrum", "4", "4", "--activation", "softmax"], "activation='softmax': wanted one of"),
        (["random", "spectrum", "4", "4", "--out", "{file}"], "is a file, wanted a folder"),
    ],
)
def test_wrong_words_cost_one_line(
    rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("something else")
    code, out, err = rainbow_fast(*(word.format(file=file) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_figures_need_matplotlib_before_the_work(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    monkeypatch.setattr("rainbow_fast.cli.random.lyapunov_estimate", lambda *_, **__: pytest.fail("computed"))
    code, _, err = rainbow_fast("random", "lyapunov", 4, "--out", "somewhere")
    assert code == 2 and err == 'Error: plots need matplotlib: pip install "rainbow_fast[plots]"\n'

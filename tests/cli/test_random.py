# SPDX-License-Identifier: BSD-3-Clause
"""The commands `random ...`: tables, JSON, files, and messages for wrong words."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast import random_networks as rn
from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.terminal import Bar
from rainbow_fast.data import digits
from rainbow_fast.networks import mlp
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.random_networks.chain_theory import stationary_gap

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
MADE_OF = ["--module", "rainbow_fast.networks:mlp", "--module-args", '{"sizes": [64, 16, 10]}', "--data", "digits"]
MEASURED = ["random", "measure", *MADE_OF]


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


def test_spectrum_of_an_activation_that_is_applied_to_projections(rainbow_fast: Run) -> None:
    code, out, err = rainbow_fast("random", "spectrum", 30, 40, "--activation", "sin", "--json")
    X = gaussian(30, 30, seed=0, stream=1) / 30**0.5
    assert (code, err) == (0, "")
    assert json.loads(out)["eigenvalues"] == rn.feature_spectrum(X, 40, activation="sin", seed=0).tolist()


def test_chain(rainbow_fast: Run, tmp_path: Path) -> None:
    """The numbers are those of `gram_chain`, and with --explicit those of `weight_chain` in float32."""
    words = ["random", "chain", "16,40", "--layers", 30, "--runs", 3, "--seed", 5]
    code, out, err = rainbow_fast(*words, "--out", tmp_path)
    assert (code, err) == (0, "") and "identity, norm batch, linear-norm-activation, 30 layers" in out
    assert out.endswith(f"{tmp_path}: chain.json, chain.png\n")
    start = torch.tensor([1, 1e-6, 1e-6, 1e-6], dtype=torch.float64).diag()
    result = rn.gram_chain(start, 30, width=[16, 40], runs=3, seed=5)
    read = json.loads((tmp_path / "chain.json").read_text())
    assert read["orthogonality_gap"] == result.orthogonality_gap.mean(1).tolist()
    assert read["theory"]["stationary_gap"] == result.theory["stationary_gap"].tolist()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split() and line.split()[0].isdigit()}
    gaps = result.orthogonality_gap[:, :, -1].mean(1).tolist()
    assert [rows[width][1] for width in ("16", "40")] == [f"{gap:.5f}" for gap in gaps]
    assert rows["40"][3] == f"{result.theory['stationary_gap'][1, -1]:.5f}"
    assert (tmp_path / "chain.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = rainbow_fast(*words, "--explicit", "--json")
    explicit = rn.weight_chain(start.float(), 30, width=[16, 40], runs=3, seed=5)
    assert json.loads(out)["effective_rank"] == explicit.effective_rank.mean(1).tolist()


@pytest.mark.parametrize(
    "words, theory",
    [
        (["--norm", "none", "--start", "orthogonal"], math.sqrt(3 / 4)),
        (["--norm", "batch_centred", "--start", "random"], math.sqrt(stationary_gap(4, 20, centred=True).mean_square)),
        (["--activation", "relu", "--norm", "batch_standard", "--order", "activation-linear-norm"], None),
    ],
)
def test_chains_with_and_without_theory(rainbow_fast: Run, words: list[str], theory: float | None) -> None:
    code, out, err = rainbow_fast("random", "chain", 20, "--layers", 8, *words)
    assert (code, err) == (0, "")
    (row,) = (line.split() for line in out.splitlines() if line.strip().startswith("20 "))
    assert len(row) == 5 + (theory is not None) and (theory is None or row[3] == f"{theory:.5f}")


def test_measure(rainbow_fast: Run, tmp_path: Path) -> None:
    """The numbers are those of `measure` on the first samples of the data."""
    words = [*MEASURED, "--samples", "12", "--batches", "2"]
    code, out, err = rainbow_fast(*words, "--out", tmp_path)
    assert (code, err) == (0, "") and out.endswith(f"{tmp_path}: measure.json, measure.png\n")
    torch.manual_seed(0)
    network = mlp((64, 16, 10)).eval()
    x = digits()[0]
    result = rn.measure(network, [x[:12], x[12:24]])
    assert json.loads((tmp_path / "measure.json").read_text()) == json.loads(result.to_json())
    assert str(result) in out and (tmp_path / "measure.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = rainbow_fast(*words, "--measures", "stable_rank", "--train", "--json")
    assert list(json.loads(out)["sites"][0]["measures"]) == ["stable_rank"]


@pytest.mark.parametrize(
    "words, job, shares",
    [
        (["random", "chain", "8,16", "--layers", "4"], "chains", 8),
        (["random", "chain", "8", "--layers", "4", "--explicit"], "chains", 4),
        ([*MEASURED, "--samples", "12", "--batches", "2"], "measure", 6),  # z, phi and the outputs of two batches
    ],
    ids=["chain", "explicit", "measure"],
)
def test_the_bar_moves(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], job: str, shares: int
) -> None:
    """By equal steps, to its end."""
    moved: dict[str, list[float]] = {}

    @contextmanager
    def watched(bar: Bar, cost: float, name: str) -> Iterator[Step]:
        steps = moved.setdefault(name, [])
        yield lambda share, what: steps.append(share)

    monkeypatch.setattr(Bar, "job", watched)
    code, _, err = rainbow_fast(*words)
    assert (code, err) == (0, "")
    assert moved == {job: [(k + 1) / shares for k in range(shares)]}


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
        (["random", "chain", "4,x"], "--widths: wanted whole numbers above 0"),
        (["random", "chain", "1,2,3,4,5,6,7"], "widths: wanted at most 6, got 7"),
        (["random", "chain", "8", "--samples", "1"], "samples=1: wanted samples >= 2"),
        (["random", "chain", "8", "--start", "flat"], "start='flat': wanted one of collapsed, random, orthogonal"),
        (["random", "chain", "8", "--norm", "group"], "normaliser='group': wanted one of"),
        (["random", "chain", "8", "--layers", "0"], "depth=0: wanted"),
        (["random", "measure", "--data", "digits"], "wanted one of these: a checkpoint of `rainbow-fast train`"),
        ([*MEASURED, "--batches", "0"], "batches=0: wanted batches >= 1"),
        ([*MEASURED, "--samples", "1000"], "--data: digits has 1437 samples, wanted 4 batches of 1000 samples"),
        ([*MEASURED, "--measures", "rank"], "measures='rank': wanted one of"),
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
    code, out, err = rainbow_fast(*(word.format(file=file) if "{file}" in word else word for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_figures_need_matplotlib_before_the_work(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    monkeypatch.setattr("rainbow_fast.cli.random.lyapunov_estimate", lambda *_, **__: pytest.fail("computed"))
    code, _, err = rainbow_fast("random", "lyapunov", 4, "--out", "somewhere")
    assert code == 2 and err == 'Error: plots need matplotlib: pip install "rainbow_fast[plots]"\n'

# SPDX-License-Identifier: BSD-3-Clause
"""The study of CIFAR-10: its two controls, and the whole study on noise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.analysis.limits import fit_limit
from rainbow_fast.data import Images
from rainbow_fast.io import read_records, write_records
from rainbow_fast.networks import mlp
from studies.cifar10 import controls
from studies.cifar10.__main__ import study
from studies.cifar10.cases import CASES

pytestmark = pytest.mark.usefixtures("one_thread")
PNG = b"\x89PNG"


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Controls


@pytest.fixture
def toy() -> tuple[nn.Sequential, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """A float64 perceptron, with more than one chunk of data."""
    torch.manual_seed(0)
    module = mlp((9, 7, 5, 3), seed=1).double()
    x = torch.randn(1300, 9, dtype=torch.float64)
    return module, x[:700], (x[700:], module(x[700:]).argmax(1))


def test_a_permuted_network_is_the_same_network(toy: tuple) -> None:
    module, align, test = toy
    other = mlp((9, 7, 5, 3)).double()
    p, q = torch.randperm(7), torch.randperm(5)
    with torch.no_grad():
        other[1].weight.copy_(module[1].weight[p])
        other[3].weight.copy_(module[3].weight[q][:, p])
    got, sites = controls.another_network(module, other, align, test)
    assert got == 1 and max(site["error"] for site in sites) < 1e-20  # rounding of float64, squared


# The published experiments, on noise


@pytest.mark.filterwarnings("ignore:site")
def test_the_study_on_noise(tmp_path: Path) -> None:
    """Every case with few neurons, the paper's law at four widths. A second call goes on where the first stopped."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 1, 32, 32), torch.arange(200) % 10
    images = Images(x, y, x[:50], y[:50])
    few = {case.name: replace(case, factors=(1,) if case.factors == (1,) else (1 / 8,)) for case in CASES}
    cases = (replace(few.pop("paper"), factors=(1 / 16, 1 / 8, 1 / 4, 1 / 2)), *few.values())
    study(images, tmp_path, ("cnn",), 2, 1, cases)
    first = (tmp_path / "records.jsonl").read_text()
    study(images, tmp_path, ("mlp", "cnn"), 2, 1, cases)
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    assert [name for name in contents(tmp_path) if "cifar10" not in name] == ["records.jsonl"]
    assert len(contents(tmp_path)) == 4 + 3  # checkpoints, records, page and figure
    records = read_records(tmp_path / "records.jsonl")
    assert len({(r["architecture"], r["method"], r["factor"], r["network"]) for r in records}) == len(records) / 2
    page = (tmp_path / "cifar10.md").read_text()
    for case in cases:
        assert page.count(f"| {case.name} |") >= len(case.architectures)
    assert page.count("| site | limit | c | p |") == 2
    assert (tmp_path / "cifar10.png").read_bytes().startswith(PNG)
    write_records(tmp_path / "records.jsonl", records)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(ValueError, match="is not JSON"):
        study(images, tmp_path, ("mlp", "cnn"), 2, 1, cases)


@pytest.mark.parametrize("wanted", [(0.12, 0.4, 0.97), (0.0, 1.0, 0.5), (0.3, 0.05, 1.6)])
def test_limit_of_exact_errors_is_found(wanted: tuple[float, float, float]) -> None:
    limit, c, p = wanted
    fit = fit_limit({n: limit + c * n**-p for n in (1.0, 4.0, 16.0, 64.0)})
    assert fit == pytest.approx(wanted, abs=1e-9)  # float64, exact data

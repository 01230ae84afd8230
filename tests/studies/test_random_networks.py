# SPDX-License-Identifier: BSD-3-Clause
"""The study of deep perceptrons, once, with small ones on noise."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.running import run_app
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from studies.random_networks import training_page
from studies.random_networks.__main__ import app, study
from studies.random_networks.training_experiment import ARMS, Setting, build, run, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 2000) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=generator) + 1, torch.arange(count) % 10
    return Images(x, y, x[:50], y[:50])


def test_the_study_on_noise(tmp_path: Path) -> None:
    """All initial weights at two depths. A second call goes on where the first stopped."""
    data = images()
    wanted = settings([4, 6], seeds=1, width=12, images=2000, epochs=2)
    assert len(wanted) == 2 * len(ARMS) and len({(each.depth, each.arm) for each in wanted}) == len(wanted)
    study(data, tmp_path, wanted)
    first = (tmp_path / "records.jsonl").read_text()
    study(data, tmp_path, [*wanted, *(replace(each, seed=1) for each in wanted[:1])])
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "random_networks.md", "random_networks.png", "records.jsonl"
    ]  # fmt: skip
    records = read_records(tmp_path / "records.jsonl")
    assert len(records) == len(wanted) + 1
    for record in records:
        assert len(record["site_gaps"]) == record["depth"] - 1 and len(record["output_gaps"]) == 3
        assert all(0 < gap < 1.17 for gap in record["output_gaps"] + record["site_gaps"])
        assert len(record["losses"]) == 2 and 0 <= record["accuracy"] <= 1
    by_arm = {record["arm"]: record for record in records if record["depth"] == 6 and record["seed"] == 0}
    assert by_arm["orthogonal"]["site_gaps"][-1] < by_arm["standard"]["site_gaps"][-1]
    page = (tmp_path / "random_networks.md").read_text()
    assert "## Depth 4" in page and "## Depth 6" in page and all(page.count(f"| {arm} |") == 3 for arm in ARMS)
    assert (tmp_path / "random_networks.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_diverges_is_told() -> None:
    data = images()
    setting = Setting(4, "standard", 0, 12, 2000, 1)
    whole = run(setting, data, lambda share, what: None)
    steep = data._replace(x_train=data.x_train * 1e6)
    lost = run(replace(setting, seed=1), steep, lambda share, what: None) | {"arm": "batch norm"}
    assert lost["losses"] == [] and lost["accuracy"] is None and lost["trained_site_gaps"] is None
    text = training_page.page([whole, lost])
    [row] = [line for line in text.splitlines() if line.startswith("| batch norm |")]
    assert "| not finite | - |" in row
    assert training_page.figure([whole, lost]) is not None


def test_initial_weights() -> None:
    """Only hidden layers differ between methods; all outputs of hidden layers have the size that was asked for."""
    x = images().x_train
    nets = {arm: build(Setting(5, arm, 3, 20, 2000, 1), x) for arm in ARMS}
    state = nets["standard"].state_dict()
    for arm in ("orthogonal", "orthogonal, Haar", "orthogonal, published"):
        other = nets[arm].state_dict()
        same = [name for name in state if torch.equal(state[name], other[name])]
        assert same == ["1.weight", "9.weight"]
    with torch.no_grad():
        norms = nets["orthogonal"][:8](x[:1000]), nets["orthogonal, published"][:8](x[:60])
    assert float(norms[0].square().mean()) == pytest.approx(1, rel=1e-4)  # float32 rounding
    assert float(norms[1].square().sum()) == pytest.approx(1, rel=1e-4)
    bound = math.sqrt(2) * math.sqrt(6 / 40)
    assert 0.99 * bound < float(state["3.weight"].abs().max()) < bound


@pytest.mark.parametrize("depths", ["30,15", "3,8", "8,x", ""])
def test_wrong_depths_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, depths: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["random_networks", "--depths", depths, "--out", str(out)])
    code = run_app(app, "random_networks")
    said, err = capsys.readouterr()
    assert (code, said) == (2, "") and err.count("\n") == 1 and not out.exists()
    assert f"--depths: wanted increasing whole numbers above 3, separated by commas; got {depths!r}" in err

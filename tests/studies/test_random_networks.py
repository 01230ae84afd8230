# SPDX-License-Identifier: BSD-3-Clause
"""The study of deep networks, once, with small ones on noise."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.running import run_app
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from rainbow_fast.random_networks import measure
from studies.random_networks import convnet_experiment, traced_page, training_page
from studies.random_networks.__main__ import RECORDS, app, study
from studies.random_networks.convnet_experiment import ConvSetting
from studies.random_networks.traced_experiment import NETWORKS, TracedSetting
from studies.random_networks.training_experiment import ARMS, Kernel, Setting, build, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 2000) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=generator) + 1, torch.arange(count) % 10
    return Images(x, y, x[:50], y[:50])


def silent(share: float, what: str) -> None:
    """Take no notice of progress."""


@pytest.mark.slow
def test_the_study_on_noise(tmp_path: Path) -> None:
    """All initial weights at two depths. A second call goes on where the first stopped."""
    data = images()
    wanted = settings([4, 6], seeds=1, width=12, images=2000, epochs=2, batch=200)
    assert len(wanted) == 2 * len(ARMS) and len({(each.depth, each.arm) for each in wanted}) == len(wanted)
    study(data, tmp_path, [Kernel(5), *wanted])
    first = (tmp_path / "records.jsonl").read_text()
    study(data, tmp_path, [Kernel(5), *wanted, *(replace(each, seed=1) for each in wanted[:1])])
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "random_networks.md", "random_networks.png", "records.jsonl"
    ]  # fmt: skip
    kernel, *records = read_records(tmp_path / "records.jsonl")
    assert len(records) == len(wanted) + 1 and len(kernel["site_gaps"]) == kernel["kernel_layers"] == 5
    for record in records:
        assert len(record["site_gaps"]) == record["depth"] - 1 and len(record["output_gaps"]) == 3
        assert all(0 < gap < 1.17 for gap in record["output_gaps"] + record["site_gaps"])
        assert len(record["losses"]) == 2 and 0 <= record["accuracy"] <= 1
    by_arm = {record["arm"]: record for record in records if record["depth"] == 6 and record["seed"] == 0}
    assert by_arm["orthogonal"]["site_gaps"][-1] < by_arm["standard"]["site_gaps"][-1]
    page = (tmp_path / "random_networks.md").read_text()
    assert "## Depth 4" in page and "## Depth 6" in page and all(page.count(f"| {arm} |") == 3 for arm in ARMS)
    assert (tmp_path / "random_networks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_convolutional_networks_on_noise(tmp_path: Path) -> None:
    wanted = convnet_experiment.settings([6, 7], seeds=1, channels=8, images=2000, epochs=1)
    study(images(), tmp_path, [Kernel(3), *settings([4], 1, 12, 2000, 1, 100), *wanted[:3]])
    records = [each for each in read_records(tmp_path / "records.jsonl") if "convolutions" in each]
    assert [each["arm"] for each in records] == list(convnet_experiment.ARMS)
    for record in records:
        assert len(record["site_gaps"]) == 4 + 1 + 1 + 2 and len(record["losses"]) == 1
    page = (tmp_path / "random_networks.md").read_text()
    assert "## 6 convolutions" in page and "- 6 convolutions. Last losses, the lowest first:" in page
    assert (tmp_path / "random_convnets.png").read_bytes().startswith(b"\x89PNG")


def test_initial_weights_of_convolutional_networks() -> None:
    """With 256 channels and 20 convolutions the sizes are the published ones; weights of equal layers differ."""
    shapes = [
        tuple(part.weight.shape)
        for part in convnet_experiment.build(ConvSetting(20, "standard", 0, 256, 30, 1), torch.zeros(1)).modules()
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert shapes[:5] == [(64, 3, 3, 3), (192, 64, 3, 3), (192, 192, 3, 3), (256, 192, 3, 3), (256, 256, 3, 3)]
    assert shapes[5:20] == [(256, 256, 3, 3)] * 15
    assert shapes[20:] == [(4096, 1024), (4096, 4096), (10, 4096)]
    x = images(300).x_train / 2 + 0.5
    nets = {arm: convnet_experiment.build(ConvSetting(7, arm, 3, 8, 2000, 1), x) for arm in convnet_experiment.ARMS}
    state = nets["standard"].state_dict()
    for arm in ("orthogonal", "orthogonal, published"):
        other = nets[arm].state_dict()
        changed = [name for name in state if not torch.equal(state[name], other[name])]
        assert changed == ["6.weight", "9.weight", "11.weight", "13.weight"]
    with torch.no_grad():
        outputs = nets["orthogonal"][:12](x[:256]), nets["orthogonal, published"][:12](x[:256])
    assert float(outputs[0].square().mean()) == pytest.approx(1, rel=1e-4)  # float32 rounding
    assert float(outputs[1].square().sum()) == pytest.approx(1, rel=1e-4)


def test_infinite_width() -> None:
    """The gap of standard weights in wide networks before training."""
    data = images()
    theory = Kernel(3).run(data, silent)["site_gaps"]
    network = build(Setting(4, "standard", 0, 500, 2000, 1, 100), data.x_train)
    table = measure(network, list(data.x_train.split(500)), measures=["orthogonality_gap"], places=["phi"])
    gaps = [site.mean() for site in table if site.place == "phi"]
    # one network of width 500: deviations are of the order of the root of 1/500, 0.045
    assert gaps == pytest.approx(theory, rel=0.045) and theory[2] > theory[1] + 0.04 > theory[0] + 0.08


def test_the_size_of_a_batch() -> None:
    """The published one is 500. One step of the whole batch is that of 2000 images at once, whatever their order."""
    data = images()
    whole, halves = (Setting(4, "standard", 0, 12, 2000, 1, batch).run(data, silent) for batch in (2000, 1000))
    x, y = data.x_train, data.y_train
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(build(Setting(4, "standard", 0, 12, 2000, 1, 2000), x)(x), y))
    assert whole["losses"] == pytest.approx([loss], rel=1e-5)  # sums of float32 in another order
    assert whole["batch"] == 2000 and halves["losses"][0] < whole["losses"][0]  # its second half follows a step
    assert "batches of 2000 and 1 epochs" in training_page.page([whole])


@pytest.mark.parametrize(
    "name, sites", [pytest.param("ResNet-20", 20, marks=pytest.mark.slow), ("MLP-Mixer", 9)], ids=NETWORKS
)
def test_the_gaps_of_traced_networks(name: str, sites: int) -> None:
    """One step: the first gaps are those of the weights, and the last ones those of weights that have moved."""
    data = images(40)
    record = TracedSetting(name, 0.01, 1, images=40, epochs=1).run(data, silent)
    by_site = {stage: dict(zip(record["sites"], gaps, strict=True)) for stage, gaps in record["gaps"].items()}
    table = measure(NETWORKS[name](1).train(), data.x_train, measures=["orthogonality_gap"], places=["phi"])
    assert list(by_site["before"].values()) == [site.mean() for site in table] and len(table) == sites
    assert by_site["after"]["outputs"] < by_site["before"]["outputs"]
    for arm, stage in (("orthogonal", "after"), ("standard", "before")):
        assert len(record["losses"][arm]) == 1 and by_site[f"{arm}, trained"] != by_site[stage]


def test_what_the_page_says_of_traced_networks() -> None:
    """The sentences below its tables, for the kept records: "nearly" and "a few hundredths" are 0.05."""
    records = [record for record in read_records(RECORDS) if "traced" in record]
    assert {(record["traced"], record["rate"]) for record in records} == {
        ("ResNet-20", 0.01), ("MLP-Mixer", 0.01), ("MLP-Mixer", 0.001)
    }  # fmt: skip
    chance, least = math.log(10), math.sqrt(1 / 10 - 1 / 500)
    for record in records:
        before, after, ours, theirs = (
            np.array(record["gaps"][stage]) for stage in ("before", "after", "orthogonal, trained", "standard, trained")
        )
        assert (after < before).all() and least < after[-1] < least + 0.05
        loss = {arm: losses[-1] for arm, losses in record["losses"].items()}
        if record["traced"] == "ResNet-20":
            assert (ours[:-1] < after[:-1] + 0.05).all() and (ours < theirs).all() and ours[-1] > after[-1] + 0.05
            assert loss["standard"] < loss["orthogonal"] < chance
        elif record["rate"] == 0.01:
            assert (ours[1:] > 0.95).all() and loss["orthogonal"] > chance > loss["standard"]
        else:
            patches, channels = (slice(first, -1, 2) for first in (0, 1))
            assert (abs(ours[patches] - after[patches]) < 0.05).all() and loss["orthogonal"] > chance
            assert (ours[channels] > after[channels] + 0.08).all()


def test_a_traced_training_that_diverges_is_told() -> None:
    record = TracedSetting("MLP-Mixer", 1e30, 0, images=200, epochs=1).run(images(200), silent)
    assert record["gaps"]["standard, trained"] is None and record["losses"]["standard"] == []
    text = traced_page.section([record])
    [row] = [line for line in text.splitlines() if line.startswith("| outputs |")]
    assert row.endswith("| - | - |") and "not finite" in text


def test_a_training_that_diverges_is_told() -> None:
    data = images()
    setting = Setting(4, "standard", 0, 12, 2000, 1, 100)
    whole = setting.run(data, silent)
    steep = data._replace(x_train=data.x_train * 1e6)
    lost = replace(setting, seed=1).run(steep, silent) | {"arm": "batch norm"}
    assert lost["losses"] == [] and lost["accuracy"] is None and lost["trained_site_gaps"] is None
    text = training_page.page([whole, lost])
    [row] = [line for line in text.splitlines() if line.startswith("| batch norm |")]
    assert "| not finite | - |" in row
    assert training_page.figure([whole, lost]) is not None


def test_initial_weights() -> None:
    """Only hidden layers differ between methods; all outputs of hidden layers have the size that was asked for."""
    x = images().x_train
    nets = {arm: build(Setting(5, arm, 3, 20, 2000, 1, 100), x) for arm in ARMS}
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--convolutions", "80,20"], "--convolutions: wanted increasing whole numbers above 4, separated by commas"),
        (["--channels", "30"], "--channels: wanted a multiple of 4; got 30"),
    ],
)
def test_wrong_convolutional_networks_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["random_networks", *words, "--out", str(out)])
    code = run_app(app, "random_networks")
    said, err = capsys.readouterr()
    assert (code, said) == (2, "") and err.count("\n") == 1 and not out.exists() and message in err

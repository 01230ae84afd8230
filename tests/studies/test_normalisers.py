# SPDX-License-Identifier: BSD-3-Clause
"""The study of norms: what it measures by layer, its theory, and the whole of it on noise."""

import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.running import run_app
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from rainbow_fast.random_networks import mean_cosine, stable_rank
from studies.normalisers import normaliser_experiment, normaliser_page
from studies.normalisers.__main__ import RECORDS, app, study
from studies.normalisers.normaliser_experiment import (
    ARMS,
    Kernel,
    Setting,
    Study,
    batch_norm_growth,
    batch_norm_limits,
    best_rate,
    build,
    by_layer,
    kernel_directions,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SETTING = Setting(depth=5, arm="no norm", rate=0.01, seed=0, width=32, images=1000, epochs=2)


def noise(count: int = 1000) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=generator) + 1, torch.arange(count) % 10
    return Images(x, y, x[:50], y[:50])


def silent(share: float, what: str) -> None:
    """A step of a bar that nobody sees."""


@pytest.mark.parametrize("arm", ARMS)
def test_measures_are_those_of_the_activations(arm: str) -> None:
    """Written out layer by layer, and the network stays as it is."""
    data, network = noise(60), build(replace(SETTING, arm=arm))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = list(data.x_train[:40].split(20))
    table = by_layer(network, batches, data.y_train[:20])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    expected: dict[str, list[list[float]]] = {name: [] for name in ("variance", "stable_rank", "mean_cosine")}
    for x in batches:
        columns = {name: [] for name in expected}
        for part in network:
            if isinstance(part, nn.ReLU):
                columns["variance"].append(float(x.detach().double().var(correction=0)))
                columns["stable_rank"].append(float(stable_rank(x.detach().relu())))
                columns["mean_cosine"].append(float(mean_cosine(x.detach().relu())))
            x = part(x)
        for name, values in columns.items():
            expected[name].append(values)
    for name, runs in expected.items():  # five digits are kept, and batch norms are traced in float32
        assert table[name] == pytest.approx(np.mean(runs, 0), rel=2e-4), name
    loss = nn.functional.cross_entropy(network(batches[0]), data.y_train[:20])
    loss.backward()
    norms = [float(part.weight.grad.norm()) for part in network if isinstance(part, nn.Linear)]
    assert table["gradient"] == pytest.approx(norms[:-1], rel=1e-4)


def test_initial_networks() -> None:
    """Weights are the same for every norm, of He's variance; a norm stands before each ReLU."""
    nets = {arm: build(replace(SETTING, arm=arm, width=128)) for arm in ARMS}
    weights = {arm: [part.weight for part in net if isinstance(part, nn.Linear)] for arm, net in nets.items()}
    for each in weights.values():
        assert all(torch.equal(W, V) for W, V in zip(each, weights["no norm"], strict=True))
    inner = torch.cat([W.detach().flatten() for W in weights["no norm"][1:-1]])
    assert float(inner.var()) * 128 == pytest.approx(2, rel=4 * math.sqrt(2 / len(inner)))  # 4 standard deviations
    for arm, kind in (("batch norm", nn.BatchNorm1d), ("layer norm", nn.LayerNorm), ("group norm", nn.GroupNorm)):
        kinds = [type(part) for part in nets[arm]]
        assert kinds == [nn.Flatten, *[nn.Linear, kind, nn.ReLU] * 4, nn.Linear]
    assert nets["group norm"][2].num_groups == 16


def test_theory_is_that_of_wide_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a norm and with layer norm, by layer; with batch norm after many layers, and its growth of gradients.

    One network of width 2,000. Cosines deviate by a few 1/sqrt(2000) = 0.022; stable ranks by as much of themselves,
    times the number of layers. Without a norm a layer of nearly parallel samples multiplies the variance by a factor of
    deviation sqrt(5/2000) = 0.05, and three of them by one of 0.087, three times which is the tolerance.
    """
    monkeypatch.setattr(normaliser_experiment, "SAMPLES", 100)
    data, width = noise(200), 2000
    theory = kernel_directions(Kernel(4), data)
    batches = list(data.x_train.split(100))
    for arm in ("no norm", "layer norm"):
        table = by_layer(build(replace(SETTING, arm=arm, width=width)), batches, data.y_train[:100])
        assert table["mean_cosine"] == pytest.approx(theory["mean_cosine"], abs=0.045), arm
        assert table["stable_rank"] == pytest.approx(theory["stable_rank"], rel=0.09), arm
        variance = theory["variance"] if arm == "no norm" else [1.0] * 4
        assert table["variance"] == pytest.approx(variance, rel=0.26), arm
    deep = by_layer(build(replace(SETTING, arm="batch norm", width=width, depth=9)), batches, data.y_train[:100])
    for name, limit in batch_norm_limits(100).items():
        assert deep[name][-1] == pytest.approx(limit, rel=0.03), name
    growth = (deep["gradient"][1] / deep["gradient"][-1]) ** (1 / 6)
    assert growth == pytest.approx(batch_norm_growth(), rel=0.03)  # of 100 samples, and of one draw over six layers


def test_batch_norm_limits_of_few_samples() -> None:
    """Two samples are opposite before the ReLU, so that they are orthogonal after it; many have a cosine of 1/pi."""
    two = batch_norm_limits(2)
    assert two == pytest.approx({"stable_rank": 2, "mean_cosine": 0}, abs=1e-12)
    assert batch_norm_limits(10**6)["mean_cosine"] == pytest.approx(1 / math.pi, abs=1e-5)


def test_a_training_that_diverges_is_told() -> None:
    data = noise()
    whole = run(SETTING, data, silent)
    lost = run(replace(SETTING, rate=1e30), data, silent)
    assert lost["losses"] == [] and lost["accuracy"] is lost["after"] is None
    assert len(whole["losses"]) == 2 and 0 <= whole["accuracy"] <= 1
    assert [len(values) for values in whole["last_layer"].values()] == [3, 3]
    assert whole["last_layer"]["stable_rank"][-1] == whole["after"]["stable_rank"][-1]


def test_the_best_rate() -> None:
    """The lowest last loss; a loss that is not finite is never the best."""
    records = [
        {"rate": 0.1, "losses": [1.0], "accuracy": None},
        {"rate": 0.2, "losses": [0.1, 3.0], "accuracy": 0.5},
        {"rate": 0.3, "losses": [4.0, 2.0], "accuracy": 0.4},
    ]
    assert best_rate(records) == 0.3


def test_the_study_on_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All norms at two depths and two rates. A second call with one more seed goes on where the first stopped."""
    monkeypatch.setattr(normaliser_experiment, "BATCHES", 1)
    data, wanted = noise(), Study([4, 5], [0.003, 0.03], 1, 16, 1000, 1)
    assert wanted.cost == 1 + len(ARMS) * (4 + 5) * 2
    study(data, tmp_path, wanted)
    first = (tmp_path / "records.jsonl").read_text()
    trained: list[Setting] = []
    real = normaliser_experiment.run
    monkeypatch.setattr(
        normaliser_experiment, "run", lambda setting, *rest: trained.append(setting) or real(setting, *rest)
    )
    study(data, tmp_path, replace(wanted, seeds=2))
    text = (tmp_path / "records.jsonl").read_text()
    assert text.startswith(first) and sorted(path.name for path in tmp_path.iterdir()) == [
        "normalisers.md", "normalisers.png", "records.jsonl"
    ]  # fmt: skip
    kernel, *records = read_records(tmp_path / "records.jsonl")
    assert kernel["kernel_layers"] == 4 and len(records) == 2 * len(ARMS) * (2 + 1)
    assert len(trained) == 2 * len(ARMS) and {setting.seed for setting in trained} == {1}
    for setting in trained:
        same = [each for each in records if (each["depth"], each["arm"]) == (setting.depth, setting.arm)]
        assert setting.rate == best_rate([each for each in same if each["seed"] == 0])
        assert any(record.items() >= asdict(setting).items() for record in same)
    page = (tmp_path / "normalisers.md").read_text()
    assert all(page.count(f"| {arm} |") == 4 for arm in ARMS)
    assert (tmp_path / "normalisers.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_that_diverged_is_on_the_page() -> None:
    whole = run(SETTING, noise(), silent)
    lost = whole | {"arm": "batch norm", "losses": [2.0], "accuracy": None, "after": None}
    text = normaliser_page.page([whole, lost])
    rows = [line for line in text.splitlines() if "| batch norm |" in line]
    assert len(rows) == 2 and all("not finite" in row for row in rows)
    kernel = kernel_directions(Kernel(4), noise())
    assert normaliser_page.figure([whole, lost], kernel) is not None
    off = whole | {"before": whole["before"] | {"gradient": [0.0] * 4}}
    assert math.isnan(normaliser_page.growth(off)) and " | - | " in normaliser_page.page([off])


def test_kept_numbers_are_those_of_theory() -> None:
    """Before training, of the deepest networks of the study, means over seeds.

    They have width 128, and 1/sqrt(128) = 0.09 is the order of what infinite width leaves out.
    """
    everything = read_records(RECORDS)
    networks = [record for record in everything if "arm" in record]
    [kernel] = [record for record in everything if "kernel_layers" in record]
    depth = max(record["depth"] for record in networks)
    by_arm = {
        arm: list({
            each["seed"]: each["before"] for each in networks if (each["arm"], each["depth"]) == (arm, depth)
        }.values())
        for arm in ARMS
    }  # fmt: skip
    limits = batch_norm_limits()
    for name in ("stable_rank", "mean_cosine"):
        for arm in ("no norm", "layer norm"):
            measured = np.mean([each[name] for each in by_arm[arm]], 0)
            assert measured == pytest.approx(kernel[name], rel=0.09), (arm, name)
        batch = np.mean([each[name] for each in by_arm["batch norm"]], 0)
        assert batch == pytest.approx([limits[name]] * (depth - 1), rel=0.09), name
    growths = [normaliser_page.growth({"before": each}) for each in by_arm["batch norm"]]
    assert np.mean(growths) == pytest.approx(batch_norm_growth(), rel=0.03)


def test_the_page_from_kept_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["normalisers", "--out", str(tmp_path)])
    code = run_app(app, "normalisers")
    assert (code, capsys.readouterr().err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["normalisers.md", "normalisers.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "30,10"], "--depths: wanted increasing whole numbers above 3, separated by commas; got '30,10'"),
        (["--depths", "3"], "--depths: wanted increasing whole numbers above 3, separated by commas; got '3'"),
        (["--rates", "0"], "--rates: wanted numbers above 0, separated by commas; got '0'"),
        (["--width", "20"], "--width: wanted a multiple of 8; got 20"),
    ],
)
def test_wrong_options_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["normalisers", *words, "--out", str(out)])
    code = run_app(app, "normalisers")
    said, err = capsys.readouterr()
    assert (code, said) == (2, "") and err.count("\n") == 1 and message in err and not out.exists()

# SPDX-License-Identifier: BSD-3-Clause
"""The study of rainbow layers, once, on noise."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

import rainbow_fast as rf
from rainbow_fast.cli.running import run_app
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from rainbow_fast.nn import RandomFeatures
from studies.rainbow_layers import layers_experiment, layers_page
from studies.rainbow_layers.__main__ import app, study
from studies.rainbow_layers.arms import ARMS, CHOSEN, NETWORKS, Arm, build
from studies.rainbow_layers.layers_experiment import Run, best_rate, runs, trained, tuning

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:site")]  # few images


def images(count: int = 60) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10
    return Images(x, y, x[:20], y[:20])


def nothing(share: float, what: str) -> None:
    pass


@pytest.mark.slow
def test_the_study_on_noise(tmp_path: Path) -> None:
    """Three ways to train. A second call goes on where the first stopped."""
    data, arms = images(), ["usual", "e2 r1/4", "e2 r1/4 fine-tuned", "e2 r1/4 resampled"]
    study(data, tmp_path, runs(["cnn"], arms, seeds=1, images=60, epochs=2))
    first = (tmp_path / "records.jsonl").read_text()
    study(data, tmp_path, runs(["cnn"], [*arms[:2]], seeds=2, images=60, epochs=2))
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    records = read_records(tmp_path / "records.jsonl")
    networks = [record for record in records if "samples" in record]
    assert [(r["arm"], r["seed"]) for r in networks] == [*((arm, 0) for arm in arms), ("usual", 1), ("e2 r1/4", 1)]
    for record in networks:
        assert len(record["samples"]) == 12 and len(record["losses"]) == 2 and record["seconds"] > 0
        shares = [*(s["accuracy"] for s in record["samples"]), *(record[k] for k in ("reference", "ensemble", "refit"))]
        assert all(0 <= share <= 1 for share in shares)
    assert not any("base" in r and r["arm"] == "e2 r1/4 fine-tuned" for r in records)
    by_arm = {record["arm"]: record for record in networks if record["seed"] == 0}
    assert by_arm["usual"]["parameters"] == 69_600
    assert by_arm["e2 r1/4"]["parameters"] == 8 * 75 + 16 * 64 * 25 + 128 * 25 * 10
    first = {arm: by_arm[arm]["losses"][0] for arm in by_arm}  # before the only step of the epoch
    assert first["e2 r1/4"] == first["e2 r1/4 fine-tuned"] == pytest.approx(2.3, abs=0.5)
    assert first["e2 r1/4 resampled"] != first["e2 r1/4"], "fresh neurons"
    assert by_arm["e2 r1/4 fine-tuned"]["losses"][1] != by_arm["e2 r1/4"]["losses"][1]
    page = (tmp_path / "rainbow_layers.md").read_text()
    assert all(page.count(f"| {arm} |") >= 3 for arm in arms)
    assert (tmp_path / "rainbow_layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["four convolutions", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_other_architectures(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"FACTORS": (4,), "DRAWS": 1, "MEMBERS": 1}.items():
        monkeypatch.setattr(layers_experiment, name, few)
    record = trained(Run(network, "e2 r1/4 fine-tuned", 0, 20, 2), images(), 0.01, nothing)
    assert len(record["samples"]) == 2 and len(record["losses"]) == 2
    page, figure = layers_page.page, layers_page.figure
    monkeypatch.setattr(layers_page, "FACTORS", (4,))
    rate = {"network": network, "arm": "e2 r1/4", "tuning_images": 10, "base": 0.01, "validation": 0.5}
    assert f"## {layers_page.TITLES[network]}" in page([rate, record]) and figure([rate, record]) is not None


def test_networks() -> None:
    """Rainbow networks have n = expand d neurons and r = rank d at each site of the architecture."""
    x = torch.zeros(1, 3, 32, 32)
    for network in NETWORKS:
        widths = [site.channels for site in rf.sites(build(network, ARMS["usual"], 0), x)]
        wide = [site.channels for site in rf.sites(build(network, ARMS["usual x4"], 0), x)]
        rainbow = build(network, ARMS["e4 r1/8"], 0)
        features = [(part.n, part.rank) for part in rainbow.modules() if isinstance(part, RandomFeatures)]
        assert wide == [4 * d for d in widths] and features == [(4 * d, d // 8) for d in widths]
    a, b, c = (build("cnn", ARMS["e1 r1/2"], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) for name in a)


def test_arms() -> None:
    assert len(ARMS) == 3 + 36 and set(CHOSEN) <= set(ARMS)
    arm = ARMS["e4 r1/4 fine-tuned"]
    assert arm == Arm(4, 0.25, "last epoch") and arm.tuned_as == ARMS["e4 r1/4"] and arm.step == 1 / 16
    assert ARMS["usual x4"].step == 1 and ARMS["e2 r1 resampled"].tuned_as.name == "e2 r1 resampled"


def test_rates_are_tried_until_the_best_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With validation accuracies that grow with the rate up to 0.1, and a loss that is not finite at 0.3."""

    def train(network: object, arm: Arm, x: object, y: object, rate: float, epochs: int, seed: int) -> None:
        if rate > 0.2 * arm.step:
            raise FloatingPointError
        reached.append(rate)

    reached: list[float] = []
    monkeypatch.setattr(layers_experiment, "_train", train)
    monkeypatch.setattr(layers_experiment, "accuracy", lambda network, x, y: reached[-1])
    run, data = Run("cnn", "e4 r1/4 fine-tuned", 3, 60, 2), images()
    records: list = []
    while (rate := tuning(run, data, records, nothing)) is not None:
        records.append(rate)
    assert [record["base"] for record in records] == [0.01, 0.03, 0.1, 0.3]
    assert records[-1]["validation"] == 0 and reached == [0.01 / 16, 0.03 / 16, 0.1 / 16]
    assert best_rate(run, records) == 0.1 and all(record["arm"] == "e4 r1/4" for record in records)


def test_a_training_that_diverges_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are the initial ones again. Without end, it is an error."""

    def train(network: torch.nn.Module, arm: Arm, x: object, y: object, rate: float, *more: object) -> list[float]:
        with torch.no_grad():
            for p in network.parameters():
                totals.append(float(p.sum()))
                p.zero_()
        if rate > highest:
            raise FloatingPointError
        return [1.0]

    totals: list[float] = []
    monkeypatch.setattr(layers_experiment, "_train", train)
    monkeypatch.setattr(layers_experiment, "_sampled", lambda *arguments: {})
    highest = 0.03
    record = trained(Run("cnn", "usual", 0, 60, 1), images(), 0.1, nothing)
    assert (record["rate"], record["halved"]) == (0.025, 2)
    assert totals[:3] == totals[3:6] == totals[6:] and 0 not in totals
    highest = 0.0
    with pytest.raises(FloatingPointError, match=r"cnn, usual, seed 0: .* with rates down to 0\.0125"):
        trained(Run("cnn", "usual", 0, 60, 1), images(), 0.1, nothing)


@pytest.mark.parametrize(
    ("option", "text", "wanted"),
    [("--networks", "cnn,mlp", "wanted some of cnn, four convolutions, resnet20"), ("--arms", "e3 r1/4", "e4 r1/4,")],
)
def test_wrong_names_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, text: str,
    wanted: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["rainbow_layers", option, text, "--out", str(out)])
    code = run_app(app, "rainbow_layers")
    said, err = capsys.readouterr()
    assert (code, said) == (2, "") and err.count("\n") == 1 and not out.exists()
    assert f"{option}: " in err and wanted in err and f"got {text!r}" in err

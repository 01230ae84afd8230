# SPDX-License-Identifier: BSD-3-Clause
"""The study of batch norms: small networks on noise, and what each arm may change."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from rainbow_fast.networks import resnet_cifar
from studies.batch_norms import norm_experiment, norm_page
from studies.batch_norms.__main__ import run_all
from studies.batch_norms.norm_experiment import ARMS, Study, best_rate, fix_batch_norms, insert_batch_norms, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    """A network of 8 layers on noise, trained on nothing: its batch norms have the statistics of the images."""
    monkeypatch.setattr(norm_experiment, "VALIDATION", 20)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 3, 8, 8, generator=generator), torch.arange(120) % 10
    reference = fix_batch_norms(resnet_cifar(8, seed=5), x)
    return Study(Images(x, y, x[:40], y[:40]), 100, reference, 8)


def no_step(share: float, what: str) -> None:
    """A bar that is not shown."""


@pytest.mark.slow
def test_the_study_on_noise(study: Study, tmp_path: Path) -> None:
    """All arms with two rates and two seeds. A second call goes on where the first stopped, with the same rates."""
    run_all(study, tmp_path, [0.02, 0.1], 1, 2)
    first = (tmp_path / "records.jsonl").read_text()
    run_all(study, tmp_path, [0.02, 0.1], 2, 2)
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch_norms.md", "batch_norms.png", "records.jsonl"]
    records = read_records(tmp_path / "records.jsonl")
    tried, final = [r for r in records if r["tuning"]], [r for r in records if not r["tuning"]]
    trained = [arm for arm in ARMS if ARMS[arm].layers]
    assert len(tried) == 2 * len(trained) and len(final) == 2 * len(ARMS) - 1
    for record in final:
        same = [r for r in tried if r["arm"] == record["arm"]]
        assert record["rate"] == (best_rate(same) if same else None)
        assert len(record["losses"]) == record["epochs"] == (2 if same else 0) and 0 <= record["accuracy"] <= 1
    page = (tmp_path / "batch_norms.md").read_text()
    assert all(page.count(f"| {arm} |") == 1 + (arm in trained) and f"- *{arm}*: " in page for arm in ARMS)
    assert (tmp_path / "batch_norms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arm", "layers", "count"),
    [
        ("random: batch norms", (nn.BatchNorm2d,), 2 * 240),
        ("random: batch norms, classifier", (nn.BatchNorm2d, nn.Linear), 2 * 240 + 650),
        ("random: all parameters", (nn.Module,), 2 * 240 + 650 + 9 * (16 * (3 + 32) + 32 * 48 + 64 * 96)),
        ("paper: batch norms", (nn.BatchNorm2d,), 2 * 240),
        ("calibrated: batch norms", (nn.BatchNorm2d,), 2 * 247),  # one neuron more at each of seven sites
    ],
)
def test_an_arm_trains_what_it_says(
    study: Study, monkeypatch: pytest.MonkeyPatch, arm: str, layers: tuple[type[nn.Module], ...], count: int
) -> None:
    """ResNet-8 has 16 x 3 + 32 x 2 + 64 x 2 = 240 channels with a batch norm."""
    network = ARMS[arm].start(study, 1)
    before = copy.deepcopy(network.state_dict())
    monkeypatch.setitem(ARMS, arm, norm_experiment.Arm(lambda *_: network, ARMS[arm].layers))
    record = run(study.setting(arm, 1, 1, 0.1), study, no_step)
    assert record["parameters"] == count
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {
        f"{name}.{each}".lstrip(".")
        for name, part in network.named_modules()
        if isinstance(part, layers)
        for each, _ in part.named_parameters(recurse=False)
    }


def test_the_classifier_is_trained_on_fixed_features(study: Study) -> None:
    """Its features depend on no parameter, and its loss falls: chance is log 10."""
    record = run(study.setting("random: classifier", 0, 30, 0.1), study, no_step)
    assert record["parameters"] == 650 and record["losses"][-1] < min(record["losses"][0], math.log(10))


@pytest.mark.parametrize("method", ["paper", "calibrated"])
def test_inserted_batch_norms_are_the_identity_at_first(study: Study, method: str) -> None:
    """In eval mode; in train mode too on the images of the statistics, which are one batch here."""
    plain = study.sampled(method, 0)
    network = insert_batch_norms(study.sampled(method, 0), study.x)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 7 and not any(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    with torch.no_grad():
        outputs = plain(study.x)
        atol = 1e-4 * float(outputs.abs().max())  # float32 rounding through 8 layers
        torch.testing.assert_close(network(study.x), outputs, rtol=0, atol=atol)
        torch.testing.assert_close(network.train()(study.x), outputs, rtol=0, atol=atol)
        norms[0].weight[0] *= 2
        assert not torch.allclose(network.eval()(study.x), outputs, rtol=0, atol=atol)


def test_the_best_rate() -> None:
    def record(rate: float, validation: float | None) -> dict:
        return {"rate": rate, "validation": validation}

    assert best_rate([record(0.5, 0.3), record(0.1, 0.3), record(0.02, 0.2)]) == 0.1
    assert best_rate([record(0.1, 0.0), record(0.02, None)]) == 0.1
    assert best_rate([record(0.1, None), record(0.02, None)]) == 0.02


def test_a_training_that_diverges_is_told(study: Study) -> None:
    arm = "random: batch norms"
    lost = run(study.setting(arm, 0, 2, 1e38), study, no_step)
    assert lost["accuracy"] is None and lost["validation"] is None
    tried = run(study.setting(arm, 0, 1, 0.1, tuning=True), study, no_step)
    text = norm_page.page([tried, tried | {"rate": 1e38, "validation": None}, lost])
    assert f"| {arm} | 480 | 1e+38 | - | - | - (1 not finite) |" in text and "| not finite |" in text
    assert norm_page.figure([tried, lost, lost | {"arm": "trained network", "accuracy": 0.5}]) is not None

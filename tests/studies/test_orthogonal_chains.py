# SPDX-License-Identifier: BSD-3-Clause
"""The study of orthogonal weights: its gradients, theory and trainings, and the whole of it on noise."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.running import run_app
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import isometry_gap
from studies.orthogonal_chains import deep_training, deep_training_page, gradient_experiment
from studies.orthogonal_chains.__main__ import RECORDS, Wanted, app, study
from studies.orthogonal_chains.deep_training import ARMS, Setting
from studies.orthogonal_chains.gradient_experiment import CASES, FEW, ORTHOGONAL, PLAIN, Run, activations, gradients
from studies.orthogonal_chains.gradient_theory import gaussian_growth, growth, haar_gradient
from studies.orthogonal_chains.normed_network import Kind, Weights, draw

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"width": 12, "images": 60, "epochs": 2, "seeds": 2}


def noise(count: int = 60) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10
    return Images(x, y, x[:0], y[:0])


def silent(share: float, what: str) -> None:
    """A step of a bar that nobody sees."""


def outputs(kind: Kind, x: Tensor, weights: list[Tensor]) -> Tensor:
    """The network again, by torch's own norm or by hand."""
    for number, W in enumerate(weights[:-1]):
        z = F.linear(x, W)
        z = F.batch_norm(z, None, None, training=True) if kind.norm == "torch" else z / (z**2).mean(0).sqrt()
        x = getattr(torch, kind.activation, torch.clone)((number + 1) ** (-0.4 if kind.gain else 0) * z)
    return F.linear(x, weights[-1])


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name: str) -> None:
    """At several depths at once, each against a network of its own."""
    kind, data = CASES[name].kind, noise(9)
    x, y = data.x_train.double().flatten(1), data.y_train
    weights, depths = draw("Gaussian", 3072, 8, 6, seed=1), [2, 3, 6]
    path = activations(kind, kind.apply(0, x, weights.first), weights.hidden)
    norms = gradients(kind, path, y, weights, depths)
    for depth, norm in zip(depths, norms, strict=True):
        parts = [each.clone().requires_grad_() for each in (weights.first, *weights.hidden[: depth - 1], weights.last)]
        F.cross_entropy(outputs(kind, x, parts), y).backward()
        grad = parts[1].grad
        assert grad is not None and float(norm) == pytest.approx(float(grad.norm()), rel=1e-10)  # float64 rounding


def test_a_draw_has_all_samples() -> None:
    """A quarter of the images, and orthogonal samples, each against a network of its own at depth 2."""
    data, depths = noise(12), [2, 5]
    x, y = data.x_train.double().flatten(1), data.y_train
    records = {law: gradient_experiment.run(Run(law, 3, 12, depths), data, silent) for law in ("Haar", "Gaussian")}
    assert set(records["Haar"]["log_gradients"]) == set(CASES)
    assert set(CASES) - set(records["Gaussian"]["log_gradients"]) == {
        name for name, case in CASES.items() if case.samples != "images"
    }
    weights = draw("Haar", 3072, 12, 5, seed=3)
    eye = torch.eye(12, dtype=torch.float64)
    few = outputs(Kind(norm="plain"), x[:3], [weights.first, eye])  # the second linear step does nothing
    for name, start, labels in ((FEW, few, y[:3]), (ORTHOGONAL, math.sqrt(12) * eye, y)):
        W = weights.hidden[0].clone().requires_grad_()
        F.cross_entropy(outputs(CASES[name].kind, start, [W, weights.last]), labels).backward()
        assert W.grad is not None
        wanted = float(W.grad.norm().log())
        assert records["Haar"]["log_gradients"][name][0] == pytest.approx(wanted, rel=1e-5)  # six digits
    assert records["Haar"]["identity_error"] < 1e-12 and records["Gaussian"]["identity_error"] is None


def test_weights() -> None:
    """Orthonormal rows or variance 1 / d_in; a deeper network begins with the weights of a smaller one."""
    haar, gaussian = draw("Haar", 40, 10, 5, seed=3), draw("Gaussian", 400, 100, 3, seed=3)
    for W in (haar.first, *haar.hidden):
        torch.testing.assert_close(W @ W.mT, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-12)  # rounding
    assert haar.hidden.shape == (4, 10, 10) and not torch.equal(haar.hidden[0], haar.hidden[1])
    for W in (gaussian.first, *gaussian.hidden):
        # variance of squares of W.numel() normal numbers, four standard deviations
        assert float(W.square().mean() * W.shape[1]) == pytest.approx(1, abs=4 * math.sqrt(2 / W.numel()))
    shorter = draw("Haar", 40, 10, 2, seed=3)
    assert torch.equal(shorter.hidden, haar.hidden[:1]) and torch.equal(shorter.last, haar.last)
    assert not torch.equal(draw("Haar", 40, 10, 2, seed=4).hidden, shorter.hidden)


def test_the_identity_of_isometry_gaps() -> None:
    """It is exact with orthogonal weights, and no identity with others."""
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind, errors = CASES[PLAIN].kind, []
    for law in ("Haar", "Gaussian"):
        weights = draw(law, 30, 8, 40, seed=0)
        path = activations(kind, kind.apply(0, x, weights.first), weights.hidden)
        gaps = isometry_gap(torch.stack(path))
        errors.append(float((gradient_experiment.isometry_identity(path, weights.hidden) - gaps).abs().max()))
        assert bool((gaps[1:] < gaps[:-1]).all()) == (law == "Haar")
    assert errors[0] < 1e-12 and errors[1] > 1  # rounding of 40 layers


def test_gradients_from_orthogonal_samples() -> None:
    """The mean of the squared gradient over draws is theory; the symmetric part is lost with the depth."""
    d, y, kind = 8, torch.arange(8) % 10, CASES[ORTHOGONAL].kind
    start, depths = math.sqrt(d) * torch.eye(d, dtype=torch.float64), [2, 6, 30]
    squares, theory = [], []
    for seed in range(60):
        weights = draw("Haar", d, d, depths[-1], seed)
        path = activations(kind, start, weights.hidden)
        squares.append(gradients(kind, path, y, weights, depths).square())
        theory.append(torch.tensor([haar_gradient(path[each - 1], y, weights.last, each) for each in depths]) ** 2)
    apart = torch.stack(squares) - torch.stack(theory)
    error = apart.std(0) / len(squares) ** 0.5
    assert bool((apart.mean(0).abs() < 4 * error).all())
    means = torch.stack(squares).mean(0)
    assert bool((error < 0.05 * means).all()) and means[2] < 0.8 * means[0]


def test_orthogonal_weights_keep_gradients_and_gaussian_ones_do_not() -> None:
    data, kind, depths, logs = noise(16), CASES[PLAIN].kind, [10, 60, 160], {}
    x = data.x_train.double().flatten(1)
    for law in ("Haar", "Gaussian"):
        norms = []
        for seed in range(4):
            weights = draw(law, 3072, 16, depths[-1], seed)
            path = activations(kind, kind.apply(0, x, weights.first), weights.hidden)
            norms.append(gradients(kind, path, data.y_train, weights, depths))
        logs[law] = torch.stack(norms).log().mean(0).numpy()
    assert np.ptp(logs["Haar"]) < 0.3 < 1 < logs["Gaussian"][2] - logs["Gaussian"][1]


def test_growth_by_theory() -> None:
    assert growth(Kind(), [5, 10]) == pytest.approx([0, 0], abs=1e-12)  # rounding
    assert growth(Kind(gain=True), [5, 50]) == pytest.approx([0, -0.4 * math.log(10)], rel=1e-12)  # rounding
    # E[cos(X)^2] and E[sin(X)^2] of a standard normal X
    ratio = (1 + math.exp(-2)) / (1 - math.exp(-2))
    assert growth(Kind("sin"), [2, 4])[1] == pytest.approx(math.log(ratio), rel=1e-9)  # a Hermite series
    # E[f'(a X)^2] a^2 / E[f(a X)^2] is 1 + 4/3 a^4 for tanh, up to terms of the next order, a^2 times a few
    shaped = growth(Kind("tanh", gain=True), [200, 220])[1] + 0.4 * math.log(220 / 200)
    assert shaped == pytest.approx(sum(2 / 3 * (number + 1) ** -1.6 for number in range(200, 220)), rel=8 * 200**-0.8)


@pytest.mark.parametrize("kind", [Kind(norm="plain"), Kind("tanh", norm="plain")], ids=["linear", "tanh"])
def test_growth_of_wide_layers(kind: Kind) -> None:
    """Gaussian weights, many more units than samples: both factors of theory together."""
    n, d, depths, changes = 32, 512, [3, 11], []
    for seed in range(4):
        weights = draw("Gaussian", d, d, depths[-1], seed)
        start = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        path = activations(kind, kind.apply(0, start, weights.first), weights.hidden)
        logs = gradients(kind, path, torch.arange(n) % 10, weights, depths).log()
        changes.append(float(logs[1] - logs[0]))
    theory = growth(kind, depths)[1] + 8 * gaussian_growth(n)
    error = np.std(changes, ddof=1) / len(changes) ** 0.5
    # four standard errors, and n / d of what theory leaves out
    assert np.mean(changes) == pytest.approx(theory, abs=4 * error + theory * n / d)


def test_training_is_that_of_torch() -> None:
    """Losses of the second of two networks that are trained together, against torch's optimiser on it alone."""
    data, setting = noise(), Setting("tanh, gain, Haar", 4, 0.05, **SMALL)
    record = deep_training.run(setting, data, silent)
    law, kind = ARMS[setting.arm]
    weights: Weights = draw(law, 3072, 12, 4, seed=1)
    parts = [each.float().clone().requires_grad_() for each in (weights.first, *weights.hidden, weights.last)]
    optimiser, generator = torch.optim.SGD(parts, lr=0.05), torch.Generator().manual_seed(0)
    for epoch in range(2):
        losses, right = [], []
        for batch in torch.randperm(60, generator=generator).split(12):
            y = data.y_train[batch]
            logits = outputs(kind, data.x_train[batch].flatten(1), parts)
            loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            right.append(float((logits.argmax(1) == y).float().mean()))
        assert record["losses"][1][epoch] == pytest.approx(np.mean(losses), rel=1e-4)  # float32, five digits
        assert record["accuracies"][1][epoch] == pytest.approx(np.mean(right), abs=1e-4)
    assert record["losses"][0] != record["losses"][1]


def test_a_training_that_diverges_is_told() -> None:
    record = deep_training.run(Setting("identity, Haar", 3, 1e30, **SMALL), noise(), silent)
    assert record["accuracies"] == record["losses"] == [[None, None]] * 2
    text = deep_training_page.section([record])
    [row] = [line for line in text.splitlines() if "identity, Haar" in line and line.startswith("|")]
    assert row.count("not finite") == 3
    assert deep_training_page.figure([record]) is not None


def interrupted(*words: object) -> None:
    raise KeyboardInterrupt


def test_the_study_on_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After an interruption, which loses no record, another call continues, and makes the same page."""
    depths = [2, 4, 9, 20]
    trainings = deep_training.settings([2, 3], [0.01, 0.1], **SMALL)
    assert len(trainings) == 4 * len(ARMS) and len(set(trainings)) == len(trainings)
    wanted: list[Wanted] = [*gradient_experiment.theories(depths), *gradient_experiment.settings(2, 12, depths)]
    wanted += trainings
    study(noise(), tmp_path, wanted)
    names = ["orthogonal_chains.md", "orthogonal_chains.png", "orthogonal_training.png", "records.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names[1:3])
    page, kept = (tmp_path / names[0]).read_text(), (tmp_path / names[3]).read_text()
    assert all(page.count(f"| {arm} |") == 4 for arm in ARMS) and "linear, Gaussian: at depth 20" in page
    lines = kept.splitlines(keepends=True)
    (tmp_path / names[3]).write_text("".join(lines[:5] + lines[-5:]))
    monkeypatch.setattr(deep_training, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(noise(), tmp_path, wanted)
    count = len(wanted) - len(trainings)
    assert (tmp_path / names[3]).read_text() == "".join(lines[:count] + lines[-5:])
    monkeypatch.undo()
    study(noise(), tmp_path, wanted)
    assert (tmp_path / names[3]).read_text() == kept and (tmp_path / names[0]).read_text() == page


def test_what_has_a_record_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths, calls, last = [2, 4, 9, 20], [], Setting("identity, Haar", 2, 0.1, **SMALL)
    wanted: list[Wanted] = [*gradient_experiment.theories(depths), *gradient_experiment.settings(1, 12, depths), last]
    study(noise(), tmp_path, wanted)
    real, more = deep_training.run, replace(last, seeds=3)

    def run(setting: Setting, images: Images, step: Step) -> Record:
        calls.append(setting)
        return real(setting, images, step)

    monkeypatch.setattr(deep_training, "run", run)
    monkeypatch.setattr(gradient_experiment, "run", None)
    study(noise(), tmp_path, [*wanted, more])
    assert calls == [more] and len(read_records(tmp_path / "records.jsonl")) == len(wanted) + 1


def test_kept_numbers_are_the_published_ones() -> None:
    """About 10 with Gaussian weights, flat with Haar weights, and theory from orthogonal samples."""
    draws = [record for record in read_records(RECORDS) if record.get("law") in ("Haar", "Gaussian")]
    names = {"Gaussian": PLAIN, "Haar": PLAIN, ORTHOGONAL: ORTHOGONAL}
    logs = {}
    for key, name in names.items():
        law = key if key in ("Gaussian", "Haar") else "Haar"
        logs[key] = np.array([record["log_gradients"][name] for record in draws if record["law"] == law])
    errors = {key: values.std(0, ddof=1) / len(values) ** 0.5 for key, values in logs.items()}
    assert logs["Gaussian"].mean(0)[-1] == pytest.approx(10, abs=3 * errors["Gaussian"][-1])
    # flat: from depth 100 to 1000 it changes by less than a hundredth of the change with Gaussian weights
    changes = {key: logs[key].mean(0)[-1] - logs[key].mean(0)[-4] for key in ("Haar", "Gaussian")}
    assert abs(changes["Haar"]) < changes["Gaussian"] / 100
    theory = np.mean([record["theory"] for record in draws if record["law"] == "Haar"], 0)
    # the mean of a logarithm is below the logarithm of the mean, by half a variance
    shift = logs[ORTHOGONAL].var(0, ddof=1)
    assert (abs(logs[ORTHOGONAL].mean(0) - theory) < 4 * errors[ORTHOGONAL] + shift).all()


def test_the_page_from_kept_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["orthogonal_chains", "--out", str(tmp_path)])
    code = run_app(app, "orthogonal_chains")
    assert (code, capsys.readouterr().err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "orthogonal_chains.md", "orthogonal_chains.png", "orthogonal_training.png"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "10,5"], "--depths: wanted increasing whole numbers above 1, separated by commas; got '10,5'"),
        (["--depths", "1,5"], "--depths: wanted increasing whole numbers above 1, separated by commas; got '1,5'"),
        (["--depths", "5"], "--depths: wanted at least two numbers; got '5'"),
        (["--train-depths", "a"], "--train-depths: wanted increasing whole numbers above 1, separated by commas;"),
        (["--rates", "0.1,0"], "--rates: wanted numbers above 0, separated by commas; got '0.1,0'"),
        (["--rates", "inf"], "--rates: wanted numbers above 0, separated by commas; got 'inf'"),
        (["--rates", "slow"], "--rates: wanted numbers above 0, separated by commas; got 'slow'"),
        (["--width", "2001"], "--width"),
    ],
)
def test_wrong_options_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["orthogonal_chains", *words, "--out", str(out)])
    code = run_app(app, "orthogonal_chains")
    said, err = capsys.readouterr()
    assert (code, said) == (2, "") and message in err and not out.exists()

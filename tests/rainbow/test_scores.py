# SPDX-License-Identifier: BSD-3-Clause
"""Which output of a network counts, and accuracies and metrics against labels of every form."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.rainbow.scores import Score

N, K = 40, 3
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, 6, 6, generator=GENERATOR)
PLACES = torch.randint(0, K, (N, 4, 4), generator=GENERATOR)  # a label for each position
KEYS = {"alignment", "held_out", "reference_alignment", "reference_held_out"}


def convolutions(*end: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), *end)


class Rows(nn.Module):
    """Outputs (N, positions, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutions(nn.Conv2d(5, K, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(2).transpose(1, 2)


def some_ignored(y: Tensor) -> Tensor:
    return y.masked_fill(torch.rand(y.shape, generator=torch.Generator().manual_seed(2)) < 0.3, -100)


def by_hand(net: nn.Module, y: Tensor, axis: int) -> float:
    outputs = net.eval()(X)
    predicted = outputs.argmax(axis) if axis else outputs.flatten() > 0
    counts = y.flatten() != -100
    return float((predicted.flatten() == y.flatten())[counts].double().mean())


CASES = {
    "classes": (lambda: convolutions(nn.Flatten(), nn.Linear(80, K)), PLACES[:, 0, 0], 1),
    "one logit": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1)), PLACES[:, 0, 0] % 2, 0),
    "one logit, floats": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1)), (PLACES[:, 0, 0] % 2).float(), 0),
    "one logit, booleans": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1)), PLACES[:, 0, 0] == 1, 0),
    "one logit, a column": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1)), (PLACES[:, :1, 0] % 2).float(), 0),
    "a number": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1), nn.Flatten(0)), PLACES[:, 0, 0] % 2, 0),
    "pixels": (lambda: convolutions(nn.Conv2d(5, K, 1)), PLACES, 1),
    "pixels, some ignored": (lambda: convolutions(nn.Conv2d(5, K, 1)), some_ignored(PLACES), 1),
    "pixels, one logit": (lambda: convolutions(nn.Conv2d(5, 1, 1)), PLACES % 2, 0),
    "tokens": (Rows, some_ignored(PLACES.flatten(1)), 2),
}


@pytest.mark.parametrize("make, y, axis", CASES.values(), ids=CASES)
def test_accuracy(make, y, axis):
    """In one chunk and in several, it is the share of right labels among those that count."""
    net = make()
    for size in (None, 7):
        _, report = rf.sample(net, (X, y), holdout=0, law="identity", batch_size=size)
        assert report.accuracy["reference_alignment"] == by_hand(net, y, axis)
        assert report.accuracy["alignment"] == pytest.approx(by_hand(net, y, axis), abs=2 / N)  # near ties may turn
    assert set(rf.sample(net, (X, y), factor=2)[1].accuracy) == KEYS
    rf.plan(net, (X, y))


REFUSED = {
    "a value for each class": (lambda: convolutions(nn.Flatten(), nn.Linear(80, K)), torch.zeros(N, K)),
    "two logits for zeros and ones": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 2)), torch.zeros(N)),
    "one label for a map": (lambda: convolutions(nn.Conv2d(5, K, 1)), PLACES[:, 0, 0]),
    "labels of other positions": (lambda: convolutions(nn.Conv2d(5, K, 1)), PLACES[:, :2]),
    "a class for a single logit": (lambda: convolutions(nn.Flatten(), nn.Linear(80, 1)), PLACES[:, 0, 0]),
}


@pytest.mark.parametrize("make, y", REFUSED.values(), ids=REFUSED)
def test_labels_that_are_not_understood(make, y):
    net, message = make(), r"^{}: labels y are \w+ \(N.*\), and the network gives outputs \(N.*\): wanted"
    for call in (rf.fit, rf.sample, rf.plan):
        with pytest.raises((TypeError, ValueError), match=message.format("data")):
            call(net, (X, y))
    with pytest.raises((TypeError, ValueError), match=message.format("holdout")):
        rf.fit(net, X, holdout=(X, y))
    assert rf.sample(net, X)[1].accuracy == {}


def test_an_ambiguous_axis_of_classes():
    outputs, y = torch.randn(N, 4, 4), torch.zeros(N, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels y are int64 \(N, 4\), and the network gives outputs \(N, 4, 4\)"):
        Score().check(y, outputs, "data")


def test_labels_out_of_range():
    net = convolutions(nn.Conv2d(5, K, 1))
    for label in (K, -1):
        y = PLACES.clone()
        y[3, 1, 2] = label
        with pytest.raises(ValueError, match=rf"label {label} of sample 3, position \(1, 2\), wanted 0 to {K - 1}"):
            rf.fit(net, (X, y))
    with pytest.raises(ValueError, match=r"^data: batches with labels \(N, 3, 4\) int64 and \(N, 4, 4\) int64"):
        rf.fit(net, [(X, PLACES), (X, PLACES[:, :3])])


@dataclass
class Results:
    hidden: Tensor
    logits: Tensor


Pair = namedtuple("Pair", "features scores")


class Named(nn.Module):
    """Gives features and class scores in a form."""

    def __init__(self, form) -> None:
        super().__init__()
        self.features = convolutions(nn.Flatten())
        self.head, self.form = nn.Linear(80, K), form

    def forward(self, x: Tensor):
        features = self.features(x)
        return self.form(features, self.head(features))


FORMS = {
    "dict": (lambda f, s: {"logits": s, "features": f}, None),
    "dict of one": (lambda f, s: {"scores": s}, None),
    "dict by name": (lambda f, s: {"features": f, "scores": s}, "scores"),
    "dict by place": (lambda f, s: {"features": f, "scores": s}, 1),
    "tuple": (lambda f, s: (f, s), 1),
    "named tuple": (Pair, "scores"),
    "named tuple by place": (Pair, 1),
    "dataclass": (Results, None),
    "dataclass by name": (Results, "logits"),
}


@pytest.mark.parametrize("form, output", FORMS.values(), ids=FORMS)
def test_the_output_that_counts(form, output, tmp_path):
    net, y = Named(form), PLACES[:, 0, 0]
    plain = nn.Sequential(net.features, net.head)
    model = rf.fit(net, (X, y), output=output)
    accuracy = model.sample(factor=2)[1].accuracy
    wanted = rf.sample(plain, (X, y), factor=2)[1].accuracy
    assert accuracy == wanted
    rf.save_model(model, tmp_path / "model.safetensors")
    again = rf.load_model(tmp_path / "model.safetensors", net, output=output)
    assert again.sample(factor=2)[1].accuracy == wanted


def test_an_output_that_is_not_there():
    y = PLACES[:, 0, 0]
    net = Named(lambda f, s: {"features": f, "scores": s})
    for output in (None, "logits", 2, -1):
        there = r"'features' \(N, 80\), 'scores' \(N, 3\): wanted the name of one of them"
        with pytest.raises(ValueError, match=rf"^output={output!r}: the network gives {there}"):
            rf.fit(net, (X, y), output=output)
    with pytest.raises(ValueError, match="^output='logits': the network gives no tensors"):
        rf.fit(convolutions(nn.Flatten(), nn.Linear(80, K)), (X, y), output="logits")
    for output in (True, 1.0, ["a"]):
        with pytest.raises(TypeError, match="^output=.*: wanted the name of an output, its place in a tuple, or None"):
            rf.fit(net, (X, y), output=output)


def mean_error(outputs: Tensor, y: Tensor) -> Tensor:
    assert len(outputs) == len(y), "all samples at once"
    return (outputs.squeeze(1) - y).abs().mean()


def test_metric():
    """Labels of any kind; the value is that of all samples together, and no accuracy is reported."""
    net, y = convolutions(nn.Flatten(), nn.Linear(80, 1)), torch.randn(N, generator=GENERATOR)
    wanted = float(mean_error(net(X).detach(), y))
    for size in (None, 7):
        network, report = rf.sample(net, (X, y), holdout=0, factor=2, metric=mean_error, batch_size=size)
        assert report.metric["reference_alignment"] == pytest.approx(wanted, rel=1e-6)  # sums in another order
        assert report.metric["alignment"] == pytest.approx(float(mean_error(network(X).detach(), y)), rel=1e-5)
        assert report.accuracy == {} and report.records()[0]["accuracy"] is None
    assert "metric: alignment " in str(report) and rf.Report.from_dict(report.to_dict()).metric == report.metric
    profile = rf.sample(net, (X, y), holdout=(X, y), metric=mean_error, accuracy_profile=True)[1]
    assert profile.accuracy_profile == [pytest.approx(profile.metric["held_out"], rel=1e-6)]


def test_a_metric_that_is_none():
    net, y = convolutions(nn.Flatten(), nn.Linear(80, 1)), torch.randn(N)
    with pytest.raises(TypeError, match="^metric=3: wanted a function of outputs and labels"):
        rf.fit(net, (X, y), metric=3)
    with pytest.raises(TypeError, match="^metric: <lambda> returned dict, wanted a number"):
        rf.sample(net, (X, y), metric=lambda outputs, y: {})


def test_a_new_classifier_needs_classes():
    net = convolutions(nn.Flatten(), nn.Linear(80, 1))
    for y in (PLACES[:, 0, 0] == 1, (PLACES[:, :1, 0] % 2)):
        for classifier in ("refit", "refit_aligned"):
            with pytest.raises(ValueError, match=f"^classifier='{classifier}': labels y are .*, wanted integers .N,"):
                rf.sample(net, (X, y), classifier=classifier)

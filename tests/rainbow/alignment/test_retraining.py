# SPDX-License-Identifier: BSD-3-Clause
"""The layers after the last site, trained again: L_{J+1} and the classifier of scattering networks."""

from pathlib import Path

import pytest
import torch
from here import draw
from torch import nn

import rainbow_fast as rf
from rainbow_fast import data
from rainbow_fast.networks import scattering
from rainbow_fast.rainbow.alignment.retraining import retrained_tail
from rainbow_fast.tracing.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def network(**options: object) -> nn.Module:
    net = scattering(3, 1 / 16, scale_last=True, image_size=16, seed=0, **options)
    with torch.no_grad():
        net.train()(draw(60, 3, 16, 16, seed=1))
    return net.eval()


def labelled(number: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(number, 3, 16, 16), torch.arange(number) % 10


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"norm": False}], ids=str)
def test_the_last_convolution_and_the_classifier_change_and_nothing_else(options: dict) -> None:
    net, (x, y) = network(**options), labelled()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sampled, report = rf.sample(net, (x, y), holdout=0, classifier="retrained")
    plain, other = rf.sample(net, (x, y), holdout=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert sampled.retrained[0] == "block4.linear" and sampled.retrained[-1] == "fc"
    assert len(sampled.retrained) == 3  # the third one is the batch norm between them, which has running averages
    old = dict(plain.body.named_parameters())
    new = {name for name, p in sampled.body.named_parameters() if not torch.equal(p, old[name])}
    assert new == {"block4.linear.weight", "fc.weight"} | ({"fc.bias"} & set(old))
    assert report.accuracy["trained_classifier_alignment"] == other.accuracy["alignment"]
    assert "classifier=retrained" in str(report) and rf.Report.from_dict(report.to_dict()).ridge is None


def test_it_lowers_the_loss_and_is_deterministic() -> None:
    net, (x, y) = network(), labelled(200)
    traced = trace(net, x[:1])
    tail = traced.tail()
    state: tuple = (x,)
    with torch.no_grad():
        for place, site in enumerate(traced.sites):
            state = traced.advance(place, state, [])
            state = (site.reference(state[0]), *state[1:])
        torch.manual_seed(5)
        one = retrained_tail(tail, state[0], y)
        drawn = torch.rand(1)
        two = retrained_tail(tail, state[0], y)
        losses = [nn.functional.cross_entropy(t.last(t.between(state[0])), y) for t in (tail, one)]
    assert losses[1] < losses[0]
    assert all(
        torch.equal(a, b)
        for left, right in zip(one.layers().values(), two.layers().values(), strict=True)
        for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    )
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "the caller's generator was moved"


def test_files_resumed_runs_and_wide_networks(tmp_path: Path) -> None:
    net, (x, y) = network(), labelled()
    more = {"holdout": 0, "factor": 2, "classifier": "retrained", "alignment_blocks": "filter"}
    sampled, report = rf.sample(net, (x, y), **more, resume_dir=tmp_path / "run")
    again, same = rf.sample(net, (x, y), **more, resume_dir=tmp_path / "run")
    rf.save(sampled, tmp_path / "network.rf")
    loaded = rf.load(tmp_path / "network.rf", net)
    assert torch.equal(again(x), sampled(x)) and torch.equal(loaded(x), sampled(x))
    assert loaded.retrained == sampled.retrained and str(same.to_dict()) == str(report.to_dict())
    wide = sampled.materialize()
    assert (wide(x) - sampled(x)).abs().max() < 1e-4 * sampled(x).abs().max()  # float32 through three sites


def test_the_plan_counts_it() -> None:
    net, (x, y) = network(), labelled()
    machine = rf.Machine(1, 1, 1, 1, 1, 1, 1)
    plain, retrained = (
        rf.plan(net, (x, y), holdout=0, machine=machine, classifier=each) for each in (None, "retrained")
    )
    assert retrained.rest["classifier"].flops > 0 and "classifier" not in plain.rest
    assert retrained.disk_bytes > plain.disk_bytes and retrained.peak_bytes >= plain.peak_bytes


def test_what_is_refused() -> None:
    net, (x, y) = network(), labelled()
    with pytest.raises(ValueError, match="classifier='retrained': data has no labels"):
        rf.sample(net, x, holdout=0, classifier="retrained")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(
        ValueError, match="no layer with weights .* site '2' and the classifier '3': .* 'refit_aligned'"
    ):
        rf.sample(plain, (x, y), holdout=0, classifier="retrained")


@pytest.mark.slow
def test_it_is_better_than_the_trained_layers_on_images(cifar10_folder: Path) -> None:
    x, y, x_test, y_test = data.cifar10(cifar10_folder)
    x, y, x_test, y_test = x[:4000], y[:4000], x_test[:4000], y_test[:4000]
    net = scattering(3, 1 / 16, scale_last=True, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()
    accuracies = {}
    for classifier in (None, "refit_aligned", "retrained"):
        _, report = rf.sample(net, (x, y), holdout=(x_test, y_test), seed=0, classifier=classifier)
        accuracies[classifier] = report.accuracy["held_out"]
    standard_error = (0.25 / len(x_test)) ** 0.5
    assert accuracies["retrained"] > accuracies[None] + 3 * standard_error

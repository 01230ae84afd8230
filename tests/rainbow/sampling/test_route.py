# SPDX-License-Identifier: BSD-3-Clause
"""How features are computed: the choice from shapes, and equal results for every choice."""

import itertools

import pytest
import torch
from architectures import Residual, build
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.network.wide_layer import wide_layer
from rainbow_fast.rainbow.sampling import run
from rainbow_fast.rainbow.sampling.route import (
    FUSED,
    KEPT,
    WIDE,
    Route,
    Shape,
    kept_multiplications,
    wide_multiplications,
)

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def counted(compute) -> float:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 2


GRID = list(itertools.product((3, 17), (3, 8), (2, 8), (4, 9), (3, 8), (3, 30, 300)))


@torch.no_grad()
@pytest.mark.parametrize("d, d_before, n, r, n_before, samples", GRID)
def test_the_choice_is_that_of_counted_multiplications(d, d_before, n, r, n_before, samples):
    """Brute force: both ways are run, and their multiplications are counted."""
    n, r, n_before = min(n, d), min(r, d), min(n_before, d_before)
    net = mlp([d_before, d_before, d, 2], seed=0).double()
    rank = {} if r == d else {"rank": {"4": r}}
    network, _ = rf.sample(net, images(samples + 20, d_before), holdout=20, width={"2": n_before, "4": n}, **rank)
    first, second, layer = network.site("2"), network.site("4"), net[3]
    phi = images(samples + 20, n_before)
    kept = counted(lambda: second.preactivations(layer(first.aligned_features(phi))))
    wide = counted(lambda: wide_layer(first, [layer], second.drawn)(phi))
    shape = Shape(samples + 20, 1.0, d, n, r, d_before, n_before, 1)
    U = 0 if r == d else (samples + 20) * d * r  # the product U^T z, which is counted with the rows
    assert kept_multiplications(shape) + U == kept and wide_multiplications(shape) == wide
    _, report = rf.sample(net, images(samples + 20, d_before), holdout=20, width={"2": n_before, "4": n}, **rank)
    chosen = WIDE if wide < kept_multiplications(shape) else KEPT
    assert [site.route for site in report.sites] == [KEPT, chosen]
    plan = rf.plan(net, images(samples + 20, d_before), holdout=20, width={"2": n_before, "4": n}, **rank)
    assert [site.route for site in plan.sites] == [KEPT, chosen]


def chain(norm: bool = False, pool: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, stride=2)]
    layers += [nn.BatchNorm2d(8)] if norm else []
    layers += [nn.LeakyReLU(0.2), *([nn.MaxPool2d(2)] if pool else []), nn.Conv2d(8, 8, 1, bias=False), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double().eval()


def normalised() -> nn.Sequential:
    """Sites that end in a normalisation, whose statistics become part of the alignment."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 16, 3)).double().eval()


def dead() -> nn.Sequential:
    """Neurons of the reference that are never active, so that M has null directions."""
    net = mlp([8, 10, 10, 3], seed=0, bias=True).double()
    with torch.no_grad():
        net[1].bias[:4] = -100.0
    return net


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.relu(self.a(x)))).mean(1))


CASES = {
    "mlp": (lambda: mlp([8, 10, 9, 3], seed=0).double(), (300, 8)),
    "mlp with biases": (lambda: mlp([8, 10, 9, 3], seed=0, bias=True).double(), (300, 8)),
    "dead neurons": (dead, (300, 8)),
    "chain": (chain, (60, 2, 8, 8)),
    "chain with norm and pooling": (lambda: chain(True, True), (60, 2, 8, 8)),
    "normalised": (normalised, (60, 2, 8, 8)),
    "residual": (lambda: build(Residual).double(), (60, 1, 8, 8)),
    "tokens": (lambda: Tokens().double(), (60, 5, 8)),
}
OPTIONS = [
    {},
    {"method": "calibrated"},
    {"center": True, "offset": True, "scale": "optimal"},
    {"factor": 0.5, "scale": "optimal", "alignment": "polar_complete"},
    {"rank": 3, "keep_mean": True, "scale": "nuclear"},
    {"law": "identity"},
]


class NormalisedTokens(nn.Module):
    """A batch norm whose channels are tokens, before a linear layer of as many channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(8, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.dropout, self.norm = nn.Dropout(), nn.BatchNorm1d(5)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(self.norm(self.dropout(torch.relu(self.a(x)))))).mean(1))


@torch.no_grad()
def test_norms_over_tokens_are_not_folded(monkeypatch):
    net, x = NormalisedTokens().double().eval(), images(60, 5, 8)
    got, report = rf.sample(net, x)
    assert [site.route for site in report.sites] == [KEPT, KEPT]
    monkeypatch.setattr(run, "choose_routes", fused)
    torch.testing.assert_close(got(x), rf.sample(net, x)[0](x), rtol=1e-9, atol=1e-9)


def fused(spec, *_) -> dict[str, Route]:
    return {name: Route(FUSED) for name in spec.widths}


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_all_routes_give_the_same_network(case, options, monkeypatch):
    """Networks, errors and reports agree to rounding; the identity has an error of 0, which traces cannot measure."""
    make, shape = CASES[case]
    net, x = make(), images(*shape)
    y = torch.arange(len(x)) % 3
    got, report = rf.sample(net, (x, y), holdout=20, **options)
    monkeypatch.setattr(run, "choose_routes", fused)
    wanted, other = rf.sample(net, (x, y), holdout=20, **options)
    assert {site.route for site in other.sites} == {FUSED} and FUSED not in {site.route for site in report.sites}
    # Rounding of float64, times the condition of the aligned directions of up to 1e6.
    torch.testing.assert_close(got(x), wanted(x), rtol=1e-8, atol=1e-8 * float(wanted(x).abs().max()))
    for mine, theirs in zip(report.sites, other.sites, strict=True):
        for name in ("error", "error_centred", "held_out_error", "held_out_error_centred", "scale", "similarity"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-6, abs=1e-14, nan_ok=True), name
        assert (mine.M_rank, mine.samples, mine.activity) == (theirs.M_rank, theirs.samples, theirs.activity)
        assert mine.sampled_activity == pytest.approx(theirs.sampled_activity, abs=0.01)  # other positions of z
    assert report.accuracy == other.accuracy


@torch.no_grad()
@pytest.mark.parametrize("classifier", ["refit", "refit_aligned"])
def test_refit_classifiers(classifier, monkeypatch):
    net, x = chain(), images(60, 2, 8, 8)
    data = x, torch.arange(60) % 3
    got, report = rf.sample(net, data, classifier=classifier, accuracy_profile=True)
    monkeypatch.setattr(run, "choose_routes", fused)
    wanted, other = rf.sample(net, data, classifier=classifier, accuracy_profile=True)
    torch.testing.assert_close(got(x), wanted(x), rtol=1e-7, atol=1e-7)
    assert report.accuracy_profile == other.accuracy_profile and report.ridge == other.ridge


def test_what_is_fused():
    """More neurons than channels, alignments that read z, flattened alignments, half precision, stored or computed."""
    x = images(60, 2, 8, 8)

    def routes(net: nn.Module | None = None, data: Tensor = x, **options) -> set[str]:
        return {site.route for site in rf.plan(net or chain(), data, **options).sites}

    assert routes(factor=1.2) == routes(method="regression") == routes(storage_dtype=torch.bfloat16) == {FUSED}
    assert routes(chain().to(torch.bfloat16), x.bfloat16()) == {FUSED}
    flat = nn.Sequential(*chain()[:-3], nn.Flatten(), nn.Linear(8 * 16, 3)).double()
    assert routes(flat, align_flattened=True) == {FUSED, KEPT, WIDE}
    assert routes() == {KEPT, WIDE} and routes(method="calibrated") == {KEPT}, "recalibration reads z"


@torch.no_grad()
def test_a_part_of_the_samples(monkeypatch):
    """M is the mean of a part of the samples; errors are those of all samples, so they are measured."""
    model = rf.fit(chain(), images(60, 2, 8, 8), max_samples=500, holdout=0)
    got, report = model.sample(scale="optimal")
    monkeypatch.setattr(run, "choose_routes", fused)
    wanted, other = model.sample(scale="optimal")
    assert [site.error for site in report.sites] == pytest.approx([site.error for site in other.sites], rel=1e-6)
    x = images(9, 2, 8, 8)
    torch.testing.assert_close(got(x), wanted(x), rtol=1e-8, atol=1e-8)

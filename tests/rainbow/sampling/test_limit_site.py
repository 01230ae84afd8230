# SPDX-License-Identifier: BSD-3-Clause
"""Sites of infinitely many neurons: their closed form, written out; the limit of wide networks; files and errors."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from here import draw
from stopping import Stop, stop_when
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.nn import RandomFeatures
from rainbow_fast.rainbow.files.network_file import NETWORK
from rainbow_fast.rainbow.sampling import limit_site

pytest.importorskip("scipy")
pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")

F64 = torch.float64
INPUTS, SAMPLES = 10, 80
# Sums of some hundred products in float64, multiplied by the condition of M, below 1e4.
CLOSED = {"rtol": 1e-9, "atol": 1e-10}


def network(**options: object) -> nn.Module:
    return mlp((INPUTS, 9, 7, 3), seed=0, **options).double()


def data(count: int = SAMPLES) -> Tensor:
    return draw(count, INPUTS, dtype=F64)


def limit(reference: nn.Module, x: Tensor, **options: object) -> tuple[rf.RainbowNetwork, rf.Report]:
    return rf.sample(reference, x, holdout=0, factor=math.inf, **options)


def root(C: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values.clamp(min=0) ** power) @ vectors.T


def written_out(reference: nn.Sequential, x: Tensor, test: Tensor) -> Tensor:
    """The logits of the limit by the formula of the paper, layer by layer: bias-free layers and ReLUs."""
    layers = [part.weight.detach() for part in reference.modules() if isinstance(part, nn.Linear)]
    phi, here, there = x, x, test
    for W in layers[:-1]:
        phi, d = (phi @ W.T).relu(), len(W)
        K, k = (expected_kernel(side @ W.T / d**0.5, here @ W.T / d**0.5) for side in (here, there))
        A = root(phi.T @ K @ phi, -0.5) @ phi.T
        here, there = (d**0.5 * side @ A.T for side in (K, k))
    return there @ layers[-1].T


def test_the_limit_is_its_closed_form() -> None:
    x, test = data(), draw(20, INPUTS, dtype=F64, seed=1)
    sampled, report = limit(network(), x)
    torch.testing.assert_close(sampled(test), written_out(network(), x, test), **CLOSED)
    for site, d in zip(report.sites, (9, 7), strict=True):
        assert (site.n, site.d, site.route, site.M_rank) == (math.inf, d, "limit", d)
        assert site.scale == pytest.approx(d**0.5, rel=1e-12)  # a rounding
        assert 1 < site.M_condition < 1e4 and 0 < site.similarity < 1
    assert abs(report.sites[0].activity - report.sites[0].sampled_activity) < 0.1  # relu: half of all inputs


def test_a_badly_conditioned_m_is_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the polar factor give the same network; also where a channel of the reference is always zero."""
    x, reference = data(), network()
    square, report = limit(reference, x)
    monkeypatch.setattr(limit_site, "SQUARED", 1.0)
    factored, of_factor = limit(reference, x)
    # The jitter of 1e-11 of the diagonal, times the condition of K, below 1e3.
    torch.testing.assert_close(factored(x), square(x), rtol=1e-7, atol=1e-7)
    for one, other in zip(report.sites, of_factor.sites, strict=True):
        assert one.M_condition == pytest.approx(other.M_condition, rel=1e-6)  # the same jitter
        assert one.similarity == pytest.approx(other.similarity, rel=1e-6)
    monkeypatch.undo()
    with torch.no_grad():
        next(reference.parameters())[0] = 0
    dead, report = limit(reference, x)
    assert report.sites[0].M_rank == 8 and not dead.site(report.sites[0].site).A[0].any()


def error(reference: nn.Module, x: Tensor, n: int, seeds: int, **options: object) -> tuple[float, float]:
    """Mean and standard error over networks of |outputs - outputs of the limit|^2 over the limit's own."""
    wanted = limit(reference, x, **options)[0](x).detach()
    errors = []
    for index in range(seeds):
        finite = rf.sample(reference, x, holdout=0, width=n, network_index=index, **options)[0](x).detach()
        errors.append(float((finite - wanted).square().sum() / wanted.square().sum()))
    values = torch.tensor(errors, dtype=F64)
    return float(values.mean()), float(values.std()) / seeds**0.5


LAWS = {
    "paper": {},
    "mean kept": {"keep_mean": True},
    "rank": {"rank": 4},
    "optimal scale, centred": {"scale": "optimal", "center": True, "offset": True},
    "nuclear scale": {"scale": "nuclear"},
    "calibrated": {"method": "calibrated"},
    "white": {"law": "white"},
    "bootstrap": {"law": "bootstrap", "rank": 6},
    "smoothed bootstrap": {"law": "bootstrap", "smoothing": 0.5},
}


@pytest.mark.parametrize("law", LAWS)
def test_wide_networks_converge_at_rate_one(law: str) -> None:
    """The squared distance to the limit falls as 1/n: sixteen times the width, a sixteenth of it.

    4 standard errors of both means.
    """
    x, reference = data(), network()
    options = LAWS[law]
    (near, near_error), (far, far_error) = (error(reference, x, n, 6, **options) for n in (2**15, 2**11))
    assert far < 0.05
    relative = math.hypot(near_error / near, far_error / far)
    assert abs(math.log2(far / near) - 4) < 4 * relative / math.log(2)


def test_the_bootstrap_without_smoothing_is_the_reference() -> None:
    """Infinitely many neurons are each of the reference's equally often; those of random features, too."""
    x, test = data(), draw(20, INPUTS, dtype=F64, seed=1)
    torch.manual_seed(0)
    layers = [layer for d in (INPUTS, 6) for layer in (nn.Linear(d, 4, bias=False), RandomFeatures(4, 6, seed=d))]
    for reference in (network(), nn.Sequential(*layers, nn.Linear(6, 2)).double()):
        sampled, report = limit(reference, x, law="bootstrap")
        torch.testing.assert_close(sampled(test), reference(test), **CLOSED)
        for site in report.sites:
            assert site.error < 1e-12 and abs(site.activity - site.sampled_activity) < 1e-12  # roundings


def test_maps_and_mixed_widths() -> None:
    """Positions are samples; a site of finite width stands beside one of infinite width, in both orders."""
    reference = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 9, 3)
    ).double()
    x = draw(40, 2, 6, 6, dtype=F64)
    model = rf.fit(reference, x, holdout=8)
    for infinite, finite in (("1", "3"), ("3", "1")):
        wanted, report = model.sample(width={infinite: math.inf, finite: 20})
        assert {site.site: site.n for site in report.sites} == {infinite: math.inf, finite: 20}
        assert all(site.samples == 32 * {"1": 16, "3": 9}[site.site] for site in report.sites)
        few, many = (model.sample(width={infinite: n, finite: 20})[0](x) for n in (2**8, 2**14))
        # Widths that differ by 64: errors by about 8.
        assert (many - wanted(x)).norm() < 0.3 * (few - wanted(x)).norm() < 0.3 * wanted(x).norm()


def test_fewer_rows_are_nystroms_kernel() -> None:
    x, test = data(), draw(20, INPUTS, dtype=F64, seed=1)
    reference = mlp((INPUTS, 9, 3), seed=0).double()
    sampled, report = limit(reference, x, limit_rows=30, seed=5)
    site = sampled.site(report.sites[0].site)
    assert site.rows.shape == (30, 9) and report.sites[0].samples == SAMPLES
    W, V = (part.weight.detach() for part in reference.modules() if isinstance(part, nn.Linear))
    u, v, phi = x @ W.T / 3, test @ W.T / 3, (x @ W.T).relu()
    apart = torch.cdist(site.rows, u, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(apart.min(1).values.max()) < 1e-12  # the rounding of products of ten numbers
    K, k = (expected_kernel(side, site.rows) for side in (u, v))
    features = expected_kernel(site.rows).inverse()
    A = root(phi.T @ K @ features @ K.T @ phi, -0.5) @ phi.T @ K @ features
    torch.testing.assert_close(sampled(test), 3 * k @ A.T @ V.T, rtol=1e-6, atol=1e-6)  # the jitter
    other = limit(reference, x, limit_rows=30, seed=6)[0].site(report.sites[0].site)
    assert not torch.equal(other.rows, site.rows)


@pytest.mark.parametrize(
    "options", [{}, {"method": "calibrated", "rank": 4}, {"law": "bootstrap", "smoothing": 0.5, "rank": 4}]
)
def test_files_and_reports(tmp_path, options: dict) -> None:
    reference, x = network(), data()
    sampled, report = limit(reference, x, **options)
    rf.save(sampled, tmp_path / "limit.safetensors")
    loaded = rf.load(tmp_path / "limit.safetensors", reference)
    assert torch.equal(loaded(x), sampled(x))
    again = rf.Report.from_dict(json.loads(report.to_json()))
    assert again.to_dict() == report.to_dict() and again.sites[0].n == math.inf
    assert again.options.factor == math.inf
    assert "limit" in str(report) and "inf" in str(report)
    halves = sampled.half().site(sampled.sampled[0])
    assert halves.A.dtype == halves.rows.dtype == F64


def test_damaged_files(tmp_path) -> None:
    reference, x, path = network(), data(), tmp_path / "file.safetensors"
    finite, _ = rf.sample(reference, x, holdout=0, factor=1)
    infinite, _ = limit(reference, x)
    smooth, _ = limit(reference, x, law="bootstrap", smoothing=0.5)
    for sampled, name, value, message in (
        (smooth, "matrix", torch.zeros(0, 9, dtype=F64), "matrix has no centers, wanted at least one"),
        (infinite, "rows", None, "rows: wanted for a site of infinitely many neurons, and for no other"),
        (finite, "rows", torch.zeros(9, 9), "rows: wanted for a site of infinitely many neurons, and for no other"),
        (finite, "pooling", torch.zeros(1, 1), "pooling: wanted for images at a site of infinitely many neurons"),
    ):
        rf.save(sampled, path)
        header, tensors = NETWORK.read(path)
        changed = tensors | {f"{sampled.sampled[0]}.{name}": value}
        NETWORK.write(path, header, {k: t for k, t in changed.items() if t is not None})
        with pytest.raises(ValueError, match=f"path: .* does not fit the reference: {message}"):
            rf.load(path, reference)


def test_an_interrupted_run_continues(tmp_path) -> None:
    x, reference = data(), network()
    whole, report = limit(reference, x)
    stopped = tmp_path / "run"
    with pytest.raises(Stop):
        limit(reference, x, resume_dir=stopped, progress=stop_when(lambda done, total, what: done == total))
    sampled, of_resumed = limit(reference, x, resume_dir=stopped)
    assert torch.equal(sampled(x), whole(x)) and of_resumed.to_dict() == report.to_dict()


def test_constant_activations_are_their_offset() -> None:
    reference = network(bias=True)
    with torch.no_grad():
        next(reference.parameters()).zero_()
    x = data()
    sampled, report = limit(reference, x, method="calibrated")
    torch.testing.assert_close(sampled(x), reference(x), rtol=1e-13, atol=1e-13)  # some roundings
    assert [site.M_rank for site in report.sites] == [0, 0]


def test_activations_may_be_recomputed() -> None:
    x = data().float()
    reference = network().float()
    sampled = [limit(reference, x, batch_size=30, storage=kind)[0](x) for kind in ("memory", "recompute")]
    assert torch.equal(*sampled)


def test_the_plan_counts_the_kernel() -> None:
    reference, x = network(), data()
    costs = [rf.plan(reference, x, factor=math.inf, limit_rows=rows) for rows in (20, 4096)]
    assert costs[0].flops < costs[1].flops and costs[0].disk_bytes < costs[1].disk_bytes
    site = costs[1].sites[0]
    rows = round(0.9 * SAMPLES)
    assert (site.n, site.route, site.A_bytes) == (math.inf, "limit", 8 * 9 * rows)
    assert "limit" in str(costs[1]) and "inf" in str(costs[1])


def test_there_are_no_neurons() -> None:
    sampled, report = limit(network(), data())
    name = report.sites[0].site
    with pytest.raises(ValueError, match=f"site '{name}' has infinitely many neurons: wanted a network of finite"):
        sampled.materialize()
    site, z = sampled.site(name), draw(2, 9, dtype=F64)
    for what, call in {"features": site.features, "pre-activations": site.preactivations}.items():
        with pytest.raises(ValueError, match=f"infinitely many neurons, whose {what} cannot be written out"):
            call(z)
    with pytest.raises(ValueError, match="infinitely many neurons, whose weights cannot be written out"):
        site.effective_rows()


NORMALISED = nn.Sequential(nn.Linear(INPUTS, 4), nn.ReLU(), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
POOLED = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
NO_LIMIT = (
    "law='identity' has no closed form: wanted 'gaussian', 'orthonormal', 'white', 'bootstrap', or a law with `limit`"
)
STEEP = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        (network, {"law": "identity"}, NO_LIMIT),
        (network, {"method": "regression"}, "alignment='regression' has no limit: wanted 'polar'"),
        (network, {"scale": "one"}, "scale='one' grows without limit"),
        (lambda: NORMALISED, {}, "has no closed form with pooling, a normalisation, or an activation"),
        (lambda: POOLED, {}, "has no closed form with pooling, a normalisation, or an activation"),
        (lambda: cnn(seed=0), {"align_flattened": True}, "align_flattened=True has no limit here"),
        (network, {"limit_rows": 0}, "limit_rows=0: wanted"),
        (network, {"factor": -math.inf}, "factor=-inf: wanted a number above 0"),
    ],
)
def test_what_has_no_closed_form(reference: Callable[[], nn.Module], options: dict, message: str) -> None:
    net = reference().double().eval()
    first = next(net.parameters())
    x = draw(20, INPUTS, dtype=F64) if first.dim() == 2 else draw(20, first.shape[1], 7, 7, dtype=F64)
    if "align_flattened" in options:
        x = draw(20, 1, 32, 32, dtype=F64)
    with pytest.raises(ValueError, match=message):
        rf.sample(net, (x, torch.arange(20) % 2), holdout=0, **{"factor": math.inf} | options)


def test_a_steep_series_names_the_site() -> None:
    with pytest.raises(ValueError, match="site '1': u: a row of norm .* makes tanh too steep"):
        limit(STEEP.double(), 1000 * data())

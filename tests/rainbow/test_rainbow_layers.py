# SPDX-License-Identifier: BSD-3-Clause
"""Networks of rainbow layers: their random features are sites with an exact law, in every way of sampling."""

import math

import pytest
import torch
from here import draw
from networks_of_rainbow_layers import F64, NETS, SITES, built, rows
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.nn import RainbowLinear, RandomFeatures

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]
Y = torch.arange(200) % 3


@pytest.fixture(scope="module", params=NETS)
def fitted(request) -> tuple[str, nn.Module, Tensor, rf.RainbowModel]:
    net, x = built(request.param)
    return request.param, net, x, rf.fit(net, (x, Y), holdout=0)


# --- the sites ---


def test_sites(fitted) -> None:
    kind, net, x, model = fitted
    assert [s.site.name for s in model.sites] == SITES[kind]
    table = rf.sites(net, x)
    assert [site.name for site in table] == SITES[kind] and all(site.kept is None for site in table)
    assert table.route == ("modules" if kind == "branching" else "graph")
    for s, info in zip(model.sites, table, strict=True):
        layer = net.get_submodule(s.site.name.removesuffix(".features")) if s.expansion is not None else None
        if layer is not None:
            features = layer if isinstance(layer, RandomFeatures) else layer.features
            assert (s.d, s.channels, s.neurons) == (features.rank, features.n, features.n)
            assert info.channels == features.rank and info.activation.startswith("RandomFeatures + ")
            assert not s.has_mean_row and 0 < s.activity < 1


@pytest.mark.parametrize("bn", [False, True])
def test_poolings_around_random_features(bn: bool) -> None:
    """One after them is a part of the site. One before stays: of pooled channels they are another function."""
    net, x = built("maps normalised" if bn else "maps")
    first, second = rf.sites(net, x)[:2]
    assert first.activation == "RandomFeatures + ReLU" + (" + BatchNorm2d" if bn else " + MaxPool2d")
    assert (first.z_shape, first.phi_shape) == ((4, 8, 8), (9, 8, 8) if bn else (9, 4, 4))
    assert (second.activation, second.z_shape, second.phi_shape) == ("RandomFeatures + ReLU", (5, 3, 3), (11, 3, 3))


@pytest.mark.parametrize("data", [False, True], ids=["without data", "with data"])
def test_random_features_name_their_axis(data: bool) -> None:
    """Also where the layer before writes another one."""
    x = draw(300, 3, 7, dtype=F64)
    for net, axis in (
        (nn.Sequential(nn.Conv1d(3, 4, 1), RandomFeatures(7, 9, seed=0, axis=-1), nn.Conv1d(4, 2, 1)), -1),
        (nn.Sequential(nn.Linear(7, 7), RandomFeatures(3, 9, seed=0), nn.Conv1d(9, 2, 1)), 1),
    ):
        net.to(F64)
        if not data:
            assert rf.sites(net)[0].kept is None
            continue
        (site,) = rf.sites(net, x)
        assert site.channels == net[1].rank and site.z_shape[1 if axis == -1 else 0] == net[1].rank
        network, _ = rf.sample(net, x, holdout=0, law="identity", sites=["1"])
        assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # float64, times the condition of M
        with pytest.raises(
            ValueError, match=f"channel_axes: {-axis} for site '1', whose random features have axis {axis}"
        ):
            rf.fit(net, x, channel_axes={"1": -axis})


@pytest.mark.parametrize("kind", ["rows", "branching"])
def test_hooks_keep_a_site(kind: str) -> None:
    net, x = built(kind)
    layer = net[1] if kind == "rows" else net.second
    name = "1.features" if kind == "rows" else "second.features"
    handle = layer.features.register_forward_hook(lambda module, args, result: 2 * result)
    network, report = rf.sample(net, x, law="identity", holdout=0)
    assert report.kept == {name: "it has hooks, which new neurons would not run"}
    assert name not in [site.site for site in report.sites]
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # float64, times the condition of M
    handle.remove()
    assert name in [site.site for site in rf.sample(net, x)[1].sites]


@pytest.mark.parametrize("call", ["fit", "sample", "sites", "plan"])
def test_layers_that_share_an_address_are_a_warning(call: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(RainbowLinear(6, 8, 3, seed=1), RainbowLinear(8, 8, 3, seed=1), nn.Linear(8, 2))
    message = "random features with the same seed and stream, .*: '0.features', '1.features'; wanted another stream"
    with pytest.warns(UserWarning, match=message) as caught:
        getattr(rf, call)(net, draw(50, 6))
    ours = [warning for warning in caught if "same seed" in str(warning.message)]
    assert len(ours) == 1 and (call == "plan" or ours[0].filename == __file__)


# --- identity ---

METHODS = [
    {"method": "paper"},
    {"method": "calibrated"},
    {"method": "regression", "ridge": 0.0},
    {"center": True, "offset": True},
]


@pytest.mark.parametrize("options", METHODS, ids=str)
@torch.no_grad()
def test_identity(fitted, options) -> None:
    kind, net, x, model = fitted
    network, report = model.sample(law="identity", **options)
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # rounding of float64 times the condition of M
    assert [site.random_features for site in report.sites] == [name not in ("relu", "act") for name in SITES[kind]]


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_identity_in_single_precision(kind: str) -> None:
    net, x = built(kind, torch.float32)
    network, _ = rf.sample(net, x, holdout=0, law="identity", method="calibrated")
    # 6e-8, about twenty roundings, times the square root of the condition of M that its small directions come with.
    assert (network(x) - net(x)).norm() <= 5e-5 * net(x).norm()


def test_identity_wants_the_width_of_the_layer() -> None:
    net, x = built("rows")
    message = "law='identity': site '0.features' has 30 neurons, wanted the reference's 15"
    with pytest.raises(ValueError, match=message):
        rf.sample(net, x, law="identity", factor=2)


# --- sampling ---

LAWS = ["gaussian", "orthonormal", "bootstrap"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["paper", "calibrated", "regression"])
def test_laws_and_widths(fitted, law: str, method: str) -> None:
    kind, net, x, model = fitted
    x = x[:20]
    for width in (2, 10, 40):
        network, report = model.sample(width=width, law=law, method=method, smoothing=0.3 * (law == "bootstrap"))
        assert [site.n for site in report.sites] == [width] * len(report.sites)
        assert all(0 < site.error < math.inf for site in report.sites)
        plain = network.materialize()
        torch.testing.assert_close(plain(x), network(x), rtol=1e-9, atol=1e-9)  # float64, another order of sums
    assert (network(x) - net(x)).norm() > 1e-6 * net(x).norm(), "another network than the reference"


def test_a_single_channel() -> None:
    """Random features of one number: the few functions of it are the same for all neurons."""
    torch.manual_seed(0)
    net, x = nn.Sequential(RainbowLinear(6, 9, 1, seed=1), nn.Linear(9, 3)).to(F64), draw(200, 6, dtype=F64)
    assert rf.sites(net, x)[0].channels == 1
    network, _ = rf.sample(net, x, holdout=0, law="identity")
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # rounding of float64; M has rank 2
    assert rf.sample(net, x, width=40, method="regression")[1].sites[0].error < 1e-5  # of the ridge, 1e-3


def test_a_single_neuron() -> None:
    """Of a layer whose features are never all zero."""
    torch.manual_seed(0)
    net = nn.Sequential(RainbowLinear(6, 9, 3, seed=1, activation="tanh"), nn.Linear(9, 3))
    for law in LAWS:
        network, report = rf.sample(net, draw(200, 6), width=1, law=law)
        assert report.sites[0].n == 1 and network.site("0.features").A.shape == (9, 1)


def test_the_law_is_that_of_the_layer() -> None:
    """E[w w^T] = W^T W / r for the neurons w = G_eff W of samples, over 25 seeds of 400 neurons.

    The mean of 10,000 neurons has a standard deviation of at most 1.5% of the largest entry.
    """
    net, x = built("rows")
    model, W = rf.fit(net, x), net[0].projection.weight.detach()
    total = torch.zeros(6, 6, dtype=F64)
    for seed in range(25):
        rows = model.sample(width=400, sites=["0.features"], seed=seed)[0].site("0.features").effective_rows() @ W
        total += rows.T @ rows / (25 * 400)
    wanted = W.T @ W / 4
    torch.testing.assert_close(total, wanted, rtol=0, atol=0.06 * float(wanted.diagonal().max()))  # four deviations


def test_other_neurons_than_the_layer_with_the_same_seed() -> None:
    net, x = built("rows")
    own = net[0].sampled()[0].detach() @ torch.linalg.pinv(net[0].projection.weight.detach())  # G / sqrt(r)
    rows = rf.sample(net, x, seed=1)[0].site("0.features").effective_rows()
    assert rows.shape == own.shape == (15, 4)
    # Independent: 60 products of standard deviation 1 / 4 in a mean; four deviations.
    assert abs(float((own * rows).mean())) < 4 * 0.25 / math.sqrt(60)
    torch.testing.assert_close(
        own, rf.sample(net, x, law="identity")[0].site("0.features").effective_rows(), rtol=1e-9, atol=1e-9
    )


def test_bootstrap_draws_from_the_neurons_of_the_layer() -> None:
    net, x = built("rows")
    rows = rf.sample(net, x, law="bootstrap", width=40)[0].site("0.features").effective_rows()
    own = rf.gaussian(15, 4, seed=net[0].features.key, dtype=F64) / 2
    nearest = torch.cdist(rows, own).min(1)
    assert float(nearest.values.max()) < 1e-12 and len(set(nearest.indices.tolist())) > 5
    noisy = rf.sample(net, x, law="bootstrap", width=4000, smoothing=0.6)[0].site("0.features").effective_rows()
    # E[R^T R] / n = (1 - h^2) G^T G / (n0 r) + h^2 I / r: 4000 neurons, entries of standard deviation 1.6% of 1 / 4
    wanted = 0.64 * own.T @ own / 15 + 0.36 * torch.eye(4, dtype=F64) / 4
    torch.testing.assert_close(noisy.T @ noisy / 4000, wanted, rtol=0, atol=0.25 * 0.08)


def test_error_decreases_with_width(fitted) -> None:
    kind, net, x, model = fitted
    means = []
    for factor in (1, 8, 64):
        reports = [model.sample(factor=factor, seed=seed)[1] for seed in range(3)]
        means.append([sum(r.sites[place].error for r in reports) / 3 for place in range(len(reports[0].sites))])
    for wide, narrow in zip(means[2], means[0], strict=True):
        assert wide < 0.9 * narrow
    assert sum(means[1]) < sum(means[0])


@pytest.mark.parametrize("options", [{"rank": 2}, {"explained_variance": 0.5}], ids=str)
def test_ranks_leave_random_features_exact(options: dict) -> None:
    net, x = built("skip")
    model = rf.fit(net, x)
    sites = {site.site: site.rank for site in model.sample(**options)[1].sites}
    assert sites["relu"] < 10 and sites["second.features"] == 4 and sites["third.features"] == 5
    full, ranked = (model.sample(sites=["second.features"], **o)[0] for o in ({}, options))
    assert torch.equal(full(x), ranked(x))
    message = "rank: site 'third.features' has random features of 5 channels, whose law is exact: wanted no rank"
    with pytest.raises(ValueError, match=message):
        model.sample(rank={"relu": 2, "third.features": 2})
    assert [s.rank for s in model.sample(rank={"relu": 2})[1].sites] == [2, 4, 5]


def test_the_mean_over_channels_is_no_mean_row() -> None:
    """keep_mean and its directions are for sites whose channels are neurons."""
    net, x = built("rows")
    model = rf.fit(net, x)
    on, off = (model.sample(keep_mean=keep, factor=2)[0] for keep in (True, False))
    assert torch.equal(on(x), off(x)) and not on.site("0.features").mean_row
    net, x = built("skip")
    assert rf.sample(net, x, keep_mean=True)[0].site("relu").mean_row


def test_white_rows() -> None:
    net, x = built("rows")
    network, report = rf.sample(net, x, law="white", factor=3)
    assert network.own_layers == {name: name.replace("features", "projection") for name in SITES["rows"]}
    assert [site.rank for site in report.sites] == [6, 15, 7], "of all inputs, not of r directions"
    torch.testing.assert_close(network.materialize()(x), network(x), rtol=1e-9, atol=1e-9)  # float64, another order
    assert "random features of the reference: 0.features" in str(report), "their law is another one"
    assert 0 < report.sites[0].error < 2
    with pytest.raises(ValueError, match="law='white': site '0.features' is not written by one bias-free linear layer"):
        rf.sample(rows(bias=True).to(F64), x, law="white")


def test_several_references_are_refused() -> None:
    net, x = built("rows")
    message = "reference: site '0.features' of number 1 has random features, wanted one reference"
    with pytest.raises(ValueError, match=message):
        rf.fit([net, rows().to(F64)], x)


@pytest.mark.parametrize("classifier", ["refit", "refit_aligned"])
@pytest.mark.parametrize("kind", ["maps", "rows"])
def test_refit(kind: str, classifier: str) -> None:
    net, x = built(kind)
    network, report = rf.sample(net, (x, Y), classifier=classifier, factor=8, holdout=0)
    assert report.accuracy["alignment"] > report.accuracy["reference_alignment"]
    torch.testing.assert_close(network.materialize()(x), network(x), rtol=1e-8, atol=1e-8)  # float64, another order


def test_flattened_alignment() -> None:
    net, x = built("maps")
    identity, _ = rf.sample(net, x, holdout=0, law="identity", align_flattened=True)
    assert (identity(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # float64, times the condition of M
    network, report = rf.sample(net, x, align_flattened=True, width=9)
    assert network.site("3.features").A.shape == (24, 36) and report.sites[-1].n == 9
    torch.testing.assert_close(network.materialize()(x), network(x), rtol=1e-9, atol=1e-9)  # float64, another order


def test_several_networks_at_once(fitted) -> None:
    kind, net, x, model = fitted
    each = [{"factor": 2}, {"law": "bootstrap", "width": 5, "seed": 2}, {"method": "regression", "network_index": 1}]
    for (network, _), options in zip(model.sample_many(each), each, strict=True):
        assert torch.equal(network(x[:9]), model.sample(**options)[0](x[:9]))


def test_sample_is_fit_and_sample(fitted) -> None:
    kind, net, x, model = fitted
    network, report = rf.sample(net, (x, Y), holdout=0, factor=2)
    other, same = model.sample(factor=2)
    assert torch.equal(network(x), other(x))
    assert [site.activity for site in report.sites] == [site.activity for site in same.sites]


def test_activity_is_that_of_the_neurons() -> None:
    net, x = built("rows")
    site = rf.sample(net, x, law="identity", holdout=0)[1].sites[0]
    wanted = float((net[0](x) > 0).double().mean())
    assert site.activity == pytest.approx(wanted) and site.sampled_activity == pytest.approx(wanted)


@pytest.mark.parametrize("kept", ["0.features", "2.2", "3.features"])
def test_sites_that_are_not_sampled_are_written_out_too(kept: str) -> None:
    net, x = built("maps")
    network, _ = rf.sample(net, x, factor=2, sites=[name for name in SITES["maps"] if name != kept])
    plain = network.materialize()
    assert not any(type(part).__module__.startswith("rainbow_fast") for part in plain.modules())
    torch.testing.assert_close(plain(x), network(x), rtol=1e-10, atol=1e-10)  # float64, another order of sums


def test_half_precision() -> None:
    for kind in ("maps", "rows"):
        net, x = built(kind, torch.float32)
        net, x = net.bfloat16(), x.bfloat16()
        network, report = rf.sample(net, x, holdout=0, method="calibrated")
        exact, wanted = rf.sample(net.double(), x.double(), holdout=0, method="calibrated")
        assert network(x).dtype == torch.bfloat16 and network(x).isfinite().all()
        for site, close in zip(report.sites, wanted.sites, strict=True):
            # Each number is rounded to 2^-9 of itself, at a few layers before; an error is a square of it.
            assert site.error == pytest.approx(close.error, rel=0.1, abs=2**-9), site.site

# SPDX-License-Identifier: BSD-3-Clause
"""The options of fit and sample, their reports, and what is refused."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rainbow_fast as rf
from rainbow_fast.maps import every, take
from rainbow_fast.networks import cnn, mlp

X = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture(scope="module")
def model() -> rf.RainbowModel:
    return rf.fit(mlp((6, 8, 5, 2), seed=0), (X[:90], Y[:90]), holdout=(X[90:], Y[90:]))


def test_the_same_network_from_any_kind_of_data():
    net = mlp((6, 8, 5, 2), seed=0)
    wanted = rf.sample(net, X, factor=4)[0](X)
    batches = [(X[:7], Y[:7]), (X[7:8], Y[7:8]), (X[8:], Y[8:])]
    for data in ((X, Y), DataLoader(TensorDataset(X, Y), batch_size=33), batches, X.double()):
        assert torch.equal(rf.sample(net, data, factor=4)[0](X), wanted)


def test_holdout():
    net = mlp((6, 8, 5, 2), seed=0)
    for holdout, counts in (
        (None, (90, 10)),
        (0.25, (75, 25)),
        (0, (100, 0)),
        ((X[:30], Y[:30]), (100, 30)),
        (X, (100, 100)),
    ):
        _, report = rf.sample(net, (X, Y), holdout=holdout)
        assert (report.samples, report.held_out_samples) == counts
        assert (report.sites[0].held_out_error is None) == (counts[1] == 0)
    prepared = rf.fit(net, X).prepared
    same, _ = rf.sample(net, X[prepared.align.index], holdout=0)
    assert torch.equal(same(X), rf.sample(net, X)[0](X)), "what is held out is not aligned on"


def test_rank_above_the_noise_edge():
    """Three planted directions in the noise of an initialisation, and a layer with a bias, whose noise is not known."""
    net = mlp((60, 40, 5, 2), seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net[1].weight += torch.randn(40, 3, generator=source) @ torch.randn(3, 60, generator=source)
    x = torch.randn(200, 60, generator=source)
    model = rf.fit(net, x)
    assert [s.rank for s in model.sample(rank={"2": "marchenko_pastur"}, factor=4)[1].sites] == [3, 5]
    assert model.sample(rank="marchenko_pastur", sites=["2"])[1].sites[0].rank == 3
    net[1].bias = nn.Parameter(torch.zeros(40))
    with pytest.raises(ValueError, match="rank='marchenko_pastur': site '2' is not written by one bias-free linear"):
        rf.fit(net, x).sample(rank="marchenko_pastur")


def test_widths_and_ranks(model):
    def sizes(**options):
        return [(s.n, s.rank) for s in model.sample(**options)[1].sites]

    assert sizes() == [(8, 8), (5, 5)]
    assert sizes(factor=2.5) == [(20, 8), (12, 5)]
    assert sizes(width=7, rank=6) == [(7, 6), (7, 5)]
    assert sizes(width={"4": 9}, rank={"2": 3}) == [(8, 3), (9, 5)]
    assert sizes(explained_variance=1.0) == [(8, 6), (5, 5)], "W of the first site has rank 6"
    assert sizes(factor=0.01, law="bootstrap") == [(1, 8), (1, 5)]


def test_sites_seeds_and_networks(model):
    network, report = model.sample(sites=["4"], network_index=3, seed=7)
    assert network.sampled == ("4",) and isinstance(network.body[2], nn.ReLU)
    assert network.site("4").key.tolist() == [7, 3 << 12 | 1, 0, 0], "the site is counted in the full list"
    assert report.kept == {"2": "not among the sites asked for"}
    outputs = [
        model.sample(**options)[0](X)
        for options in ({}, {"seed": 1}, {"network_index": 1}, {"seed": 0, "network_index": 0})
    ]
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_output_activation_is_sampled_only_if_named():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh())
    model = rf.fit(net, X)
    network, report = model.sample(factor=3)
    assert network.sampled == ("1",) and report.kept == {"3": "an output activation, not named"}
    network, _ = model.sample(factor=3, sites=["1", "3"])
    assert network.sampled == ("1", "3") and network(X).shape == (100, 5)
    torch.testing.assert_close(network.materialize()(X), network(X))


def test_presets_and_what_follows_from_them(model):
    def parts(**options):
        return model.sample(**options)[1].parts

    assert parts() == parts(law="gaussian", scale="sqrt") and not parts().keep_mean
    calibrated = parts(method="calibrated")
    assert (calibrated.law, calibrated.scale) == ("orthonormal", "optimal")
    assert calibrated.keep_mean and calibrated.recalibrate and calibrated.center and calibrated.offset
    assert parts(law="bootstrap").keep_mean and parts(alignment="regression") == parts(method="regression")
    assert parts(method="regression", ridge=0.5).ridge == 0.5
    assert parts(method="calibrated", scale="nuclear", offset=True, center=False).scale == "nuclear"


def test_scales_and_offset(model):
    """The optimal scale has the least error. The offset gives phih the mean of phi."""
    errors = {
        scale: model.sample(factor=2, scale=scale)[1].sites[0].error for scale in ("sqrt", "optimal", "nuclear", "one")
    }
    assert min(errors, key=errors.get) == "optimal"
    network, _ = model.sample(factor=2, offset=True)
    site = network.body[:3](X[:90]), model.reference[:3](X[:90])
    torch.testing.assert_close(site[0].mean(0), site[1].mean(0), rtol=1e-4, atol=1e-5)  # float32
    network, _ = model.sample(factor=2, recalibrate=True)
    site = network.site("4")
    z = network.body[:4](X[:90]) * site.gain + site.bias
    torch.testing.assert_close(z.var(0), model.reference[:4](X[:90]).var(0), rtol=1e-4, atol=1e-5)  # float32
    assert network.site("2").gain is None


@pytest.mark.parametrize("options", [{}, {"offset": True}, {"offset": True, "center": True}], ids=str)
def test_optimal_scale_is_optimal(options):
    net = mlp((6, 8, 5, 2), seed=0).double()
    phi = net[:3](X.double()).detach()
    network, _ = rf.sample(net, X, holdout=0, factor=2, scale="optimal", sites=["2"], **options)
    phih = network.body[:3](X.double()).detach()
    fixed = phi.mean(0) if options else 0.0
    errors = [float((fixed + s * (phih - fixed) - phi).square().sum()) for s in (0.999, 1.0, 1.001)]
    assert min(errors) == errors[1]


def test_similarity_is_one_where_nothing_is_lost():
    net = mlp((6, 8, 5, 2), seed=0)
    for options in ({}, {"method": "calibrated"}):
        _, report = rf.sample(net, X, holdout=0, law="identity", **options)
        assert [s.similarity for s in report.sites] == pytest.approx([1, 1])


def test_complete_alignment_is_an_isometry():
    net = mlp((3, 8, 5, 2), seed=0).double()
    with torch.no_grad():
        net[1].weight[4] = 0  # a dead neuron
    model = rf.fit(net, X[:, :3].double())
    partial, complete = (
        model.sample(factor=2, scale="one", alignment=a)[0].site("2").A for a in ("polar", "polar_complete")
    )
    torch.testing.assert_close(complete @ complete.T, torch.eye(8, dtype=torch.float64))
    assert torch.linalg.matrix_rank(partial) == 7


def test_report(model):
    calls = []
    _, report = model.sample(factor=2, accuracy_profile=True, progress=lambda *call: calls.append(call))
    assert json.loads(report.to_json()) == report.to_dict()
    text = str(report)
    for word in (
        "method paper: law=gaussian, keep_mean=False",
        "samples",
        "held out",
        "accuracy profile: ",
        "condition",
    ):
        assert word in text
    site = report.sites[0]
    assert site.samples == 90 and 0 < site.similarity <= 1 and site.scale == pytest.approx(math.sqrt(1 / 2))
    assert 1 <= site.M_effective_rank <= site.M_rank == 8 and site.M_condition >= 1
    assert len(report.accuracy_profile) == 2 and report.accuracy_profile[-1] == report.accuracy["held_out"]
    assert set(report.accuracy) == {"alignment", "held_out", "reference_alignment", "reference_held_out"}
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1)) and "2: moments" in {c[2] for c in calls}
    fitted = []
    rf.fit(model.reference, X, progress=lambda *call: fitted.append(call))
    assert fitted[-1][0] == fitted[-1][1]


def test_errors_of_the_report_are_those_of_the_network(model):
    network, report = model.sample(factor=2, method="calibrated", sites=["2"])
    phi, phih = model.reference[:3](X).detach(), network.body[:3](X).detach()
    for part, site in ((slice(90), report.sites[0].error), (slice(90, None), report.sites[0].held_out_error)):
        error = (phih - phi)[part].square().sum() / phi[part].square().sum()
        assert float(error) == pytest.approx(site, rel=1e-4)  # float32
    assert report.accuracy["held_out"] == (network(X[90:]).argmax(1) == Y[90:]).double().mean()


def test_moments_of_every_t_th_position():
    assert [every(10, 10), every(11, 10), every(30, 10), every(41, 10)] == [1, 3, 3, 5]
    assert [every(41, 10, positions=n) for n in (4, 5, 35)] == [5, 7, 9], "a common factor would miss positions"
    maps = torch.arange(24.0).view(3, 2, 2, 2)
    rows = maps.movedim(1, -1).reshape(-1, 2)
    taken = torch.cat([take(maps[:1], 0, 5), take(maps[1:], 4, 5)])
    assert torch.equal(taken, rows[::5]) and take(maps, 4, 1) is maps
    net, x = cnn((1, 4, 5), kernel_size=3, image_size=12, seed=0), torch.randn(90, 1, 12, 12)
    _, report = rf.sample(net, x, holdout=0, max_samples=1000)
    assert [s.samples for s in report.sites] == [750, 360], "of 2250 every third, of 360 all"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method='best': wanted one of paper, calibrated, regression"),
        ({"law": "uniform"}, "law='uniform': wanted one of gaussian, orthonormal, bootstrap, identity"),
        ({"scale": "half"}, "scale='half': wanted one of sqrt, optimal, nuclear, one"),
        ({"alignment": "svd"}, "alignment='svd': wanted one of polar, polar_complete, regression"),
        ({"align_flattened": True}, "align_flattened=True: no sampled site feeds a Flatten"),
        ({"classifier": "new"}, "classifier='new': wanted None, 'refit', 'refit_aligned' or 'retrained'"),
        ({"center": True}, "center=True with offset=False"),
        ({"keep_mean": 1}, "keep_mean=1: wanted True, False or None"),
        ({"width": 4, "factor": 2}, "width=4 and factor=2: wanted one of the two"),
        ({"rank": 4, "explained_variance": 0.5}, "rank=4 and explained_variance=0.5: wanted one of the two"),
        ({"factor": 0}, "factor=0: wanted a number above 0"),
        ({"explained_variance": 1.5}, "explained_variance=1.5: wanted 0 < explained_variance <= 1"),
        ({"width": 0}, "width of site '2'=0: wanted width of site '2' >= 1"),
        ({"width": {"3": 4}}, "width: '3' is not among the sampled sites 2, 4"),
        ({"sites": ["3"]}, "sites: '3' is not a site that can be sampled: wanted some of 2, 4"),
        ({"sites": "2"}, "sites='2': wanted a list of names, of 2, 4"),
        ({"sites": []}, r"sites=\[\]: nothing to sample"),
        ({"seed": -1}, r"seed=-1: wanted 0 <= seed < 2\^63"),
        ({"network_index": 2**20}, r"network_index=1048576: wanted 0 <= network_index < 2\^20"),
        ({"law": "bootstrap", "smoothing": 2}, "smoothing=2: wanted 0 <= smoothing <= 1"),
        ({"smoothing": 0.5}, "smoothing=0.5 with law='gaussian': wanted law='bootstrap'"),
        ({"law": "bootstrap", "keep_mean": False}, "keep_mean=False with law='bootstrap'"),
        ({"law": "identity", "factor": 2}, "law='identity': site '2' has 16 neurons, wanted the reference's 8"),
        ({"ridge": 0.1}, "ridge=0.1 with alignment='polar': wanted alignment='regression'"),
        ({"method": "regression", "ridge": -1}, "ridge=-1: wanted a finite number, at least 0"),
        ({"method": "regression", "scale": "sqrt"}, "scale='sqrt' with alignment='regression'"),
        ({"classifier": "refit", "sites": ["2"]}, "classifier='refit': the last site '4' is not sampled"),
    ],
    ids=str,
)
def test_what_sample_refuses(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**options)


def test_labels_that_are_missing():
    model = rf.fit(mlp((6, 8, 5, 2), seed=0), X)
    assert model.sample()[1].accuracy == {}
    with pytest.raises(ValueError, match="classifier='refit': data has no labels"):
        model.sample(classifier="refit")
    with pytest.raises(ValueError, match="accuracy_profile=True: wanted held-out data with labels"):
        model.sample(accuracy_profile=True)


def test_a_classifier_that_cannot_be_refit():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="only a Linear at the very end can be refit.* come Linear, Linear"):
        rf.fit(net, (X, Y)).sample(classifier="refit")


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        (mlp((6, 8, 2)), {"data": []}, ValueError, "data: list yields no batch"),
        (mlp((6, 8, 2)), {"data": iter([X])}, TypeError, "data: wanted data that can be iterated"),
        (mlp((6, 8, 2)), {"holdout": iter([X])}, TypeError, "holdout: wanted data that can be iterated"),
        (mlp((6, 8, 2)), {"data": [X, X[:, :3]]}, ValueError, r"data: samples of shapes \(6,\) and \(3,\), wanted one"),
        (
            mlp((6, 8, 2)),
            {"holdout": X[:, :3]},
            ValueError,
            r"holdout: samples of shape \(3,\), wanted \(6,\) as in data",
        ),
        (mlp((6, 8, 2)), {"holdout": 1.0}, ValueError, "holdout=1.0: wanted data, a number of samples .* 0 <= h"),
        (mlp((6, 8, 2)), {"max_samples": 0}, ValueError, "max_samples=0: wanted max_samples >= 1"),
        (
            mlp((6, 8, 2)).to(torch.complex64),
            {},
            TypeError,
            "parameter '1.weight' is torch.complex64 on cpu: wanted float32, float64, bfloat16",
        ),
        (nn.Sequential(nn.Linear(6, 2)), {}, ValueError, "reference: no site, wanted at least one pointwise"),
        (nn.Sequential(nn.ReLU()), {}, ValueError, "reference: no parameters"),
        (
            nn.Sequential(nn.ReLU(), nn.Linear(3, 2)),
            {"data": X.view(100, 2, 3)},
            ValueError,
            r"at least one pointwise non-linearity; '0': the channel axis of z, of shape \(1, 2, 3\), is not known",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_fit_refuses(net, options, error, message):
    with pytest.raises(error, match=message):
        rf.fit(net, **({"data": X} | options))


def test_few_samples_are_a_warning_with_both_numbers():
    with pytest.warns(UserWarning, match=r"site '2': 15 samples for 8 channels: .* 2 d = 16"):
        rf.fit(mlp((6, 8, 2)), X[:15], holdout=0)
    net = cnn((1, 4), kernel_size=3, image_size=8, seed=0)
    model = rf.fit(net, torch.randn(30, 1, 8, 8), holdout=0)
    with pytest.warns(UserWarning, match=r"site '1': 30 samples for 36 channels: .* 2 d = 72"):
        model.sample(align_flattened=True)


def test_activations_that_are_not_finite_name_their_site():
    net = mlp((6, 8, 5, 2), seed=0)
    with torch.no_grad():
        net[3].weight[2] = torch.nan
    with pytest.raises(ValueError, match="site '4': the reference's z is not finite, first in channel 2"):
        rf.fit(net, X)


@pytest.mark.parametrize("options", [{}, {"factor": 3}, {"method": "regression"}])
def test_a_site_whose_output_is_zero_is_kept(options):
    """As in a new network with scales of zero; the sites before and after it are sampled."""
    net = mlp((6, 8, 5, 7, 2), bias=True, seed=0)
    nn.init.zeros_(net[3].weight)
    nn.init.zeros_(net[3].bias)
    network, report = rf.sample(net, X, **options)
    assert [site.site for site in report.sites] == ["2", "6"]
    assert report.kept == {"4": "its output is zero for all samples"}
    torch.testing.assert_close(network.materialize()(X[:5]), network(X[:5]))
    for layer in (net[1], net[5]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with pytest.raises(
        ValueError, match="no site can be sampled; '2': its output is zero for all samples; '4': its out"
    ):
        rf.sample(net, X, **options)

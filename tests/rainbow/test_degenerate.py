# SPDX-License-Identifier: BSD-3-Clause
"""Data from which little can be measured: the network is right all the same, or an error names the site."""

import json
import math

import pytest
import torch
from here import draw
from parameters import slow_but_for
from torch import nn

import rainbow_fast as rf
from rainbow_fast.analysis.convergence import kernel_convergence
from rainbow_fast.io import dumps
from rainbow_fast.rainbow.alignment import PolarFactor
from rainbow_fast.rainbow.options import METHODS, PAPER
from rainbow_fast.rainbow.report import Error
from rainbow_fast.rainbow.sampling.align import align

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = draw(90, 16)
DATA = {
    "ones": torch.ones(90, 16),
    "equal": X[:1].expand(90, 16).clone(),
    "zeros": torch.zeros(90, 16),
    "one sample": X[:1],
    "two equal samples": X[:1].expand(2, 16).clone(),
    "small": X * 1e-20,
    "tiny": X * 1e-40,
    "large": X * 1e10,
    "huge": X * 1e25,
    "far": X + 1e6,
}
CONSTANT = ("ones", "equal", "zeros", "one sample", "two equal samples")
OPTIONS = {
    "paper": {"method": "paper"},
    "calibrated": {"method": "calibrated"},
    "regression": {"method": "regression"},
    "pseudo-inverse": {"method": "regression", "ridge": 0.0},
    "centred regression": {"method": "regression", "center": True, "offset": True},
    "offset": {"method": "paper", "offset": True, "scale": "optimal"},
    "complete": {"method": "calibrated", "alignment": "polar_complete", "scale": "nuclear"},
    "refit": {"method": "calibrated", "classifier": "refit"},
}


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 12, bias=kind != "no bias"), nn.ReLU(), nn.Linear(12, 8, bias=kind != "no bias"), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(8, 3)).eval()
    if kind == "dead":
        network[0].bias.data -= 1e3
    if kind == "half dead":
        network[0].bias.data[:6] -= 1e3
        network[0].bias.data[6] += 1e4
    return network


def valid(text: str) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("dtype", slow_but_for([torch.float32], [torch.float32, torch.float64]), ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", ["plain", "no bias", "dead", "half dead"])
def test_a_network_or_an_error_that_names_the_site(kind: str, data: str, dtype: torch.dtype) -> None:
    reference, x = net(kind).to(dtype), DATA[data].to(dtype)
    model = rf.fit(reference, (x, torch.arange(len(x)) % 3), holdout=(x, torch.arange(len(x)) % 3))
    for name, options in OPTIONS.items():
        try:
            network, report = model.sample(factor=2, **options)
        except ValueError as error:
            assert str(error).startswith(("site '", "layer '", "reference: no site can be sampled; '1': ")), (
                f"{name}: {error}"
            )
            assert data not in CONSTANT or not METHODS[options["method"]].offset, f"{name}: {error}"
            continue
        got, wanted = network(x), reference(x)
        assert got.isfinite().all(), name
        valid(report.to_json())
        assert str(report)
        if data in CONSTANT and name in ("calibrated", "complete"):  # only the offsets
            # The rounding of float32 through three layers; relative errors are its square.
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
            assert all(site.error == 0 or math.isnan(site.error) or site.error < 1e-12 for site in report.sites)


@pytest.mark.parametrize("options", [{}, {"law": "bootstrap"}, {"rank": 4}], ids=["plain", "bootstrap", "rank"])
def test_constant_activations_are_offsets(options: dict) -> None:
    reference = net("plain")
    network, report = rf.sample(reference, DATA["equal"], factor=2, method="calibrated", holdout=0.0, **options)
    for activation, site in zip(map(network.site, network.sampled), report.sites, strict=True):
        assert not activation.A.any() and activation.scale == 0 and site.scale == 0 and site.M_rank == 0
        assert all(math.isnan(v) for v in (site.similarity, site.M_effective_rank, site.M_condition))
        assert site.error < 1e-12 and math.isnan(site.error_centred)  # the square of float32 rounding
    record = valid(report.to_json())["sites"][0]
    assert record["similarity"] is None and record["error_centred"] is None and record["held_out_error"] is None


def test_what_cannot_be_aligned_is_named() -> None:
    x, y = draw(50, 3), draw(50, 4, seed=1)
    centred = METHODS["calibrated"]
    moments = rf.CrossCovariance("stem").update(x, torch.ones(50, 4))
    with pytest.raises(ValueError, match="site 'stem': the activations of the sample do not vary, those of the ref"):
        align(moments, centred, PolarFactor())
    moments = rf.CrossCovariance("stem").update(x, torch.zeros(50, 4))
    with pytest.raises(ValueError, match="site 'stem': M = 0, activations of the reference or of the sample are all"):
        align(moments, PAPER, PolarFactor())
    moments = rf.CrossCovariance("stem").update(x * 1e-25, y * 1e-25)
    with pytest.raises(ValueError, match=r"site 'stem': products of activations, about 1e-50, vanish in torch.float32"):
        align(moments, PAPER, PolarFactor())
    moments = rf.CrossCovariance("stem").update(x.double() * 1e-25, y.double() * 1e-25)
    assert align(moments, PAPER, PolarFactor())[1].rank == 3
    for bad in (torch.nan, torch.inf):
        moments = rf.CrossCovariance("stem").update(torch.full((50, 3), bad), y)
        with pytest.raises(ValueError, match="layer 'stem': x is not finite, first in channel 0"):
            align(moments, centred, PolarFactor())


def test_a_constant_reference_leaves_the_offset() -> None:
    x = torch.tensor([0.1, -1e3, 7.0]).expand(50, 3)
    for options in (METHODS["calibrated"], PAPER.changed(offset=True)):
        moments = rf.CrossCovariance("stem").update(x, draw(50, 4))
        sums = moments.cross
        B, aligned = align(moments, options, PolarFactor())
        assert not B.any() and B.data_ptr() == sums.data_ptr() and (aligned.rank, aligned.overlap) == (0, 0.0)  # type: ignore[union-attr]
        assert torch.equal(moments.mean_x, x[0].double())


@pytest.mark.parametrize("method", ["paper", "calibrated", "regression"])
def test_held_out_data_that_is_not_finite(method: str) -> None:
    reference, y = net("plain"), torch.arange(90) % 3
    for bad in (torch.nan, torch.inf):
        _, report = rf.fit(reference, (X, y), holdout=(X * bad, y)).sample(factor=2, method=method)
        assert math.isnan(report.sites[0].held_out_error) and report.sites[0].error < 1  # type: ignore[arg-type]
        assert valid(report.to_json())["sites"][0]["held_out_error"] is None
        assert "nan" in str(report)


def test_recalibration_of_channels_that_do_not_vary() -> None:
    """A unit that is constant in the sample gets the mean of the reference; one of small variance keeps its own."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    reference[2].weight.data[0], reference[2].bias.data[0] = 0.0, 3.0
    reference[2].weight.data[1] *= 1e-9
    reference[2].bias.data[1] = 0.0
    network, _ = rf.sample(reference.double(), X.double(), factor=2, method="calibrated")
    site = network.site("3")
    gain, bias = site.gain, site.bias
    assert (float(gain[0]), float(bias[0])) == (0.0, 3.0)
    assert 0.5 < float(gain[1]) < 2, "1e-18 is a variance as any other"


def test_errors_outside_the_range_of_float32_and_of_constants() -> None:
    x, y = draw(60, 3, 4), draw(60, 3, 4, seed=1)
    for scale in (1.0, 1e-25, 1e25):
        error = Error()
        error.update(x * scale, y * scale)
        # float32 squares, summed over 720 of them
        assert error.relative()[0] == pytest.approx(float((x - y).square().sum() / x.square().sum()), rel=1e-5)
    error = Error()
    error.update(torch.full((60, 3), 0.1), torch.full((60, 3), 0.1))
    assert error.relative()[0] == 0 and math.isnan(error.relative()[1])


def test_comparisons_are_json() -> None:
    a, b = net("plain"), net("plain")
    b[0].weight.data += 0.1
    comparison = rf.compare(a, b, DATA["equal"], holdout=X * torch.nan)
    assert math.isnan(comparison.sites[0].error_centred) and comparison.sites[0].error < 1
    assert valid(comparison.to_json())["sites"][0]["error_centred"] is None
    with pytest.raises(ValueError, match="site '1': M = 0"):
        rf.compare(net("dead"), b, X)


def test_strict_json() -> None:
    nested = {"a": [1.5, math.nan, (math.inf, None)], "b": {"c": -math.inf, "d": True, "e": "nan"}}
    assert valid(dumps(nested)) == {"a": [1.5, None, ["inf", None]], "b": {"c": "-inf", "d": True, "e": "nan"}}


def test_a_run_that_goes_on_reads_null_as_nan() -> None:
    for held in (0.0, 0.5):
        _, report = rf.sample(net("plain"), DATA["equal"], factor=2, method="calibrated", holdout=held)
        again = rf.Report.from_dict(valid(report.to_json()))
        assert str(again) == str(report) and again.to_json() == report.to_json()
        assert (again.sites[0].held_out_error is None) == (held == 0)


def test_kernels_of_activations_that_are_zero() -> None:
    """Shares of all-zero activations are not defined."""
    convergence = kernel_convergence(torch.zeros(20, 4), [4, 8], networks=2)
    for name in ("kernel", "between", "limit", "wide"):
        assert all(map(math.isnan, getattr(convergence, name).flatten()))


def test_activations_too_small_for_products_of_float32() -> None:
    """With fewer samples than channels, M is summed in float64, where these products do not vanish."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64, bias=False), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e-21)
    with pytest.raises(ValueError, match="site '1': products of activations, about .*, vanish in torch.float32"):
        rf.sample(net, X, holdout=0.0)
    sampled, report = rf.sample(net, X[:20], holdout=0.0)
    assert report.sites[0].M_rank == 20 and report.sites[0].error < 0.5

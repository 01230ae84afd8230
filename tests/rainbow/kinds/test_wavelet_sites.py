# SPDX-License-Identifier: BSD-3-Clause
"""Sites of wavelets: they commute with G, the identity law is exact, and a wide network has the same logits."""

import math
from dataclasses import dataclass

import pytest
import torch
from here import draw
from scattering_networks import VARIANTS, images, maps, network, relative, wide_logits
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks.scattering import PointwiseConv2d, UnitNorm, Wavelets
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.tracing.trace import trace
from rainbow_fast.tracing.wavelet_maps import AsComplex, ByChannel, ByFilter

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
blocks = pytest.mark.parametrize("blocks", ["filter", "full", "shared"])


@dataclass(frozen=True)
class Given(rf.Law):
    """Rows that are a multiple of an orthogonal matrix."""

    factor: float = 1.0

    def draw(self, n: int, site: object, U: Tensor | None, key: Tensor) -> Rows:
        Q = torch.linalg.qr(draw(site.d, site.d, seed=5).double()).Q
        return Rows(n, site.d, key, matrix=self.factor * math.sqrt(site.d) * Q)


# Commutation


@variants
@pytest.mark.parametrize("mean_row", [False, True], ids=["", "mean"])
def test_features_are_those_of_n_filtered_channels(options: dict, mean_row: bool) -> None:
    net, x = network(**options), images()
    for site, z in zip(trace(net, x[:1]).sites, maps(net, x), strict=True):
        d, n = z.shape[1], 12
        rows = Rows(n, d, rf.key(3, 1), mean_row=mean_row)
        sampled = RainbowActivation(site, rows)
        G = rows.effective(z.device)
        wide = torch.einsum("nd,bd...->bn...", G, z)
        wide = AsComplex()(wide) if site.paired else wide
        wide = UnitNorm()(wide) if site.before is not None else wide
        wanted = ByChannel(site.features)(Wavelets(site.sigma.bank, site.sigma.skip)(wide))
        assert sampled.features(z).shape == wanted.shape == (len(x), n * site.features, *wanted.shape[2:])
        assert relative(sampled.features(z), wanted) < 1e-12  # some tens of roundings of float64


def test_zero_maps_stay_zero() -> None:
    [site, *_] = trace(network(), images(1)).sites
    sampled = RainbowActivation(site, Rows(6, 4, rf.key(0, 0)))
    z = draw(2, 4, 8, 8).double()
    z[1] = 0
    features = sampled.features(z.requires_grad_())
    features.sum().backward()
    assert features.isfinite().all() and not features[1].any() and features[0].any()
    assert z.grad.isfinite().all() and not z.grad[1].any() and z.grad[0].any()


@pytest.mark.parametrize("features", [5, 10])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_order_of_a_site_is_undone(features: int, pairs: bool) -> None:
    phi = draw(2, 3 * features, 4, 4, 2) if pairs else draw(2, 3 * features, 4, 4)
    phi = torch.view_as_complex(phi) if pairs else phi
    inside = ByChannel(features)(phi)
    assert not inside.is_complex() and torch.equal(ByFilter(features)(inside), phi)
    assert torch.equal(ByChannel(features)(ByFilter(features)(inside)), inside)


# The sampled network


@variants
@blocks
def test_identity_is_exact(options: dict, blocks: str) -> None:
    net, x = network(**options), images()
    sampled, report = rf.sample(net, x, holdout=0, law="identity", alignment_blocks=blocks)
    assert sampled.sampled == ("block2.wavelets", "block3.wavelets", "block4.wavelets")
    assert report.kept == {"block1.wavelets": "no convolution writes the maps that it filters"}
    assert relative(sampled(x), net(x)) < 1e-8  # roundings of float64 times the condition number of M, at three sites


@variants
@pytest.mark.parametrize("method", [{"method": "calibrated"}, {"method": "regression", "ridge": 0.0}], ids=["c", "r"])
def test_identity_is_exact_with_other_methods(options: dict, method: dict) -> None:
    net, x = network(**options), images()
    sampled, _ = rf.sample(net, x, holdout=0, law="identity", **method)
    assert relative(sampled(x), net(x)) < 1e-8


def test_identity_is_not_exact_in_the_units_of_the_published_code() -> None:
    net, x = network(), images()
    sampled, _ = rf.sample(net, x, holdout=0, law="identity", statistics="running")
    assert relative(sampled(x), net(x)) > 1e-2


@variants
@pytest.mark.parametrize(
    "blocks, statistics", [("filter", "restore"), ("full", "restore"), ("shared", "restore"), ("full", "running")]
)
def test_an_independent_wide_network_has_the_same_logits(options: dict, blocks: str, statistics: str) -> None:
    net, x = network(**options), images()
    sampled, report = rf.sample(net, x, holdout=0, factor=2, alignment_blocks=blocks, statistics=statistics)
    logits, ranks = wide_logits(net, sampled, x, blocks, statistics)
    assert relative(sampled(x), logits) < 1e-8
    assert [site.M_rank for site in report.sites] == ranks


@variants
@pytest.mark.parametrize("method, blocks", [("paper", "full"), ("calibrated", "filter")])
def test_written_out_it_is_a_plain_wide_network(options: dict, method: str, blocks: str) -> None:
    net, x = network(**options), images()
    sampled, _ = rf.sample(net, x, holdout=0, factor=2, method=method, alignment_blocks=blocks)
    wide = sampled.materialize()
    assert isinstance(wide, nn.Sequential) and not any(isinstance(m, RainbowActivation) for m in wide.modules())
    assert [m.weight.shape[0] for m in wide.modules() if isinstance(m, nn.Conv2d)][:3] == [8, 16, 32]
    assert relative(wide(x), sampled(x)) < 1e-10  # roundings of float64
    gradients = [torch.autograd.grad(module(x.requires_grad_()).square().sum(), x)[0] for module in (wide, sampled)]
    assert relative(*gradients) < 1e-8


def test_rotated_neurons_are_rotated_back_in_the_linear_channel() -> None:
    """Without standardisation: phi is linear in z at the low-pass filter, where A = Q^T."""
    [net, x] = network(), images()
    for name in ("block2", "block3", "block4"):
        net.get_submodule(name).std = nn.Identity()
    sampled, _ = rf.sample(net, x, holdout=0, law=Given(), alignment_blocks="filter", sites=["block2.wavelets"])
    [z, *_] = maps(net, x)
    [site, *_] = trace(net, x[:1]).sites
    phi, phih = site.reference(z), sampled.site("block2.wavelets")(z)
    assert relative(phih[:, ::5], phi[:, ::5]) < 1e-10
    assert relative(phih, phi) > 1e-2, "moduli are not linear"


@pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
def test_the_size_of_the_rows_does_not_matter(options: dict) -> None:
    net, x = network(**options), images()
    once, larger = (rf.sample(net, x, holdout=0, law=Given(factor))[0](x) for factor in (1.0, 8.0))
    assert relative(larger, once) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
def test_half_precision(options: dict, dtype: torch.dtype) -> None:
    """A site takes z in half precision, as autocast gives it. The difference is the rounding of z and of phih."""
    net, x = network(**options).float(), images().float()
    sampled, _ = rf.sample(net, x, holdout=0, factor=2)
    for name, z in zip(sampled.sampled, maps(net, x), strict=True):
        at = sampled.site(name)
        assert relative(at(z.to(dtype)).float(), at(z)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
def test_batches_do_not_matter(options: dict) -> None:
    net, x = network(**options), images()
    for more in ({}, {"max_samples": 700}):
        whole, parts = (rf.sample(net, x, holdout=0, factor=2, batch_size=b, **more)[0](x) for b in (40, 7))
        assert relative(parts, whole) < 1e-10
    few, report = rf.sample(net, x, holdout=0, factor=2, max_samples=700)
    assert report.sites[0].samples <= 700 and relative(few(x), whole) == 0


@pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
@pytest.mark.parametrize(
    "more",
    [
        {"law": "white"},
        {"law": "bootstrap"},
        {"rank": 3},
        {"method": "calibrated", "rank": 3},
        {"method": "regression"},
    ],
    ids=str,
)
def test_every_law_and_rank(options: dict, more: dict) -> None:
    net, x = network(**options), images()
    sampled, report = rf.sample(net, x, holdout=0.2, factor=2, **more)
    assert all(0 < site.held_out_error < 2 and math.isnan(site.sampled_activity) for site in report.sites)
    assert relative(sampled.materialize()(x), sampled(x)) < 1e-10


def test_regression_has_smaller_errors_than_the_paper() -> None:
    net, x = network(), images()
    paper, regression = (rf.sample(net, x, holdout=0, factor=2, method=m)[1] for m in ("paper", "regression"))
    for one, other in zip(paper.sites, regression.sites, strict=True):
        assert other.error < one.error


@pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
def test_files_and_resumed_runs(tmp_path, options: dict) -> None:
    net, x = network(**options), images()
    more = {"holdout": 0, "factor": 2, "method": "calibrated"}
    sampled, report = rf.sample(net, x, **more, resume_dir=tmp_path / "run")
    again, same = rf.sample(net, x, **more, resume_dir=tmp_path / "run")
    rf.save(sampled, tmp_path / "network.rf")
    loaded = rf.load(tmp_path / "network.rf", net)
    assert torch.equal(again(x), sampled(x)) and torch.equal(loaded(x), sampled(x))
    assert str(same.to_dict()) == str(report.to_dict())


def test_in_single_precision() -> None:
    net, x = network(), images()
    exact, _ = rf.sample(net, x, holdout=0, factor=2)
    single, _ = rf.sample(net.float(), x.float(), holdout=0, factor=2)
    assert relative(single(x.float()).double(), exact(x)) < 1e-3  # three polar factors of float32


def test_a_classifier_is_refit_on_aligned_activations() -> None:
    net, x = network(), images()
    y = net(x).argmax(1)
    sampled, report = rf.sample(net, (x, y), holdout=0, law="identity", classifier="refit_aligned")
    assert sampled.head == "fc" and report.accuracy["alignment"] > 0.5
    assert relative(sampled.materialize()(x), sampled(x)) < 1e-10
    with pytest.raises(ValueError, match="classifier='refit': only a Linear .* come PointwiseConv2d, UnitNorm"):
        rf.sample(net, (x, y), holdout=0, classifier="refit")


# The report and the plan


def test_the_report_names_the_alignment() -> None:
    net, x = network(), images()
    for method, blocks in (("paper", "full"), ("calibrated", "filter")):
        _, report = rf.sample(net, x, holdout=0, method=method)
        assert f"alignment_blocks={blocks}, statistics=restore" in str(report)
        assert [(s.d, s.n, s.features, s.route) for s in report.sites] == [
            (4 * 2**i, 4 * 2**i, 5, "fused") for i in range(3)
        ]
        assert rf.Report.from_dict(report.to_dict()).sites[0].features == 5


@pytest.mark.parametrize("options, blocks", [({}, "full"), ({"skip": True}, "filter")], ids=["full", "skip-filter"])
def test_the_plan_counts_shapes(options: dict, blocks: str) -> None:
    net, x = network(**options), images()
    cost = rf.plan(net, x, holdout=0, factor=2, alignment_blocks=blocks, machine=rf.Machine(1, 1, 1, 1, 1, 1, 1))
    sampled, report = rf.sample(net, x, holdout=0, factor=2, alignment_blocks=blocks)
    for site, of_report in zip(cost.sites, report.sites, strict=True):
        A = sampled.site(site.site).A
        assert site.A_bytes == 8 * A.numel() and (site.d, site.n) == (of_report.d, of_report.n)
        assert site.samples == of_report.samples * (2 if options else 1)
        maps, positions = (10, site.samples // 2) if options else (9, site.samples)
        assert site.work["projection"].flops >= 2 * positions * maps * site.n * site.d


# What is refused


def test_what_is_refused() -> None:
    net, x = network(), images()
    broken = x.clone()
    broken[3, 0, 4, 4] = math.nan
    with pytest.raises(ValueError, match="layer 'block2.wavelets': x is not finite, first in channel 0"):
        rf.sample(net, broken, holdout=0)
    with pytest.raises(ValueError, match="alignment_blocks='filter' with alignment='regression', .* wanted 'full'"):
        rf.sample(net, x, method="regression", alignment_blocks="filter")
    with pytest.raises(ValueError, match="alignment_blocks='angle': wanted one of filter, full, shared"):
        rf.sample(net, x, alignment_blocks="angle")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    for option, value in (("alignment_blocks", "filter"), ("statistics", "running")):
        with pytest.raises(ValueError, match=f"{option}='{value}': no sampled site has wavelets, wanted None"):
            rf.sample(plain, x, **{option: value})
    net.block2.std = nn.Identity()
    with pytest.raises(ValueError, match="statistics='restore': site 'block2.wavelets' has no standardisation"):
        rf.sample(net, x, statistics="restore")


@pytest.mark.filterwarnings("always")
def test_few_samples_are_warned_of() -> None:
    net = network()
    with pytest.warns(UserWarning, match="site 'block4.wavelets': 12 samples for 16 channels"):
        rf.sample(net, images(12), holdout=0)


def test_other_wavelets_are_left() -> None:
    layers = PointwiseConv2d(3, 4, 1, bias=False), Wavelets(skip=True), nn.Flatten(), nn.Linear(4, 2)
    [left] = trace(nn.Sequential(*layers)).left
    assert left.reason == "with skip=True it makes complex maps of real ones"

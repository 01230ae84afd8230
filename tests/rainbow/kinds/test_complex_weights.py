# SPDX-License-Identifier: BSD-3-Clause
"""Scattering networks with complex weights: circular Gaussian rows and unitary alignments."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from scattering_networks import VARIANTS, images, maps, relative, unitary, wide_logits
from scattering_networks import network as any_network
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import scattering
from rainbow_fast.networks.scattering import ComplexConv2d, PointwiseConv2d, Wavelets
from rainbow_fast.rainbow.laws.real_form import real_form
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.tracing.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
SITES = ("block2.wavelets", "block3.wavelets", "block4.wavelets")
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
two_variants = pytest.mark.parametrize("options", [{}, {"skip": True}], ids=["plain", "skip"])
network = partial(any_network, complex=True)


@dataclass(frozen=True)
class Given(rf.Law):
    """Rows that are a multiple of a unitary matrix, or of the identity."""

    factor: complex = 1.0
    mixes: bool = True

    def draw(self, n: int, site: object, U: Tensor | None, key: Tensor) -> Rows:
        Q = unitary(site.d) if self.mixes else torch.eye(site.d, dtype=torch.complex128)
        rows = real_form(self.factor * math.sqrt(site.columns) * Q)[: site.d].contiguous()
        return Rows(n, site.columns, key, matrix=rows)


# The sampled network


@variants
@pytest.mark.parametrize("blocks", ["filter", "full", "shared"])
def test_identity_is_exact(options: dict, blocks: str) -> None:
    net, x = network(**options), images()
    sampled, report = rf.sample(net, x, holdout=0, law="identity", alignment_blocks=blocks)
    assert sampled.sampled == SITES and not sampled(x).is_complex()
    assert relative(sampled(x), net(x)) < 1e-8  # roundings of float64 times the condition number of M, at three sites
    assert all(abs(site.similarity - 1) < 1e-10 for site in report.sites)


@two_variants
def test_identity_is_exact_with_the_calibrated_method(options: dict) -> None:
    net, x = network(**options), images()
    sampled, _ = rf.sample(net, x, holdout=0, method="calibrated", law="identity")
    assert relative(sampled(x), net(x)) < 1e-8


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
    convolutions = [m for m in wide.modules() if isinstance(m, nn.Conv2d)]
    assert all(isinstance(m, ComplexConv2d) and m.weight.is_complex() for m in convolutions)
    assert [len(m.weight) for m in convolutions][:3] == [8, 16, 32]
    assert relative(wide(x), sampled(x)) < 1e-10  # roundings of float64
    gradients = [torch.autograd.grad(module(x.requires_grad_()).square().sum(), x)[0] for module in (wide, sampled)]
    assert relative(*gradients) < 1e-8


def test_unitary_mixtures_are_undone_in_the_linear_channel() -> None:
    """Without standardisation: phi is linear in z at the low-pass filter, where A = Q^H."""
    net, x = network(), images()
    for name in ("block2", "block3", "block4"):
        net.get_submodule(name).std = nn.Identity()
    sampled, _ = rf.sample(net, x, holdout=0, law=Given(), alignment_blocks="filter", sites=[SITES[0]])
    [z, *_] = maps(net, x)
    [site, *_] = trace(net, x[:1]).sites
    phi, phih = site.reference(z), sampled.site(SITES[0])(z)
    assert relative(phih[:, ::5], phi[:, ::5]) < 1e-10
    assert relative(phih, phi) > 1e-2, "moduli are not linear"
    parts = sampled.site(SITES[0]).A[0]
    A = torch.complex(*parts.chunk(2))
    assert relative(A, unitary(4).mH) < 1e-10


@two_variants
def test_the_size_and_phase_of_the_rows_do_not_matter(options: dict) -> None:
    """A real alignment could not turn the phase back."""
    net, x = network(**options), images()
    once, turned = (rf.sample(net, x, holdout=0, law=Given(factor))[0](x) for factor in (1.0, 8j * (0.6 + 0.8j)))
    assert relative(turned, once) < 1e-10
    same, _ = rf.sample(net, x, holdout=0, law=Given(1j, mixes=False), alignment_blocks="filter")
    assert relative(same(x), net(x)) < 1e-8


def test_real_weights_as_complex_ones_give_the_network_of_real_weights() -> None:
    """With skip, all maps of both are complex; one is sampled by unitary alignments, the other by real ones."""
    net, x = network(skip=True), images()
    real = scattering(3, 1 / 16, scale_last=True, image_size=16, skip=True).double().eval()
    with torch.no_grad():
        for one, other in zip(net.parameters(), real.parameters(), strict=True):
            other.copy_(one.real if one.is_complex() else one)
            one.copy_(other)
    real.load_state_dict(real.state_dict() | {k: v for k, v in net.state_dict().items() if "running" in k})
    one, other = (rf.sample(each, x, holdout=0, law="identity", alignment_blocks="filter")[0] for each in (net, real))
    assert relative(one(x), other(x)) < 1e-8 and relative(one(x), net(x)) < 1e-8
    assert len(one.site(SITES[0]).A[0]) == 2 * len(other.site(SITES[0]).A[0])


@two_variants
def test_batches_do_not_matter(options: dict) -> None:
    net, x = network(**options), images()
    for more in ({}, {"max_samples": 700}):
        whole, parts = (rf.sample(net, x, holdout=0, factor=2, batch_size=b, **more)[0](x) for b in (40, 7))
        assert relative(parts, whole) < 1e-10


@two_variants
@pytest.mark.parametrize(
    "more",
    [
        {"law": "white"},
        {"law": "bootstrap"},
        {"law": rf.Bootstrap(smoothing=0.5), "rank": 3},
        {"rank": 3},
        {"explained_variance": 0.8},
        {"method": "calibrated", "rank": 3},
        {"law": "orthonormal", "factor": 0.3},
        {"law": "white", "keep_mean": True, "recalibrate": False},
    ],
    ids=str,
)
def test_every_law_and_rank(options: dict, more: dict) -> None:
    net, x = network(**options), images()
    sampled, report = rf.sample(net, x, holdout=0.2, **{"factor": 2} | more)
    assert all(0 < site.held_out_error < 2 and math.isnan(site.sampled_activity) for site in report.sites)
    assert relative(sampled.materialize()(x), sampled(x)) < 1e-10


def test_errors_fall_with_the_width() -> None:
    net, x = network(skip=True), images()
    narrow, wide = (rf.sample(net, x, holdout=0, factor=factor)[1].sites for factor in (1, 16))
    assert all(one.error > other.error for one, other in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@two_variants
def test_half_precision(options: dict, dtype: torch.dtype) -> None:
    """A site takes z in half precision, as autocast gives it. The difference is the rounding of z and of phih."""
    net, x = network(torch.float32, **options), images().float()
    sampled, _ = rf.sample(net, x, holdout=0, factor=2)
    for name, z in zip(sampled.sampled, maps(net, x), strict=True):
        at = sampled.site(name)
        assert relative(at(z.to(dtype)).float(), at(z)) < 4 * torch.finfo(dtype).eps


@two_variants
def test_in_single_precision(options: dict) -> None:
    exact, single = network(**options), network(torch.float32, **options)
    with torch.no_grad():
        for to, of in zip(single.parameters(), exact.parameters(), strict=True):
            to.copy_(of)
        single.load_state_dict(single.state_dict() | {k: v for k, v in exact.state_dict().items() if "running" in k})
    x = images()
    double, _ = rf.sample(exact, x, holdout=0, factor=2)
    float_, _ = rf.sample(single, x.float(), holdout=0, factor=2)
    assert float_.site(SITES[0]).A.dtype == torch.float32
    assert relative(float_(x.float()).double(), double(x)) < 1e-3  # three polar factors of float32


# Files, classifiers, the report and the plan


@two_variants
@pytest.mark.parametrize("more", [{}, {"method": "calibrated"}, {"law": "bootstrap"}, {"law": "white"}], ids=str)
def test_files_and_resumed_runs(tmp_path, options: dict, more: dict) -> None:
    net, x = network(**options), images()
    more = {"holdout": 0, "factor": 2} | more
    sampled, report = rf.sample(net, x, **more, resume_dir=tmp_path / "run")
    again, same = rf.sample(net, x, **more, resume_dir=tmp_path / "run")
    rf.save(sampled, tmp_path / "network.rf")
    loaded = rf.load(tmp_path / "network.rf", net)
    assert torch.equal(again(x), sampled(x)) and torch.equal(loaded(x), sampled(x))
    assert str(same.to_dict()) == str(report.to_dict())


def test_files_of_models(tmp_path) -> None:
    net, x = network(), images()
    model = rf.fit(net, x, holdout=0)
    rf.save_model(model, tmp_path / "model.rf")
    one, other = (each.sample(factor=2)[0](x) for each in (model, rf.load_model(tmp_path / "model.rf", net)))
    assert torch.equal(one, other)


def test_a_classifier_is_refit_on_aligned_activations() -> None:
    net, x = network(), images()
    y = net(x).argmax(1)
    sampled, report = rf.sample(net, (x, y), holdout=0, law="identity", classifier="refit_aligned")
    assert sampled.head == "fc" and report.accuracy["alignment"] > 0.5 and not sampled(x).is_complex()
    assert relative(sampled.materialize()(x), sampled(x)) < 1e-10
    with pytest.raises(ValueError, match="classifier='refit': the last site 'block4.wavelets' has complex weights"):
        rf.sample(net, (x, y), holdout=0, classifier="refit")


@pytest.mark.parametrize("options, blocks", [({}, "full"), ({"skip": True}, "filter")], ids=["full", "skip-filter"])
def test_the_plan_counts_shapes(options: dict, blocks: str) -> None:
    net, x = network(**options), images()
    how = {"holdout": 0, "factor": 2, "alignment_blocks": blocks, "rank": 3}
    cost = rf.plan(net, x, **how, machine=rf.Machine(1, 1, 1, 1, 1, 1, 1))
    sampled, report = rf.sample(net, x, **how)
    for site, of_report in zip(cost.sites, report.sites, strict=True):
        A = sampled.site(site.site).A
        F = 10 if options else 5
        rows = (2 * of_report.d * F, of_report.n * F) if blocks == "full" else (F, 2 * of_report.d, of_report.n)
        assert tuple(A.shape) == rows and site.A_bytes == 8 * A.numel()
        assert (site.d, site.n, site.rank, of_report.rank) == (of_report.d, of_report.n, 3, 3)
        assert site.samples == 2 * of_report.samples


# What is refused


def test_what_is_refused() -> None:
    net, x = network(), images()
    for alignment in ("regression", "polar_complete"):
        more = {"alignment": alignment} | ({"alignment_blocks": "full"} if alignment == "regression" else {})
        with pytest.raises(ValueError, match=f"alignment='{alignment}': site 'block2.wavelets' has complex weights"):
            rf.sample(net, x, holdout=0, **more)
    with pytest.raises(ValueError, match="rank='marchenko_pastur': site 'block2.wavelets' has complex weights"):
        rf.sample(net, x, holdout=0, rank="marchenko_pastur")
    with pytest.raises(ValueError, match="reference: site 'block2.wavelets' of number 1 has complex weights"):
        rf.fit([net, network()], x)
    with pytest.raises(ValueError, match="a: site 'block2.wavelets' has complex weights, wanted real ones"):
        rf.compare(net, net, x)
    with pytest.raises(ValueError, match="width=inf: site 'block2.wavelets' has no closed form"):
        rf.sample(net, x, holdout=0, width=math.inf)
    broken = x.clone()
    broken[3, 0, 4, 4] = math.nan
    with pytest.raises(ValueError, match="layer 'block2.wavelets': x is not finite, first in channel 0"):
        rf.sample(net, broken, holdout=0)


def test_rows_of_a_law_must_have_both_parts() -> None:
    class Real(rf.Law):
        def draw(self, n: int, site: object, U: Tensor | None, key: Tensor) -> Rows:
            return Rows(n, site.d, key)

    with pytest.raises(ValueError, match="law: site 'block2.wavelets': got rows with d = 4, wanted 8"):
        rf.sample(network(), images(), holdout=0, law=Real())


def test_complex_weights_elsewhere_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 8, dtype=torch.complex128))
    with pytest.raises(TypeError, match="parameter '1.weight' is torch.complex128 .* ComplexConv2d only"):
        rf.fit(net, images())


def test_a_site_after_a_bias_is_left() -> None:
    layers = ComplexConv2d(3, 4, 1, dtype=torch.complex64), Wavelets(), nn.Flatten(), nn.Linear(4, 2)
    [left] = trace(nn.Sequential(*layers)).left
    assert left.reason == "the complex convolution before it has a bias"
    [site] = trace(nn.Sequential(PointwiseConv2d(3, 4, 1, bias=False), *layers[1:])).sites
    assert not site.complex_weights

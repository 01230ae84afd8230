# SPDX-License-Identifier: BSD-3-Clause
"""Normalised and coupled chains: exact laws at finite width and depth, by law and by weights.

Means over R independent runs are within 4.5 of their standard deviations of what is exact, which are analytic where a
formula is known, and else those of the sample. The seeds are fixed.
"""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast import gaussian
from rainbow_fast import random_networks as rn

GENERATOR = torch.Generator().manual_seed(1)
EPS = torch.finfo(torch.float64).eps


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def score(values: Tensor, expected: float) -> float:
    """The deviation of the mean of the values from what is expected, in standard deviations of the mean."""
    return float((values.mean() - expected) / (values.std() / math.sqrt(values.numel())))


def test_samples_of_a_chain_are_independent_and_uniform():
    """x_i^2 ~ Beta(1/2, (d - 1)/2), and <x_l, x_(l+1)> has mean 0 and deviation 1 / sqrt d."""
    stats = pytest.importorskip("scipy.stats")
    d, runs, layers = 16, 100, 40
    chain = rn.normalised_chain(random(1, d), layers, runs=runs, seed=2)[1:, :, 0]
    torch.testing.assert_close(chain.norm(dim=-1), torch.ones(layers, runs, dtype=torch.float64), rtol=1e-14, atol=0)
    products = (chain[1:] * chain[:-1]).sum(-1)
    assert abs(float(products.mean())) < 4.5 / math.sqrt(d * products.numel())
    assert abs(float(products.square().mean() * d) - 1) < 4.5 * math.sqrt(2 / products.numel())  # kurtosis below 3
    first = chain[..., 0].flatten().square().numpy()
    assert stats.kstest(first, stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3


def test_lengths():
    """log|S x| / l has mean lambda_1 and variance psi'(d/2) / (4 l), by law and by weights."""
    for weights, d, runs in ((False, 16, 4000), (True, 16, 200), (True, 200, 5)):
        chain = rn.coupled_chain(2 * torch.eye(1, d), 20, runs=runs, weights=weights, variance=0.7, record=[20], seed=4)
        rates = (chain.log_norms[0, :, 0] - math.log(2)) / 20
        expected, deviation = rn.lyapunov_exponents(d, 1, variance=0.7), rn.lyapunov_deviation(d, 20, 1)
        scores = (rates - expected) / deviation
        assert abs(float(scores.mean())) < 4.5 / math.sqrt(runs)
        assert abs(float(scores.square().mean()) - 1) < 4.5 * math.sqrt(2.1 / runs)  # the excess kurtosis is 0.013


def test_angle_of_two_samples():
    """E log|sin| is exact at every layer; E|cos| at d = 32 as known, to its three digits."""
    H, d = torch.tensor([[1.0, 0.0], [math.cos(2.0), math.sin(2.0)]], dtype=torch.float64), 32
    chain = rn.coupled_chain(H, 60, width=d, runs=4000, seed=1)
    torch.testing.assert_close(chain.cosines[0, :, 0, 1], torch.full((4000,), math.cos(2.0)).double())
    for layer in (1, 2, 10, 30, 60):
        assert abs(score(chain.log_diagonal[layer, :, 1], rn.log_sine_mean(d, layer, 2.0))) < 4.5
    right = rn.coupled_chain(torch.eye(2), 5, width=d, runs=20_000, seed=2).cosines[..., 0, 1].abs()
    for layer, expected in enumerate((0.0, 0.142, 0.198, 0.241, 0.275, 0.304)):
        error = 4.5 * float(right[layer].std()) / math.sqrt(20_000)
        assert abs(float(right[layer].mean()) - expected) < error + 5e-4


def test_recursion_of_the_angle():
    """cot' = (R_11 cot + R_12) / R_22, with the numbers that the chain draws."""
    d, runs, seed = 9, 50, 6
    chain = rn.coupled_chain(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), 8, width=d, runs=runs, seed=seed)
    cot = torch.full((runs,), 1 / 3, dtype=torch.float64)
    for layer in range(8):
        R = rn.chi([d, d - 1], runs, seed=seed, stream=layer)
        cot = (R[:, 0] * cot + gaussian(runs, 1, seed=seed, stream=layer)[:, 0].double()) / R[:, 1]
        expected = torch.stack([cot / torch.hypot(cot, cot.new_ones(())), -torch.hypot(cot, cot.new_ones(())).log()])
        got = torch.stack([chain.cosines[layer + 1, :, 0, 1], chain.log_diagonal[layer + 1, :, 1]])
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_law_and_weights_have_one_law():
    """Angles of pairs after 1 and 10 layers, and determinants of four samples, by two-sample Kolmogorov-Smirnov."""
    stats = pytest.importorskip("scipy.stats")
    pair = torch.eye(2, 32, dtype=torch.float64)
    four = random(4, 12)
    for H, runs in ((pair, 800), (four, 600)):
        law = rn.coupled_chain(H, 10, runs=3000, seed=1, record=[1, 10])
        real = rn.coupled_chain(H, 10, runs=runs, seed=2, weights=True, record=[1, 10])
        for layer in range(2):
            for a, b in (
                (law.cosines[layer, :, 0, -1], real.cosines[layer, :, 0, -1]),
                (law.log_determinants[layer], real.log_determinants[layer]),
                (law.log_norms[layer, :, -1], real.log_norms[layer, :, -1]),
            ):
                assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("weights, runs", [(False, 4000), (True, 1000)])
def test_moments_of_a_layer(weights, runs):
    """E K' = d K, with the variance d (K_ij^2 + K_ii K_jj); E log det K' = log det K + 2 sum of the exponents."""
    n, d = 3, 10
    H = random(n, d)
    K = H @ H.T
    chain = rn.coupled_chain(H, 1, runs=runs, weights=weights, record=[1], seed=5)
    lengths = chain.log_norms[0].exp()
    new = lengths[..., None] * chain.cosines[0] * lengths[:, None]
    size = K.diagonal().outer(K.diagonal())
    scores = (new.mean(0) - d * K) / (d * (K.square() + size) / runs).sqrt()
    assert float(scores.abs().max()) < 4.5
    logdet = 2 * (chain.log_norms[0] + chain.log_diagonal[0]).sum(-1)
    deviation = 2 * rn.lyapunov_deviation(d, 1, n).square().sum().sqrt()
    expected = torch.logdet(K) + 2 * rn.lyapunov_exponents(d, n).sum()
    assert abs(float((logdet.mean() - expected) / (deviation / math.sqrt(runs)))) < 4.5


def test_weights_are_those_of_the_generator():
    """The chain by weights is the product of the matrices; `normalised_chain` and the estimator have the same ones."""
    n, d, layers = 3, 8, 5
    H = random(n, d)
    chain = rn.coupled_chain(H, layers, runs=2, weights=True, seed=8)
    samples = rn.normalised_chain(H, layers, runs=2, seed=8)
    torch.testing.assert_close(samples @ samples.mT, chain.cosines, rtol=0, atol=1e-10)
    x = H.T
    for layer in range(layers):
        x = gaussian(d, d, seed=8, stream=1 << 20 | layer, dtype=torch.float64) @ x
    torch.testing.assert_close(chain.log_norms[-1, 1], x.norm(dim=0).log(), rtol=0, atol=1e-12)
    frame = rn.coupled_chain(torch.eye(n, d), layers, runs=2, weights=True, seed=8)
    estimate = rn.lyapunov_estimate(d, layers, n, runs=2, seed=8)
    grown = (frame.log_diagonal + frame.log_norms)[-1] / layers
    torch.testing.assert_close(grown, estimate.exponents, rtol=0, atol=1e-12)


def test_another_width_of_the_layers():
    """By weights too: the first one is (width, d)."""
    H = random(2, 5)
    for weights, runs in ((False, 2000), (True, 400)):
        chain = rn.coupled_chain(H, 3, width=40, runs=runs, weights=weights, record=[3])
        start = math.log(math.sin(math.acos(H[0] @ H[1] / (H[0].norm() * H[1].norm()))))
        assert abs(score(chain.log_diagonal[0, :, 1], start - 3 * rn.collapse_rate(40))) < 4.5
        assert abs(score(chain.log_norms[0, :, 0] - H[0].norm().log(), 3 * rn.lyapunov_exponents(40, 1).item())) < 4.5


def test_rank_collapse():
    """V tends to sqrt(1 - 1/n); log det and the isometry gap are linear in the depth, exactly, beyond float64."""
    n, d, layers, runs = 4, 16, 3000, 30
    H = random(n, d)
    chain = rn.coupled_chain(H, layers, runs=runs, record=[0, 50, layers], seed=3)
    assert float((rn.orthogonality_gap(chain.factors[-1]) - math.sqrt(1 - 1 / n)).abs().max()) < 1e-12
    start = float(chain.log_determinants[0, 0])
    unit = H / H.norm(dim=1, keepdim=True)
    assert start == pytest.approx(float(torch.logdet(unit @ unit.T)))
    for place, layer in ((1, 50), (2, layers)):
        expected = rn.log_determinant_mean(d, n, layer, start)
        assert abs(score(chain.log_determinants[place], expected)) < 4.5
        assert abs(score(chain.isometry_gaps[place], -start / n + layer * rn.isometry_rate(d, n))) < 4.5
    rate = chain.isometry_gaps[-1] / layers
    torch.testing.assert_close(rate.mean(), torch.tensor(rn.isometry_rate(d, n)).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(chain.isometry_gaps[0], rn.isometry_gap(chain.factors[0]), rtol=1e-10, atol=0)
    deep = rn.coupled_chain(torch.eye(2), 3000, width=2, record=[3000])
    assert float(deep.factors[0, 0, 1, 1]) == 0 and float(deep.log_diagonal[0, 0, 1]) < -1500, "log 2 a layer"


def test_ratio_of_singular_values():
    """log(s_2 / s_1) of the product, whose slope in the depth is lambda_1 - lambda_2.

    At d = 3 and 40 layers, s_2 is 5e-6 of s_1. The difference of two depths leaves out the constant.
    """
    d, runs = 3, 600
    logs = []
    for layers in (10, 40):
        ratios = []
        for run in range(runs):
            product = torch.eye(d, dtype=torch.float64)
            for layer in range(layers):
                product = gaussian(d, d, seed=3, stream=run << 20 | layer, dtype=torch.float64) @ product
                product /= product.norm()
            s = torch.linalg.svdvals(product)
            ratios.append(float((s[1] / s[0]).log()))
        logs.append(torch.tensor(ratios, dtype=torch.float64))
    expected = rn.log_singular_value_ratio(d, 40) - rn.log_singular_value_ratio(d, 10)
    assert abs(score(logs[1] - logs[0], expected)) < 4.5


def test_runs_and_records_do_not_change_the_chain():
    H = random(3, 7)
    for weights in (False, True):
        whole = rn.coupled_chain(H, 6, runs=5, weights=weights)
        some = rn.coupled_chain(H, 6, runs=2, weights=weights, record=(0, 4))
        assert whole.layers == tuple(range(7)) and some.layers == (0, 4)
        for name in ("factors", "log_diagonal", "log_norms"):
            assert torch.equal(getattr(some, name), getattr(whole, name)[[0, 4]][:, :2])
    torch.testing.assert_close(whole.factors.norm(dim=-1), torch.ones(7, 5, 3).double(), rtol=4 * EPS, atol=0)
    calls: list[tuple] = []
    rn.coupled_chain(H, 2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "layers"), (2, 2, "layers")]


def test_lengths_of_any_size():
    """Scales of the samples change `log_norms` only, by their logarithms."""
    H, scales = random(2, 4), torch.tensor([[1e200], [1e-200]], dtype=torch.float64)
    one, other = (rn.coupled_chain(batch, 3, runs=2) for batch in (H, scales * H))
    torch.testing.assert_close(other.cosines, one.cosines, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(other.log_norms, one.log_norms + scales[:, 0].log(), rtol=1e-14, atol=1e-13)
    samples = rn.normalised_chain(scales * H, 3)
    torch.testing.assert_close(samples, rn.normalised_chain(H, 3), rtol=1e-12, atol=1e-14)


ZERO = torch.tensor([[1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    "words, error, message",
    [
        ({"H": torch.ones(4)}, ValueError, r"^H has shape \(4,\): wanted \(n, d\), none of them 0"),
        ({"H": [[1.0]]}, TypeError, "^H is a list: wanted a torch.Tensor"),
        ({"H": torch.eye(2).bfloat16()}, TypeError, "^H is torch.bfloat16: wanted torch.float32 or torch.float64"),
        ({"H": torch.full((2, 3), math.nan)}, ValueError, "^H is not finite"),
        ({"H": ZERO}, ValueError, "^H: a sample is zero, wanted samples with a direction"),
        ({"layers": 0}, ValueError, "^layers=0: wanted 1 <= layers <= 1048576"),
        ({"runs": 0}, ValueError, "^runs=0: wanted "),
        ({"seed": 0.5}, TypeError, "^seed=0.5: wanted an integer, got float"),
    ],
)
def test_refused(words, error, message, monkeypatch):
    for name in ("gaussian_layer", "gaussian", "chi"):
        monkeypatch.setattr(f"rainbow_fast.random_networks.products.{name}", lambda *_, **__: pytest.fail("computed"))
    for chain in (rn.normalised_chain, rn.coupled_chain):
        with pytest.raises(error, match=message):
            chain(**{"H": torch.eye(2), "layers": 3} | words)


@pytest.mark.parametrize(
    "words, error, message",
    [
        ({"H": torch.ones(3, 2)}, ValueError, r"^H has shape \(3, 2\), 3 samples of 2 units: wanted at most as many"),
        ({"H": torch.ones(2, 3)}, ValueError, "^H: the samples are linearly dependent, wanted independent ones"),
        ({"width": 1}, ValueError, "^width=1: wanted width >= 2"),
        ({"variance": 0.0}, ValueError, "^variance=0.0: wanted a number above 0"),
        ({"variance": math.nan}, ValueError, "^variance=nan: wanted a number above 0"),
        ({"weights": 1}, TypeError, "^weights=1: wanted True or False"),
        ({"weights": True, "runs": 5000}, ValueError, "^runs=5000: wanted 1 <= runs <= 4096"),
        ({"record": [1, 4]}, ValueError, "^record=4: wanted 0 <= record <= 3"),
        ({"record": [2, 1]}, ValueError, r"^record=\[2, 1\]: wanted at least one layer, in increasing order"),
        ({"record": 1.5}, TypeError, "^record=1.5: wanted an integer, got float"),
        ({"record": []}, ValueError, r"^record=\[\]: wanted at least one layer, in increasing order"),
    ],
)
def test_refused_by_coupled_chains(words, error, message):
    with pytest.raises(error, match=message):
        rn.coupled_chain(**{"H": torch.eye(2), "layers": 3} | words)


def test_refused_by_formulae():
    for call, error, message in (
        (lambda: rn.collapse_rate(1), ValueError, "^d=1: wanted d >= 2"),
        (lambda: rn.log_sine_mean(4, -1), ValueError, "^layers=-1: wanted layers >= 0"),
        (lambda: rn.log_sine_mean(4, 1, 0.0), ValueError, "^angle=0.0: wanted an angle above 0 and below pi"),
        (lambda: rn.log_sine_mean(4, 1, math.nan), ValueError, "^angle=nan: wanted an angle above 0 and below pi"),
        (lambda: rn.isometry_rate(4, 5), ValueError, "^n=5: wanted 1 <= n <= 4"),
        (lambda: rn.isometry_rate(0, 1), ValueError, "^d=0: wanted d >= 1"),
        (lambda: rn.log_determinant_mean(4, 2, 1, 0.1), ValueError, "^start=0.1: wanted a number up to 0"),
        (lambda: rn.log_singular_value_ratio(4, 1.0), TypeError, "^layers=1.0: wanted an integer, got float"),
    ):
        with pytest.raises(error, match=message):
            call()

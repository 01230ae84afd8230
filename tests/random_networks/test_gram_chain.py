# SPDX-License-Identifier: BSD-3-Clause
"""Chains without weights, against theory: each number has the deviation that sampling gives it.

z-scores are over independent runs, and must be below 4. Runs are averaged over layers first, as these are correlated.
"""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast.random_networks import ChainResult, RandomLayer, gram_chain
from rainbow_fast.random_networks import chain_theory as theory

WIDTHS = [16, 32, 64, 128, 256, 512]
COLLAPSED = torch.diag(torch.tensor([1, 1e-6, 1e-6, 1e-6], dtype=torch.float64))
ORTHOGONAL = torch.eye(4, dtype=torch.float64)
BURN = 30  # layers after which nothing is left of an orthogonal start: (n / (n + 2))^30 is 5e-6 for n = 4


def mean_and_error(x: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """The mean over independent runs, and its standard deviation."""
    return x.mean(dim), x.std(dim) / math.sqrt(x.shape[dim])


def near(x: Tensor, expected: Tensor | float, bias: float = 0.0) -> None:
    """The mean over runs (the first axis) is as expected, up to 4 standard deviations and a relative bias."""
    mean, error = mean_and_error(x)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    off = (mean - expected).abs()
    assert bool((off <= 4 * error + bias * expected.abs() + 1e-14).all()), (mean, expected, error)


def test_one_layer():
    """E C' has the eigenvalues of the mean field, and C' the variance that is exact for every width."""
    lam, d = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), 8
    C = gram_chain(torch.diag(lam.sqrt()), 1, width=d, runs=20_000).grams[:, 1]
    expected = torch.diag(theory.mean_field(lam))
    near(C, expected)
    near((C - expected).square().sum((-2, -1)), theory.layer_noise(lam, d))


def test_units_have_length_one():
    """tr C = 1 is a normalisation of results; in the chain itself each unit has length 1."""
    seen = []

    def look(H: Tensor) -> Tensor:
        seen.append(H)
        return H

    gram_chain(ORTHOGONAL, 3, width=7, runs=2, layer=RandomLayer(look))
    for H in seen:
        torch.testing.assert_close(H.square().sum(-2), torch.ones(2, 1, 7, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_two_ways_agree():
    """A linear layer by factors, and the same layer by batches: as a function that returns what it takes."""
    start = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for normaliser in ("none", "batch", "batch_centred", "batch_standard", "layer"):
        options = {"normaliser": normaliser, "gain": 1.3}
        # The factors differ by a rotation, so only the first layer has the same bits of Z.
        ways = [
            gram_chain(start, 1, width=9, runs=2, layer=RandomLayer(f, **options)) for f in ("identity", lambda H: H)
        ]
        torch.testing.assert_close(ways[0].grams, ways[1].grams, rtol=1e-10, atol=1e-12)
        gaps = [
            gram_chain(start, 6, width=9, runs=3000, seed=k, every=6, layer=RandomLayer(f, **options))
            for k, f in enumerate(("identity", lambda H: H))
        ]
        means = [mean_and_error(each.orthogonality_gap[:, -1]) for each in gaps]
        assert abs(means[0][0] - means[1][0]) < 4 * math.hypot(means[0][1], means[1][1]), normaliser


@pytest.mark.parametrize("n, d, bias", [(4, 16, 0.08), (4, 64, 0.04), (8, 64, 0.05), (8, 512, 0.01)])
def test_stationary_gap(n, d, bias):
    """E V^2, up to a relative bias of the order n / d."""
    result = gram_chain(torch.eye(n, dtype=torch.float64), 300, width=d, runs=60)
    V = result.orthogonality_gap[:, 2 * BURN :]
    near(V.square().mean(-1), theory.stationary_gap(n, d).mean_square, bias)
    if (n, d) == (8, 512):
        near(V.mean(-1), theory.stationary_gap(n, d).mean, bias)
        near(V.log().mean(-1), theory.stationary_gap(n, d).mean_log, bias)


def test_figure_2a():
    """log V from a collapsed start: flat at first, then plateaus at -3.027 for d = 512 and -1.623 for d = 32."""
    result = gram_chain(COLLAPSED, 400, width=[32, 512], runs=100)
    logs = result.orthogonality_gap.log()
    for width, plateau in zip(logs, (-1.623, -3.027), strict=True):
        near(width[:, 50:].mean(-1), plateau, bias=2e-3)  # the values have three digits
    assert logs[:, :, :3].mean(1).flatten().tolist() == pytest.approx([math.log(0.75) / 2] * 6, abs=0.01)
    measured = logs[1].mean(0)[1:16]
    published = [
        -0.14,
        -0.14,
        -0.15,
        -0.19,
        -0.36,
        -0.65,
        -0.95,
        -1.22,
        -1.51,
        -1.78,
        -2.08,
        -2.31,
        -2.50,
        -2.67,
        -2.80,
    ]
    # the deviation of log V is at most 0.3, and the numbers are means over 20 runs: 4 * 0.3 / sqrt 20 with ours
    assert measured.tolist() == pytest.approx(published, abs=0.3)
    mean_field = result.theory["mean_field_gap"]
    assert mean_field.shape == (2, 401) and float(mean_field[1, -1]) < 1e-13
    wide = gram_chain(COLLAPSED, 15, width=400_000)
    # 20 / sqrt d: near rank one, the small eigenvalues are means of ratios of Gaussians, with heavy tails
    assert wide.orthogonality_gap[0].tolist() == pytest.approx(wide.theory["mean_field_gap"].tolist(), abs=0.03)


# E V^2 is 7 % above the first order at d = 16, a bias of order 1 / d
BENT = 1 + 0.07 * 16 / torch.tensor(WIDTHS, dtype=torch.float64)


@pytest.fixture(scope="module")
def figure_2b() -> ChainResult:
    return gram_chain(COLLAPSED, 500, width=WIDTHS, runs=20)


def slope(values: Tensor) -> float:
    """Over the logarithms of the first widths."""
    x = torch.tensor(WIDTHS[: len(values)], dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * values).sum() / x.square().sum())


def test_figure_2b(figure_2b):
    """The published average contains the start. Without it the slope is -1/2.

    The values are means over 20 runs, as ours: a run has a relative deviation of 0.24 / sqrt(500 / 4) = 0.02, and of
    0.07 by its start. So a difference has sqrt(2 / 20) 0.07 = 0.02.
    """
    logs = figure_2b.orthogonality_gap[..., 1:].mean(-1).log().mean(-1)
    assert logs.tolist() == pytest.approx([-1.179, -1.532, -1.870, -2.194, -2.507, -2.801], abs=0.05)
    assert slope(logs) == pytest.approx(-0.468, abs=0.01)
    late = figure_2b.orthogonality_gap[..., 60:].mean(-1).log().mean(-1)
    expected = torch.stack([figure_2b.theory["stationary_gap"][k, -1].log() for k in range(6)])
    assert slope(expected) == pytest.approx(-0.5, abs=1e-12)
    bend = BENT.log() / 2  # it makes the slope steeper by 0.009, and by 0.011 over the first five widths
    assert slope(late) == pytest.approx(-0.5 + slope(bend), abs=0.012)  # four standard deviations of 0.003
    assert slope(late[:5]) == pytest.approx(-0.5 + slope(bend[:5]), abs=0.012)
    assert -0.5 + slope(bend[:5]) == pytest.approx(-0.512, abs=0.0015)  # the digits of the value, and of the 7 %
    assert late.tolist() == pytest.approx(expected.tolist(), abs=0.05)  # 0.035 at d = 16 by its bias


def test_the_published_slope_of_figure_2b(figure_2b):
    """Where -0.468 comes from: V^2 = (its mean field)^2 + (its stationary mean square), averaged over 500 layers.

    The first term is the same at all widths: about ten layers near the largest gap. The second has the slope -1 in d.
    """
    field, noise = (figure_2b.theory[name][:, 1:] for name in ("mean_field_gap", "stationary_gap_squared"))
    derived = (field.square() + BENT[:, None] * noise).sqrt().mean(-1).log()
    assert slope(derived) == pytest.approx(-0.468, abs=0.01)  # the tolerance of the published value
    assert slope(derived) > -0.5 + slope(BENT.log() / 2) + 0.03, "the start flattens"
    logs = figure_2b.orthogonality_gap[..., 1:].mean(-1).log().mean(-1)
    assert derived.tolist() == pytest.approx(logs.tolist(), abs=0.05)  # 0.02 by sampling, 0.03 as E V < sqrt(E V^2)


def test_figure_1():
    """The cosine of two samples, with and without batch norm. The values have three digits."""
    start = torch.tensor([[1, 0], [1 - 1e-3, 1e-3]], dtype=torch.float64)
    cosine = gram_chain(start, 50, width=32, runs=4000).mean_cosine.abs()
    values = [1, 0.999, 0.983, 0.899, 0.705, 0.464, 0.277, 0.176, 0.136, 0.123, 0.118]
    near(cosine[:, :11], torch.tensor(values, dtype=torch.float64), bias=5e-3)
    near(cosine[:, 20:].mean(-1), 0.117, bias=5e-3)
    layer = RandomLayer(normaliser="none")
    vanilla = gram_chain(torch.eye(2, dtype=torch.float64), 50, width=32, runs=4000, layer=layer).mean_cosine.abs()
    values = [0, 0.142, 0.198, 0.241, 0.275, 0.304, 0.391, 0.527, 0.609, 0.668, 0.713]
    near(vanilla[:, [0, 1, 2, 3, 4, 5, 10, 20, 30, 40, 50]], torch.tensor(values, dtype=torch.float64), bias=5e-3)


FIGURE_6 = {  # log of the mean of |M - E M| at widths 16, 64, 256; the mean off the diagonal of E M; V at d = 256
    "tanh + 1": (lambda t: t.tanh() + 1, (-1.974, -2.543, -3.227), 0.198, 0.685),
    "relu": ("relu", (-1.132, -1.900, -2.604), 0.0727, 0.261),
    "tanh": ("tanh", (-1.214, -1.934, -2.637), 0.0, 0.071),
    "sin": (torch.sin, (-1.222, -1.945, -2.645), 0.0, 0.071),
    "identity": ("identity", (-1.218, -1.945, -2.640), 0.0, 0.071),
}


@pytest.mark.parametrize("name", FIGURE_6)
def test_figure_6(name):
    """Chains with activations concentrate as 1 / sqrt d about a mean, which is I / n only for odd ones.

    The values have a deviation of 0.01. Ours are over 20 runs of 170 correlated layers: 0.01, and 0.02 for tanh + 1,
    which forgets slowly.
    """
    F, logs, off, V = FIGURE_6[name]
    layer = RandomLayer(F, order="activation-linear-norm")
    result = gram_chain(ORTHOGONAL, 200, width=[16, 64, 256], runs=20, layer=layer)
    M = result.grams[:, :, BURN:]
    mean = M.mean((1, 2), keepdim=True)
    spread = torch.linalg.matrix_norm(M - mean).mean((1, 2)).log()
    assert spread.tolist() == pytest.approx(logs, abs=0.06 if name == "tanh + 1" else 0.045)
    entries = M[-1].mean(1)[:, *torch.triu_indices(4, 4, 1)]
    near(M[-1].mean(1).diagonal(dim1=-2, dim2=-1), 0.25)
    near(entries, off, bias=5e-3)  # the digits of the value
    assert float(result.orthogonality_gap[-1, :, BURN:].mean()) == pytest.approx(V, abs=0.006)


@pytest.mark.parametrize(
    ("activation", "n", "off"),
    [
        (torch.sigmoid, 4, 0.228),
        ("erf", 4, 0.0),
        ("relu", 2, 0.236 / 2),  # the cosine over n
        ("relu", 8, 0.323 / 8),
    ],
)
def test_means_of_figure_6(activation, n, off):
    """The mean of the Gram matrix is I / n and one number off the diagonal, as samples can be exchanged.

    The values have three digits and a simulation behind them that has width 256, as here, or less: 2 %.
    """
    layer = RandomLayer(activation, order="activation-linear-norm")
    start = torch.eye(n, dtype=torch.float64)
    M = gram_chain(start, 200, width=256, runs=20, layer=layer).grams[:, BURN:].mean(1)
    near(M.diagonal(dim1=-2, dim2=-1), 1 / n)
    near(M[:, *torch.triu_indices(n, n, 1)], off, bias=0.02)


def test_figure_5a():
    """relu with the batch norm of torch: V = 0.191, with a deviation of 0.014 from layer to layer; without it 0.914."""
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(3072, generator=generator), torch.randn(8, 3072, generator=generator)
    start = math.sqrt(0.75) * shared + 0.5 * own  # V is 0.7
    block = {"activation": "relu", "order": "activation-linear-norm", "gain": math.sqrt(2)}
    result = gram_chain(start, 60, width=100, runs=40, layer=RandomLayer(normaliser="batch_standard", **block))
    V = result.orthogonality_gap
    assert float(V[0, 0]) == pytest.approx(0.70, abs=0.01)
    near(V[:, BURN:].mean(-1), 0.191, bias=5e-3)
    assert float(V[:, BURN:].std()) == pytest.approx(0.014, abs=0.002)
    vanilla = gram_chain(start, 30, width=100, runs=100, layer=RandomLayer(normaliser="none", **block))
    last = vanilla.orthogonality_gap[:, -1]
    assert float(last.mean()) == pytest.approx(0.914, abs=0.015)  # it depends on the start: 0.01; sampling adds 0.0016
    assert float(last.std()) == pytest.approx(0.016, abs=0.008)


def test_centred():
    """C 1 = 0, V is at least its floor, and E V^2 is that of theory."""
    for n in (2, 3, 4, 8):
        layer, start = RandomLayer(normaliser="batch_centred"), torch.eye(n, dtype=torch.float64)
        result = gram_chain(start, 200, width=100, runs=20, layer=layer)
        assert float(result.grams[:, 1:].sum(-1).abs().max()) < 1e-14
        V = result.orthogonality_gap[:, 1:]
        assert float(V.min()) >= 1 / math.sqrt(n * (n - 1)) - 1e-14
        expected = theory.stationary_gap(n, 100, centred=True)
        near(V[:, BURN:].square().mean(-1), expected.mean_square, bias=5e-3)  # n / d of the part above the floor
    assert 0.198 < float(V[:, BURN:].mean()) < 0.202


def test_many_samples():
    """The semicircle: effective rank within 3 %, edges within 6 %; and its saturation at sqrt d."""
    for n, bias in ((16, 0.03), (32, 0.03)):
        result = gram_chain(torch.eye(n, dtype=torch.float64), 90, width=1024, runs=2, every=5)
        late = slice(10, None)
        expected = {name: float(column[-1]) for name, column in result.theory.items()}
        assert float(result.effective_rank[:, late].mean()) == pytest.approx(expected["stationary_rank"], rel=bias)
        if n == 16:
            for name in ("smallest", "largest"):
                edge = getattr(result, f"{name}_eigenvalue")[:, late].mean()
                assert float(edge) == pytest.approx(expected[f"stationary_{name}"], rel=0.06)
    result = gram_chain(torch.eye(80, dtype=torch.float64), 300, width=1024, every=50)
    assert float(result.effective_rank[0, -1]) == pytest.approx(32, rel=0.05)
    assert float(result.theory["stationary_rank"][-1]) == 32


@pytest.mark.slow
def test_sixty_four_samples_of_width_4096():
    """The semicircle at nu = n / sqrt(d) = 1: the rank r = 51.2 and the edges 1/256 and 9/256.

    Tolerances. Of r: V^2 is a fifth of 1/r, and for n samples 3.1 % above the n / (4 d) of the theory, by
    (n - 1) (n + 2)^2 / (n^2 (n + 1)), so that r is 0.6 % below. V^2 varies by sqrt(2 / m) = 3.1 %, with m = 2079
    dimensions, and r by 0.6 %; its mean over about 18 independent spectra by 0.15 %, of which four are added. Of the
    edges: an edge of n eigenvalues varies by n^(-2/3) = 6 % of the bulk.
    """
    n, d = 64, 4096
    result = gram_chain(torch.eye(n, dtype=torch.float64), 240, width=d, runs=2, every=10)
    late = slice(10, None)  # the distance from the stationary gap shrinks by (n / (n + 2))^2 a layer, to 0.2 %
    expected = theory.wide_batch(n, d)
    assert expected == pytest.approx((51.2, 1 / 256, 9 / 256), rel=1e-12)
    assert float(result.effective_rank[:, late].mean()) == pytest.approx(expected.effective_rank, rel=0.012)
    edges = torch.linalg.eigvalsh(result.grams[:, late]).mean((0, 1))[[0, -1]]
    assert edges.tolist() == pytest.approx(expected[1:], rel=0.06)


def test_inequalities(figure_2b):
    """W_2^2 <= n V^2 <= 2 n V, and V <= 2 n (1/n - lambda_n)."""
    V, W, least = figure_2b.orthogonality_gap, figure_2b.gaussian_distance, figure_2b.smallest_eigenvalue
    assert bool((W.square() <= 4 * V.square() * (1 + 1e-9)).all()) and bool((V <= 8 * (0.25 - least) + 1e-12).all())
    near(W[4, :, 60:].square().mean(-1) / V[4, :, 60:].square().mean(-1), 1.0, bias=0.02)  # n / 4, up to n / d


def test_collapse_without_norm():
    """V tends to sqrt(1 - 1/n). The isometry gap grows linearly, far beyond what eigenvalues of float64 can show.

    Once collapsed, n phi grows in a layer by (n - 1) log R_11^2 - sum of log R_kk^2 over k > 1, with independent R_kk^2
    ~ chi^2 of d - k + 1.
    """
    n, d, runs, first, last = 4, 16, 500, 400, 1000
    layer = RandomLayer(normaliser="none")
    result = gram_chain(torch.eye(n, dtype=torch.float64), last, width=d, runs=runs, layer=layer, every=200)
    assert float(result.orthogonality_gap[:, -1].min()) > math.sqrt(1 - 1 / n) - 1e-6
    assert float(result.theory["collapsed_gap"][0]) == math.sqrt(1 - 1 / n)
    halves = (d - torch.arange(n, dtype=torch.float64)) / 2
    exponents, variances = torch.digamma(halves), torch.polygamma(1, halves)
    rate = exponents[0] - exponents.mean()
    deviation = (((n - 1) ** 2 * variances[0] + variances[1:].sum()) / (last - first) / runs).sqrt() / n
    growth = (result.isometry_gap[:, -1] - result.isometry_gap[:, first // 200]).mean() / (last - first)
    assert float(result.isometry_gap[:, -1].min()) > 60
    assert abs(growth - rate) < 4 * deviation


def test_collapse_with_layer_norm():
    """V tends to the same limit as without a norm: layer norm changes the lengths of samples and takes one dimension.

    The second singular value falls by exp(-1000 (lambda_1 - lambda_2)) = 1e-16 of 15 units, with a deviation of its
    logarithm of sqrt(1000 * 4 / 30) = 12; V loses its square: 1e-6 is four deviations from it.
    """
    layer = RandomLayer(normaliser="layer")
    result = gram_chain(torch.eye(4, dtype=torch.float64), 1000, width=16, runs=100, layer=layer, every=500)
    assert float(result.orthogonality_gap[:, -1].min()) > float(result.theory["collapsed_gap"][-1]) - 1e-6


def test_relu_without_norm():
    """The cosine follows the map of infinite width. At width 4000 one layer deviates by less than 1 / sqrt 4000."""
    start = torch.eye(3, dtype=torch.float64)
    layer = RandomLayer("relu", "none", gain=math.sqrt(2))
    result = gram_chain(start, 10, width=4000, runs=20, layer=layer)
    near(result.mean_cosine, result.theory["mean_field_cosine"], bias=0.002)  # 1 / d, times the number of layers


def test_runs_and_widths_and_depth_extend():
    """The numbers of a run depend on seed, layer, width and run only."""
    layer = RandomLayer("tanh")
    whole = gram_chain(COLLAPSED, 12, width=[9, 30], runs=5, layer=layer, seed=4)
    part = gram_chain(COLLAPSED, 8, width=30, runs=3, layer=layer, seed=4, every=4)
    assert whole.factors.shape == (2, 5, 13, 4, 4) and part.factors.shape == (3, 3, 4, 4)
    assert whole.orthogonality_gap.shape == (2, 5, 13) and part.layers.tolist() == [0, 4, 8]
    # a product of a larger batch may round differently
    torch.testing.assert_close(whole.grams[1, :3, :9:4], part.grams, rtol=1e-9, atol=1e-12)
    other = gram_chain(COLLAPSED, 8, width=30, runs=3, layer=layer, seed=5, every=4)
    assert not torch.allclose(part.grams[:, 1:], other.grams[:, 1:], rtol=1e-3)


def test_nearly_dependent_samples():
    """A factor by Cholesky's method, or by QR, where samples agree to 12 digits; and a rank that is not full."""
    layer = RandomLayer(lambda H: H)
    start = torch.eye(3, 6, dtype=torch.float64) * 1e-12 + 1
    by_batches = gram_chain(start, 1, width=50, runs=400, layer=layer).isometry_gap
    by_factors = gram_chain(start, 1, width=50, runs=400, seed=1).isometry_gap
    means = [mean_and_error(each[:, 1]) for each in (by_batches, by_factors)]
    assert abs(means[0][0] - means[1][0]) < 4 * math.hypot(means[0][1], means[1][1])
    assert float(by_factors[0, 0]) > 30
    dependent = torch.ones(3, 1, dtype=torch.float64)
    for activation in ("identity", lambda H: H):
        result = gram_chain(dependent, 3, width=5, layer=RandomLayer(activation))
        torch.testing.assert_close(result.effective_rank, torch.ones(1, 4, dtype=torch.float64), rtol=1e-12, atol=0)
    with_more_samples = gram_chain(torch.eye(6, dtype=torch.float64), 2, width=4, runs=2)
    assert float(with_more_samples.smallest_eigenvalue[:, 1:].max()) < 1e-30
    assert bool(with_more_samples.isometry_gap[:, 1:].isinf().all())
    distance = (torch.linalg.svdvals(with_more_samples.factors) - 1 / math.sqrt(6)).square().sum(-1)
    torch.testing.assert_close(with_more_samples.gaussian_distance.square(), distance, rtol=1e-10, atol=1e-12)

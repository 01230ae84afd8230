# SPDX-License-Identifier: BSD-3-Clause
"""Measures of batches: values that are known, invariances, and the identities between them."""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast import random_networks as rn
from rainbow_fast.ops.polar import polar
from rainbow_fast.random_networks.orthogonality import gap_of_gram

GENERATOR = torch.Generator().manual_seed(0)
MEASURES = [
    *(rn.orthogonality_gap, rn.effective_rank, rn.isometry_gap, rn.stable_rank, rn.mean_cosine),
    *(rn.singular_value_gap, rn.gaussian_distance),
]
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # identities of float64, up to rounding
TINY = 3e-8  # a gap whose square is a difference of numbers near 1 is known to the root of the eps of float64


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def orthonormal(n: int, d: int) -> Tensor:
    return torch.linalg.qr(random(d, n))[0].T


def test_orthogonal_samples():
    """All gaps vanish, all ranks are n."""
    H = 3 * orthonormal(5, 12)
    for gap in (rn.orthogonality_gap, rn.isometry_gap, rn.mean_cosine):
        assert abs(float(gap(H))) < 1e-14
    for gap in (rn.singular_value_gap, rn.gaussian_distance):
        assert abs(float(gap(H))) < TINY
    for rank in (rn.effective_rank, rn.stable_rank):
        torch.testing.assert_close(rank(H), torch.tensor(5.0, dtype=torch.float64), **EXACT)


def test_parallel_samples():
    n, d = 4, 9
    H = torch.outer(torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), random(d))
    same = random(1, d).expand(n, d)
    for C in (H, same):
        assert float(rn.orthogonality_gap(C)) == pytest.approx(math.sqrt(1 - 1 / n), rel=1e-12)
        assert float(rn.effective_rank(C)) == pytest.approx(1, rel=1e-12)
        assert float(rn.singular_value_gap(C)) == pytest.approx(math.sqrt(2 - 2 / math.sqrt(n)), rel=1e-7)
        assert float(rn.isometry_gap(C)) > 30, "infinite, up to rounding"
    assert float(rn.mean_cosine(same)) == pytest.approx(1, rel=1e-12)
    assert float(rn.stable_rank(same)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_invariances(measure):
    """Scale, rotations of the units, and, but for measures of single samples, rotations of the samples."""
    H = random(4, 10)
    expected = measure(H)
    assert expected.dtype == torch.float64 and expected.shape == ()
    torch.testing.assert_close(measure(7 * H), expected, **EXACT)
    torch.testing.assert_close(measure(H @ orthonormal(10, 10)), expected, **EXACT)
    if measure not in (rn.stable_rank, rn.mean_cosine):
        torch.testing.assert_close(measure(orthonormal(4, 4) @ H), expected, **EXACT)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_batches_and_dtypes(measure):
    H = random(2, 3, 4, 10)
    each = torch.stack([torch.stack([measure(H[i, j]) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(measure(H), each, **EXACT)
    torch.testing.assert_close(measure(H.float()), each, rtol=1e-5, atol=1e-6)  # rounding of the entries
    torch.testing.assert_close(measure(H.bfloat16()), each, rtol=0.05, atol=0.02)  # 8 bits
    torch.testing.assert_close(measure(H.transpose(-1, -2).contiguous().transpose(-1, -2)), each, **EXACT)


@pytest.mark.parametrize("n, d", [(4, 10), (7, 7), (12, 5)])
def test_definitions(n, d):
    """The formulas, by eigenvalues and singular values."""
    H = random(n, d)
    H = H / torch.linalg.matrix_norm(H)
    s = torch.linalg.svdvals(H)
    C = H @ H.T
    gap = torch.linalg.matrix_norm(C - torch.eye(n) / n)
    torch.testing.assert_close(rn.gram(H), C, **EXACT)
    torch.testing.assert_close(rn.orthogonality_gap(H), gap, **EXACT)
    torch.testing.assert_close(rn.effective_rank(H), 1 / (gap.square() + 1 / n), **EXACT)
    k = min(n, d)
    torch.testing.assert_close(rn.singular_value_gap(H), torch.linalg.vector_norm(s - k**-0.5), **EXACT)
    unit = H / torch.linalg.vector_norm(H, dim=1, keepdim=True)
    cosines = unit @ unit.T
    torch.testing.assert_close(rn.stable_rank(H), n / torch.linalg.eigvalsh(cosines)[-1], **EXACT)
    torch.testing.assert_close(rn.mean_cosine(H), (cosines.sum() - n) / (n * (n - 1)), **EXACT)
    if n <= d:
        forms = [
            (s - n**-0.5).square().sum(),
            2 - 2 * s.sum() / math.sqrt(n),
            (H - polar(H).A / math.sqrt(n)).square().sum(),
        ]
        for form in forms:
            torch.testing.assert_close(rn.gaussian_distance(H).square(), form, **EXACT)
        values = s.square()
        torch.testing.assert_close(rn.isometry_gap(H), values.mean().log() - values.log().mean(), **EXACT)


def test_more_samples_than_units():
    """The least gap is that of a tight frame, H^T H = I."""
    n, d = 12, 5
    frame = orthonormal(d, n).T
    assert float(rn.orthogonality_gap(frame)) == pytest.approx(math.sqrt(1 / d - 1 / n), rel=1e-12)
    assert float(rn.orthogonality_gap(random(n, d))) > math.sqrt(1 / d - 1 / n)
    for measure in (rn.isometry_gap, rn.gaussian_distance):
        with pytest.raises(ValueError, match=r"^H has shape \(12, 5\), 12 samples of 5 units: wanted at most as many"):
            measure(frame)


def test_near_isometry():
    """phi / (n V^2 / 2) and W_2^2 / (n V^2 / 4) tend to 1, with an error of the order of the distance."""
    n = 6
    start, change = orthonormal(n, 20), random(n, 20)
    ratios = []
    for size in (1e-2, 1e-3):
        H = start + size * change
        V = rn.orthogonality_gap(H).square()
        ratios.append((rn.isometry_gap(H) / (n * V / 2), rn.gaussian_distance(H).square() / (n * V / 4)))
    for far, near in zip(*ratios, strict=True):
        assert abs(float(far) - 1) < 0.1 and abs(float(near) - 1) < 0.01


def test_inequalities():
    """W_2^2 <= n V^2 <= 2 n V, V <= 2 n (1/n - smallest eigenvalue), and an isometry gap above 0."""
    for n, d in ((2, 3), (5, 8), (9, 9)):
        for H in (random(n, d), random(n, d) * torch.logspace(0, -6, n).double()[:, None]):
            V, W = rn.orthogonality_gap(H), rn.gaussian_distance(H)
            smallest = torch.linalg.eigvalsh(rn.gram(H))[0]
            assert W.square() <= n * V.square() * (1 + 1e-12) and V.square() <= 2 * V
            assert rn.isometry_gap(H) > 0
            off = 1 / n - smallest
            assert V <= 2 * n * off
            assert math.sqrt(n / (n - 1)) * off <= V * (1 + 1e-12) <= math.sqrt(n * (n - 1)) * off * (1 + 1e-9)


@pytest.mark.parametrize("measure", [rn.gram, *MEASURES], ids=lambda m: m.__name__)
def test_refused(measure):
    for H, error, message in (
        (torch.zeros(3, 4), ValueError, "^H is zero: wanted a batch with a direction"),
        (torch.full((3, 4), math.nan), ValueError, "^H is not finite"),
        (torch.full((3, 4), math.inf), ValueError, "^H is not finite"),
        (torch.ones(4), ValueError, r"^H has shape \(4,\): wanted \(\*batch, n, d\), none of them 0"),
        (torch.ones(0, 4), ValueError, r"^H has shape \(0, 4\): wanted \(\*batch, n, d\), none of them 0"),
        (torch.ones(3, 4, dtype=torch.int64), TypeError, "^H is torch.int64: wanted real numbers"),
        (torch.ones(3, 4) + 0j, TypeError, "^H is torch.complex64: wanted real numbers"),
        ([[1.0, 2.0]], TypeError, "^H"),
    ):
        with pytest.raises(error, match=message):
            measure(H)


def test_samples_without_a_direction():
    H = torch.eye(3, 5)
    H[1] = 0
    for measure in (rn.stable_rank, rn.mean_cosine):
        with pytest.raises(ValueError, match="^H: a sample is zero, wanted samples with a direction"):
            measure(H)
    with pytest.raises(ValueError, match=r"^H has shape \(1, 5\): wanted at least two samples"):
        rn.mean_cosine(torch.ones(1, 5))


def test_gap_of_gram_matrices():
    """It is the gap of the samples, whatever the scale, and that of parallel ones for a matrix of ones."""
    generator = torch.Generator().manual_seed(1)
    H = torch.randn(3, 2, 5, 12, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(gap_of_gram(7 * H @ H.mT), rn.orthogonality_gap(H), **EXACT)
    assert float(gap_of_gram(torch.ones(4, 4, dtype=torch.float64))) == pytest.approx(math.sqrt(1 - 1 / 4), rel=1e-12)

# SPDX-License-Identifier: BSD-3-Clause
"""The alignment of a site, computed in the memory of its sums, against its formulae."""

import warnings

import pytest
import torch
from here import draw
from torch import nn

import rainbow_fast as rf
from rainbow_fast.ops.polar import RTOL
from rainbow_fast.rainbow.alignment import Alignment, PolarFactor
from rainbow_fast.rainbow.options import PAPER
from rainbow_fast.rainbow.sampling.align import align, has_few_directions

N, D, M = 300, 6, 120


@pytest.mark.parametrize("eps", [None, 1e-3], ids=["raw", "normalised"])
@pytest.mark.parametrize(
    ("center", "offset"), [(False, False), (False, True), (True, True)], ids=["neither", "offset", "both"]
)
@pytest.mark.parametrize("alignment", ["polar", "regression"])
def test_align(alignment: str, center: bool, offset: bool, eps: float | None) -> None:
    x, y = draw(N, D, dtype=torch.float64), draw(N, M, dtype=torch.float64, seed=1).abs()
    x = x + y[:, :D]
    if eps is not None:  # phi of the reference is already normalised
        x = (x - x.mean(0)) / x.std(0)
    moments = rf.CrossCovariance("site").update(x, y)
    sums = moments.cross
    options = PAPER.changed(center=center, offset=offset)

    class Solved(Alignment):
        """The regression, with a ridge of 0.1."""

        def solve(self, M, problem):
            used = (y - problem.subtracted) * problem.inverse
            S = used.T @ used / N
            return M @ torch.linalg.inv(S + 0.1 * S.diagonal().mean() * torch.eye(len(S), dtype=S.dtype))

    B, aligned = align(moments, options, PolarFactor() if alignment == "polar" else Solved(), eps=eps)

    features = y if eps is None else (y - y.mean(0)) / (y.var(0, unbiased=False) + eps).sqrt()
    inverse = torch.ones(M).double() if eps is None else (y.var(0, unbiased=False) + eps).rsqrt()
    used = features - features.mean(0) if center else features
    cross = x.T @ used / N
    if alignment == "polar":
        A = rf.polar(cross, rtol=1e-10, backend="reference").A
    else:
        S = used.T @ used / N
        A = cross @ torch.linalg.inv(S + 0.1 * S.diagonal().mean() * torch.eye(M, dtype=torch.float64))
    kept = x.T @ (features - features.mean(0)) / N if offset else cross
    S = torch.linalg.svdvals(cross)
    within = {"rtol": 1e-10, "atol": 1e-12}  # rounding times the condition numbers of cross and of S, below 1e3
    torch.testing.assert_close(B, A * inverse, **within)
    torch.testing.assert_close(aligned.b, torch.zeros(D).double() if eps is None else -B @ y.mean(0), **within)
    assert aligned.overlap == pytest.approx(float((A * kept).sum()), rel=1e-10)  # as A above
    # 1e-12: singular values and sums of squares in float64, of some hundred terms
    assert aligned.nuclear_norm == pytest.approx(float(S.sum()), rel=1e-12)
    assert aligned.effective_rank == pytest.approx(float(S.sum() ** 2 / S.square().sum()), rel=1e-12)
    assert aligned.features == pytest.approx(float(used.square().sum()) / N, rel=1e-12)
    torch.testing.assert_close(aligned.mean, B @ y.mean(0), **within)
    assert aligned.shape == (D, M)
    assert sums is not None and moments.cross is None
    if alignment == "polar":
        assert B.data_ptr() == sums.data_ptr(), "B is made in the memory of the sums"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_few_samples(dtype: torch.dtype) -> None:
    """20 samples of 120 and 150 channels: the polar factor comes from a basis of the directions of M."""
    x, y = draw(20, 120, dtype=dtype), draw(20, 150, dtype=dtype, seed=1)
    moments = rf.CrossCovariance("site").update(x, y)
    cross, sums = moments.compute(), moments.cross
    assert has_few_directions(cross.shape, 20) and not has_few_directions((120, 10**6), 20), (
        "a long matrix needs memory"
    )
    B, aligned = align(moments, PAPER, PolarFactor())
    U, S, Vh = torch.linalg.svd(cross)
    # rounding of the products times the condition of M, which is 10
    within = 1e-5 if dtype == torch.float32 else 1e-13
    assert (S[20] > RTOL * S[0]) == (dtype == torch.float32), "its rounding has all directions"
    torch.testing.assert_close(B, U[:, :20] @ Vh[:20], rtol=0, atol=within)
    assert sums is not None and B.data_ptr() == sums.data_ptr() and aligned.rank == 20
    assert aligned.nuclear_norm == pytest.approx(float(S.sum()), rel=within)
    assert aligned.condition == pytest.approx(float(S[0] / S[19]), rel=0.01)  # an estimate


def test_small_directions_are_kept() -> None:
    """The features are the reference's own, with directions 5e-6 times as large as others: M has 2.5e-11."""
    x = draw(N, 8, dtype=torch.float64) * torch.tensor([1.0, 1e-2, 1e-4, 5e-6]).double().repeat(2)
    x = x @ torch.linalg.qr(draw(8, 8, dtype=torch.float64, seed=1)).Q
    B, aligned = align(rf.CrossCovariance("site").update(x, x), PAPER, PolarFactor())
    assert aligned.rank == 8 and aligned.condition > 1e10
    # The rounding of M is 1e-16 of its size, which is 1e-5 of its smallest singular values, and these directions of x
    # are 5e-6 of x.
    torch.testing.assert_close(x @ B.T, x, rtol=0, atol=1e-10 * float(x.abs().max()))


def test_nothing_to_align() -> None:
    moments = rf.CrossCovariance("stem").update(torch.zeros(5, 2), torch.ones(5, 3))
    with pytest.raises(ValueError, match="site 'stem': M = 0, activations of the reference or of the sample are all"):
        align(moments, PAPER, PolarFactor())


def test_samples_fewer_than_channels() -> None:
    """M has null directions, which rounding of float32 must not fill: a network is its own sample to its rounding."""
    torch.manual_seed(0)
    layers = [nn.Linear(30, 256, bias=False), nn.Tanh(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    net, x = nn.Sequential(*layers, nn.Linear(256, 5)), draw(200, 30)
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # few samples over-fit, as they should here
        sampled, _ = rf.sample(net, x, law="identity", center=True, offset=True, holdout=0.0)
    wanted = net(x).detach()
    # Some units in the last place of float32; with M from products of float32 it is 4e-6.
    assert float((sampled(x).detach() - wanted).abs().max()) < 2e-6 * float(wanted.abs().max())

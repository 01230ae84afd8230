# SPDX-License-Identifier: BSD-3-Clause
"""Sums over samples of linear features, from sums of what the rows combine."""

import pytest
import torch
from here import draw
from tolerance import varied
from torch import Tensor

from rainbow_fast.rainbow.network.linear_feature import LinearSums

N, K, RANK, NEURONS = 30, 6, 5, 9


def mean(x: Tensor) -> Tensor:
    return x.double().movedim(1, 0).flatten(1).mean(1)


def less(x: Tensor, center: Tensor) -> Tensor:
    return x.double() - center.view(1, -1, *[1] * (x.dim() - 2))


def sums(x: Tensor, phi: Tensor, paired: bool) -> list[Tensor]:
    """The sums of x phi^T, phi and phi^2 over samples."""
    parts = (N, phi.shape[1], -1, 1 + paired)
    x, phi = (t.reshape(N, t.shape[1], -1) for t in (x, phi))
    total = phi.reshape(parts).sum((0, 2))
    products = torch.einsum("bkp,bnp->kn", x, phi)
    return [products, total if paired else total[:, 0], phi.square().sum((0, 2))]


@pytest.mark.parametrize("size", [0.0, 1e4], ids=["centred", "far"])
@pytest.mark.parametrize("with_shift", [False, True], ids=["", "shift"])
@pytest.mark.parametrize("space", [(), (3, 4), (3, 4, 2)], ids=["rows", "maps", "pairs"])
def test_sums_are_those_of_every_sample(space: tuple[int, ...], with_shift: bool, size: float) -> None:
    """The error is that of `cross_covariance`, whose sums the rows combine, relative to sums of absolute values.

    The center b is near the mean, as in sampling; means do not enlarge the error.
    """
    paired = space[-1:] == (2,)
    x, w = draw(N, K, *space) + size, draw(N, RANK + with_shift, *space, seed=1) + size
    u, shift = w[:, :RANK], w[:, RANK] if with_shift else None
    R = draw(NEURONS, RANK, seed=3).double()
    rows = torch.cat([R, torch.ones(NEURONS, 1, dtype=torch.float64)], 1)[:, : w.shape[1]]
    a, b = mean(x).float().double(), (rows @ mean(w)).round()  # a is exact in the dtype of x, as in sampling
    got = LinearSums(x, u, shift, a, paired=paired, precision="highest").of(b, {"activation": "identity", "G": R})
    exact = sums(less(x, a), less(torch.einsum("nr,br...->bn...", rows, w.double()), b), paired)
    largest = torch.einsum("nr,br...->bn...", rows.abs(), less(w, mean(w)).abs()) + 1  # b is rounded by less than 1
    allowed = sums(less(x, a).abs(), largest, paired)
    for one, wanted, terms in zip(got, exact, allowed, strict=True):
        assert one.shape == wanted.shape and one.dtype == torch.float64
        assert ((one - wanted).abs() <= varied(N) * terms).all()


def test_the_scale_multiplies_features() -> None:
    x, u, R = draw(N, K), draw(N, RANK, seed=1), draw(NEURONS, RANK, seed=3).double()
    a, b = torch.zeros(K, dtype=torch.float64), torch.zeros(NEURONS, dtype=torch.float64)
    linear = LinearSums(x, u, None, a, paired=False, precision="highest")
    once, twice = (linear.of(b, {"activation": "identity", "G": R, "scale": scale}) for scale in (1.0, 2.0))
    for one, two, factor in zip(once, twice, (2, 2, 4), strict=True):
        torch.testing.assert_close(two, factor * one)

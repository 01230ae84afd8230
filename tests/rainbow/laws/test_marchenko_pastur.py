# SPDX-License-Identifier: BSD-3-Clause
"""The number of directions above noise: planted directions are found, noise alone gives none."""

import math

import pytest
import torch
from here import draw
from torch import Tensor

from rainbow_fast.rainbow.laws.marchenko_pastur import marchenko_pastur_median, marchenko_pastur_rank


def planted(shape: tuple[int, int], spikes: int, seed: int) -> Tensor:
    """White noise of deviation 0.1 and directions 2.5 to 5 times the least that can be detected, which is
    0.1 (p q)^(1/4)."""
    W = 0.1 * draw(*shape, seed=seed)
    U, V = (torch.linalg.qr(draw(size, max(spikes, 1), seed=100 + seed))[0] for size in shape)
    strengths = torch.linspace(2.5, 5, spikes) * 0.1 * math.prod(shape) ** 0.25
    return W + (U[:, :spikes] * strengths) @ V[:, :spikes].T


@pytest.mark.parametrize("shape", [(50, 200), (300, 100), (128, 128)])
@pytest.mark.parametrize("spikes", [0, 3, 10])
def test_planted_directions_are_counted(shape: tuple[int, int], spikes: int) -> None:
    """Noise gives one too many once in a hundred; in the square case ten spikes raise the variance a little."""
    ranks = [marchenko_pastur_rank(planted(shape, spikes, seed)) for seed in range(20)]
    assert min(ranks) >= spikes and max(ranks) <= spikes + 1 and ranks.count(spikes) >= 15


def test_scale_and_shape_do_not_matter() -> None:
    W = planted((60, 90), 4, 0)
    assert [marchenko_pastur_rank(M) for M in (W, 1e-6 * W, W.T, W.view(60, 10, 3, 3), W.double())] == [4] * 5


def test_weights_without_noise_have_their_rank() -> None:
    assert marchenko_pastur_rank(draw(80, 5) @ draw(5, 100, seed=1)) == 5
    assert marchenko_pastur_rank(torch.zeros(4, 6)) == 0


def test_median_halves_the_law() -> None:
    """Eigenvalues of noise repel each other: the median of 800 is off by less than a per cent."""
    for p, q in ((400, 4000), (400, 800), (400, 400)):
        values = [torch.linalg.svdvals(draw(p, q, seed=s)).square() / q for s in range(2)]
        assert float(torch.cat(values).quantile(0.5)) == pytest.approx(marchenko_pastur_median(p / q), rel=0.01)
    # The law of ratio 1e-6 is 4e-3 wide around 1, and its median is 1 - 1e-6 / 3
    assert marchenko_pastur_median(1e-6) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "W, message",
    [
        (torch.zeros(3), r"W has shape \(3,\): wanted \(out, in, \*kernel\)"),
        (torch.zeros(3, 0), r"W has shape \(3, 0\)"),
        (torch.full((3, 3), torch.inf), "W is not finite"),
    ],
)
def test_rank_refuses(W: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marchenko_pastur_rank(W)


def test_median_refuses() -> None:
    with pytest.raises(ValueError, match="ratio=2: wanted 0 < ratio <= 1"):
        marchenko_pastur_median(2)

# SPDX-License-Identifier: BSD-3-Clause
"""The loss of sums of products, relative to their magnitudes, on difficult data: equal, far from zero, sorted."""

import pytest
import torch
from here import BACKENDS, LEVELS, draw, level
from tolerance import EQUAL, varied
from torch import Tensor

import rainbow_fast as rf

KINDS = {  # of float64 (N, CHANNELS)
    "normal": lambda z: z,
    "one-signed": lambda z: z.relu(),
    "constant": lambda z: torch.full_like(z, 1 / 3),
    "constant-channels": lambda z: z[:1].expand_as(z),
    "offset": lambda z: 1e6 + z,
    "sorted": lambda z: z.sort(0)[0],
    "sorted-one-signed": lambda z: z.exp().sort(0)[0],
    "sorted-levels": lambda z: (3 * z).round().sort(0)[0] / 9,
}
CHANNELS = 6


def data(kind: str, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z = KINDS[kind](draw(N, CHANNELS, dtype=torch.float64))
    if dtype == torch.float16:
        z = z.clamp(max=2.0**15)
    return z.to(dtype).contiguous(), z.flip(1).to(dtype).contiguous()


def losses(x: Tensor, y: Tensor, center: bool, backend: str | None = None) -> list[float]:
    """The largest error of an entry of each kind, for x with y and for x alone, relative to the sum of magnitudes.

    x and y have `CHANNELS` columns of each kind, side by side.
    """
    X, Y = x.double(), y.double()
    worst = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    if center:
        X, Y = X - X.mean(0), Y - Y.mean(0)
    for got, other in (
        (rf.cross_covariance(x, y, center=center, backend=backend), Y),
        (rf.cross_covariance(x, center=center, backend=backend), X),
    ):
        size = X.abs().T @ other.abs()
        exact = X.T @ other
        # float64 means of the reference are rounded, too
        floor = 1e-14 * torch.outer(x.double().abs().sum(0), x.double().abs().amax(0))
        worst = torch.maximum(worst, ((got - exact).abs() - floor).clamp(min=0) / (size + 1e-300))
    blocks = worst.unflatten(1, (-1, CHANNELS)).unflatten(0, (-1, CHANNELS)).amax((1, 3))
    return blocks.diagonal().tolist()


def most(dtype: torch.dtype, backend: str) -> float:
    if dtype == torch.float64 or backend == "reference":
        return EQUAL["float64"]
    if backend != "cpu":
        return EQUAL["gpu"]
    return EQUAL["pairs" if dtype == torch.bfloat16 else "cpu"]


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", [False, True], ids=["plain", "center"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_data_that_is_not_kind(dtype: torch.dtype, center: bool, backend: str) -> None:
    """On GPUs all kinds are channels of one tile. On CPUs they come one by one, so that kernels for narrow data run."""
    calls = [[kind] for kind in KINDS] if backend in ("cpu", "reference") else [list(KINDS)]
    errors = {}
    for kinds in calls:
        sides = zip(*(data(kind, 1500, dtype) for kind in kinds), strict=True)
        x, y = (torch.cat(side, 1) for side in sides)
        errors.update(zip(kinds, losses(x, y, center, backend), strict=True))
    assert max(errors.values()) <= most(dtype, backend), errors
    if center:  # equal numbers less their mean are zero
        assert errors["constant"] == errors["constant-channels"] == 0
    if backend == "cpu" and dtype == torch.float32:
        assert max(errors[kind] for kind in VARIED) <= varied(1500), errors


VARIED = ["normal", "one-signed"]


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("center", [False, True], ids=["plain", "center"])
def test_longer_sums_are_better(center: bool, name: str) -> None:
    with level(name):
        for N in (400, 20_000, 200_000):
            errors = {kind: losses(*data(kind, N, torch.float32), center)[0] for kind in VARIED}
            assert max(errors.values()) <= varied(N), (N, errors)

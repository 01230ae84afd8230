# SPDX-License-Identifier: BSD-3-Clause
"""The loss of sums of products, relative to their magnitudes, on difficult data: equal, far from zero, sorted."""

import pytest
import torch
from here import BACKENDS, LEVELS, draw, level
from tolerance import EQUAL, varied
from torch import Tensor

import rainbow_fast as rf

KINDS = {  # of float64 (N, 6)
    "normal": lambda z: z,
    "one-signed": lambda z: z.relu(),
    "constant": lambda z: torch.full_like(z, 1 / 3),
    "constant-channels": lambda z: z[:1].expand_as(z),
    "offset": lambda z: 1e6 + z,
    "sorted": lambda z: z.sort(0)[0],
    "sorted-one-signed": lambda z: z.exp().sort(0)[0],
    "sorted-levels": lambda z: (3 * z).round().sort(0)[0] / 9,
}


def data(kind: str, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z = KINDS[kind](draw(N, 6, dtype=torch.float64))
    if dtype == torch.float16:
        z = z.clamp(max=2.0**15)
    return z.to(dtype).contiguous(), z.flip(1).to(dtype).contiguous()


def losses(x: Tensor, y: Tensor, center: bool, backend: str | None = None) -> float:
    """The largest error of an entry, for x with y and for x alone, relative to the sum of magnitudes."""
    X, Y, worst = x.double(), y.double(), 0.0
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
        worst = max(worst, float((((got - exact).abs() - floor).clamp(min=0) / (size + 1e-300)).max()))
    return worst


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
    errors = {kind: losses(*data(kind, 1500, dtype), center, backend) for kind in KINDS}
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
            errors = {kind: losses(*data(kind, N, torch.float32), center) for kind in VARIED}
            assert max(errors.values()) <= varied(N), (N, errors)

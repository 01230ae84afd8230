# SPDX-License-Identifier: BSD-3-Clause
"""The equation ``delta = F(delta) = mean of lambda / (c lambda / (1 + delta) - z)`` for many z at a time.

For z in the upper half plane there is one solution with Im delta > 0 and Im(z delta) >= 0, because F maps this domain
into itself. For Im z >= 2 sqrt(c mean(lambda^2)), F contracts by a factor of 4. The solution there is followed down to
the wanted Im z, halving it at fixed Re z, by Newton's method. A step that would leave the domain is shortened; if that
does not help, F takes its place. Re z is never changed: at small Im z a step across a gap would lead to another root.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST = 2**21  # numbers of (z, lambda) that are computed at a time
RESIDUAL = 1e-12  # largest |delta - F(delta)| / (1 + |delta|)
CLOSE = 1e-14
STEPS = 50  # of Newton's method, at one z
HALVINGS = 30  # of one step


def solve(values: Tensor, aspect: float, z: Tensor) -> Tensor:
    """delta (Z,) complex128 for z (Z,) complex128.

    Args:
        values: the lambda (T,), float64, at least 0, some above 0.
        aspect: c.
        z: in the upper half plane, or real and below 0.

    Raises:
        ArithmeticError: the equation is not solved to 1e-12 in its domain.
    """
    delta = torch.zeros_like(z)
    below = z.imag == 0
    delta[below] = _below(values, aspect, z[below])
    delta[~below] = _above(values, aspect, z[~below])
    residual = (delta - _step(values, aspect, z, delta)[:, 0]).abs()
    solved = (residual <= RESIDUAL * (1 + delta.abs())) & (below | _inside(z, delta))
    if not bool(solved.all()):
        where = complex(z[~solved][0])
        raise ArithmeticError(f"the equation at z={where} (over the mean eigenvalue) is not solved to {RESIDUAL}")
    return delta


def resolvent_mean(values: Tensor, aspect: float, z: Tensor, delta: Tensor) -> Tensor:
    """m = mean of 1 / (c lambda / (1 + delta) - z), (Z,)."""

    def block(apart: Tensor, y: Tensor) -> Tensor:
        weight = 1 / (apart.square() + y.square())
        return torch.complex((weight * apart).mean(1), y.squeeze(1) * weight.mean(1))

    return (1 + delta) * _in_blocks(block, values, aspect, z * (1 + delta))


def _step(values: Tensor, aspect: float, z: Tensor, delta: Tensor) -> Tensor:
    """F and its derivative, (Z, 2): 1 + delta times the mean of q = lambda / (c lambda - w), and c times that of q^2.

    w is z (1 + delta). Real and imaginary parts are summed apart, which is faster than complex numbers.
    """

    def block(apart: Tensor, y: Tensor) -> Tensor:
        weight = values / (apart.square() + y.square())
        real, y = weight * apart, y.squeeze(1)
        first = torch.complex(real.mean(1), y * weight.mean(1))
        second = (real.square().mean(1) - (y * y) * weight.square().mean(1), 2 * y * (real * weight).mean(1))
        return torch.stack([first, aspect * torch.complex(*second)], 1)

    means = _in_blocks(block, values, aspect, z * (1 + delta))
    return torch.stack([(1 + delta) * means[:, 0], means[:, 1]], 1)


def _in_blocks(function: Callable[[Tensor, Tensor], Tensor], values: Tensor, aspect: float, w: Tensor) -> Tensor:
    """The function of ``c lambda - Re w`` (Z, T) and Im w (Z, 1), for some of the w at a time."""
    parts = w.unsqueeze(1).split(max(MOST // len(values), 1))
    return torch.cat([function(aspect * values - part.real, part.imag) for part in parts])


def _inside(z: Tensor, delta: Tensor) -> Tensor:
    """Where delta is in the domain of the solution, up to rounding."""
    product = z * delta
    return (delta.imag > 0) & (product.imag >= -RESIDUAL * product.abs())


def _above(values: Tensor, aspect: float, z: Tensor) -> Tensor:
    """By continuation from Im z = height, where F contracts."""
    height = 2 * float((aspect * values.square().mean()).sqrt())
    now = torch.complex(z.real, z.imag.clamp(min=height))
    delta = torch.zeros_like(z)
    for _ in range(30):  # 4^-30 is below 1e-17
        delta = _step(values, aspect, now, delta)[:, 0]
    while len(left := (now.imag > z.imag).nonzero().squeeze(1)):
        height /= 2
        now[left] = torch.complex(z.real[left], z.imag[left].clamp(min=height))
        delta[left] = _newton(values, aspect, now[left], delta[left])
    return delta


def _newton(values: Tensor, aspect: float, z: Tensor, delta: Tensor) -> Tensor:
    delta = delta.clone()
    left = torch.arange(len(z), device=z.device)
    for _ in range(STEPS):
        at, before = z[left], delta[left]
        image, slope = _step(values, aspect, at, before).unbind(1)
        change = (before - image) / (1 - slope)
        after = before - change
        for _ in range(HALVINGS):
            outside = ~_inside(at, after)
            if not bool(outside.any()):
                break
            change = torch.where(outside, change / 2, change)
            after = before - change
        delta[left] = after = torch.where(_inside(at, after), after, image)
        left = left[(after - before).abs() > CLOSE * (1 + after.abs())]
        if not len(left):
            break
    return delta


def _below(values: Tensor, aspect: float, z: Tensor) -> Tensor:
    """For real z < 0: delta - F(delta) is convex, and Newton's method falls to its root from above."""
    delta = values.mean() / -z
    for _ in range(100):
        image, slope = _step(values, aspect, z, delta).unbind(1)
        change = (delta - image) / (1 - slope)
        delta = delta - change
        if bool((change.abs() <= CLOSE * delta.abs()).all()):
            break
    return delta

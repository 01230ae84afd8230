# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of Gaussian random features: for infinite width in closed form, and for n features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.infinite_width import expectations
from rainbow_fast.infinite_width.expectations import CENTRED, STEPS, Angles
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.ops.gaussian import Seed, as_key, further
from rainbow_fast.ops.random_features import random_features

PAIRS = 2**18  # pairs of samples that are computed at a time
FEATURES = 2**22  # numbers of phi' that are computed at a time
NEAR = 0.05  # sines of half an angle below this are computed from the difference of the directions


def expected_kernel(
    u: Tensor,  # (N, r)
    v: Tensor | None = None,  # (N', r)
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    shift_v: Tensor | None = None,  # (N',)
    max_pairs: int = PAIRS,
) -> Tensor:  # (N, N')
    r"""The kernel of infinitely many random features, ``k(u, v) = E[sigma(<g, u> + shift) sigma(<g, v> + shift_v)]``.

    g is N(0, I). The kernel is the limit of ``phi'(u) phi'(v)^T / n`` for n to infinity, and its mean for every n,
    where phi' are the n features of `rainbow_fast.random_features` with the same arguments.

    ====================================  ==========================  =======================================
    activation                            without a shift             with a shift
    ====================================  ==========================  =======================================
    relu, leaky_relu, identity, abs       closed form                 closed form, by Owen's T function
    step, sign                            closed form                 closed form, by Owen's T function
    erf, gelu, cos                        closed form                 Hermite series
    tanh, silu                            Hermite series              Hermite series
    ====================================  ==========================  =======================================

    It is computed in float64 on the CPU. The absolute error of the closed forms is at most
    1e-13 (1 + |shift| + |u|) (1 + |shift_v| + |v|). A series adds at most 1e-11 sqrt(k(u, u) k(v, v)), with as many
    terms as this needs. Angles are exact to a few units in the last place, also for nearly parallel or opposite
    samples. For a row of zeros the activation is constant. Memory: the result, and about 200 bytes for each of
    `max_pairs` pairs (50 MB by default); a series also stores (N + N') times its number of terms.

    Args:
        u, v: projections, as `RainbowActivation.project` returns them; v = None (default) takes u and its shift.
        activation, negative_slope: as in `rainbow_fast.random_features`.
        shift, shift_v: one number for each sample, added for every neuron; None (default) adds nothing.
        max_pairs: number of pairs of samples that are computed at a time. It limits the memory, and changes the result
            only by rounding.

    Raises:
        ValueError: shapes do not match, the activation is unknown, values are not finite, `shift_v` is given without v,
            `max_pairs` is below 1, or a row is so long that a series needs more than 4096 terms (norms from 7.5 on for
            tanh, 10 for erf, 16 for silu and gelu).

    Source: Cho and Saul, "Kernel methods for deep learning" (2009), and those in `infinite_width/expectations.py`.
    """
    _check_activation(activation)
    max_pairs = integer("max_pairs", max_pairs, 1)
    if v is None and shift_v is not None:
        raise ValueError("shift_v is given without v: wanted both, or shift alone")
    left = _side("u", u, "shift", shift)
    right = left if v is None else _side("v", v, "shift_v", shift_v)
    if left.direction.shape[1] != right.direction.shape[1]:
        raise ValueError(f"v has rank {right.direction.shape[1]}: wanted that of u, {left.direction.shape[1]}")
    is_shifted = bool(left.shift.any() or right.shift.any())
    exact = expectations.slope_of(activation, negative_slope) is not None or activation in STEPS
    terms: tuple[Tensor, ...] = ()
    if not exact and (is_shifted or activation not in CENTRED):
        size, added = torch.cat([left.size, right.size]), torch.cat([left.shift, right.shift])
        coefficients = expectations.hermite_coefficients(activation, negative_slope, size, added)
        terms = coefficients.split([len(left.size), len(right.size)])
    out = torch.empty(len(left.size), len(right.size), dtype=torch.float64, device=left.size.device)
    t, b = right.size.unsqueeze(0), right.shift.unsqueeze(0)
    height = max(max_pairs // max(len(right.size), 1), 1)
    for rows in torch.arange(len(left.size), device=left.size.device).split(height):
        angles = _angles(left.direction[rows], right.direction, max_pairs)
        s, a = left.size[rows].unsqueeze(1), left.shift[rows].unsqueeze(1)
        if terms:
            out[rows] = expectations.series(terms[0][rows], terms[1], angles)
        elif is_shifted:
            out[rows] = expectations.shifted(activation, negative_slope, s, t, angles, a, b)
        else:
            out[rows] = expectations.centred(activation, negative_slope, s, t, angles)
    return out.to(u.device)


def expected_mean(
    u: Tensor,  # (N, r)
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
) -> Tensor:  # (N,)
    """The mean of the random features of each sample, ``E[sigma(<g, u> + shift)]`` with g from N(0, I), in float64.

    Arguments, errors and accuracy are as in `expected_kernel`, except that tanh, silu, erf, gelu and cos allow norms of
    u up to 24.
    """
    _check_activation(activation)
    side = _side("u", u, "shift", shift)
    return expectations.mean(activation, negative_slope, side.size, side.shift).to(u.device)


@torch.no_grad()
def empirical_kernel(
    u: Tensor,  # (N, r)
    n: int,
    v: Tensor | None = None,  # (N', r)
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    shift_v: Tensor | None = None,  # (N',)
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    max_features: int = FEATURES,
    backend: str | None = None,
) -> Tensor:  # (N, N')
    """The kernel of n random features, ``phi'(u) phi'(v)^T / n``, float64.

    Equivalent to::

        options = dict(activation=activation, seed=seed, stream=stream, row_offset=row_offset)
        rf.random_features(u, n, shift=shift, **options) @ rf.random_features(v, n, shift=shift_v, **options).T / n

    but computed in blocks of neurons and summed in float64. Without v, the result is exactly symmetric and takes half
    of the work. Features are computed in the dtype of u. There is no gradient.

    Arguments and errors are as in `rainbow_fast.random_features`; n is at least 1. `max_features` limits the numbers of
    phi' in memory at a time (but a block has at least 128 neurons). It changes the result only by rounding.
    """
    n, max_features = integer("n", n, 1), integer("max_features", max_features, 1)
    if v is None and shift_v is not None:
        raise ValueError("shift_v is given without v: wanted both, or shift alone")
    where = as_key(seed, stream, row_offset)
    options: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope, "backend": backend}
    others = u if v is None else v
    out = torch.zeros(len(u), len(others), dtype=torch.float64, device=u.device)
    block = max(max_features // max(len(u), len(others), 1), 128)
    for start in range(0, n, block):
        here = further(where, start)
        count = min(block, n - start)
        phi = random_features(u, count, shift=shift, seed=here, **options)
        phi_v = None if v is None else random_features(v, count, shift=shift_v, seed=here, **options).unsqueeze(0)
        cross_covariance_(out, phi.unsqueeze(0), phi_v, backend=backend)  # neurons are the positions of one sample
    return out.div_(n)


class _Side(NamedTuple):
    """Samples as unit vectors, norms and shifts, float64 on the CPU. A row of zeros has the direction zero."""

    direction: Tensor
    size: Tensor
    shift: Tensor


def _side(name: str, u: Tensor, shift_name: str, shift: Tensor | None) -> _Side:
    if u.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(u.shape)}: wanted (N, r)")
    if shift is not None and shift.shape != u.shape[:1]:
        raise ValueError(f"{shift_name} has shape {tuple(shift.shape)}: wanted {tuple(u.shape[:1])}")
    x = u.detach().cpu().double()
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    a = zero if shift is None else shift.detach().cpu().double()
    for what, values in ((name, x), (shift_name, a)):
        if not values.isfinite().all():
            raise ValueError(f"{what} is not finite")
    size = torch.linalg.vector_norm(x, dim=1)
    return _Side(x / torch.where(size > 0, size, 1.0).unsqueeze(1), size, a)


def _angles(x: Tensor, y: Tensor, max_pairs: int) -> Angles:
    """The angles between unit vectors, ``2 atan2(|x - y|, |x + y|)`` (Kahan 2006); a right angle if a vector is zero.

    |x - y| and |x + y| are computed from the product of x and y, or from x and y themselves where that would cancel.
    """
    cos = x @ y.T
    halves = []
    for sign in (1, -1):
        half = ((1 - sign * cos) / 2).clamp(min=0).sqrt()
        near = (half < NEAR).nonzero()
        for pairs in near.split(max(max_pairs // max(x.shape[1], 1), 1)):
            i, j = pairs.unbind(1)
            half[i, j] = torch.linalg.vector_norm(x[i] - sign * y[j], dim=1) / 2
        halves.append(half)
    return Angles(2 * torch.atan2(*halves), 2 * torch.atan2(*halves[::-1]))


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(ACTIVATIONS)}")

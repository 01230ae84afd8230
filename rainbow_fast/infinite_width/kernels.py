# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of Gaussian random features: for infinite width in closed form, and for n features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.arguments import integer, tensor
from rainbow_fast.infinite_width import hermite
from rainbow_fast.infinite_width.expectations import Expectations, expectations
from rainbow_fast.infinite_width.gaussian_pairs import Angles, Pairs, angles_between, angles_of
from rainbow_fast.infinite_width.pointwise_features import features_of
from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.ops.gaussian import Seed, as_key, further

PAIRS = 2**18  # pairs of samples that are computed at a time
FEATURES = 2**22  # numbers of phi' that are computed at a time
ROUNDING = 1e-10  # a negative eigenvalue of a covariance up to this share of the largest one is taken for 0


def expected_kernel(
    u: Tensor,  # (N, r)
    v: Tensor | None = None,  # (N', r)
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    shift_v: Tensor | None = None,  # (N',)
    cov: Tensor | None = None,  # (r, r)
    max_pairs: int = PAIRS,
) -> Tensor:  # (N, N')
    r"""The kernel of infinitely many random features, ``k(u, v) = E[sigma(<w, u> + shift) sigma(<w, v> + shift_v)]``.

    w is N(0, cov). The kernel is the limit of ``phi'(u) phi'(v)^T / n`` for n to infinity, and its mean for every n,
    where phi' are the n features of `rainbow_fast.random_features` with the same arguments. Only ``u cov u``,
    ``v cov v`` and ``u cov v`` enter, and the shifts.

    ====================================  ==========================  =======================================
    activation                            without a shift             with a shift
    ====================================  ==========================  =======================================
    relu, leaky_relu, identity, abs       closed form                 closed form, by Owen's T function
    step, sign, squared_relu              closed form                 closed form, by Owen's T function
    erf, normal_cdf                       closed form                 closed form, by Owen's T function
    cos, sin, exp, gaussian, square       closed form                 closed form
    gelu                                  closed form                 Hermite series
    tanh, silu, sigmoid, softplus         Hermite series              Hermite series
    any smooth function                   Hermite series              Hermite series
    ====================================  ==========================  =======================================

    squared_relu is max(t, 0)^2, gaussian is exp(-t^2 / 2), normal_cdf is the standard normal distribution function.

    It is computed in float64 on the CPU. The absolute error of the closed forms is at most
    1e-13 (1 + |shift| + |u|) (1 + |shift_v| + |v|); for square and squared_relu it is the square of this, and for exp
    1e-13 of the kernel. A series adds at most 1e-11 sqrt(k(u, u) k(v, v)), with as many terms as this needs. Angles are
    exact to a few units in the last place, also for nearly parallel or opposite samples; with `cov`, as exact as
    ``u cov^(1/2)``. For a row of zeros the activation is constant. Memory: the result, and about 200 bytes for each of
    `max_pairs` pairs (50 MB by default); a series also stores (N + N') times its number of terms.

    Args:
        u, v: projections, as `RainbowActivation.project` returns them; v = None (default) takes u and its shift.
        activation: a name of the table, "relu" by default; or a pointwise function of float64 tensors without kinks or
            steps, in PyTorch.
        negative_slope: slope of leaky_relu; 0.01 by default.
        shift, shift_v: one number for each sample, added for every neuron; None (default) adds nothing.
        cov: covariance of the weights of a neuron, symmetric without negative eigenvalues; None (default) is the
            identity.
        max_pairs: number of pairs of samples that are computed at a time. It limits the memory, and changes the result
            only by rounding.

    Raises:
        ValueError: shapes do not match, the activation is unknown, no pointwise function, not finite or grows too fast,
            values are not finite, `shift_v` is given without v, `cov` is not symmetric or has a negative eigenvalue,
            `max_pairs` is below 1, or a row is so long (or a function so steep) that a series needs more than 4096
            terms: norms from 7.5 on for tanh, 16 for silu and gelu.
        TypeError: u, v or cov is not a tensor, or the activation is neither a name nor a function.
        ImportError: a form by Owen's T function is needed, and scipy is missing.

    Source: Cho and Saul, "Kernel methods for deep learning" (2009), and those in `infinite_width/expectations.py`.
    """
    form = expectations(activation, negative_slope)
    max_pairs = integer("max_pairs", max_pairs, 1)
    if v is None and shift_v is not None:
        raise ValueError("shift_v is given without v: wanted both, or shift alone")
    left = _side("u", u, "shift", shift, cov)
    right = left if v is None else _side("v", v, "shift_v", shift_v, cov)
    if left.direction.shape[1] != right.direction.shape[1]:
        raise ValueError(f"v has rank {right.direction.shape[1]}: wanted that of u, {left.direction.shape[1]}")

    def angles(rows: Tensor) -> Angles:
        return angles_between(left.direction[rows], right.direction, max_pairs)

    return _kernel(form, left, right, angles, max_pairs).to(u.device)


def expected_kernel_of_gram(
    K: Tensor,  # (N, N)
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    negative_slope: float = 0.01,
    max_pairs: int = PAIRS,
) -> Tensor:  # (N, N)
    """The kernel of infinitely many random features of samples with Gram matrix K, ``E[sigma(x) sigma(x)^T]``.

    x is N(0, K). Applied again and again it is the kernel of a deep network of infinite width. A covariance of the
    weights is in K: ``K = u cov u^T``; the variance of random biases is added to every entry of K.

    Equivalent to::

        expected_kernel(torch.linalg.cholesky(K), activation=activation, negative_slope=negative_slope)

    but without the factor. Cosines beyond -1 and 1 are taken for these. The angle between nearly parallel samples is
    known to the root of the rounding of K, 1e-8.

    Args:
        K: Gram matrix, symmetric, with diagonal entries of at least 0.
        activation, negative_slope, max_pairs: as in `expected_kernel`.

    Raises:
        ValueError: K is not square, not symmetric to 1e-10 of its largest entry, not finite, or has a negative diagonal
            entry; and as `expected_kernel`.
        TypeError: as `expected_kernel`.

    Source: as `expected_kernel`; for deep networks Cho and Saul (2009), section 2.3.
    """
    form = expectations(activation, negative_slope)
    max_pairs = integer("max_pairs", max_pairs, 1)
    gram = _symmetric("K", K)
    if bool((gram.diagonal() < 0).any()):
        raise ValueError(f"K has the diagonal entry {float(gram.diagonal().min()):.3g}: wanted none below 0")
    size = gram.diagonal().sqrt()
    side = _Side(gram, size, torch.zeros_like(size))
    whole = torch.where(size > 0, size, 1.0)

    def angles(rows: Tensor) -> Angles:
        cos = (gram[rows] / whole[rows].unsqueeze(1) / whole).clamp(-1, 1)
        cos[torch.arange(len(rows), device=rows.device), rows] = 1.0
        return angles_of(cos)

    return _kernel(form, side, side, angles, max_pairs).to(K.device)


def expected_mean(
    u: Tensor,  # (N, r)
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    cov: Tensor | None = None,  # (r, r)
) -> Tensor:  # (N,)
    """The mean of the random features of each sample, ``E[sigma(<w, u> + shift)]`` with w from N(0, cov), in float64.

    Arguments, errors and accuracy are as in `expected_kernel`, except that gelu has a closed form with a shift too, and
    that activations without a closed form allow norms of u up to 24.
    """
    form = expectations(activation, negative_slope)
    side = _side("u", u, "shift", shift, cov)
    if form.mean is not None:
        return form.mean(side.size, side.shift).to(u.device)
    return hermite.mean(form.name, form.sigma, side.size, side.shift).to(u.device)


def expected_power(
    u: Tensor,  # (N, r)
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    cov: Tensor | None = None,  # (r, r)
) -> Tensor:  # (N,)
    """The mean square of the random features of each sample, ``E[sigma(<w, u> + shift)^2]``, in float64.

    It is the diagonal of `expected_kernel`, whose arguments, errors and accuracy it has.
    """
    form = expectations(activation, negative_slope)
    side = _side("u", u, "shift", shift, cov)
    return power(form, side.size, side.shift).to(u.device)


@torch.no_grad()
def empirical_kernel(
    u: Tensor,  # (N, r)
    n: int,
    v: Tensor | None = None,  # (N', r)
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
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

    but computed in blocks of neurons and summed in float64, and for every activation of `expected_kernel`: a name that
    `random_features` does not have, such as sin, or a pointwise function of tensors, is applied to its projections
    (activation identity), block by block. Without v, the result is exactly symmetric and takes half of the work.
    Features are computed in the dtype of u. There is no gradient.

    Arguments and errors are as in `rainbow_fast.random_features`; n is at least 1. `max_features` limits the numbers of
    phi' in memory at a time (but a block has at least 128 neurons). It changes the result only by rounding.

    Raises:
        ValueError: the name of the activation is unknown, or a function returns another shape or numbers that are not
            finite; or as `random_features`.
        TypeError: the activation is neither a name nor a function; or as `random_features`.
    """
    n, max_features = integer("n", n, 1), integer("max_features", max_features, 1)
    if v is None and shift_v is not None:
        raise ValueError("shift_v is given without v: wanted both, or shift alone")
    features = features_of(activation, negative_slope)
    where = as_key(seed, stream, row_offset)
    others = u if v is None else v
    out = torch.zeros(len(u), len(others), dtype=torch.float64, device=u.device)
    block = max(max_features // max(len(u), len(others), 1), 128)
    for start in range(0, n, block):
        here = further(where, start)
        count = min(block, n - start)
        phi = features(u, count, shift=shift, seed=here, backend=backend)
        phi_v = None if v is None else features(v, count, shift=shift_v, seed=here, backend=backend).unsqueeze(0)
        cross_covariance_(out, phi.unsqueeze(0), phi_v, backend=backend)  # neurons are the positions of one sample
    return out.div_(n)


class _Side(NamedTuple):
    """Samples as unit vectors, norms and shifts, float64 on the CPU. A row of zeros has the direction zero."""

    direction: Tensor
    size: Tensor
    shift: Tensor


def _side(name: str, u: Tensor, shift_name: str, shift: Tensor | None, cov: Tensor | None) -> _Side:
    if tensor(name, u).dim() != 2:
        raise ValueError(f"{name} has shape {tuple(u.shape)}: wanted (N, r)")
    if shift is not None and shift.shape != u.shape[:1]:
        raise ValueError(f"{shift_name} has shape {tuple(shift.shape)}: wanted {tuple(u.shape[:1])}")
    x = u.detach().cpu().double()
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    a = zero if shift is None else shift.detach().cpu().double()
    for what, values in ((name, x), (shift_name, a)):
        if not values.isfinite().all():
            raise ValueError(f"{what} is not finite")
    if cov is not None:
        x = x @ covariance_root(cov, x.shape[1])
    size = torch.linalg.vector_norm(x, dim=1)
    return _Side(x / torch.where(size > 0, size, 1.0).unsqueeze(1), size, a)


def covariance_root(cov: Tensor, rank: int) -> Tensor:
    """R (r, r) with R R^T = cov, after a check of cov (r, r)."""
    C = _symmetric("cov", cov)
    if len(C) != rank:
        raise ValueError(f"cov has shape {tuple(C.shape)}: wanted (r, r) = {(rank, rank)}")
    values, vectors = torch.linalg.eigh(C)
    if len(values) and float(values[0]) < -ROUNDING * float(values[-1].abs()):
        raise ValueError(f"cov has the eigenvalue {float(values[0]):.3g}: wanted none below 0")
    return vectors * values.clamp(min=0).sqrt()


def _symmetric(name: str, matrix: Tensor) -> Tensor:
    """A symmetric matrix in float64 on the CPU."""
    if tensor(name, matrix).dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: wanted a square matrix")
    M = matrix.detach().cpu().double()
    if not bool(M.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    if M.numel() and float((M - M.T).abs().max()) > ROUNDING * float(M.abs().max()):
        raise ValueError(f"{name} is not symmetric")
    return M


def power(form: Expectations, s: Tensor, a: Tensor) -> Tensor:
    """E[sigma(a + s X)^2], in the shape of s and a."""
    exact = form.shifted if bool(a.any()) else form.centred
    if exact is None:
        terms = hermite.coefficients(form.name, form.sigma, s.flatten(), a.flatten())
        return terms.square().sum(1).view(s.shape)
    same = Angles(torch.zeros_like(s), torch.full_like(s, math.pi))
    return exact(Pairs(s, s, same, a, a))


def _kernel(
    form: Expectations, left: _Side, right: _Side, angles: Callable[[Tensor], Angles], max_pairs: int
) -> Tensor:
    """E[sigma(x) sigma(y)] for all pairs, some rows at a time; `angles` gives the angles of these rows."""
    exact = form.shifted if bool(left.shift.any() or right.shift.any()) else form.centred
    terms: tuple[Tensor, ...] = ()
    if exact is None:
        size, added = torch.cat([left.size, right.size]), torch.cat([left.shift, right.shift])
        terms = hermite.coefficients(form.name, form.sigma, size, added).split([len(left.size), len(right.size)])
    out = torch.empty(len(left.size), len(right.size), dtype=torch.float64, device=left.size.device)
    height = max(max_pairs // max(len(right.size), 1), 1)
    for rows in torch.arange(len(left.size), device=left.size.device).split(height):
        if exact is None:
            out[rows] = hermite.series(terms[0][rows].unsqueeze(1), terms[1].unsqueeze(0), angles(rows))
        else:
            s, a = left.size[rows].unsqueeze(1), left.shift[rows].unsqueeze(1)
            out[rows] = exact(Pairs(s, right.size.unsqueeze(0), angles(rows), a, right.shift.unsqueeze(0)))
    return out

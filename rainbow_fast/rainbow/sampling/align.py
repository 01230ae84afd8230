# SPDX-License-Identifier: BSD-3-Clause
"""The alignment of a site computed from its moments: A, its scale and its offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rainbow_fast.maps import complex_rows
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.polar import LONG_IN_PLACE, RTOL, Polar, polar_, polar_flops
from rainbow_fast.rainbow.alignment.alignment import Alignment, Problem
from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.filter_covariance import by_filter, times
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.options import MethodOptions

# M of S samples has at most S directions. Below a fourth of the shorter side it pays to find them first.
FEW, SPARE = 4, 8  # SPARE more columns than directions keep the Gaussian matrix that finds them well-conditioned
DIGITS = 1e4  # products in the subnormal range of their dtype must have at least this many steps of the dtype


@dataclass(frozen=True)
class AlignedMap:
    """Properties of the map ``B phi' + b`` from the raw features phi' to reference coordinates, before its scale.

    If B = 0, the rank is 0, and similarity, effective rank and condition are NaN.

    If the statistics of the reference are restored, the problem is that of ``D^-1 (phi - mu)``, and B contains D.

    Attributes:
        shape: of one block of B, (d, n).
        b: the constant b, (d,) float64; (d, 2) for pairs, as all means.
        center: what is added in any case: mu if it is restored, otherwise 0.
        inverse: D^-1, (d,) float64; ones if nothing is restored.
        mean: ``B E[phi']``, (d,) float64.
        overlap: tr(A M^T); with an offset, M is the centred one.
        covariance: tr(A C^T), where C is the centred M.
        nuclear_norm: |M|_*.
        features: E|phi'|^2 of the features that M is computed from: normalised, centred, or raw.
        similarity: |M|_* / sqrt(E|phi|^2 E|phi'|^2).
        rank: number of singular values of M that are kept.
        effective_rank: (|M|_* / |M|_F)^2.
        condition: largest over smallest kept singular value of M.
    """

    shape: tuple[int, int]
    b: Tensor
    center: Tensor
    inverse: Tensor
    mean: Tensor
    overlap: float
    covariance: float
    nuclear_norm: float
    features: float
    similarity: float
    rank: int
    effective_rank: float
    condition: float


def align(
    moments: CrossCovariance,
    options: MethodOptions,
    alignment: Alignment,
    *,
    positions: int = 1,
    eps: float | None = None,
    floor: Tensor | None = None,
    products: torch.dtype | None = None,
    complex_weights: bool = False,
) -> tuple[Tensor, AlignedMap]:
    r"""Align the features phi' of a site with the reference's phi.

    ``M = E[phi phi'^T]`` is the uncentred cross-covariance, or with ``center`` the covariance. The alignment solves
    for A, by default ``A = polar(M)``, which is as accurate as the products that M is summed from (`product_dtype`).

    If the site ends in a normalisation (`eps` is given, phi is already normalised), the features are normalised by
    their own statistics: ``D'^-1 (phi' - mu')`` with ``D'^2 = var phi' + eps``. Then
    ``M = E[phi (phi' - mu')^T] D'^-1``.

    With a `floor`, phi is standardised by its own statistics as well, ``D^-1 (phi - mu)`` with ``D^2 = var phi +
    floor``, and B maps back: ``B = D A D'^-1``. If the features are those of the reference, B phi' + mu is phi.

    Moments (F, d, n) of several features of a neuron are F problems of their own; with ``alignment_blocks="shared"``
    their M are added, and all have the same A.

    With complex weights, x of the moments is (phi, -i phi), so that M is (Re M; Im M), B is (Re B; Im B), and A is
    unitary, the polar factor of the complex M.

    Sums are taken about centers, so that the centred M and the variances are not differences of large numbers. The
    only exception is the overlap with an offset and an uncentred M, which is a difference in float64.

    With an offset, if phi is constant up to rounding, B = 0, and the offset alone gives phi.

    Args:
        moments: of phi and of the raw phi'. The sums are consumed: M is made in their memory.
        options: resolved; ``center`` and ``offset`` are read.
        alignment: has already received the data.
        positions: for a flattened site, the number of features of phi' that belong to one channel; 1 otherwise.
        eps: of the normalisation; None without one.
        floor: eps in the units of phi, (d,), to restore the statistics of phi; None to leave phi in the units of the
            features, as the published code does. Only means are restored of an alignment that reads phi.
        products: dtype of the products that M is summed from; None (default) for that of the features.
        complex_weights: whether M is (Re M; Im M), of pairs.

    Returns:
        B (d, n) or (F, d, n) float64, and its properties.

    Raises:
        ValueError: activations are not finite or all zero, or their products vanish in their dtype; or there is an
            offset, and the features are constant although phi is not. The message names the site.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equations 6 and 12.
    """
    mu, mean = moments.mean_x, moments.mean_y
    restores, parts = floor is not None, 1 + complex_weights
    floor = None if floor is None else floor.repeat(parts)
    back = torch.ones_like(moments.x.variance())
    if floor is not None and not alignment.reads_inputs:  # others read phi themselves, in its own units
        back = (moments.x.variance() + floor).sqrt()
    shift, inverse = _normalisation(moments.y, positions, eps)
    subtracted = mean if options.center else shift
    M = moments.consume(subtracted)
    if options.offset and moments.x.constant:
        return M.zero_(), nothing(M, mu[: len(mu) // parts], parts)
    products = products or moments.x.dtype
    _check(moments, options, subtracted, products)
    if eps is not None:
        _scale_columns(M, inverse)
    if restores:
        _scale_rows(M, 1 / back)
    features = moments.y.second_moment_about(subtracted, inverse)
    phi = moments.x.second_moment_about(mu if options.center or restores else torch.zeros_like(mu), 1 / back) / parts
    size = float(torch.linalg.vector_norm(M))
    if size == 0:
        raise ValueError(
            f"site {moments.name!r}: M = 0, activations of the reference or of the sample are all zero, or uncorrelated"
        )
    B = alignment.solve(M, Problem(moments, subtracted, inverse))
    solved = B is not M
    overlap = float((B * M).sum()) if solved else 0.0
    unit = 1.0 if 1e-30 < size < 1e30 else math.ldexp(1.0, math.frexp(size)[1] - 1)  # polar squares M: no overflow
    if unit != 1:
        M.div_(unit)
    accuracy = None if solved or products == torch.float64 else "float32"
    shared = M.dim() == 3 and options.alignment_blocks == "shared"
    blocks = [M.sum(0)] if shared else list(M.view(-1, *M.shape[-2:]))
    samples = moments.count * (mean.dim() * len(M) if shared else mean.dim())  # a complex number is two samples
    size = float(torch.linalg.vector_norm(blocks[0])) * unit if shared else size
    few = alignment.rank == "partial" and not complex_weights and has_few_directions(blocks[0].shape, samples)
    polar = (
        partial(_polar_of_few, directions=samples - options.center, products=products, accuracy=accuracy)
        if few
        else partial(polar_, rank=alignment.rank, rtol=RTOL, accuracy=accuracy)
    )
    polar = partial(_polar_of_complex, polar) if complex_weights else polar
    factors: list[Polar] = list(map(polar, blocks))  # each block is replaced by its factor
    if shared:
        M.copy_(blocks[0].expand_as(M))
    nuclear = sum(float(factor.nuclear_norm) for factor in factors) * unit
    overlap = overlap if solved else nuclear
    left = (mean - subtracted) * (inverse if mean.dim() == 1 else inverse.unsqueeze(1))
    covariance = overlap - float((mu * times(B, left)).sum())  # less the part of the means
    if eps is not None:
        _scale_columns(B, inverse)
    if restores:
        _scale_rows(B, back)
    d = len(mu) // parts
    return B, AlignedMap(
        shape=(B.shape[-2] // parts, B.shape[-1]),
        b=-_folded(times(B, shift), parts),
        center=mu[:d] if restores else torch.zeros_like(mu[:d]),
        inverse=1 / back[:d],
        mean=_folded(times(B, mean), parts),
        overlap=covariance if options.offset else overlap,
        covariance=covariance,
        nuclear_norm=nuclear,
        features=features,
        similarity=_ratio(nuclear, math.sqrt(phi) * math.sqrt(features)),
        rank=sum(int(factor.rank) for factor in factors),
        effective_rank=(nuclear / size) ** 2,
        condition=max(float(factor.condition) for factor in factors),
    )


def has_few_directions(shape: Sequence[int], samples: int) -> bool:
    """Whether the polar factor of a matrix of this shape is computed from its directions, as many as samples.

    A long matrix is not: `polar_` needs less memory for it.
    """
    short, long = sorted(shape)
    return FEW * (samples + SPARE) <= short and long < LONG_IN_PLACE * short


def product_dtype(shape: Sequence[int], samples: int, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the products that M of this shape is summed from: float64 if samples are fewer than both sides.

    M then has null directions, and products of float32 would fill them with their rounding.
    """
    return torch.float64 if samples < min(shape) else dtype


def few_directions_flops(shape: Sequence[int], samples: int) -> int:
    """Flops of the polar factor of a matrix with few directions: two products with M, one with A, and the factor."""
    rows, columns = shape
    many = samples + SPARE
    return 6 * rows * columns * many + 4 * rows * many**2 + polar_flops((many, columns))


def scale(aligned: AlignedMap, size: float | None, options: MethodOptions, site: str) -> float:
    """The scale s of an alignment.

    Args:
        size: ``E|D^-1 (B phi' + b)|^2``, with an offset that about its mean; only the scale "optimal" needs it.
        site: name of the site, for error messages.

    Returns:
        s; 0 if B = 0 and the scale is "optimal" or "nuclear".

    Raises:
        ValueError: ``B phi'`` (with the scale "nuclear": phi') is zero or not finite. The message names the site.
    """
    if options.scale == "sqrt":
        return math.sqrt(aligned.shape[0] / aligned.shape[1])
    if options.scale == "one":
        return 1.0
    if aligned.rank == 0:
        return 0.0
    if options.scale == "nuclear":
        size = aligned.features
    assert size is not None
    top = aligned.nuclear_norm if options.scale == "nuclear" else aligned.overlap
    if not (0 < size < math.inf):
        raise ValueError(f"site {site!r}: the aligned activations have power {size}, wanted a finite one above 0")
    return top / size


def size_of(projected: ChannelMoments, aligned: AlignedMap, options: MethodOptions) -> float:
    """The `size` of `scale`, from the moments of ``B phi'``."""
    return projected.second_moment_about(projected.mean if options.offset else -aligned.b, aligned.inverse)


def offset(aligned: AlignedMap, s: float, moments: CrossCovariance, options: MethodOptions) -> Tensor | None:
    """The constant c of ``phih = s B phi' + c``, (d,); None if it is zero by construction."""
    if options.offset:
        return moments.mean_x[: len(aligned.mean)] - s * aligned.mean
    constant = s * aligned.b + aligned.center
    return constant if constant.any() else None


def _polar_of_few(M: Tensor, directions: int, products: torch.dtype, accuracy: str | None) -> Polar:
    """`polar_` of a mean over few samples, many times faster: with M = Q B and Q^T Q = 1, polar(M) = Q polar(B).

    Q is an orthonormal basis of the columns of M Omega, with Omega a fixed Gaussian matrix. Q B differs from M by
    rounding of float64. The M of `compare` may have products of float32. Their rounding is above RTOL and fills all
    directions, so the leading ones are taken.

    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), 217-288, algorithm 4.1.
    """
    Omega = gaussian(M.shape[1], directions + SPARE, seed=0, dtype=M.dtype, device=M.device)
    Q = torch.linalg.qr(M @ Omega).Q
    B = Q.T @ M
    if products != torch.float64:
        leading = torch.linalg.eigh(B @ B.T).eigenvectors[:, -directions:]
        Q, B = Q @ leading, leading.T @ B
    factor = polar_(B, rtol=RTOL, accuracy=accuracy)
    torch.mm(Q, B, out=M)
    return factor


def _polar_of_complex(polar: Callable[[Tensor], Polar], M: Tensor) -> Polar:
    """`polar` of a complex matrix M (d, n), given and replaced as (Re M; Im M) (2 d, n).

    `polar` factorises the real matrix ``[[Re M, -Im M], [Im M, Re M]]``. In this form products stay products and M^H
    is the transpose, so the real factor is the form of ``A = M (M^H M)^(-1/2)``, as partial polar factors are unique.
    Its first n columns are (Re A; Im A). Each singular value of M appears twice.
    """
    real, imaginary = M.chunk(2)
    whole = torch.cat([M, torch.cat([-imaginary, real])], 1)
    factor = polar(whole)
    M.copy_(whole[:, : M.shape[1]])
    return factor._replace(nuclear_norm=factor.nuclear_norm / 2, rank=factor.rank // 2)


def _folded(values: Tensor, parts: int) -> Tensor:
    """Pairs (2 d, 2) of products with (Re B; Im B) as the complex products (d, 2); others are left."""
    return complex_rows(values.unsqueeze(0)).squeeze(0) if parts > 1 else values


def _check(moments: CrossCovariance, options: MethodOptions, subtracted: Tensor, products: torch.dtype) -> None:
    """Refuse features that are constant, and activations whose products vanish in their dtype."""
    x, y, site = moments.x, moments.y, f"site {moments.name!r}"
    if options.offset and y.constant:
        raise ValueError(f"{site}: the activations of the sample do not vary, those of the reference do")
    kind = torch.finfo(products)
    around = x.size_about_center * y.size_about_center
    of_means = _root_mean_square(x.mean) * _root_mean_square(y.mean - subtracted)
    if 0 < around < DIGITS * kind.smallest_normal * kind.eps > of_means:
        raise ValueError(
            f"{site}: products of activations, about {around:.0e}, vanish in {products}: wanted larger ones"
        )


def nothing(M: Tensor, mu: Tensor, parts: int = 1) -> AlignedMap:
    """The properties of B = 0, of the shape of M, for phi with the mean mu; M is in 2 `parts` with complex weights."""
    zeros, ones, shape = torch.zeros_like(mu), mu.new_ones(len(mu)), (M.shape[-2] // parts, M.shape[-1])
    return AlignedMap(shape, zeros, zeros, ones, zeros, 0.0, 0.0, 0.0, 0.0, math.nan, 0, math.nan, math.nan)


def _scale_rows(M: Tensor, factor: Tensor) -> None:
    """Multiply the rows of M (d F, n F) or (F, d, n) by factor (d F,), in place."""
    M.mul_(factor.unsqueeze(1) if M.dim() == 2 else by_filter(factor, len(M)))


def _scale_columns(M: Tensor, factor: Tensor) -> None:
    """Multiply the columns of M (d F, n F) or (F, d, n) by factor (n F,), in place."""
    M.mul_(factor if M.dim() == 2 else by_filter(factor, len(M)).transpose(1, 2))


def _root_mean_square(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _normalisation(features: ChannelMoments, positions: int, eps: float | None) -> tuple[Tensor, Tensor]:
    """The shift that is subtracted from each feature and the factor that multiplies it, each (n,).

    They are the mean and the inverse standard deviation of the feature's channel; 0 and 1 without a normalisation.
    """
    if eps is None:
        return torch.zeros_like(features.mean), torch.ones_like(features.variance())
    channels = features if positions == 1 else features.pooled(positions)
    inverse = (channels.variance() + eps).rsqrt()
    return channels.mean.repeat_interleave(positions, 0), inverse.repeat_interleave(positions)

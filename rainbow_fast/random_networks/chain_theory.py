# SPDX-License-Identifier: BSD-3-Clause
"""What theory says about random chains, in closed form: the mean field, the noise of a layer, and the stationary state.

n is the number of samples, d the width, and lambda are the n eigenvalues of a Gram matrix of trace 1. "Batch norm" is
``normaliser="batch"``: each unit is scaled to length 1 over the samples, without a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.arguments import between, flag, integer, tensor
from rainbow_fast.random_networks.chain_layer import RandomLayer

STEP = 0.5  # of the trapezoidal rule in log t, at most: its error is the integrand's Fourier transform at 2 pi / step
EPS = torch.finfo(torch.float64).eps
LOWEST, ABOVE = -60.0, 80.0  # ends of log t, the upper one beyond log(1 / smallest eigenvalue)


class StationaryGap(NamedTuple):
    """Moments of the orthogonality gap V of a linear chain with batch norm, once it is stationary."""

    mean_square: float
    mean: float
    mean_log: float


class WideBatch(NamedTuple):
    """The stationary spectrum of a linear chain with batch norm, for many samples: n^2 of the order of d."""

    effective_rank: float
    smallest: float
    largest: float


def mean_field(eigenvalues: Tensor) -> Tensor:
    r"""The eigenvalues after one layer with batch norm of infinite width, (*batch, n) float64.

        p_i(lambda) = int_0^inf lambda_i / (1 + 2 t lambda_i) prod_j (1 + 2 t lambda_j)^(-1/2) dt

    The eigenvectors stay. For n = 2, p_i is proportional to sqrt(lambda_i). The integral is taken by the trapezoidal
    rule in log t, to 1e-14.

    Args:
        eigenvalues: (*batch, n), at least 0, not all 0; they are divided by their sum.

    Raises:
        TypeError: `eigenvalues` is no tensor.
        ValueError: eigenvalues are negative, not finite, or all zero.

    Source: E[u u^T] of u = g / |g|, g Gaussian with these variances, and 1 / |g|^2 = 2 int exp(-2 t |g|^2 / 2) dt.
    """
    lam = _spectrum(eigenvalues)
    smallest = float(lam[lam > 0].min())
    step = min(STEP, 2 * math.pi / math.sqrt(40 * lam.shape[-1]))
    y = torch.arange(LOWEST, ABOVE - math.log(smallest), step, dtype=torch.float64, device=lam.device)
    a = y + lam[..., None].log()  # log(t lambda), (*batch, n, points)
    grown = torch.logaddexp(a + math.log(2), torch.zeros_like(y))
    return step * (a - grown - grown.sum(-2, keepdim=True) / 2).exp().sum(-1)


def contraction(n: int) -> float:
    """``n / (n + 2)``: the factor of any small deviation of the Gram matrix from I / n, in a layer with batch norm.

    Raises:
        TypeError, ValueError: n is no integer, or below 1.
    """
    return integer("n", n, 1) / (n + 2)


def layer_noise(eigenvalues: Tensor, d: int) -> Tensor:
    """``E |C' - E C'|_F^2 = (1 - sum p_i^2) / d`` of the Gram matrix C' after one layer with batch norm, (*batch,).

    It is exact for any d, with p of `mean_field`.

    Raises:
        TypeError, ValueError: as `mean_field`; or d is no integer, or below 1.
    """
    return (1 - mean_field(eigenvalues).square().sum(-1)) / integer("d", d, 1)


def stationary_gap(n: int, d: int, *, centred: bool = False) -> StationaryGap:
    r"""The orthogonality gap V of a linear chain with batch norm after many layers, to first order in n / d.

        E V^2 = (n - 1) (n + 2)^2 / (4 n (n + 1) d)

    Deviations are Gaussian and isotropic, in m = n (n + 1) / 2 - 1 dimensions, which gives E V and E log V. Measured
    values of E V^2 are larger by 7 % at n = 4, d = 16, by 5 % at n = 8, d = 64, and by less than 1 % at n = 8, d = 512.
    To the same order the square of `gaussian_distance` is n V^2 / 4, and `isometry_gap` is n V^2 / 2.

    Args:
        n, d: samples and width.
        centred: whether the norm subtracts the mean over samples. The Gram matrix then has rank n - 1, and V is at
            least 1 / sqrt(n (n - 1)), the limit for large d. V varies little then: mean and mean_log are those of the
            root of E V^2.

    Raises:
        TypeError, ValueError: a number is no integer, n is below 2, or d is below 1.

    Source: the stationary state of deviations with the factor of `contraction` and the noise of `layer_noise`.
    """
    k = integer("n", n, 2) - flag("centred", centred)
    square = (k - 1) * (k + 2) ** 2 / (4 * k * (k + 1) * integer("d", d, 1))
    if centred:
        square += 1 / (n * k)
        return StationaryGap(square, math.sqrt(square), math.log(square) / 2)
    m = k * (k + 1) / 2 - 1
    mean = math.sqrt(2 * square / m) * math.exp(math.lgamma((m + 1) / 2) - math.lgamma(m / 2))
    return StationaryGap(square, mean, (math.log(square) + math.log(2 / m) + _digamma(m / 2)) / 2)


def wide_batch(n: int, d: int) -> WideBatch:
    r"""The stationary spectrum of a linear chain with batch norm if nu = n / sqrt(d) is not small.

        1/r = 1/n + n / (4 d),    lambda_min, lambda_max = (1 -+ nu / 2)^2 / n    for n < 2 sqrt d

    For n >= 2 sqrt d the effective rank r is sqrt d, lambda_min is 0, and lambda_max is that of n = 2 sqrt d. Errors
    are 3 % of r and 6 % of the edges at d = 1024, n = 16; near n = 2 sqrt d it takes hundreds of layers.

    Raises:
        TypeError, ValueError: a number is no integer, or below 1.

    Source: a semicircle of radius 1 about nu / 4 + 1 / nu for lambda sqrt(d), weighted by lambda.
    """
    n, root = integer("n", n, 1), math.sqrt(integer("d", d, 1))
    if n >= 2 * root:
        return WideBatch(root, 0.0, 2 / root)
    nu = n / root
    return WideBatch(1 / (1 / n + n / (4 * d)), (1 - nu / 2) ** 2 / n, (1 + nu / 2) ** 2 / n)


def batch_norm_cosine(cosine: Tensor) -> Tensor:
    """``(1 - sqrt(1 - c^2)) / c``, float64: the cosine of two samples after a layer with batch norm of infinite width.

    Raises:
        TypeError, ValueError: `cosine` is no tensor, or outside [-1, 1].
    """
    c = _cosine(cosine)
    return c / (1 + (1 - c.square()).clamp(min=0).sqrt())


def relu_angle(angle: Tensor) -> Tensor:
    r"""The angle of two samples after a layer of relu of infinite width without a norm, float64.

        cos theta' = (sin theta + (pi - theta) cos theta) / pi

    For small angles theta' = theta - theta^2 / (3 pi), so that theta is about 3 pi / l after l layers.

    Args:
        angle: in radians, in [0, pi]. It keeps the digits of small angles, which the cosine does not.

    Raises:
        TypeError, ValueError: `angle` is no tensor, or outside [0, pi].

    Source: Cho and Saul, "Kernel methods for deep learning" (NIPS 2009).
    """
    theta = tensor("angle", angle).double()
    if not bool(((theta >= 0) & (theta <= math.pi)).all()):
        raise ValueError("angle: wanted radians in [0, pi]")
    half_squares = (math.pi * 2 * (theta / 2).sin().square() - theta.sin() + theta * theta.cos()) / (2 * math.pi)
    return 2 * half_squares.clamp(0, 1).sqrt().asin()


def haar_isometry_factor(d: int) -> float:
    """``d / (d + 2)``: the factor of the isometry gap per layer, once small, with orthogonal weights and batch norm.

    The chain has as many samples as units, n = d.

    Raises:
        TypeError, ValueError: d is no integer, or below 1.

    Source: Meterez, Joudaki, Orabona, Immer, Raetsch and Daneshmand (ICLR 2024) prove an exponential decay; the factor
    is that of first-order perturbation.
    """
    return contraction(integer("d", d, 1))


def haar_isometry_bound(gap: Tensor, d: int) -> Tensor:
    """``-log(1 - V^2 / (2 (d + 2)))``, float64: what the isometry gap loses at least, with orthogonal weights, n = d.

    V is the orthogonality gap before a layer with batch norm. The bound is on the loss from phi, the isometry gap
    before it, to ``-log E exp(-phi')``, with phi' the one after it.

    Raises:
        TypeError, ValueError: `gap` is no tensor or outside [0, 1]; d is no integer, or below 1.

    Source: Meterez et al. (ICLR 2024), theorem 3, where ``V^2 d^2`` is written as the sum of (lambda_k - 1)^2.
    """
    V = tensor("gap", gap).double()
    if not bool(((V >= 0) & (V <= 1)).all()):
        raise ValueError("gap: wanted numbers in [0, 1]")
    return -torch.log1p(-V.square() / (2 * (integer("d", d, 1) + 2)))


def gap_bound(n: int, d: int, alpha: float, layers: int) -> float:
    r"""The bound ``2 (1 - 2 alpha / 3)^l + 3 n / (2 alpha sqrt d)`` on E V after l layers with batch norm.

    It holds if the smallest eigenvalue of every Gram matrix of trace 1 is at least alpha. The theorem prints twice the
    last term; this is what its proof gives. The bound says nothing unless d is of the order of 9 n^4.

    Args:
        n, d, layers: samples, width, and number of layers.
        alpha: 0 < alpha <= 1/n. (The paper calls it a bound on the singular value; the proof uses the eigenvalue.)

    Raises:
        TypeError, ValueError: a number is of another type, or outside its range.

    Source: Daneshmand, Joudaki and Bach (NeurIPS 2021), theorem 1. With lemma 2, ``2 n`` times this bounds the squared
    `gaussian_distance` (corollary 3).
    """
    n, d, layers = integer("n", n, 1), integer("d", d, 1), integer("layers", layers)
    alpha = between(0, 1 / n, f"0 < alpha <= 1/n = {1 / n}", open_low=True)("alpha", alpha)
    return 2 * (1 - 2 * alpha / 3) ** layers + 3 * n / (2 * alpha * math.sqrt(d))


def layer_bound(eigenvalues: Tensor, d: int) -> Tensor:
    """The bound ``(1 - 2 lambda_n / 3) (1/n - lambda_n) + 1 / sqrt d`` on the mean of 1/n - lambda_n after a layer.

    lambda_n is the smallest eigenvalue. The bound needs no assumption. Result: (*batch,) float64.

    Raises:
        TypeError, ValueError: as `layer_noise`.

    Source: Daneshmand, Joudaki and Bach (NeurIPS 2021), theorem 5.
    """
    lam = _spectrum(eigenvalues)
    least = lam.amin(-1)
    return (1 - 2 * least / 3) * (1 / lam.shape[-1] - least) + 1 / math.sqrt(integer("d", d, 1))


def mean_field_bound(eigenvalues: Tensor) -> Tensor:
    """The bound ``(1 - 2 n lambda_n / (n + 2)) (1/n - lambda_n)`` on 1/n - p_n, p of `mean_field`; (*batch,) float64.

    Raises:
        TypeError, ValueError: as `mean_field`.

    Source: Daneshmand, Joudaki and Bach (NeurIPS 2021), the proof of lemma 8.
    """
    lam = _spectrum(eigenvalues)
    least, n = lam.amin(-1), lam.shape[-1]
    return (1 - 2 * n / (n + 2) * least) * (1 / n - least)


def columns(layer: RandomLayer, weights: str, factors: Tensor, d: int, layers: Sequence[int]) -> dict[str, Tensor]:
    r"""What theory says about a chain of `layer`, by name; an empty dict if it has no closed form.

    Chains without a skip, of at least two samples, have these columns:

    - Linear with batch norm, Gaussian weights: ``mean_field_gap``, V by `mean_field`; ``contraction``, the factor of
      small deviations per layer; ``stationary_gap``, ``stationary_gap_squared`` and ``stationary_log_gap`` of
      `stationary_gap`; ``stationary_rank``, ``stationary_smallest`` and ``stationary_largest``, the effective rank and
      the edges of the spectrum of `wide_batch`.
    - The same, centred (``"batch_centred"``, ``"batch_standard"``): ``stationary_gap_squared``, and ``contraction``,
      which is that of n - 1 samples, the dimensions that centring leaves.
    - Linear without a norm or with layer norm, Gaussian weights: ``collapsed_gap``, the limit sqrt(1 - 1/n) of V. Layer
      norm takes one dimension from the units and changes lengths of samples, so the rank collapses all the same.
    - relu without a norm, Gaussian weights, a linear step first: ``mean_field_cosine``, the mean over pairs by
      `relu_angle`.
    - Linear with batch norm, Haar weights, as many samples as units: ``isometry_factor`` of `haar_isometry_factor`.

    Other chains have none, because no closed form is known:

    - Activations with batch norm, one sided or not: a unit of length 1 over the samples is no Gaussian vector, and the
      mean of the activations over such units is an integral over the sphere. Its fixed point is I / n for odd
      activations only. `gram_chain` with a large width gives it for all.
    - Activations with layer norm, and activations other than relu without a norm: their kernels depend on lengths and
      on the gain. `infinite_width.KernelMap` iterates them.
    - relu without a norm, with relu first: it is applied to the start itself, whose units are not Gaussian.
    - Skips: the batch stays correlated with the start, layer after layer.
    - Uniform weights and functions of weights: units given the Gram matrix are not Gaussian, and the law depends on the
      batch itself. Haar weights with n != d: units are not independent, and the identity of `isometry_gap` wants n = d.

    Args:
        layer, weights: the layer, and the name of the law of its weights.
        factors: the start, or factors of its Gram matrices, (*batch, n, k) float64.
        d: the width.
        layers: the numbers of the layers, which increase.

    Returns:
        Columns (*batch, number of layers) float64.
    """
    n, shape = factors.shape[-2], (*factors.shape[:-2], len(layers))

    def constant(value: float) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64, device=factors.device)

    if weights == "haar" and layer.is_linear and layer.normaliser == "batch" and n == d:
        return {"isometry_factor": constant(haar_isometry_factor(d))}
    if weights != "gaussian" or layer.skip is not None or n < 2:
        return {}
    if layer.activation == "relu" and layer.normaliser == "none" and layer.order.startswith("linear"):
        return {"mean_field_cosine": _relu_cosines(factors, layers)}
    if not layer.is_linear:
        return {}
    if layer.normaliser in ("none", "layer"):
        return {"collapsed_gap": constant(math.sqrt(1 - 1 / n))}
    centred = layer.normaliser != "batch"
    stationary = stationary_gap(n, d, centred=centred)
    both = {
        "stationary_gap_squared": constant(stationary.mean_square),
        "contraction": constant(contraction(n - centred)),
    }
    if centred:
        return both
    wide = wide_batch(n, d)
    return both | {
        "mean_field_gap": _mean_field_gaps(factors, layers),
        "stationary_gap": constant(stationary.mean),
        "stationary_log_gap": constant(stationary.mean_log),
        "stationary_rank": constant(wide.effective_rank),
        "stationary_smallest": constant(wide.smallest),
        "stationary_largest": constant(wide.largest),
    }


def _mean_field_gaps(factors: Tensor, layers: Sequence[int]) -> Tensor:
    n = factors.shape[-2]
    s = torch.linalg.svdvals(factors)
    s = torch.nn.functional.pad(torch.where(s > n * EPS * s[..., :1], s, 0), (0, n - s.shape[-1]))
    lam, gaps = s.square() / s.square().sum(-1, keepdim=True), []
    for number in range(max(layers) + 1):
        lam = mean_field(lam) if number else lam
        gaps.append(torch.linalg.vector_norm(lam - 1 / n, dim=-1))
    return torch.stack([gaps[number] for number in layers], -1)


def _relu_cosines(factors: Tensor, layers: Sequence[int]) -> Tensor:
    n = factors.shape[-2]
    unit = factors / torch.linalg.vector_norm(factors, dim=-1, keepdim=True)
    i, j = torch.triu_indices(n, n, 1, device=factors.device)
    sides = [torch.linalg.vector_norm(unit[..., i, :] + sign * unit[..., j, :], dim=-1) for sign in (-1, 1)]
    angle, means = 2 * torch.atan2(*sides), []
    for number in range(max(layers) + 1):
        angle = relu_angle(angle) if number else angle
        means.append(angle.cos().mean(-1))
    return torch.stack([means[number] for number in layers], -1)


def _spectrum(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues in float64, divided by their sum."""
    lam = tensor("eigenvalues", eigenvalues).double()
    if lam.dim() == 0 or lam.numel() == 0:
        raise ValueError(f"eigenvalues has shape {tuple(lam.shape)}: wanted (*batch, n)")
    sums = lam.sum(-1, keepdim=True)
    if not bool((lam >= 0).all() & (sums > 0).all() & sums.isfinite().all()):
        raise ValueError("eigenvalues: wanted finite numbers of at least 0, not all 0")
    return lam / sums


def _cosine(cosine: Tensor) -> Tensor:
    c = tensor("cosine", cosine).double()
    if not bool((c.abs() <= 1).all()):
        raise ValueError("cosine: wanted numbers in [-1, 1]")
    return c


def _digamma(x: float) -> float:
    return float(torch.digamma(torch.tensor(x, dtype=torch.float64, device="cpu")))

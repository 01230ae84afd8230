# SPDX-License-Identifier: BSD-3-Clause
"""Lyapunov exponents of products of Gaussian matrices: in closed form, and estimated by orthonormal frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import between, integer, one_of
from rainbow_fast.ops.gaussian import MOST
from rainbow_fast.progress import Progress, reported
from rainbow_fast.random_networks.frames import METHODS, orthonormal_frame
from rainbow_fast.random_networks.gaussian_layer import LAYERS, RUNS, gaussian_layer

positive = between(0, math.inf, "a number above 0", open_low=True, open_high=True)


def lyapunov_exponents(d: int, k: int | None = None, *, variance: float = 1.0) -> Tensor:
    r"""The first k Lyapunov exponents of the product ``S = W_L ... W_1`` of Gaussian matrices (d, d), (k,) float64.

        lambda_j = lim (1 / L) log(j-th singular value of S) = (log 2 + psi((d - j + 1) / 2) + log variance) / 2

    with the digamma function psi, for j = 1, ..., k. The entries of all W are independent and N(0, variance). The sum
    of all d exponents is ``E log |det W|``. For large d and variance 1/d, exp(lambda_j) is near sqrt(1 - (j - 1) / d).

    Args:
        d: width, at least 1.
        k: number of exponents, at most d; None (default) for all.
        variance: of the entries, above 0; 1 by default.

    Returns:
        (k,) float64, decreasing, in units of 1 / layer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: d < 1, k is outside [1, d], or `variance` is not a finite number above 0.

    Source: Newman, "The distribution of Lyapunov exponents: exact results for random matrices", Communications in
    Mathematical Physics 103 (1986), 121-126.
    """
    d = integer("d", d, 1)
    halves = _halves(d, d if k is None else integer("k", k, 1, d))
    return (math.log(2) + math.log(positive("variance", variance)) + torch.special.digamma(halves)) / 2


def lyapunov_deviation(d: int, layers: int, k: int | None = None) -> Tensor:
    """The standard deviation ``sqrt(psi'((d - j + 1) / 2) / (4 layers))`` of each estimate, (k,) float64.

    It is exact for every number of layers, because the numbers that `lyapunov_estimate` averages are logarithms of
    independent chi variates. It does not depend on the variance of the weights.

    Args:
        d, k: as in `lyapunov_exponents`.
        layers: number of factors of the product, at least 1.

    Raises:
        TypeError, ValueError: as `lyapunov_exponents`; or layers < 1.
    """
    d = integer("d", d, 1)
    halves = _halves(d, d if k is None else integer("k", k, 1, d))
    return (trigamma(halves) / (4 * integer("layers", layers, 1))).sqrt()


def trigamma(x: Tensor) -> Tensor:
    """psi'(x) of a float64 x > 0, to rounding; `torch.special.polygamma` has nine digits."""
    return torch.special.zeta(torch.full_like(x, 2.0), x)


def longest_stretch(d: int, k: int | None = None, dtype: torch.dtype = torch.float64) -> int:
    """The largest number of layers that `lyapunov_estimate` allows between two frames, at least 1.

    After s layers the rows of a frame differ in length by ``exp(s (log(d) / 2 - lambda_k))``, for weights of variance
    1/d. This must not exceed ``eps^(-1/2)``, eps of the dtype: 2^26 in float64, 3e3 in float32.

    Args:
        d, k: as in `lyapunov_exponents`.
        dtype: float64 (default) or float32.

    Raises:
        TypeError, ValueError: as `lyapunov_exponents`; or the dtype is another one.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype={dtype}: wanted torch.float32 or torch.float64")
    a_layer = max(math.log(d) / 2 - float(lyapunov_exponents(d, k)[-1]), 1e-9)  # above 0, but for rounding
    return max(1, math.floor(-math.log(torch.finfo(dtype).eps) / 2 / a_layer))


@dataclass(frozen=True)
class LyapunovEstimate:
    """The result of `lyapunov_estimate`.

    Attributes:
        exponents: the estimate of each run, (runs, k) float64, on the CPU.
        theory: the exponents of `lyapunov_exponents`, (k,) float64.
        deviation: the exact standard deviation of each entry of `exponents`, (k,) float64.
        d: width.
        layers: number of factors of each product.
        every: number of layers between two frames.
        fallbacks: number of frames for which method="cholesky" took Householder reflections.
    """

    exponents: Tensor
    theory: Tensor
    deviation: Tensor
    d: int
    layers: int
    every: int
    fallbacks: int

    @property
    def mean(self) -> Tensor:
        """The mean over runs, (k,)."""
        return self.exponents.mean(0)

    @property
    def mean_deviation(self) -> Tensor:
        """The exact standard deviation of `mean`, (k,)."""
        return self.deviation / math.sqrt(len(self.exponents))

    @property
    def scores(self) -> Tensor:
        """``(mean - theory) / mean_deviation``, (k,): independent, of mean 0 and variance 1."""
        return (self.mean - self.theory) / self.mean_deviation

    def to_dict(self) -> dict[str, Any]:
        """The numbers as lists, for JSON."""
        numbers = {name: getattr(self, name).tolist() for name in ("exponents", "theory", "deviation")}
        return {"d": self.d, "layers": self.layers, "every": self.every, "fallbacks": self.fallbacks, **numbers}


def lyapunov_estimate(
    d: int,
    layers: int,
    k: int | None = None,
    *,
    runs: int = 1,
    seed: int = 0,
    variance: float = 1.0,
    every: int = 1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    method: str | None = None,
    progress: Progress | bool | None = None,
) -> LyapunovEstimate:
    r"""Estimates the first k Lyapunov exponents of products of Gaussian matrices (d, d), from independent runs.

        Q_0 = the first k unit vectors;   Q_l W_(l+1)^T = R Q_(l+1);   lambda_j = mean over l of log R_jj

    The rows of Q (k, d) are an orthonormal frame and R is lower triangular. Since Q W^T is a Gaussian matrix again, the
    R_jj are independent chi variates with d - j + 1 degrees of freedom. The estimate is therefore unbiased for any
    number of layers, its standard deviation is known exactly (`lyapunov_deviation`), and the errors of different
    exponents and runs are independent. Only the logarithms of R_jj are kept. No matrix W is stored (`gaussian_layer`).

    The weights of layer l and run r are the tile (d, d) of `rainbow_fast.gaussian` in the stream ``r << 20 | l``. Run r
    is the same for any number of runs.

    Args:
        d: width, at least 1.
        layers: number of factors of each product, 1 to 2^20.
        k: number of exponents, at most d; None (default) for all.
        runs: number of independent products, 1 to 2^12; 1 by default.
        seed: 0 <= seed < 2^63; 0 by default.
        variance: of the entries of W, above 0; 1 by default.
        every: number of layers between two frames, at most `longest_stretch`; 1 by default. Another value changes the
            estimate by rounding only, and saves time where the frames cost more than the products: at k near d.
        dtype: of the frames and products: float64 (default) or float32.
        device: device of the frames; the CPU by default.
        method: of the frames, as in `orthonormal_frame`; None by default.
        progress: a function that is called as ``progress(layer, layers, "layers")``; or True for a bar.

    Returns:
        `LyapunovEstimate`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is outside its range, `every` is larger than `longest_stretch`, or `dtype` or `method` is
            unknown.

    Source: Benettin, Galgani, Giorgilli and Strelcyn, Meccanica 15 (1980), 9-30, for the frames; Newman (1986) for the
    law of R.
    """
    d, layers = integer("d", d, 1), integer("layers", layers, 1, LAYERS)
    k = d if k is None else integer("k", k, 1, d)
    runs, seed = integer("runs", runs, 1, RUNS), integer("seed", seed, 0, MOST["seed"])
    theory = lyapunov_exponents(d, k, variance=variance)
    longest, every = longest_stretch(d, k, dtype), integer("every", every, 1)
    if every > longest:
        raise ValueError(f"every={every}: wanted at most {longest} layers between frames, for d={d}, k={k} and {dtype}")
    if method is not None:
        one_of("method", method, METHODS)
    Q = torch.eye(k, d, dtype=dtype, device=device or "cpu").expand(runs, k, d)
    sums = torch.zeros(runs, k, dtype=torch.float64, device=Q.device)
    fallbacks = 0
    with reported(progress) as report:
        for layer in range(layers):
            Q = gaussian_layer(Q, d, seed=seed, layer=layer, scale=d**-0.5)
            if (layer + 1) % every == 0 or layer + 1 == layers:
                frame = orthonormal_frame(Q, method=method)
                Q, fallbacks = frame.Q, fallbacks + frame.fallbacks
                sums += frame.L.diagonal(dim1=-2, dim2=-1).double().log()
            if report is not None:
                report(layer + 1, layers, "layers")
    exponents = sums.cpu() / layers + (math.log(d) + math.log(variance)) / 2
    return LyapunovEstimate(exponents, theory, lyapunov_deviation(d, layers, k), d, layers, every, fallbacks)


def _halves(d: int, k: int) -> Tensor:
    """(d - j + 1) / 2 for j = 1, ..., k."""
    return (d - torch.arange(k, dtype=torch.float64, device="cpu")) / 2

# SPDX-License-Identifier: BSD-3-Clause
"""One layer of random neurons: the eigenvalues of the Gram matrix of its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import integer, tensor
from rainbow_fast.infinite_width import empirical_kernel
from rainbow_fast.infinite_width.pointwise_features import features_of
from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.ops.gaussian import Seed, as_key

FEATURES = 2**22  # numbers of features in memory at a time


@torch.no_grad()
def feature_spectrum(
    X: Tensor,  # (T, p)
    n_features: int,
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    negative_slope: float = 0.01,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    max_features: int = FEATURES,
    backend: str | None = None,
) -> Tensor:  # (T,)
    """The eigenvalues of ``K = phi phi^T / T`` for the features ``phi = sigma(X W^T)`` (T, N) of N random neurons.

    W (N, p) has independent standard normal entries. For X with samples of norm 1, or Gaussian entries of variance 1/p,
    the eigenvalues are of order 1; `LimitingSpectrum.of_features` has their limit for T, N and p to infinity.

    Equivalent to::

        phi = rf.random_features(X, n_features, activation=activation, seed=seed).double()
        torch.linalg.eigvalsh(phi @ phi.T / len(X))

    but without phi. K is summed over blocks of neurons. With fewer neurons than samples it is ``phi^T phi / T``
    (N, N), summed over blocks of samples, which has the same eigenvalues but for zeros.

    Memory: two matrices of min(T, N)^2 numbers of 8 bytes (268 MB for 4096), for the sum and for LAPACK, and
    `max_features` features in the dtype of X. Time: T N p products for the features, T N min(T, N) / 2 for the sum, in
    the dtype of X, and 4/3 min(T, N)^3 in float64 for the eigenvalues.

    Args:
        X: inputs, float32 or float64, a sample a row.
        n_features: number N of neurons, at least 1.
        activation: as in `rainbow_fast.infinite_width.expected_kernel`, functions included. One that
            `rainbow_fast.random_features` does not have is applied to its projections, block by block, which takes the
            memory of `max_features` numbers once more.
        negative_slope, backend: as in `rainbow_fast.random_features`.
        seed, stream, row_offset: the address of W, as in `rainbow_fast.key`; or the key of one seed.
        max_features: features in memory at a time, at least 1; 2^22 by default. (A block has at least 128 neurons, or
            128 samples.) It changes the result only by rounding.

    Returns:
        (T,) float64 on the device of X, rising. Zeros of a K without full rank are exact if N < T. Features are
        rounded in the dtype of X, sums are float64 as in `rainbow_fast.cross_covariance`: the error is 1e-6 of the
        largest eigenvalue for float32, 1e-14 for float64. There is no gradient.

    Raises:
        ValueError: X is not (T, p) with T >= 1, or is not finite; `n_features` or `max_features` is below 1; the key
            has several seeds; the name of the activation is unknown, or a function returns another shape or numbers
            that are not finite; or as `rainbow_fast.random_features`.
        TypeError: the activation is neither a name nor a function; or as `rainbow_fast.random_features`.

    Source: Louart, Liao and Couillet, "A random matrix approach to neural networks" (Annals of Applied Probability
    2018); Daneshmand, Joudaki and Bach, "Representations in random deep neural networks" (2021).
    """
    n_features, max_features = integer("n_features", n_features, 1), integer("max_features", max_features, 1)
    if tensor("X", X).dim() != 2 or not len(X):
        raise ValueError(f"X has shape {tuple(X.shape)}: wanted (T, p) with T >= 1")
    if not bool(X.isfinite().all()):
        raise ValueError("X is not finite")
    key = as_key(seed, stream, row_offset)
    if key.dim() != 1:
        raise ValueError(f"seed has {len(key)} seeds: wanted one")
    features, T = features_of(activation, negative_slope), len(X)
    if n_features >= T:
        options: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope, "backend": backend}
        K = empirical_kernel(X, n_features, seed=key, max_features=max_features, **options).mul_(n_features / T)
        return torch.linalg.eigvalsh(K)
    K = torch.zeros(n_features, n_features, dtype=torch.float64, device=X.device)
    for samples in X.split(max(max_features // n_features, 128)):
        cross_covariance_(K, features(samples, n_features, seed=key, backend=backend), backend=backend)
    values = torch.zeros(T, dtype=torch.float64, device=X.device)
    values[T - n_features :] = torch.linalg.eigvalsh(K.div_(T)).clamp_(min=0)
    return values

# SPDX-License-Identifier: BSD-3-Clause
"""A new classifier, fitted by ridge regression to one-hot labels."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean eigenvalue of the features' covariance


def ridge_classifier(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    r"""The classifier ``B f + b`` that minimises ``mean |B (f - mean f) - (y - mean y)|^2 + lambda |B|^2``, y one-hot.

    lambda is a value of `RIDGES` times the mean eigenvalue of the covariance of f. The value with the best accuracy on
    a fifth of the samples is chosen; these samples are random, but always the same, and are left out of this fit. Then
    the classifier is fitted to all samples. It is computed in float64, from the Gram matrix of the smaller side.

    Args:
        features: (N, F).
        labels: (N,) int64.
        classes: K; all labels are below K.

    Returns:
        B (K, F) and b (K,), float64, and the chosen value of `RIDGES`.
    """
    order = torch.randperm(len(features), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(
        features.device
    )
    left_out, used = order[: len(order) // 5], order[len(order) // 5 :]
    best, chosen = -1.0, RIDGES[0]
    if len(left_out):
        f, y = features[left_out].double(), labels[left_out]
        for ridge, (B, b) in zip(RIDGES, _solve(features[used], labels[used], classes, RIDGES), strict=True):
            accuracy = float(((f @ B.T + b).argmax(1) == y).double().mean())
            if accuracy > best:
                best, chosen = accuracy, ridge
        del f  # freed before the classifier is fitted to all samples
    ((B, b),) = _solve(features, labels, classes, (chosen,))
    return B, b, chosen


def ridge_flops(N: int, F: int, classes: int) -> float:
    """Flops of `ridge_classifier`.

    They are a Gram matrix of four fifths of the samples and one of all samples, a solve for each value of `RIDGES`, and
    one more solve.
    """
    flops = 0.0
    for samples, ridges in ((N - N // 5, len(RIDGES)), (N, 1)):
        short, long = min(samples, F), max(samples, F)
        flops += 2.0 * short**2 * long + ridges * (short**3 / 3 + 2.0 * classes * (short**2 + samples * F))
    return flops


def ridge_bytes(N: int, F: int, itemsize: int) -> int:
    """Memory of `ridge_classifier` in bytes, with the features.

    It holds the features in their dtype, those that it fits to and those that are left out in float64, and in addition
    three Gram matrices, or before them the features that it fits to in their dtype.
    """
    used = N - N // 5
    return (itemsize + 8) * N * F + max(itemsize * used * F, 3 * 8 * min(N, F) ** 2)


def _solve(features: Tensor, labels: Tensor, classes: int, ridges: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
    f = features.to(torch.float64, copy=True)
    del features  # freed, if the caller does not hold them
    y = torch.nn.functional.one_hot(labels, classes).double()
    mean_f, mean_y = f.mean(0), y.mean(0)
    f, y = f.sub_(mean_f), y - mean_y
    N, F = f.shape
    gram = f.T @ f if F <= N else f @ f.T
    mean_eigenvalue = gram.diagonal().sum() / F
    solutions = []
    for ridge in ridges:
        regular = gram.clone()
        regular.diagonal().add_(ridge * mean_eigenvalue + torch.finfo(torch.float64).tiny)
        factor = torch.linalg.cholesky(regular)
        del regular
        B = torch.cholesky_solve(f.T @ y if F <= N else y, factor).T
        del factor  # freed before the next one is computed
        B = B if F <= N else B @ f
        solutions.append((B, mean_y - B @ mean_f))
    return solutions

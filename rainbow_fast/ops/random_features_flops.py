# SPDX-License-Identifier: BSD-3-Clause
"""Flops of random_features and its fused ops, from shapes: 2 for each multiply-add of a product.

N is the number of samples times positions. The flops of a key (S, 4) are S times those of one seed. Activations, shifts
and centers are elementwise and count 0. Generating G counts 0, too. u of the modulus has a last axis of two parts, each
of which is multiplied with G.
"""

import math
from collections.abc import Sequence

from rainbow_fast.ops.activations import MODULUS
from rainbow_fast.ops.gaussian import seed_count

Shape = Sequence[int]


def random_features_flops(u: Shape, n: int, key: Shape | None = None) -> int:
    """``2 N r n`` for u (N, r, *space)."""
    return 2 * math.prod(u) * n * seed_count(key)


def random_features_out_flops(u: Shape, out: Shape, key: Shape | None, activation: str) -> int:
    """Those of `random_features`, for the result (N, n, *space) or (S, N, n, *space)."""
    return random_features_flops(u, out[1 - len(u) + (activation == MODULUS)], key)


def random_features_covariance_flops(x: Shape, u: Shape, n: int, key: Shape | None = None) -> int:
    """``2 N n (r + d)`` for x (N, d, *space) and u (N, r, *space)."""
    return random_features_flops(u, n, key) + random_features_flops(x, n, key)


def random_features_projection_flops(
    u: Shape, A: Sequence[Shape], key: Shape | None = None, activation: str = "relu"
) -> int:
    """``2 N (n r + sum_k n_k d_k)`` for u (N, r, *space) and A_k (d_k, n_k) or (S, d_k, n_k); n is the largest n_k."""
    features = random_features_flops(u, max(shape[-1] for shape in A), key)
    return features + _products(u, A, key, activation)


def random_features_gradient_flops(
    u: Shape, n: int, key: Shape | None, A: Sequence[Shape], of_G: bool, activation: str = "relu"
) -> int:
    """``2 N (2 n r + sum_k n_k d_k)`` for u (N, r, *space) and A_k (d_k, n_k), and ``2 N n r`` more if `of_G`.

    These are the flops of the features, of the terms ``x_k A_k`` of their gradient, and of the gradients of u and G.
    """
    return (2 + of_G) * random_features_flops(u, n, key) + _products(u, A, key, activation)


def _products(u: Shape, A: Sequence[Shape], key: Shape | None, activation: str) -> int:
    """``2 N sum_k n_k d_k``."""
    N = u[0] * math.prod(u[2:-1] if activation == MODULUS else u[2:])
    return 2 * N * sum(math.prod(shape[-2:]) for shape in A) * seed_count(key)

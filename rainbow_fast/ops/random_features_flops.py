# SPDX-License-Identifier: BSD-3-Clause
"""Flops of random_features and its fused passes, from shapes: 2 for each multiply-add of a product.

N counts positions. Each seed of a key (S, 4) takes as many again. Activations, shifts and centers are elementwise and
count 0, as do the numbers of G, whether they are generated or not.
"""

import math
from collections.abc import Sequence

from rainbow_fast.ops.gaussian import seed_count

Shape = Sequence[int]


def random_features_flops(u: Shape, n: int, key: Shape | None = None) -> int:
    """``2 N r n`` of u (N, r, *space)."""
    return 2 * math.prod(u) * n * seed_count(key)


def random_features_covariance_flops(x: Shape, u: Shape, n: int, key: Shape | None = None) -> int:
    """``2 N n (r + d)`` of x (N, d, *space) and u (N, r, *space)."""
    return random_features_flops(u, n, key) + random_features_flops(x, n, key)


def random_features_projection_flops(u: Shape, A: Sequence[Shape], key: Shape | None = None) -> int:
    """``2 N (n r + sum_k n_k d_k)`` of u (N, r, *space) and A_k (d_k, n_k) or (S, d_k, n_k), n the largest n_k."""
    features = random_features_flops(u, max(shape[-1] for shape in A), key)
    return features + _products(u, A, key)


def random_features_gradient_flops(u: Shape, n: int, key: Shape | None, A: Sequence[Shape], of_G: bool) -> int:
    """``2 N (2 n r + sum_k n_k d_k)`` of u (N, r, *space) and A_k (d_k, n_k): features, their gradient from ``x_k
    A_k``, and the gradient of u; ``2 N n r`` more for that of G."""
    return (2 + of_G) * random_features_flops(u, n, key) + _products(u, A, key)


def _products(u: Shape, A: Sequence[Shape], key: Shape | None) -> int:
    """``2 N sum_k n_k d_k``."""
    N = u[0] * math.prod(u[2:])
    return 2 * N * sum(math.prod(shape[-2:]) for shape in A) * seed_count(key)

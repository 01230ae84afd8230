# SPDX-License-Identifier: BSD-3-Clause
"""Random deep networks: what a network does before it has learned anything (Daneshmand, Joudaki and Bach, 2021)."""

from rainbow_fast.random_networks.orthogonality import (
    effective_rank,
    gaussian_distance,
    gram,
    isometry_gap,
    mean_cosine,
    orthogonality_gap,
    singular_value_gap,
    stable_rank,
)
from rainbow_fast.random_networks.variates import chi, uniform_weights

__all__ = [
    "chi",
    "effective_rank",
    "gaussian_distance",
    "gram",
    "isometry_gap",
    "mean_cosine",
    "orthogonality_gap",
    "singular_value_gap",
    "stable_rank",
    "uniform_weights",
]

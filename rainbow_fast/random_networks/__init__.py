# SPDX-License-Identifier: BSD-3-Clause
"""Random deep networks: what a network does before it has learned anything (Daneshmand, Joudaki and Bach, 2021)."""

from rainbow_fast.random_networks.initialisation import init_orthogonal_
from rainbow_fast.random_networks.measure import Measures, SiteMeasures, measure
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

__all__ = [
    "Measures",
    "SiteMeasures",
    "effective_rank",
    "gaussian_distance",
    "gram",
    "init_orthogonal_",
    "isometry_gap",
    "mean_cosine",
    "measure",
    "orthogonality_gap",
    "singular_value_gap",
    "stable_rank",
]

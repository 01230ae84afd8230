# SPDX-License-Identifier: BSD-3-Clause
"""Random deep networks: what a network does before it has learned anything (Daneshmand, Joudaki and Bach, 2021)."""

from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chains import ChainResult, weight_chain
from rainbow_fast.random_networks.gram_chain import gram_chain
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
    "ChainResult",
    "RandomLayer",
    "effective_rank",
    "gaussian_distance",
    "gram",
    "gram_chain",
    "isometry_gap",
    "mean_cosine",
    "orthogonality_gap",
    "singular_value_gap",
    "stable_rank",
    "weight_chain",
]

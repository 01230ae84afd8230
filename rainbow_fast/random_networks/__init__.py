# SPDX-License-Identifier: BSD-3-Clause
"""Random deep networks: what a network does before it has learned anything (Daneshmand, Joudaki and Bach, 2021)."""

from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chains import ChainResult, weight_chain
from rainbow_fast.random_networks.frames import Frame, orthonormal_frame
from rainbow_fast.random_networks.gaussian_layer import gaussian_layer
from rainbow_fast.random_networks.gram_chain import gram_chain
from rainbow_fast.random_networks.initialisation import init_orthogonal_
from rainbow_fast.random_networks.lyapunov import (
    LyapunovEstimate,
    longest_stretch,
    lyapunov_deviation,
    lyapunov_estimate,
    lyapunov_exponents,
)
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
from rainbow_fast.random_networks.products import CoupledChain, coupled_chain, normalised_chain
from rainbow_fast.random_networks.rank_collapse import (
    collapse_rate,
    isometry_rate,
    log_determinant_mean,
    log_sine_mean,
    log_singular_value_ratio,
)
from rainbow_fast.random_networks.single_layer import feature_spectrum
from rainbow_fast.random_networks.stieltjes import LimitingSpectrum
from rainbow_fast.random_networks.variates import chi, uniform_weights

__all__ = [
    "ChainResult",
    "CoupledChain",
    "Frame",
    "LimitingSpectrum",
    "LyapunovEstimate",
    "Measures",
    "RandomLayer",
    "SiteMeasures",
    "chi",
    "collapse_rate",
    "coupled_chain",
    "effective_rank",
    "feature_spectrum",
    "gaussian_distance",
    "gaussian_layer",
    "gram",
    "gram_chain",
    "init_orthogonal_",
    "isometry_gap",
    "isometry_rate",
    "log_determinant_mean",
    "log_sine_mean",
    "log_singular_value_ratio",
    "longest_stretch",
    "lyapunov_deviation",
    "lyapunov_estimate",
    "lyapunov_exponents",
    "mean_cosine",
    "measure",
    "normalised_chain",
    "orthogonality_gap",
    "orthonormal_frame",
    "singular_value_gap",
    "stable_rank",
    "uniform_weights",
    "weight_chain",
]

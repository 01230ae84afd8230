# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow networks at large widths, on compiled kernels, in PyTorch."""

from rainbow_fast.ops.cross_covariance import cross_covariance, cross_covariance_
from rainbow_fast.ops.gaussian import gaussian, key
from rainbow_fast.ops.polar import Polar, polar
from rainbow_fast.ops.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.ops.sample_project_align import sample_project_align, sample_project_align_

__all__ = [
    "Polar",
    "cross_covariance",
    "cross_covariance_",
    "gaussian",
    "key",
    "polar",
    "random_features",
    "random_features_covariance",
    "random_features_projection",
    "sample_project_align",
    "sample_project_align_",
]

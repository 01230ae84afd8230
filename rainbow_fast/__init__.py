# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow networks at large widths, on compiled kernels, in PyTorch."""

from rainbow_fast.ops.cross_covariance import cross_covariance, cross_covariance_
from rainbow_fast.ops.gaussian import gaussian, key
from rainbow_fast.ops.polar import Polar, polar, polar_
from rainbow_fast.ops.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.ops.sample_project_align import sample_project_align, sample_project_align_
from rainbow_fast.rainbow.alignment import Alignment
from rainbow_fast.rainbow.compare import Comparison, compare
from rainbow_fast.rainbow.files.model_file import load_model, save_model
from rainbow_fast.rainbow.files.network_file import load, save
from rainbow_fast.rainbow.laws import Law, Rows
from rainbow_fast.rainbow.model import RainbowModel, fit, plan, sample
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.options import DataLimits, FitOptions, Limits, MethodOptions, SampleOptions
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sites import sites

__all__ = [
    "SampleOptions",
    "Rows",
    "MethodOptions",
    "Limits",
    "Law",
    "FitOptions",
    "DataLimits",
    "Alignment",
    "Comparison",
    "Cost",
    "CrossCovariance",
    "Machine",
    "Polar",
    "RainbowActivation",
    "RainbowModel",
    "RainbowNetwork",
    "Report",
    "compare",
    "cross_covariance",
    "cross_covariance_",
    "fit",
    "gaussian",
    "key",
    "load",
    "load_model",
    "plan",
    "polar",
    "polar_",
    "random_features",
    "random_features_covariance",
    "random_features_projection",
    "sample",
    "sample_project_align",
    "sample_project_align_",
    "save",
    "save_model",
    "sites",
]

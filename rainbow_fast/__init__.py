# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow networks at large widths, on compiled kernels, in PyTorch."""

from rainbow_fast import backend, nn
from rainbow_fast.fields import Options
from rainbow_fast.ops.cross_covariance import cross_covariance, cross_covariance_
from rainbow_fast.ops.gaussian import gaussian, key
from rainbow_fast.ops.polar import Polar, polar, polar_
from rainbow_fast.ops.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.ops.sample_project_align import sample_project_align, sample_project_align_
from rainbow_fast.ops.uniform import uniform
from rainbow_fast.ops.wavelet_bank import WaveletBank
from rainbow_fast.ops.wavelet_modulus import wavelet_modulus
from rainbow_fast.progress import Progress
from rainbow_fast.rainbow.alignment import Alignment, CompletePolarFactor, PolarFactor, Regression
from rainbow_fast.rainbow.alignment.alignment import AlignedSite, Problem
from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.compare import Comparison, SiteComparison, compare
from rainbow_fast.rainbow.files.model_file import load_model, save_model
from rainbow_fast.rainbow.files.network_file import load, save
from rainbow_fast.rainbow.laws import Bootstrap, Gaussian, Identity, Law, Orthonormal, Rows, White
from rainbow_fast.rainbow.model import RainbowModel, fit, plan, sample
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.features import FeatureSite, FeatureStrategy
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.options import DataLimits, FitOptions, Limits, MethodOptions, SampleOptions
from rainbow_fast.rainbow.planning.cost import Cost, SiteCost, Work
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.rainbowize import rainbowize
from rainbow_fast.rainbow.report import Report, SiteReport
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.sites import SiteInfo, Sites, sites
from rainbow_fast.tracing.site import Site
from rainbow_fast.version import __version__

backend.warn_without_kernels(stacklevel=2)

__all__ = [
    "__version__",
    "AlignedSite",
    "Alignment",
    "Bootstrap",
    "ChannelMoments",
    "compare",
    "Comparison",
    "CompletePolarFactor",
    "Cost",
    "cross_covariance",
    "cross_covariance_",
    "CrossCovariance",
    "DataLimits",
    "FeatureSite",
    "FeatureStrategy",
    "fit",
    "FitOptions",
    "Gaussian",
    "gaussian",
    "Identity",
    "key",
    "Law",
    "Limits",
    "load",
    "load_model",
    "Machine",
    "MethodOptions",
    "nn",
    "Options",
    "Orthonormal",
    "plan",
    "Polar",
    "polar",
    "polar_",
    "PolarFactor",
    "Problem",
    "Progress",
    "RainbowActivation",
    "rainbowize",
    "RainbowModel",
    "RainbowNetwork",
    "random_features",
    "random_features_covariance",
    "random_features_projection",
    "Regression",
    "Report",
    "Rows",
    "sample",
    "sample_project_align",
    "sample_project_align_",
    "SampleOptions",
    "save",
    "save_model",
    "Site",
    "SiteComparison",
    "SiteCost",
    "SiteInfo",
    "SiteReport",
    "Sites",
    "sites",
    "SiteStatistics",
    "uniform",
    "wavelet_modulus",
    "WaveletBank",
    "White",
    "Work",
]

# SPDX-License-Identifier: BSD-3-Clause
"""Measures of sampled networks: convergence with the width to the kernels of infinite width, rates, novelty of neurons.

It needs scipy.
"""

from importlib.util import find_spec

if find_spec("scipy") is None:
    raise ImportError('rainbow_fast.analysis needs scipy: pip install "rainbow_fast[analysis]"')

from rainbow_fast.analysis.convergence import (
    KernelConvergence,
    SiteFeatures,
    bures_wasserstein,
    kernel_convergence,
    site_convergence,
    site_features,
)
from rainbow_fast.analysis.kernel_regression import KernelRegression, kernel_regression
from rainbow_fast.analysis.limits import fit_limit
from rainbow_fast.analysis.novelty import novelty
from rainbow_fast.analysis.rates import PowerFit, Slope, TheorySlopes, fit_power, power_law_decay, theory_slopes
from rainbow_fast.analysis.site_kernel import SiteKernel
from rainbow_fast.infinite_width.kernels import empirical_kernel, expected_kernel, expected_mean

__all__ = [
    "KernelConvergence",
    "KernelRegression",
    "PowerFit",
    "SiteFeatures",
    "SiteKernel",
    "Slope",
    "TheorySlopes",
    "bures_wasserstein",
    "empirical_kernel",
    "expected_kernel",
    "expected_mean",
    "fit_limit",
    "fit_power",
    "kernel_convergence",
    "kernel_regression",
    "novelty",
    "power_law_decay",
    "site_convergence",
    "site_features",
    "theory_slopes",
]

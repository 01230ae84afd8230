# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of layers of infinitely many random neurons, in closed form or as a series, and their composition."""

from rainbow_fast.infinite_width.kernel_map import KernelMap
from rainbow_fast.infinite_width.kernels import (
    empirical_kernel,
    expected_kernel,
    expected_kernel_of_gram,
    expected_mean,
)

__all__ = ["KernelMap", "empirical_kernel", "expected_kernel", "expected_kernel_of_gram", "expected_mean"]

# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of layers of infinitely many random neurons, in closed form or as a series."""

from rainbow_fast.infinite_width.kernels import empirical_kernel, expected_kernel, expected_mean

__all__ = ["empirical_kernel", "expected_kernel", "expected_mean"]

# SPDX-License-Identifier: BSD-3-Clause
"""Kernel regression on CIFAR-10 with the kernels of infinitely wide networks."""

# SPDX-License-Identifier: BSD-3-Clause
"""Residual networks on CIFAR-10: all methods, control experiments, and the novelty of the neurons."""

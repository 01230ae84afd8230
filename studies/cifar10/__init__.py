# SPDX-License-Identifier: BSD-3-Clause
"""The published experiments on CIFAR-10, with control experiments."""

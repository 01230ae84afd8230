# SPDX-License-Identifier: BSD-3-Clause
"""Deep networks without batch norm on CIFAR-10: initial weights that orthogonalise, against those that do not."""

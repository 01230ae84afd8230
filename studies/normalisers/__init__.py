# SPDX-License-Identifier: BSD-3-Clause
"""Deep networks with several norms on CIFAR-10: orthogonality by layer, before, during and after training."""

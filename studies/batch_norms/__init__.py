# SPDX-License-Identifier: BSD-3-Clause
"""A ResNet on CIFAR-10 of which only the batch norms are trained: random weights, and weights of a sampled network."""

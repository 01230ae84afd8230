# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of layers of infinitely many random neurons, in closed form or as a series, and their composition."""

from rainbow_fast.infinite_width.gram import Gram
from rainbow_fast.infinite_width.kernel_map import KernelMap
from rainbow_fast.infinite_width.kernels import (
    empirical_kernel,
    expected_kernel,
    expected_kernel_of_gram,
    expected_mean,
    expected_power,
)
from rainbow_fast.infinite_width.modulus import expected_modulus_kernel
from rainbow_fast.infinite_width.neuron_kernel import NeuronKernel

__all__ = [
    "Gram",
    "KernelMap",
    "NeuronKernel",
    "empirical_kernel",
    "expected_kernel",
    "expected_kernel_of_gram",
    "expected_mean",
    "expected_modulus_kernel",
    "expected_power",
]

# SPDX-License-Identifier: BSD-3-Clause
"""The convergence of kernels and alignments of sampled networks with the width, on digits."""

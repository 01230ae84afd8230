# SPDX-License-Identifier: BSD-3-Clause
"""How fast kernels and alignments of sampled networks converge, on digits."""

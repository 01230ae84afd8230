# SPDX-License-Identifier: BSD-3-Clause
"""The laws of the sampled rows, one file each, and the rank that stands out of noise."""

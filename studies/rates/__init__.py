# SPDX-License-Identifier: BSD-3-Clause
"""Measured rates of convergence for known laws, beside those of theory."""

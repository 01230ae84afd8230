# SPDX-License-Identifier: BSD-3-Clause
"""Residual networks: all methods with their controls, and how new the neurons may be."""

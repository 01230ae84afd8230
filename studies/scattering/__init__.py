# SPDX-License-Identifier: BSD-3-Clause
"""Learned scattering networks trained on CIFAR-10, with and without skip-connection, at several widths."""

# SPDX-License-Identifier: BSD-3-Clause
"""Sampled networks and fitted models on disk."""

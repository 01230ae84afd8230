# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network: its sites, the module that holds them, the same written out as plain layers."""

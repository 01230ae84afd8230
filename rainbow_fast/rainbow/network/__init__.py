# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network: its sites, the module that contains them, and its conversion to plain layers."""

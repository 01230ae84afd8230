# SPDX-License-Identifier: BSD-3-Clause
"""The loop that samples networks, and the storage of activations between two sites."""

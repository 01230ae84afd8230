# SPDX-License-Identifier: BSD-3-Clause
"""The one loop that samples networks, and where activations wait meanwhile."""

# SPDX-License-Identifier: BSD-3-Clause
"""From any nn.Module to its sites: its graph, its pointwise non-linearities, the segments between them, its tail."""

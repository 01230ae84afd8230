# SPDX-License-Identifier: BSD-3-Clause
"""Takes any nn.Module apart: its graph, its sites (pointwise non-linearities), the segments between sites, its tail."""

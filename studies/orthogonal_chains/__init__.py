# SPDX-License-Identifier: BSD-3-Clause
"""Deep networks with batch norm and orthogonal weights: gradients against the depth, and training."""

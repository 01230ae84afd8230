# SPDX-License-Identifier: BSD-3-Clause
"""What a kind of site is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Kind(nn.Module):
    """How the neurons of a site come about: zh is prepared, combined by random rows, and goes through non-linearities.

        phi' = finish(sigma(R U^T prepare(zh) ...))

    The sampling loop, the planner, reports and files know no more of a site than this; another kind is a subclass.

    Attributes:
        features: of each neuron, at each position.
        fused: whether a kernel makes the features where they are used, so that none is stored.
        normalisation: eps of a normalisation of every feature that follows, which the alignment takes in; None without.
        homogeneous: whether a positive factor of zh is one of the features, so that it can be put there.
    """

    features = 1
    fused = False
    normalisation: float | None = None
    homogeneous = False

    def prepare(self, z: Tensor) -> Tensor:
        """What the rows combine, from zh (N, d, *space)."""
        return z

    def kernel(self) -> dict[str, Any]:
        """What the kernels apply to combinations, as keyword arguments of the ops of random features."""
        raise NotImplementedError

    def finish(self, s: Tensor) -> Tensor:
        """phi' (N, features n, *space) from what the kernels leave (N, n, *space)."""
        raise NotImplementedError

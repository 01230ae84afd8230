# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all kinds of sites."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Kind(nn.Module):
    """How the features of a site are computed: zh is prepared, combined by random rows, and non-linearities follow.

        phi' = finish(sigma(R U^T prepare(zh) ...))

    The sampling loop, the planner, reports and files use only this interface. A new kind is a subclass.

    Attributes:
        features: number of features of each neuron at each position.
        fused: whether one kernel computes the features and uses them, so that they are not stored.
        normalisation: eps of a normalisation that follows the features and becomes part of the alignment; None without
            one.
        homogeneous: whether multiplying zh by a positive factor multiplies the result of the kernels by it.
    """

    features = 1
    fused = False
    normalisation: float | None = None
    homogeneous = False

    def prepare(self, z: Tensor) -> Tensor:
        """The tensor that the rows combine, from zh (N, d, *space)."""
        return z

    def kernel(self) -> dict[str, Any]:
        """Keyword arguments of the random-feature ops: the non-linearity that the kernels apply."""
        raise NotImplementedError

    def expected(self) -> dict[str, Any] | None:
        """Keyword arguments of `rainbow_fast.infinite_width.expected_kernel` for the kernel of infinitely many neurons.

        None if it has no closed form.
        """
        return None

    def finish(self, s: Tensor) -> Tensor:
        """phi' (N, features * n, *space) from the result of the kernels (N, n, *space)."""
        raise NotImplementedError

    def features_of(self, s: Tensor) -> Tensor:
        """phi' (N, features * n, *space) from the pre-activations ``R u + zbar`` (N, n, *space)."""
        raise NotImplementedError

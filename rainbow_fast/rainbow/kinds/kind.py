# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all kinds of sites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Kind(nn.Module):
    """How the features of a site are computed: u is prepared, combined by random rows, and non-linearities follow.

        phi' = finish(sigma(R u + zbar)),    (u, zbar) = prepare(U^T (zh - zbar) / sqrt(d), zbar)

    The sampling loop, the planner, reports and files use only this interface. A new kind is a subclass.

    Attributes:
        features: number of features of each neuron at each position. They are adjacent in phi'.
        paired: whether zh and phi' are complex, as pairs of real numbers on a last axis.
        complex_weights: whether G_eff and A are complex: u is then (w, i w) with complex w, which real rows combine.
        divides: whether z' is divided by its norm over the neurons, so that `prepare` needs the root of `Rows.gram`.
        has_activity: whether the sign of z' decides on its features, so that the share of positive z' is measured.
        fused: whether one kernel computes all features and uses them, so that they are not stored. It is False if a
            neuron has several: then a kernel does so for each of them, see `each_feature`.
        normalisation: eps of a normalisation that follows the features and becomes part of the alignment; None without
            one.
        homogeneous: whether multiplying zh by a positive factor multiplies the result of the kernels by it.
    """

    features = 1
    paired = complex_weights = divides = False
    has_activity = True
    fused = False
    normalisation: float | None = None
    homogeneous = False

    def mapped(self, before: int, after: int) -> int:
        """How many numbers of each channel the rows combine, if a channel of zh and of phi has so many positions."""
        return before

    def prepare(self, u: Tensor, shift: Tensor | None, root: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the rows combine, and what is added, from u (N, r, *space) and zbar (N, *space).

        Args:
            root: K with ``|K (u, zbar)| = |R u + zbar|``, if the kind `divides`.
        """
        return u, shift

    def flops(self, u: tuple[int, ...]) -> int:
        """Flops of `prepare` for u of this shape."""
        return 0

    def kernel(self) -> dict[str, Any]:
        """Keyword arguments of the random-feature ops: the non-linearity that the kernels apply."""
        raise NotImplementedError

    def expected(self) -> dict[str, Any] | None:
        """Keyword arguments of `rainbow_fast.infinite_width.expected_kernel` for the kernel of infinitely many neurons.

        None if it has no closed form.
        """
        return None

    def each_feature(self, u: Tensor, shift: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, str]]:
        """For each feature of a neuron, if there are several: its u, its shift, and the activation of the kernels.

        Args:
            u, shift: as `prepare` returns them.
        """
        raise NotImplementedError

    def finish(self, s: Tensor) -> Tensor:
        """phi' (N, features * n, *space) from the result of the kernels (N, n, *space)."""
        raise NotImplementedError

    def features_of(self, s: Tensor) -> Tensor:
        """phi' (N, n, *space) from the pre-activations ``R u + zbar`` (N, n, *space), if a neuron has one feature."""
        raise NotImplementedError

    def features_over(self, s: Tensor) -> Tensor:
        """The same, where s may be overwritten."""
        return self.features_of(s)

    def floor(self, norm: nn.Module) -> Tensor:
        """eps of the normalisation in the units of phi, ``eps / (running variance + eps)`` for each channel, float64.

        Args:
            norm: the normalisation of the site in the reference.
        """
        variance, eps = norm.running_var, norm.eps
        assert isinstance(variance, Tensor) and isinstance(eps, float)
        return eps / (variance.double() + eps)

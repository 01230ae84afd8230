# SPDX-License-Identifier: BSD-3-Clause
"""One rainbow layer with fresh neurons, aligned to its own: phih = sqrt(n / n') A pool(sigma(G' z / sqrt(r)))."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.maps import as_rows, every, take
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.polar import RTOL, polar
from rainbow_fast.ops.random_features import random_features, random_features_covariance, random_features_projection
from rainbow_fast.ops.registration import without_autocast

Moment = Callable[[Tensor, Tensor | None], Tensor]  # M (n, n') from z (N, r, *space) and the pooled phi'


class FreshNeurons:
    """The fresh neurons of one layer.

    Args:
        layer: the layer.
        name: its dotted name, for messages.
        width: n', their number.
        gradient: whether the gradient goes through A.
        max_samples: at most so many samples are in M.

    Attributes:
        key: the address of G', set before every pass.
    """

    key: Tensor

    def __init__(self, layer: RandomFeatures, name: str, width: int, *, gradient: bool, max_samples: int) -> None:
        self.layer, self.name, self.width = layer, name, width
        self.gradient, self.max_samples = gradient, max_samples
        self.clean: list[Tensor] = []  # the layer's own phi in each of its calls in a pass of the network itself

    def aligned(self, z: Tensor, moment: Moment) -> Tensor:
        """phih, with the axes of z and n channels."""
        layer = self.layer
        with without_autocast():
            rows = layer.rows(z)
            pooled = None if layer.pool is None else layer.pool(self._features(rows))
            with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
                A = self._alignment(rows, pooled, moment).to(rows.dtype) * math.sqrt(layer.n / self.width)
            if pooled is None:
                phi = random_features_projection(layer.scaled(rows), A, seed=self.key, **layer.kernel())
            else:
                phi = random_features(pooled, layer.n, G=A, activation="identity")
            return layer.shaped_as(phi, z)

    def _alignment(self, z: Tensor, pooled: Tensor | None, moment: Moment) -> Tensor:
        """polar(M). All arguments are checked before, so an error here means that M has no polar factor."""
        accuracy = None if z.dtype == torch.float64 else "float32"
        try:
            return polar(moment(z, pooled), rtol=RTOL, accuracy=accuracy).A
        except ValueError as error:
            raise FloatingPointError(
                f"{self.name!r}: its features are not finite, or all zero; the learning rate may be too large ({error})"
            ) from error

    def keep(self, z: Tensor) -> Tensor:
        """The layer's own phi. Its samples are kept for `to_clean`."""
        phi = self.layer.features(z)
        self.clean.append(self._samples(self.layer.rows(phi)))
        return phi

    # How M is computed

    def to_own(self, z: Tensor, pooled: Tensor | None) -> Tensor:
        """E[phi phi'^T] over the batch, with the layer's own phi of the same z."""
        if pooled is not None:
            return self._of_pooled(self.layer.features(z), pooled)
        z = self._samples(z)
        return self._of_features(self.layer.features(z), z)

    def to_clean(self, z: Tensor, pooled: Tensor | None) -> Tensor:
        """E[phi phi'^T] over the batch, with the phi that was kept for this call."""
        phi = self.clean.pop(0).to(z.dtype)
        return self._of_features(phi, self._samples(z)) if pooled is None else self._of_pooled(phi, pooled)

    def of_gaussian(self, z: Tensor, pooled: Tensor | None) -> Tensor:
        """E[sigma(G u) sigma(G' u)^T] for a Gaussian u with the second moment of z / sqrt(r); without pooling."""
        z, layer = self._samples(z), self.layer
        own, fresh = (
            gaussian(n, layer.rank, seed=key, dtype=torch.float64)
            for n, key in ((layer.n, layer.key), (self.width, self.key))
        )
        C = cross_covariance(z) / (len(z) * layer.rank)
        how: dict[str, Any] = {"activation": layer.activation, "negative_slope": layer.negative_slope}
        return expected_kernel(own, fresh, cov=C, **how).to(z.device)

    def _of_features(self, phi: Tensor, z: Tensor) -> Tensor:
        layer = self.layer
        sums, _, _ = random_features_covariance(phi, layer.scaled(z), self.width, seed=self.key, **layer.kernel())
        return sums / len(z)

    def _of_pooled(self, phi: Tensor, pooled: Tensor) -> Tensor:
        x, y = self._samples(phi), self._samples(pooled)
        return cross_covariance(x, y) / len(x)

    def _features(self, z: Tensor) -> Tensor:
        """phi' before pooling."""
        return random_features(self.layer.scaled(z), self.width, seed=self.key, **self.layer.kernel())

    def _samples(self, maps: Tensor) -> Tensor:
        """At most `max_samples` samples (S, channels) of maps (N, channels, *space)."""
        positions = maps[0, 0].numel()
        return as_rows(take(maps, 0, every(len(maps) * positions, self.max_samples, positions)))

# SPDX-License-Identifier: BSD-3-Clause
"""Random features of a few channels, as a layer: phi = pool(sigma(G z / sqrt(r))). G is an address, never stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.arguments import between, integer, one_of, tensor
from rainbow_fast.nn.keyed import Keyed
from rainbow_fast.nn.sigma import activation_module
from rainbow_fast.ops.activations import ACTIVATIONS, HOMOGENEOUS
from rainbow_fast.ops.gaussian import key
from rainbow_fast.ops.random_features import random_features
from rainbow_fast.ops.registration import autocast_is_on

# Sampled networks take columns from 0 on. Layers take other columns, so that with the same seed and stream the neurons
# of a sample are independent of those of the layer.
FIRST_COLUMN = 2**33
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SLOPE = between(-math.inf, math.inf, "a finite number", open_low=True, open_high=True)


class RandomFeatures(Keyed):
    r"""n random features of r channels: ``phi = pool(sigma(G z / sqrt(r)))``, with a fixed Gaussian matrix G (n, r).

    A layer without parameters. With a trained projection before it, ``z = W x``, it is a rainbow layer: the n neurons
    have the weights ``G W / sqrt(r)``, which are independent samples of N(0, W^T W / r). `rainbow_fast.fit` samples it
    with this law exactly.

    G is not stored. It is::

        key = rainbow_fast.key(seed, stream, col_offset=2**33)
        G = rainbow_fast.gaussian(n, rank, seed=key)

    so that the neurons of a narrower layer with the same seed are the first ones of a wider layer, and a network that
    is sampled with the same seed has other neurons. The state dict has ``key``, (4,) int64.

    Without pooling, the backward pass keeps only z, r numbers per position instead of n, and G is generated again. A
    pooling also keeps the features that it reads. z of half precision is computed on in float32, and phi is rounded
    once; under autocast, z / sqrt(r) may be rounded too.

    Args:
        rank: r, channels of z.
        n: number of neurons, which is the number of channels of phi.
        seed: of G, 0 <= seed < 2^63.
        stream: of G, 0 <= stream < 2^32; layers with one seed need different streams. 0 by default.
        activation: sigma, as in `rainbow_fast.random_features`; "relu" by default.
        negative_slope: of "leaky_relu"; 0.01 by default.
        pool: max-pooling of the features, an `nn.MaxPool2d` (or 1d, 3d) for maps; None (default) has none. As a part
            of the layer it is done before the alignment where neurons are resampled (`resample`).
        axis: the channel axis, 1 for maps (N, r, *space) (default) or -1 for rows (..., r).

    Raises:
        TypeError, ValueError: an argument is outside its range; the activation is unknown; the pool is no
            max-pooling, returns indices, or comes with axis=-1; z is no tensor of floating
            point, or has another number of channels.

    Source: the random feature map of Guth, Menard, Rochette and Mallat (JMLR 2024), section 2.1; White, Chaudhary,
    Wolf, Lajoie and Harris, "Learning stochastic rainbow networks" (2024), for training W in front of it.
    """

    def __init__(
        self,
        rank: int,
        n: int,
        *,
        seed: int,
        stream: int = 0,
        activation: str = "relu",
        negative_slope: float = 0.01,
        pool: nn.Module | None = None,
        axis: int = 1,
    ) -> None:
        super().__init__(key(integer("seed", seed, 0, 2**63 - 1), stream, col_offset=FIRST_COLUMN))
        self.rank, self.n = integer("rank", rank, 1), integer("n", n, 1)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.negative_slope = SLOPE("negative_slope", negative_slope)
        if integer("axis", axis, -1, 1) == 0:
            raise ValueError("axis=0: wanted 1 or -1")
        self.axis = axis
        if pool is not None and (axis != 1 or not isinstance(pool, POOLS) or pool.return_indices):
            raise ValueError(f"pool={pool!r}: wanted an nn.MaxPool1d, 2d or 3d that returns no indices, and axis=1")
        self.pool = pool
        self.in_place_of: Callable[[Tensor], Tensor] | None = None  # what computes phi while neurons are resampled

    def forward(self, z: Tensor) -> Tensor:
        """phi (N, n, *space) from z (N, r, *space), with the space of the pooling; or (..., n) from (..., r)."""
        if tensor("z", z).dtype not in DTYPES:
            raise TypeError(f"z is {z.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
        channels = z.shape[self.axis] if z.dim() > max(self.axis, 0) else None
        if channels != self.rank:
            shape = "(N, r, *space)" if self.axis == 1 else "(..., r)"
            raise ValueError(f"z has shape {tuple(z.shape)}: wanted {shape} with r = {self.rank}")
        return self.features(z) if self.in_place_of is None else self.in_place_of(z)

    def features(self, z: Tensor) -> Tensor:
        """phi with the layer's own neurons."""
        rows = self.rows(z)
        phi = random_features(self.scaled(rows), self.n, seed=self.key, **self.kernel())
        return self.shaped_as(phi if self.pool is None else self.pool(phi), z)

    def of_rank(self, rank: int) -> RandomFeatures:
        """A layer with the same address that takes another number of channels."""
        how: dict[str, Any] = {"activation": self.activation, "negative_slope": self.negative_slope}
        layer = RandomFeatures(rank, self.n, seed=0, pool=self.pool, axis=self.axis, **how)
        layer.key = self.key
        return layer

    def preactivations(self, z: Tensor) -> Tensor:
        """``G z / sqrt(r)``, with the axes of z."""
        rows = self.rows(z)
        s = random_features(rows, self.n, seed=self.key, activation="identity", scale=self.factor)
        return self.shaped_as(s, z)

    @property
    def factor(self) -> float:
        """``1 / sqrt(r)``."""
        return 1 / math.sqrt(self.rank)

    @property
    def sigma(self) -> nn.Module:
        """The non-linearity as a module."""
        return activation_module(self.activation, self.negative_slope)

    def kernel(self) -> dict:
        """Keyword arguments of the random-feature ops, for the rows that `scaled` returns."""
        through = self.activation in HOMOGENEOUS
        how = {"activation": self.activation, "negative_slope": self.negative_slope}
        return {**how, "scale": self.factor if through else 1.0}

    def scaled(self, rows: Tensor) -> Tensor:
        """The rows times 1 / sqrt(r), unless the kernels multiply their result by it, which saves a pass over z."""
        return rows if self.activation in HOMOGENEOUS else rows * self.factor

    def rows(self, z: Tensor) -> Tensor:
        """z as (N, r, *space), float32 if it is of half precision."""
        if z.dtype in (torch.bfloat16, torch.float16) and not autocast_is_on(z):
            z = z.float()
        return z if self.axis == 1 or z.dim() == 2 else z.reshape(math.prod(z.shape[:-1]), z.shape[-1])

    def shaped_as(self, phi: Tensor, z: Tensor) -> Tensor:
        """phi with the axes of z, and its dtype if that is of half precision."""
        if z.dtype != phi.dtype and not autocast_is_on(z):
            phi = phi.to(z.dtype)
        return phi if phi.dim() == z.dim() else phi.view(*z.shape[:-1], self.n)

    def extra_repr(self) -> str:
        axis = "" if self.axis == 1 else f", axis={self.axis}"
        return f"rank={self.rank}, n={self.n}, {self.activation}{axis}"

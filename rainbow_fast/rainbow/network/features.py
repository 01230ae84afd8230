# SPDX-License-Identifier: BSD-3-Clause
"""Two ways to compute the features phi' of a site for every use: fused in one kernel, or stored block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from rainbow_fast.ops.center import first_center, spread_samples
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.rainbow.channel_moments import NEAR, about
from rainbow_fast.rainbow.channel_moments import sums as sums_of
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK, Rows

# Neurons that are computed on at a time, for any batch size; `ROW_BLOCK` if the rows of G_eff must be stored.
FEATURE_BLOCK = 128  # if features must be stored, for example for pooling
IMPLICIT_BLOCK = 2**16  # if nothing must be stored; the float64 sums of a block are d times as many numbers

IDENTITY: dict[str, Any] = {"activation": "identity"}

Select = Callable[[Tensor], Tensor]  # takes some of the samples of (N, d, *space)


class FeatureSite(Protocol):
    """The interface of a site that the strategies use.

    Attributes:
        kind: how the features of a neuron are computed, see `rainbow_fast.rainbow.kinds`.
        n: number of neurons.
        A: the alignment; None before it is known.
        flattened: whether A is applied to the features of all positions together.
        precision: of float32 products.
    """

    kind: Any
    n: int
    A: Tensor | None
    flattened: bool
    precision: str

    @property
    def positions(self) -> int:
        """Number of features per neuron."""
        ...

    @property
    def drawn(self) -> Rows:
        """The drawn rows R."""
        ...

    @property
    def kernel(self) -> dict[str, Any]:
        """Keyword arguments of the ops: the non-linearity that the kernels apply."""
        ...

    def source(self, u: Tensor, start: int, stop: int) -> dict[str, Any]:
        """Rows start..stop of R, as a keyword argument of the ops."""
        ...

    def mixed(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """u (N, r, *space) and the shift zbar (N, *space) of z (N, d, *space)."""
        ...

    def pooled(self, s: Tensor) -> Tensor:
        """phi' from the result of the kernels."""
        ...


class FeatureStrategy(Protocol):
    """How the features ``phi' = after(sigma(before(R u + zbar)))`` of z (N, d, *space) are computed and used.

    In each method, `select` takes some of the samples; every position is a sample.
    """

    def block(self, site: FeatureSite) -> int:
        """Number of neurons that are computed on at a time."""
        ...

    def rows(self, site: FeatureSite, z: Tensor, select: Select, start: int, stop: int) -> Tensor:
        """Features of the neurons start..stop for the selected samples, (N', n', *space')."""
        ...

    def project(self, site: FeatureSite, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        """``A phi'`` (N', k, *space') for the selected samples.

        Args:
            A: (k, features), or (F, k, n) if each of the F features of a neuron has a matrix of its own; the result
                then has the k F channels with those of one row adjacent. With fewer columns than the site has features,
                only the first neurons are used. None (default) stands for the alignment of the site.
        """
        ...

    def covariance(
        self,
        site: FeatureSite,
        x: Tensor,
        z: Tensor,
        select: Select,
        centers: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor, Tensor],
        *,
        first: bool = False,
    ) -> None:
        """Add the sums of ``(x - a)(phi' - b)^T`` (k, features), ``phi' - b`` (features,) and its square to `sums`.

        Sums (F, k / F, n) are those of each of the F features of a neuron with the same feature of x. For pairs, the
        sums of ``phi' - b`` are (features, 2).

        Args:
            x: (N', k, *space'), for the selected samples.
            centers: a (k,) and b (features,), float64.
            sums: the three float64 tensors that are added to, in place.
            first: if True, b is first chosen from these samples and written into `centers`.
        """
        ...


def pass_block(site: FeatureSite) -> int:
    """Number of neurons of one pass in which no features are stored."""
    return IMPLICIT_BLOCK if site.drawn.implicit else ROW_BLOCK


def projection_blocks(site: FeatureSite, u: Tensor, A: Tensor) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Columns of A (k, n) and the rows of R that they multiply, of each pass over u in which no features are stored."""
    for start, stop in blocks(A.shape[1], pass_block(site)):
        part = A.narrow(1, start, stop - start).to(u.real.dtype)
        yield part, site.source(part, start, stop)


class Fused:
    """One kernel computes the features and uses them. No features are stored."""

    def block(self, site: FeatureSite) -> int:
        return pass_block(site)

    def rows(self, site: FeatureSite, z: Tensor, select: Select, start: int, stop: int) -> Tensor:
        u, shift = self._selected(site, z, select)
        return random_features(u, stop - start, shift=shift, **site.kernel, **site.source(u, start, stop))

    def project(self, site: FeatureSite, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        u, shift = self._selected(site, z, select)
        total: Tensor | None = None
        for part, rows in projection_blocks(site, u, A):
            y = random_features_projection(u, part, shift=shift, **site.kernel, **rows)
            total = y if total is None else total + y
        assert total is not None
        return total

    def covariance(
        self,
        site: FeatureSite,
        x: Tensor,
        z: Tensor,
        select: Select,
        centers: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor, Tensor],
        *,
        first: bool = False,
    ) -> None:
        u, shift = self._selected(site, z, select)
        if first:  # the center is chosen from the features of a few samples
            few = spread_samples(u)
            few_shift = None if shift is None else spread_samples(shift.unsqueeze(1)).squeeze(1)
            for start, stop in blocks(site.n, ROW_BLOCK):
                phi = random_features(few, stop - start, shift=few_shift, **site.kernel, **site.source(u, start, stop))
                centers[1][start:stop] = first_center(phi, zero=NEAR)
        x_center, center = (c.to(u.dtype) for c in centers)
        for start, stop in blocks(site.n, self.block(site)):
            kinds = site.kernel | site.source(u, start, stop)
            about: dict[str, Any] = {"x_center": x_center, "center": center[start:stop], "shift": shift}
            _add_columns(sums, start, random_features_covariance(x, u, stop - start, **about, **kinds))

    def _selected(self, site: FeatureSite, z: Tensor, select: Select) -> tuple[Tensor, Tensor | None]:
        u, shift = site.mixed(z)
        return select(u), None if shift is None else select(shift.unsqueeze(1)).squeeze(1)


class Stored:
    """Features are computed, pooled and used one block of neurons after the other."""

    def block(self, site: FeatureSite) -> int:
        return FEATURE_BLOCK

    def rows(self, site: FeatureSite, z: Tensor, select: Select, start: int, stop: int) -> Tensor:
        u, shift = site.mixed(z)
        s = random_features(u, stop - start, shift=shift, **site.kernel, **site.source(u, start, stop))
        return select(site.pooled(s))

    def project(self, site: FeatureSite, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        u, shift = site.mixed(z)
        total: Tensor | None = None
        each = site.positions  # columns of A for each neuron
        for start, stop in blocks(-(-A.shape[1] // each), self.block(site)):
            s = random_features(u, stop - start, shift=shift, **site.kernel, **site.source(u, start, stop))
            phi = select(site.pooled(s))
            part = A[:, start * each : stop * each].to(u.dtype)
            if site.flattened:
                y = phi[:, : part.shape[1]] @ part.T
            else:
                y = random_features(phi, len(part), G=part, **IDENTITY, precision=site.precision)
            total = y if total is None else total.add_(y)
        assert total is not None
        return total

    def covariance(
        self,
        site: FeatureSite,
        x: Tensor,
        z: Tensor,
        select: Select,
        centers: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor, Tensor],
        *,
        first: bool = False,
    ) -> None:
        u, shift = site.mixed(z)
        x, center = about(x, centers[0]), centers[1]
        for start, stop in blocks(site.n, self.block(site)):
            s = random_features(u, stop - start, shift=shift, **site.kernel, **site.source(u, start, stop))
            phi = select(site.pooled(s))
            at = slice(start * site.positions, stop * site.positions)
            if first:
                center[at] = first_center(phi, zero=NEAR)
            phi = about(phi, center[at])
            sums[0][:, at] += cross_covariance(x, phi, precision=site.precision)
            for total, part in zip(sums[1:], sums_of(phi), strict=True):
                total[at] += part


FUSED, STORED = Fused(), Stored()


def _add_columns(sums: Sequence[Tensor], start: int, parts: Sequence[Tensor]) -> None:
    """Add each part to the columns of a sum from `start` on. The parts are freed before the next ones are computed."""
    for out, part in zip(sums, parts, strict=True):
        out[..., start : start + part.shape[-1]] += part


def blocks(neurons: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each block of `size` neurons."""
    for start in range(0, neurons, size):
        yield start, min(start + size, neurons)

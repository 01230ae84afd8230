# SPDX-License-Identifier: BSD-3-Clause
"""The sampled site of infinitely many neurons: phih = scale A k(rows, zh) + offset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.infinite_width import NeuronKernel
from rainbow_fast.maps import as_rows
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.features import Select
from rainbow_fast.tracing.site import Site

BLOCK = 2**22  # numbers of the kernel in memory at a time
JITTER = 1e-11  # of the mean diagonal of K, added before it is factored: its Cholesky factor has as large an error


class LimitActivation(RainbowActivation):
    r"""A sampled site in the limit of infinitely many neurons, in closed form.

    Sampling with ``factor=math.inf`` makes it. The features phi' enter only by their kernel
    ``k(z, z') = E[phi'(z) phi'(z')]``, a mean over neurons, at m samples of the alignment set::

        phih(z) = scale A k(rows, z) + offset

    Every position of a map is a sample. With `pooling`, the samples are whole images of P positions, and the kernel is
    that of their features after the layers before the classifier, which are a fixed linear map of the positions::

        k(x, x') = sum over positions p, q of pooling[p, q] E[phi'(x_p) phi'(x'_q)]

    The result is then (N, len(A)).

    All numbers are computed in float64. There are no features and no weights of neurons to return: `features`,
    `preactivations` and `effective_rows` raise a ValueError.

    Buffers in addition to those of `RainbowActivation`: ``matrix`` (K, r) float64, the centers of
    the rows, or None, see `NeuronKernel`; ``rows`` (m, r) float64, u of the samples, or (m P, r), those
    of one image after the other; ``shifts``, one number for each of these rows, float64, their zbar, or None;
    ``pooling`` (P, P) float64, or None. ``A`` is (d, m) float64.

    Args:
        site, rows, recalibration, precision, device: as in `RainbowActivation`.
        pooling: see above.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 1 and equation 11.
    """

    rows: Tensor
    shifts: Tensor | None
    pooling: Tensor | None

    def __init__(
        self,
        site: Site,
        rows: Rows,
        *,
        pooling: Tensor | None = None,
        recalibration: tuple[Tensor, Tensor] | None = None,
        precision: str = "highest",
        device: torch.device | None = None,
    ) -> None:
        images = pooling is not None
        site = replace(site, after=None) if images else site  # the layers that pool are those of `pooling`
        how: dict[str, Any] = {"recalibration": recalibration, "precision": precision, "device": device}
        super().__init__(site, rows, flattened=images, **how)
        self.name = site.name
        self.exact = (*self.exact, "A", "rows", "shifts", "pooling")
        self.register_buffer("rows", torch.zeros(0, rows.r, dtype=torch.float64, device=device))
        self.register_buffer("shifts", None)
        self.register_buffer("pooling", pooling)

    def embedded(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """u (samples, r) and zbar (samples,) of z (N, d, \\*space), float64. Every position is a sample."""
        u, shift = self.project(z.double())
        return as_rows(u), None if shift is None else shift.flatten()

    def kernel_at(self, u: Tensor, shift: Tensor | None) -> Tensor:
        """k of embedded samples and the rows, (samples, m) float64; of images with all their positions, if it pools.

        Raises:
            ValueError: as `NeuronKernel`; the message names the site.
        """
        try:
            if self.pooling is not None:
                return self._pooled_kernel(u, shift)
            return self.neurons(u, self.rows, shift, self.shifts)
        except ValueError as error:
            raise ValueError(f"site {self.name!r}: {error}") from None

    @property
    def neurons(self) -> NeuronKernel:
        """The kernel of the neurons, at embedded samples."""
        smoothing = 1.0 if self.matrix is None else self.h
        return NeuronKernel(**self.kind.expected() or {}, centers=self.matrix, smoothing=smoothing)

    def kernel_in_blocks(self, u: Tensor, shift: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """As `kernel_at`, but `BLOCK` numbers at a time: the samples of each block, and their kernel."""
        positions = self.positions_of_a_sample
        size = max(BLOCK * positions // len(self.rows), 1)
        for start in range(0, len(u) // positions, size):
            at = slice(start * positions, (start + size) * positions)
            yield slice(start, start + size), self.kernel_at(u[at], None if shift is None else shift[at])

    def whole_kernel(self, u: Tensor, shift: Tensor | None) -> Tensor:
        """As `kernel_at`, computed in blocks."""
        positions = self.positions_of_a_sample
        K = torch.empty(len(u) // positions, len(self.rows) // positions, dtype=torch.float64, device=u.device)
        for at, k in self.kernel_in_blocks(u, shift):
            K[at] = k
            del k  # freed before the next block is computed
        return K

    @property
    def positions_of_a_sample(self) -> int:
        """Number of embedded rows that one sample has: the positions of an image if the site pools, else 1."""
        return 1 if self.pooling is None else len(self.pooling)

    def _pooled_kernel(self, u: Tensor, shift: Tensor | None) -> Tensor:
        """The kernel of images u (images * positions, r) and the rows."""
        assert self.pooling is not None
        sides = [(u, shift), (self.rows, self.shifts)]
        (x, a), (y, b) = (
            (rows.view(-1, len(self.pooling), rows.shape[1]), None if t is None else t.view(-1, len(self.pooling)))
            for rows, t in sides
        )
        total, neurons = u.new_zeros(len(x), len(y)), self.neurons
        for p, q in self.pooling.nonzero().tolist():
            shifts = (None if a is None else a[:, p], None if b is None else b[:, q])
            total.add_(neurons(x[:, p], y[:, q], *shifts), alpha=float(self.pooling[p, q]))
        return total

    @property
    def strategy(self) -> Any:
        """How A k is computed: in blocks of samples."""
        return IN_BLOCKS

    def features(self, z: Tensor) -> Tensor:
        raise self._infinite("features")

    def preactivations(self, z: Tensor) -> Tensor:
        raise self._infinite("pre-activations")

    def effective_rows(self) -> Tensor:
        raise self._infinite("weights")

    def _infinite(self, what: str) -> ValueError:
        return ValueError(
            f"site {self.name!r} has infinitely many neurons, whose {what} cannot be written out: wanted "
            "a network of finite width"
        )


def factored(K: Tensor) -> Tensor:
    """R (m, m), upper triangular, with ``K = R^T R`` for the kernel K of the rows, to which `JITTER` is added."""
    K.diagonal().add_(JITTER * K.diagonal().mean())
    return torch.linalg.cholesky(K, upper=True)


class _InBlocks:
    """Computes A k without storing k. The other methods of a `FeatureStrategy` need neurons."""

    def project(self, site: LimitActivation, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        u, shift = site.embedded(z)
        y = u.new_empty(len(u) // site.positions_of_a_sample, len(A))
        for at, k in site.kernel_in_blocks(u, shift):
            y[at] = k @ A.T
            del k  # freed before the next block is computed
        return y if site.flattened else select(y.view(len(z), *z.shape[2:], len(A)).movedim(-1, 1))


IN_BLOCKS = _InBlocks()

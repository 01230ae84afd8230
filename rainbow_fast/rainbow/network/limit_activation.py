# SPDX-License-Identifier: BSD-3-Clause
"""The sampled site of infinitely many neurons: phih = scale A k(rows, zh) + offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.maps import as_rows
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.features import Select
from rainbow_fast.tracing.site import Site

BLOCK = 2**22  # numbers of the kernel in memory at a time


class LimitActivation(RainbowActivation):
    r"""A sampled site in the limit of infinitely many neurons, in closed form.

    Sampling with ``factor=math.inf`` makes it. The features phi' enter only by their kernel
    ``k(z, z') = E[phi'(z) phi'(z')]``, a mean over neurons, at m samples of the alignment set::

        phih(z) = scale A k(rows, z) + offset

    All numbers are computed in float64. There are no features and no weights of neurons to return: `features`,
    `preactivations` and `effective_rows` raise a ValueError.

    Buffers in addition to those of `RainbowActivation`: ``rows`` (m, r) float64, u of the samples; ``shifts`` (m,)
    float64, their zbar, or None. ``A`` is (d, m) float64.

    Args:
        site, rows, recalibration, precision, device: as in `RainbowActivation`.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 1 and equation 11.
    """

    rows: Tensor
    shifts: Tensor | None

    def __init__(
        self,
        site: Site,
        rows: Rows,
        *,
        recalibration: tuple[Tensor, Tensor] | None = None,
        precision: str = "highest",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(site, rows, recalibration=recalibration, precision=precision, device=device)
        self.name, self.kernel_arguments = site.name, self.kind.expected() or {}
        self.exact = (*self.exact, "A", "rows", "shifts")
        self.register_buffer("rows", torch.zeros(0, rows.r, dtype=torch.float64, device=device))
        self.register_buffer("shifts", None)

    def embedded(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """u (samples, r) and zbar (samples,) of z (N, d, \\*space), float64. Every position is a sample."""
        u, shift = self.project(z.double())
        return as_rows(u), None if shift is None else shift.flatten()

    def kernel_at(self, u: Tensor, shift: Tensor | None) -> Tensor:
        """k of embedded samples and the rows, (samples, m) float64.

        Raises:
            ValueError: as `expected_kernel`; the message names the site.
        """
        try:
            return expected_kernel(u, self.rows, shift=shift, shift_v=self.shifts, **self.kernel_arguments)
        except ValueError as error:
            raise ValueError(f"site {self.name!r}: {error}") from None

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


class _InBlocks:
    """Computes A k without storing k. The other methods of a `FeatureStrategy` need neurons."""

    def project(self, site: LimitActivation, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        u, shift = site.embedded(z)
        y = u.new_empty(len(u), len(A))
        size = max(BLOCK // max(len(site.rows), 1), 1)
        for start in range(0, len(u), size):
            at = slice(start, start + size)
            y[at] = site.kernel_at(u[at], None if shift is None else shift[at]) @ A.T
        return select(y.view(len(z), *z.shape[2:], len(A)).movedim(-1, 1))


IN_BLOCKS = _InBlocks()

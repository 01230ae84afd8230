# SPDX-License-Identifier: BSD-3-Clause
"""The weights of a layer that whiten its input: ``W = gamma Q (H^T H + eps I)^(-s/2)``, from the moments of H.

H (rows, inputs) holds one input vector of the layer a row: a sample, or a position of a sample, or a patch. W has shape
(outputs, inputs), and the layer computes Z = H W^T. A grouped convolution has one H for each of its groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.gaussian import key as gaussian_key
from rainbow_fast.ops.polar import polar

SLICES = ("slice", "polar_slice")  # of the whitened rows of H
FACTORS = ("identity", "haar", *SLICES)
SCALES = ("rms", "frobenius")
ZERO = 1e-12  # entries of orthonormal vectors below it are rounding


class Spectrum(NamedTuple):
    """Of H^T H for an H (rows, inputs), float64.

    Attributes:
        values: eigenvalues, the largest first; with fewer rows than inputs as many as rows, as the others are zero.
        vectors: (inputs, k) the leading eigenvectors.
        square: returns ``|H W^T|_F^2`` for a W (outputs, inputs).
    """

    values: Tensor
    vectors: Tensor
    square: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inputs:
    """What the outputs of a layer read, or those of one of its groups.

    Attributes:
        rows: number of rows of H.
        inputs: number of columns of H.
        moments: returns H^T H (inputs, inputs) float64.
        first: returns the first so many rows of H, float64.
        dtype: of the activations; their rounding decides which directions are null.
    """

    rows: int
    inputs: int
    moments: Callable[[], Tensor]
    first: Callable[[int], Tensor]
    dtype: torch.dtype

    def spectrum(self, k: int, place: str) -> Spectrum:
        """The eigenvalues of H^T H, and the k leading eigenvectors; k <= rows.

        With fewer rows than inputs they are computed from H H^T, which is smaller. The vectors ``H^T u`` are then
        orthonormalised in the order of their eigenvalues, so that those of null directions are orthonormal, too.

        Args:
            place: what error messages call these inputs.

        Raises:
            ValueError: H is not finite.
        """
        wide = self.rows < self.inputs
        H = self.first(self.rows) if wide else None
        gram = self.moments() if H is None else cross_covariance(H.T)
        if not bool(gram.isfinite().all()):
            raise ValueError(f"{place}: its input on the batch is not finite")
        values, vectors = torch.linalg.eigh(gram)
        values, leading = values.flip(0).clamp(min=0), vectors.flip(1)[:, :k]
        if H is None:
            return Spectrum(values, leading, lambda W: (W @ gram * W).sum())
        return Spectrum(values, torch.linalg.qr(H.T @ leading).Q, lambda W: (W @ H.T).square().sum())


@dataclass(frozen=True)
class Whitening:
    """How layers whiten; the attributes are arguments of `init_orthogonal_`."""

    exponent: float
    factor: str
    eps: float
    gain: float
    scale: str
    seed: int

    def weight(self, groups: Sequence[Inputs], outputs: int, stream: int, name: str) -> Tensor:
        """W (groups outputs, inputs) float64 of the layer that error messages call `name`.

        With H^T H = V diag(l) V^T and k = min(outputs, inputs), the outputs of a group read its k leading eigenvectors
        V_k:

            W = gamma R diag(l_k + eps)^(-s/2) V_k^T

        so that Z has the singular values ``gamma l^(1/2) (l + eps)^(-s/2)`` if R (outputs, k) has orthonormal columns.
        gamma and eps are those of the layer, for all groups.

        Args:
            groups: what each group reads, with the same rows and inputs; one for a layer without groups.
            outputs: of a group.
            stream: of the Gaussian numbers of the Haar factors.

        Raises:
            ValueError: H is not finite, is zero, has fewer rows or a lower rank than W needs, or begins with rows of
                zeros where a slice is taken.
        """
        rows, d = groups[0].rows, groups[0].inputs
        k = min(outputs, d)
        self._check_rows(rows, d, outputs, name)
        places = [f"layer {name!r}" + (f", group {g}" if len(groups) > 1 else "") for g in range(len(groups))]
        spectra = [group.spectrum(k, place) for group, place in zip(groups, places, strict=True)]
        trace = sum(float(spectrum.values.sum()) for spectrum in spectra)
        if trace == 0:
            raise ValueError(f"layer {name!r}: its input on the batch is zero")
        eps = self.eps * trace / (d * len(groups))
        blocks = []
        for g, (group, place, (values, V, _)) in enumerate(zip(groups, places, spectra, strict=True)):
            if eps == 0:
                _check_rank(group, values, k, place)
            leading = values[:k] + eps
            if self.factor in SLICES:
                R = self._slice(group.first(outputs) @ (V * leading**-0.5), place)
            elif self.factor == "haar" or outputs > d:
                R = self._haar(outputs, k, stream, g * outputs, V) @ nearest(V, k)
            else:
                R = nearest(V, k)
            blocks.append(R @ (V * leading ** (-self.exponent / 2)).T)
        squares = torch.stack([spectrum.square(W) for spectrum, W in zip(spectra, blocks, strict=True)]).sum()
        if self.scale == "rms":
            squares = squares / (rows * outputs * len(groups))
        return torch.cat(blocks) * (self.gain / squares.sqrt())

    def _check_rows(self, rows: int, d: int, outputs: int, name: str) -> None:
        needed = outputs if self.factor in SLICES else min(outputs, d)
        if rows < needed:
            raise ValueError(
                f"batch: layer {name!r} ({d} inputs, {outputs} outputs) reads {rows} rows (samples times positions), "
                f"wanted at least {needed}: with fewer, H^T H has rank {rows} at most, and eps alone would set the "
                "scale of the other directions"
            )

    def _slice(self, R: Tensor, place: str) -> Tensor:
        """R, the first whitened rows of H, or its polar factor."""
        if not bool(R.any()):
            raise ValueError(
                f"batch: {place}: its first {len(R)} rows are zero, wanted others with factor={self.factor!r}"
            )
        return R if self.factor == "slice" else polar(R, rank="complete").A

    def _haar(self, rows: int, columns: int, stream: int, offset: int, like: Tensor) -> Tensor:
        """A uniformly random matrix (rows, columns) with orthonormal columns: the polar factor of a Gaussian one."""
        key = gaussian_key(self.seed, stream, row_offset=offset)
        return polar(gaussian(rows, columns, seed=key, dtype=like.dtype, device=like.device)).A


def _check_rank(inputs: Inputs, values: Tensor, k: int, place: str) -> None:
    rounding = torch.finfo(inputs.dtype).eps * max(inputs.rows, inputs.inputs)
    least = max(rounding**2, inputs.inputs * torch.finfo(values.dtype).eps)
    rank = int((values > least * values[0]).sum())
    if rank < k:
        raise ValueError(
            f"eps=0: {place}: its input on the batch has rank {rank}, wanted {k}: another batch, or eps > 0, which "
            "bounds the scale of directions without signal"
        )


def nearest(V: Tensor, k: int) -> Tensor:
    """The orthogonal R (k, k) for which R V^T, for V (inputs, k), is nearest to the first k rows of the identity.

    It undoes the signs and the rotations among eigenvectors that are not determined. For a square V it is V.
    """
    if len(V) == k:
        return V
    block = V[:k]
    block = torch.where(block.abs() > ZERO, block, torch.zeros_like(block))
    if not bool(block.any()):  # the first k inputs are not used
        return torch.eye(k, dtype=V.dtype, device=V.device)
    return polar(block, rank="complete").A

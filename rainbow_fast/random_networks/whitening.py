# SPDX-License-Identifier: BSD-3-Clause
"""The weights of a layer that whiten its input: ``W = gamma Q (H^T H + eps I)^(-s/2)``, from the moments of H.

H (rows, inputs) holds one input vector of the layer a row: a sample, or a position of a sample, or a patch. W has shape
(outputs, inputs), and the layer computes Z = H W^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.polar import polar

FACTORS = ("identity", "haar", "slice")
SCALES = ("rms", "frobenius")
ZERO = 1e-12  # entries of orthonormal vectors below it are rounding


@dataclass(frozen=True)
class Inputs:
    """What a layer reads.

    Attributes:
        moments: H^T H (inputs, inputs) float64.
        rows: number of rows of H.
        first: returns the first so many rows of H, float64.
        dtype: of the activations; their rounding decides which directions are null.
    """

    moments: Tensor
    rows: int
    first: Callable[[int], Tensor]
    dtype: torch.dtype


@dataclass(frozen=True)
class Whitening:
    """How layers whiten; the attributes are arguments of `init_orthogonal_`."""

    exponent: float
    factor: str
    eps: float
    gain: float
    scale: str
    seed: int

    def weight(self, inputs: Inputs, outputs: int, stream: int, name: str) -> Tensor:
        """W (outputs, inputs) float64 of the layer that error messages call `name`.

        With H^T H = V diag(l) V^T and k = min(outputs, inputs), W reads the k leading eigenvectors V_k:

            W = gamma R diag(l_k + eps)^(-s/2) V_k^T

        so that Z has the singular values ``gamma l^(1/2) (l + eps)^(-s/2)`` if R (outputs, k) has orthonormal columns.

        Args:
            stream: of the Gaussian numbers of the Haar factor.

        Raises:
            ValueError: H is not finite, is zero, or has fewer rows or a lower rank than W needs.
        """
        d = len(inputs.moments)
        k = min(outputs, d)
        needed = max(k, outputs) if self.factor == "slice" else k
        if not bool(inputs.moments.isfinite().all()):
            raise ValueError(f"layer {name!r}: its input on the batch is not finite")
        if inputs.rows < needed:
            raise ValueError(
                f"batch: layer {name!r} ({d} inputs, {outputs} outputs) reads {inputs.rows} rows (samples times "
                f"positions), wanted at least {needed}: with fewer, H^T H has rank {inputs.rows} at most, and eps "
                "alone would set the scale of the other directions"
            )
        values, vectors = torch.linalg.eigh(inputs.moments)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        if values[0] == 0:
            raise ValueError(f"layer {name!r}: its input on the batch is zero")
        eps = self.eps * float(values.sum()) / d
        if eps == 0:
            self._check_rank(inputs, values, k, name)
        leading, V = values[:k] + eps, vectors[:, :k]
        if self.factor == "slice":
            R = inputs.first(outputs) @ (V * leading**-0.5)
        elif self.factor == "haar" or outputs > d:
            R = self._haar(outputs, k, stream, V) @ nearest(V, k)
        else:
            R = nearest(V, k)
        W = R @ (V * leading ** (-self.exponent / 2)).T
        squares = (W @ inputs.moments * W).sum()
        if self.scale == "rms":
            squares = squares / (inputs.rows * outputs)
        return W * (self.gain / squares.sqrt())

    def _haar(self, rows: int, columns: int, stream: int, like: Tensor) -> Tensor:
        """A uniformly random matrix (rows, columns) with orthonormal columns: the polar factor of a Gaussian one."""
        G = gaussian(rows, columns, seed=self.seed, stream=stream, dtype=like.dtype, device=like.device)
        return polar(G).A

    def _check_rank(self, inputs: Inputs, values: Tensor, k: int, name: str) -> None:
        d = len(values)
        rounding = torch.finfo(inputs.dtype).eps * max(inputs.rows, d)
        rank = int((values > max(rounding**2, d * torch.finfo(values.dtype).eps) * values[0]).sum())
        if rank < k:
            raise ValueError(
                f"eps=0: layer {name!r}: its input on the batch has rank {rank}, wanted {k}: another batch, or "
                "eps > 0, which bounds the scale of directions without signal"
            )


def nearest(V: Tensor, k: int) -> Tensor:
    """The orthogonal R (k, k) for which R V^T, for V (inputs, k), is nearest to the first k rows of the identity.

    It undoes the signs and the rotations among eigenvectors that are not determined. For a square V it is V.
    """
    block = V[:k]
    block = torch.where(block.abs() > ZERO, block, torch.zeros_like(block))
    if not bool(block.any()):  # the first k inputs are not used
        return torch.eye(k, dtype=V.dtype, device=V.device)
    return polar(block, rank="complete").A

# SPDX-License-Identifier: BSD-3-Clause
"""Measures of a batch of activations: how far its samples are from orthogonal, and its law from a Gaussian one.

H (n, d) holds n samples of d units, one a row, as activations do elsewhere in this package. (The papers write the
transpose.) All measures are the same for c H, for H Q and for Q H, with Q orthogonal.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from rainbow_fast.arguments import tensor
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.polar import polar

SMALL = 4096  # entries of a matrix up to which one product of a batch takes less time than a call for each matrix


def gram(H: Tensor) -> Tensor:
    """The Gram matrices ``C = H H^T / |H|_F^2`` of trace 1, (*batch, n, n) float64, for H (*batch, n, d).

    Sums are float64, as in `rainbow_fast.cross_covariance`.

    Raises:
        TypeError, ValueError: H is no tensor of real numbers (*batch, n, d), is not finite, or is zero.
    """
    H = _checked("H", H)
    C = _second_moments(H.mT)
    return C / C.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def orthogonality_gap(H: Tensor) -> Tensor:
    r"""The orthogonality gap ``V = | H H^T / |H|_F^2 - I / n |_F``, (*batch,) float64, for H (*batch, n, d).

    It is 0 if the samples are orthogonal and of one length, and sqrt(1 - 1/n) if all are parallel. With more samples
    than units it is at least sqrt(1/d - 1/n).

    Equivalent to::

        C = H @ H.mT / H.square().sum((-2, -1), keepdim=True)
        torch.linalg.matrix_norm(C - torch.eye(n) / n)

    Raises:
        TypeError, ValueError: as `gram`.

    Source: Daneshmand, Joudaki and Bach, "Batch normalization orthogonalizes representations in deep random networks"
    (NeurIPS 2021), section 2.
    """
    return Activations(H).orthogonality_gap()


def gap_of_gram(C: Tensor) -> Tensor:
    """The orthogonality gap (*batch,) of samples whose Gram matrices, not zero, are C (*batch, n, n)."""
    trace, eye = C.diagonal(dim1=-2, dim2=-1).sum(-1), torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    return torch.linalg.matrix_norm(C / trace[..., None, None] - eye / len(eye))


def effective_rank(H: Tensor) -> Tensor:
    """``(tr C)^2 / |C|_F^2 = 1 / (V^2 + 1/n)`` with C = H H^T, (*batch,) float64, for H (*batch, n, d).

    It is at most the rank of H.

    Raises:
        TypeError, ValueError: as `gram`.
    """
    return Activations(H).effective_rank()


def isometry_gap(H: Tensor) -> Tensor:
    """``log(mean of lambda) - mean of log(lambda)``, lambda the eigenvalues of H H^T, (*batch,) float64.

    It is 0 if the samples are orthogonal and of one length, and infinite if they are linearly dependent. Near 0 it is
    n V^2 / 2.

    Args:
        H: (*batch, n, d), with n <= d.

    Raises:
        TypeError, ValueError: as `gram`; or n > d.

    Source: Meterez, Joudaki, Orabona, Immer, Raetsch and Daneshmand, "Towards training without depth limits: batch
    normalization without gradient explosion" (ICLR 2024), section 3.
    """
    return Activations(H).isometry_gap()


def stable_rank(H: Tensor) -> Tensor:
    """``tr G / |G|`` with the Gram matrix G of the samples at length 1, (*batch,) float64, for H (*batch, n, d).

    Raises:
        TypeError, ValueError: as `gram`; or a sample is zero.

    Source: Lubana, Dick and Tanaka, "Beyond BatchNorm: towards a unified understanding of normalization in deep
    learning" (NeurIPS 2021), section 4.
    """
    return Activations(_checked("H", H).double()).stable_rank()


def mean_cosine(H: Tensor) -> Tensor:
    """The mean of the cosine over all pairs of different samples, (*batch,) float64, for H (*batch, n, d).

    Raises:
        TypeError, ValueError: as `gram`; or a sample is zero, or there is only one.

    Source: as `stable_rank`.
    """
    return Activations(H).mean_cosine()


def singular_value_gap(H: Tensor) -> Tensor:
    """``| s / |s| - 1 / sqrt k |``, s the k = min(n, d) singular values of H, (*batch,) float64, for H (*batch, n, d).

    It is 0 if all are equal, and sqrt(2 - 2 / sqrt k) if H has rank one. This is the measure that the published
    notebooks call the orthogonality gap of a network's outputs.

    Raises:
        TypeError, ValueError: as `gram`.

    Source: the notebooks of Daneshmand, Joudaki and Bach (2021), figures 3 and 4.
    """
    return Activations(H).singular_value_gap()


def gaussian_distance(H: Tensor) -> Tensor:
    r"""The Wasserstein-2 distance between the laws of H W^T and of G / sqrt n, (*batch,) float64.

        W_2^2 = sum_i (s_i - 1 / sqrt n)^2 = 2 - 2 |H|_* / sqrt n = |H - polar(H) / sqrt n|_F^2

    with H scaled to |H|_F = 1 and its singular values s. The entries of W and G are independent and N(0, 1/d). The
    nuclear norm is that of `rainbow_fast.polar`.

    Args:
        H: (*batch, n, d), with n <= d.

    Raises:
        TypeError, ValueError: as `gram`; or n > d.

    Source: Gelbrich, "On a formula for the L2 Wasserstein metric between measures on Euclidean and Hilbert spaces"
    (1990), for d independent rows; Daneshmand, Joudaki and Bach (NeurIPS 2021), lemma 2, for the bound.
    """
    return Activations(H).gaussian_distance()


class Activations:
    """The measures of one H (*batch, n, d), by the functions of these names; what several read is computed once.

    Raises:
        TypeError, ValueError: as `gram`; a measure raises the other errors of its function.
    """

    def __init__(self, H: Tensor) -> None:
        self.H = _checked("H", H)
        self.n, self.d = H.shape[-2:]

    @cached_property
    def gram(self) -> Tensor:
        """C of the smaller side: H H^T and H^T H have the same eigenvalues, but for zeros."""
        return gram(self.H if self.n <= self.d else self.H.mT)

    @cached_property
    def relative_nuclear_norm(self) -> Tensor:
        """|H|_* / |H|_F, float64."""
        H = self.H.double()
        return polar(H).nuclear_norm.double() / torch.linalg.matrix_norm(H)

    def orthogonality_gap(self) -> Tensor:
        C, n, d = self.gram, self.n, self.d
        apart = gap_of_gram(C)
        return apart if n <= d else (apart.square() + (1 / d - 1 / n)).sqrt()

    def effective_rank(self) -> Tensor:
        return 1 / torch.linalg.matrix_norm(self.gram).square()

    def isometry_gap(self) -> Tensor:
        self._check_wide()
        H = self.H.double()
        R = torch.linalg.qr(H.mT / torch.linalg.matrix_norm(H)[..., None, None], mode="r").R  # it has det H H^T
        return -math.log(self.n) - 2 * R.diagonal(dim1=-2, dim2=-1).abs().log().mean(-1)

    def stable_rank(self) -> Tensor:
        if self.n > self.d:
            cosines = _second_moments(_unit(self.H))
        else:
            lengths = _lengths(self.gram.diagonal(dim1=-2, dim2=-1).sqrt())
            cosines = self.gram / (lengths[..., None] * lengths[..., None, :])
        return self.n / torch.linalg.eigvalsh(cosines)[..., -1]

    def mean_cosine(self) -> Tensor:
        if self.n < 2:
            raise ValueError(f"H has shape {tuple(self.H.shape)}: wanted at least two samples")
        return (_unit(self.H).sum(-2).square().sum(-1) - self.n) / (self.n * (self.n - 1))

    def singular_value_gap(self) -> Tensor:
        return self._distance(min(self.n, self.d))

    def gaussian_distance(self) -> Tensor:
        self._check_wide()
        return self._distance(self.n)

    def _distance(self, k: int) -> Tensor:
        """Of the singular values, at norm 1, from k equal ones."""
        return (2 - 2 * self.relative_nuclear_norm / math.sqrt(k)).clamp(min=0).sqrt()

    def _check_wide(self) -> None:
        n, d = self.n, self.d
        if n > d:
            shape = tuple(self.H.shape)
            raise ValueError(f"H has shape {shape}, {n} samples of {d} units: wanted at most as many samples")


def _second_moments(H: Tensor) -> Tensor:
    """H^T H (*batch, d, d) float64 of H (*batch, n, d)."""
    if H.dim() > 2 and H.shape[-2] * H.shape[-1] <= SMALL:
        H = H.double()
        return H.mT @ H
    flat = H.reshape(-1, *H.shape[-2:])
    moments = [cross_covariance(each.contiguous()) for each in flat]
    return torch.stack(moments).reshape(*H.shape[:-2], H.shape[-1], H.shape[-1])


def _unit(H: Tensor) -> Tensor:
    """H in float64, with samples of length 1."""
    H = H.double()
    return H / _lengths(torch.linalg.vector_norm(H, dim=-1, keepdim=True))


def _lengths(lengths: Tensor) -> Tensor:
    """The lengths of samples that have a direction."""
    if bool((lengths == 0).any()):
        raise ValueError("H: a sample is zero, wanted samples with a direction")
    return lengths


def _checked(name: str, H: Tensor) -> Tensor:
    """H, a finite batch that is not zero."""
    H = tensor(name, H)
    if H.dim() < 2 or 0 in H.shape:
        raise ValueError(f"{name} has shape {tuple(H.shape)}: wanted (*batch, n, d), none of them 0")
    if not H.is_floating_point():
        raise TypeError(f"{name} is {H.dtype}: wanted real numbers, float16, bfloat16, float32 or float64")
    size = torch.linalg.matrix_norm(H.detach().to(torch.promote_types(H.dtype, torch.float32)))
    if not bool(size.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    if bool((size == 0).any()):
        raise ValueError(f"{name} is zero: wanted a batch with a direction")
    return H

# SPDX-License-Identifier: BSD-3-Clause
"""Measures of a batch of activations: how far its samples are from orthogonal, and its law from a Gaussian one.

H (n, d) holds n samples of d units, one a row, as activations do elsewhere in this package. (The papers write the
transpose.) All measures are the same for c H, for H Q and for Q H, with Q orthogonal.
"""

from __future__ import annotations

import math

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
    n, d = _checked("H", H).shape[-2:]
    apart = gap_of_gram(gram(H) if n <= d else gram(H.mT))  # both have the same eigenvalues, but for zeros
    return apart if n <= d else (apart.square() + (1 / d - 1 / n)).sqrt()


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
    n, d = _checked("H", H).shape[-2:]
    return 1 / torch.linalg.matrix_norm(gram(H) if n <= d else gram(H.mT)).square()


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
    _check_wide(H)
    H = H.double()
    R = torch.linalg.qr(H.mT / torch.linalg.matrix_norm(H)[..., None, None], mode="r").R  # its diagonal has det H H^T
    return -math.log(H.shape[-2]) - 2 * R.diagonal(dim1=-2, dim2=-1).abs().log().mean(-1)


def stable_rank(H: Tensor) -> Tensor:
    """``tr G / |G|`` with the Gram matrix G of the samples at length 1, (*batch,) float64, for H (*batch, n, d).

    Raises:
        TypeError, ValueError: as `gram`; or a sample is zero.

    Source: Lubana, Dick and Tanaka, "Beyond BatchNorm: towards a unified understanding of normalization in deep
    learning" (NeurIPS 2021), section 4.
    """
    n, d = _checked("H", H).shape[-2:]
    unit = _unit(H)
    largest = torch.linalg.eigvalsh(_second_moments(unit.mT if n <= d else unit))[..., -1]
    return n / largest


def mean_cosine(H: Tensor) -> Tensor:
    """The mean of the cosine over all pairs of different samples, (*batch,) float64, for H (*batch, n, d).

    Raises:
        TypeError, ValueError: as `gram`; or a sample is zero, or there is only one.

    Source: as `stable_rank`.
    """
    n = _checked("H", H).shape[-2]
    if n < 2:
        raise ValueError(f"H has shape {tuple(H.shape)}: wanted at least two samples")
    return (_unit(H).sum(-2).square().sum(-1) - n) / (n * (n - 1))


def singular_value_gap(H: Tensor) -> Tensor:
    """``| s / |s| - 1 / sqrt k |``, s the k = min(n, d) singular values of H, (*batch,) float64, for H (*batch, n, d).

    It is 0 if all are equal, and sqrt(2 - 2 / sqrt k) if H has rank one. This is the measure that the published
    notebooks call the orthogonality gap of a network's outputs.

    Raises:
        TypeError, ValueError: as `gram`.

    Source: the notebooks of Daneshmand, Joudaki and Bach (2021), figures 3 and 4.
    """
    H = _checked("H", H)
    return (2 - 2 * _relative_nuclear_norm(H) / math.sqrt(min(H.shape[-2:]))).clamp(min=0).sqrt()


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
    _check_wide(H)
    return (2 - 2 * _relative_nuclear_norm(H) / math.sqrt(H.shape[-2])).clamp(min=0).sqrt()


def _relative_nuclear_norm(H: Tensor) -> Tensor:
    """|H|_* / |H|_F, float64."""
    H = H.double()
    return polar(H).nuclear_norm.double() / torch.linalg.matrix_norm(H)


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
    lengths = torch.linalg.vector_norm(H, dim=-1, keepdim=True)
    if bool((lengths == 0).any()):
        raise ValueError("H: a sample is zero, wanted samples with a direction")
    return H / lengths


def _check_wide(H: Tensor) -> None:
    n, d = _checked("H", H).shape[-2:]
    if n > d:
        raise ValueError(f"H has shape {tuple(H.shape)}, {n} samples of {d} units: wanted at most as many samples")


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

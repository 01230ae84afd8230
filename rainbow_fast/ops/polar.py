# SPDX-License-Identifier: BSD-3-Clause
"""polar: the orthogonal polar factor of a matrix. For a cross-covariance, this factor is the alignment."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import number, tensor
from rainbow_fast.ops import polar_factors as _factors
from rainbow_fast.ops import polar_lq as _lq
from rainbow_fast.ops.memory import check_written
from rainbow_fast.ops.polar_derivative import DERIVATIVE
from rainbow_fast.ops.registration import functional, writing

DTYPES = (torch.float32, torch.float64)
CERTIFIED = {torch.float32: 1e-6, torch.float64: 1e-10}  # largest residual and non-orthogonality of a converged result
LONG, LONG_IN_PLACE = 256, 16  # ratios of the sides from which the LQ decomposition is faster, or saves much memory
RTOL = 1e-13  # of alignments, not the default of polar: M has float64 sums, and smaller singular values are rounding
SQUARES = 2.0**300  # entries between 1 / SQUARES and SQUARES can be squared without overflow


class Polar(NamedTuple):
    """The result of `polar`: the polar factors A (*batch, d, m), and numbers for each matrix, (*batch)."""

    A: Tensor  # (*batch, d, m), dtype of M
    nuclear_norm: Tensor  # tr(A M^T) of the partial factor: the sum of the kept singular values; float64
    rank: Tensor  # number of kept singular values: those above rtol times the largest; int64
    condition: Tensor  # largest over smallest kept singular value; float64
    residual: Tensor  # the backward error |M - H A|_F / |M|_F with H = sym(M A^T); float64


def polar(
    M: Tensor,  # (*batch, d, m)
    *,
    rank: str = "partial",
    rtol: float | None = None,
    method: str | None = None,
    accuracy: str | None = None,
    backend: str | None = None,
) -> Polar:
    r"""The polar factor ``A = U V^T`` of ``M = U S V^T``: it maximises ``tr(A M^T)`` over matrices of norm at most 1.

    Equivalent to::

        U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
        keep = S > rtol * S[0]
        A = (U[:, keep] @ Vh[keep]).to(M.dtype)

    for each matrix of the batch. The compiled kernel computes no SVD. It brings the singular values to 1 by rational
    functions of Gram matrices in float64, in more stages for a larger condition number. For any condition number, A is
    orthogonal to rounding (1e-7 in float32, 1e-14 in float64), and ``A M^T`` is symmetric to 1e-7 and 1e-11 times the
    largest singular value. Null directions are separated by eigenvectors of Gram matrices, or by a float64 SVD if
    singular values near the tolerance are too small for that (1e-11 of the largest). If one side is at least 256 times
    as long as the other, all of this is done for the factor L of ``M = L Q``.

    If M has full rank, A and nuclear_norm are differentiable in both modes, any number of times (`polar_derivative`);
    rank, condition and residual count as constants.

    Args:
        M: float32 or float64 matrices, tall, wide or square. The scale of M does not change A.
        rank: ``"partial"`` (default) maps null directions to zero: A is the unique partial isometry. ``"complete"``
            also maps the right null space onto the left one isometrically, by the polar factor of a fixed Gaussian
            matrix restricted to both; this part depends on the null spaces only.
        rtol: directions with singular values at most rtol times the largest count as null; the default is ``max(d, m)``
            times the eps of the dtype of M.
        method: ``"svd"`` takes a float64 SVD; None (default) the iteration.
        accuracy: ``"float32"`` is faster and enough for results of float32, also for a float64 M: the residual and the
            error of orthogonality ``|A A^T - 1|_F / sqrt d`` are at most 1e-6. Directions with singular values below
            1e-6 of the largest are mapped isometrically, but may be mixed with each other. Rank, null directions and
            condition are as by default. None (default) gives the accuracy above. The SVD ignores it.
        backend: ``"cpu"``, ``"triton"`` (matrix products of torch, with small kernels between them) or ``"reference"``;
            None (default) takes the best one available.

    Returns:
        `Polar`: the tensors A (*batch, d, m) and nuclear_norm, rank, condition, residual (*batch). The iteration only
        estimates the condition, by Lanczos' method to 1 %, and the residual, from four to eight Gaussian rows to a
        factor of 2.

    Raises:
        ValueError: M is not a matrix, has no rows or no columns, is all zero, or is not finite; `rank`, `method` or
            `accuracy` is unknown; rtol is outside [0, 1); or the backend is not available.
        TypeError: M is not a tensor of dtype float32 or float64, or rtol is not a number.
        RuntimeError: a derivative is computed, and M does not have full rank.

    Warns:
        RuntimeWarning: the iteration did not converge, and the float64 SVD was taken instead.

    Source: orthogonal Procrustes, equation 6 of Guth, Menard, Rochette and Mallat (JMLR 2024); Higham, "Functions of
    Matrices" (2008), chapter 8; Nakatsukasa and Freund, SIAM Review 58 (2016), 461-493; for L Q, Stathopoulos and Wu,
    SIAM Journal on Scientific Computing 23 (2002), 2165-2182.
    """
    complete = _is_complete(rank)
    return Polar(*torch.ops.rainbow_fast.polar(tensor("M", M), complete, _number(rtol), method, accuracy, backend))


def polar_(
    M: Tensor,
    *,
    rank: str = "partial",
    rtol: float | None = None,
    method: str | None = None,
    accuracy: str | None = None,
    backend: str | None = None,
) -> Polar:
    """Overwrite M with its polar factor, which is A of the result. Equal to `polar(M)` up to rounding. No gradient.

    If one side of M is at least 16 times as long as the other, the compiled kernels need little memory besides M: some
    square matrices with the shorter side, and eight float64 rows with the length of the longer side. With
    ``rank="complete"``, each null direction needs one more row. M may have any strides.

    Raises:
        ValueError, TypeError: as `polar`, before anything is written; or M is an expanded tensor.
        RuntimeError: M requires grad while grad mode is on.
    """
    complete = _is_complete(rank)
    return Polar(M, *torch.ops.rainbow_fast.polar_(tensor("M", M), complete, _number(rtol), method, accuracy, backend))


def polar_reference(M: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """The thin factors (U, S, Vh) of M in float64, for singular values above the tolerance."""
    U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    keep = S > rtol * S[0]
    return U[:, keep], S[keep], Vh[keep]


def _is_complete(rank: str) -> bool:
    if rank not in ("partial", "complete"):
        raise ValueError(f"rank={rank!r}: wanted 'partial' or 'complete'")
    return rank == "complete"


def _number(rtol: float | None) -> float | None:
    return None if rtol is None else number("rtol", rtol)


def _check(M: Tensor, rtol: float | None, method: str | None, accuracy: str | None) -> None:
    if M.dim() < 2 or 0 in M.shape[-2:]:
        raise ValueError(f"M has shape {tuple(M.shape)}: wanted (*batch, d, m), neither d nor m 0")
    if M.dtype not in DTYPES:
        raise TypeError(f"M is {M.dtype}: wanted torch.float32 or torch.float64")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol={rtol}: wanted 0 <= rtol < 1")
    if method not in (None, "svd"):
        raise ValueError(f"method={method!r}: wanted None or 'svd'")
    if accuracy not in (None, "float32"):
        raise ValueError(f"accuracy={accuracy!r}: wanted None or 'float32'")


def _by_factors(M: Tensor, rtol: float, complete: bool, gram: bool, out: Tensor) -> tuple[float, ...]:
    """Write the polar factor of one matrix into `out`, from its singular factors; returns the statistics."""
    largest = torch.maximum(M.max(), -M.min()).double()
    scaled = M.double() / largest
    tall = M.shape[0] > M.shape[1]
    wide = scaled.T.contiguous() if tall else scaled
    product = _factors.multiply if gram else torch.matmul
    U, S, Vh = (_factors.gram_factors(wide, rtol, M.dtype) if gram else None) or polar_reference(wide, rtol)
    A = product(U, Vh)
    B = (U * S) @ U.T  # H of the partial factor, exactly symmetric up to rounding
    residual = torch.linalg.norm(wide - product(B, A)) / torch.linalg.norm(wide)
    if complete and len(S) < wide.shape[0]:
        _complete(A, A, None if gram else "svd")
    out.copy_(A.T if tall else A)
    return float(S.sum() * largest), len(S), float(S.max() / S.min()), float(residual)


DONE, NULL = 0, 2  # outcomes of the kernel: enum Outcome of csrc/cpu/polar.cpp


def _without_zeros(M: Tensor, rtol: float, single: bool, chosen: str, out: Tensor, statistics: Tensor) -> None:
    """`_by_iteration` for each matrix without its rows and columns of zeros.

    Neurons that are never active make rows and columns of zeros. They are null directions, and stop the iteration.
    """
    rows, columns = (M != 0).any(2), (M != 0).any(1)
    out.zero_()
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        part = M[i][row][:, column].unsqueeze(0)
        A = torch.empty_like(part, memory_format=torch.contiguous_format)
        _by_iteration(part, rtol, False, single, chosen, A, statistics[i : i + 1])
        out[i][row.nonzero(), column.nonzero().T] = A[0]


def _has_zeros(M: Tensor) -> bool:
    """Whether a matrix (batch, d, m) has a row or a column of zeros."""
    return not ((M != 0).any(2).all() and (M != 0).any(1).all())


def _by_iteration(
    M: Tensor, rtol: float, complete: bool, single: bool, chosen: str, out: Tensor, statistics: Tensor
) -> None:
    """The iteration for matrices (batch, d, m), with singular factors in its place where it cannot be used.

    If the estimated condition says that directions may be null, singular factors decide the rank exactly. They come
    from Gram matrices, many times faster than an SVD, or from an SVD if Gram matrices do not resolve the rank. The SVD
    is also taken if the iteration has not converged; no matrix is known for which this happens. With `single`, the
    accuracy of float32 is enough; if the result misses it, the iteration runs again in the default accuracy.
    """
    if chosen == "triton":  # statistics, orthogonality of A and outcome, (batch, 6)
        results = _backend.run_triton("polar", M.device, out, M, rtol, single)
    else:
        results = torch.empty(len(M), 6, dtype=torch.float64, device="cpu")
        arrays = out.data_ptr(), results.data_ptr(), M.data_ptr(), _backend.CODE[M.dtype]
        _backend.kernels().polar(*arrays, *M.shape, *M.stride(), rtol, single, torch.get_num_threads())
    statistics.copy_(results[:, :4])
    certified = CERTIFIED[torch.float32 if single else M.dtype]
    for i, (_, _, _, residual, orthogonality, outcome) in enumerate(results.tolist()):
        if outcome == DONE and max(residual, orthogonality) <= certified:
            continue
        if outcome != NULL and single:
            one = slice(i, i + 1)
            _by_iteration(M[one], rtol, complete, False, chosen, out[one], statistics[one])
            continue
        if outcome != NULL:
            warnings.warn(
                f"polar: the iteration did not converge (residual {residual:.1e}, orthogonality {orthogonality:.1e},"
                f" wanted {certified:.0e}): the float64 SVD is taken instead",
                RuntimeWarning,
                stacklevel=2,
            )
        statistics[i] = M.new_tensor(_by_factors(M[i], rtol, complete, outcome == NULL, out[i]), dtype=torch.float64)


def _complete(A: Tensor, left: Tensor, method: str | None) -> None:
    _factors.complete(A, left, _lq.columns, lambda Z: _write(Z, False, 0.0, method, None, None))


def _by_lq(M: Tensor, out: Tensor, statistics: Tensor, rtol: float, complete: bool, single: bool) -> None:
    """The polar factor of one matrix with one side much longer, by its LQ decomposition; `out` may be M."""
    if M.shape[0] > M.shape[1]:
        M, out = M.T, out.T
    lq = _lq.decompose(M, out, single)
    A, measured = torch.empty_like(lq.L), statistics.new_empty(1, 4)
    if _has_zeros(lq.L[None]):
        _without_zeros(lq.L[None], rtol, single, "cpu", A[None], measured)
    else:
        _by_iteration(lq.L[None], rtol, False, single, "cpu", A[None], measured)
    measured[0, 3] = _lq.assemble_factor(lq, A, out)
    if complete and measured[0, 1] < len(M):
        _complete(out, A, None)
    statistics.copy_(measured[0])


def _check_out(
    M: Tensor,
    complete: bool,
    rtol: float | None,
    method: str | None,
    accuracy: str | None,
    backend: str | None,
    out: Tensor,
    statistics: Tensor,
) -> None:
    _check(M, rtol, method, accuracy)
    check_written("out", out, M.shape, M.dtype, beside=("M", M), M=M)
    check_written("statistics", statistics, (*M.shape[:-2], 4), torch.float64, beside=("M", M), M=M, out=out)


def _write(
    M: Tensor,
    complete: bool,
    rtol: float | None,
    method: str | None,
    accuracy: str | None,
    backend: str | None,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
) -> tuple[Tensor, ...] | None:
    """Write A into `out` (by default M), and the other results into `statistics`; without it, return them."""
    own = M.new_empty((*M.shape[:-2], 4), dtype=torch.float64) if statistics is None else None
    statistics, out = own if statistics is None else statistics, M if out is None else out
    assert statistics is not None
    chosen = _backend.choose(backend, M.device, M.dtype, DTYPES, "polar")
    largest, single = _largest(M), accuracy is not None
    if rtol is None:  # set here and not by the caller, so that a compiled function does not depend on it
        rtol = min(max(M.shape[-2:]) * torch.finfo(M.dtype).eps, 0.5)
    exponent = torch.zeros_like(largest, dtype=torch.int32)
    if M.dtype == torch.float64 and ((largest > SQUARES) | (largest < 1 / SQUARES)).any():
        exponent = torch.frexp(largest).exponent
        M = torch.ldexp(M, -exponent[..., None, None])
    size = (math.prod(M.shape[:-2]), *M.shape[-2:])
    matrices = M.reshape(size)
    same = M.data_ptr() == out.data_ptr()
    long = max(M.shape[-2:]) >= (LONG_IN_PLACE if same else LONG) * min(M.shape[-2:])
    by_lq = chosen == "cpu" and method is None and long
    direct = out.is_contiguous() or (by_lq and out.dim() <= 3)
    into = (out if direct else torch.empty(out.shape, dtype=out.dtype, device=out.device)).view(size)
    measured = torch.empty(size[0], 4, dtype=torch.float64, device=M.device)
    if by_lq:
        for arguments in zip(matrices, into, measured, strict=True):
            _by_lq(*arguments, rtol, complete, single)
    elif chosen != "reference" and method is None:
        matrices = matrices.clone() if same else matrices
        if not complete and _has_zeros(matrices):
            _without_zeros(matrices, rtol, single, chosen, into, measured)
        else:
            _by_iteration(matrices, rtol, complete, single, chosen, into, measured)
    else:
        for i, one in enumerate(matrices):
            measured[i] = one.new_tensor(_by_factors(one, rtol, complete, False, into[i]), dtype=torch.float64)
    if not direct:
        out.copy_(into.view(out.shape))
    statistics.copy_(measured.view(statistics.shape))
    statistics[..., 0] = torch.ldexp(statistics[..., 0], exponent)
    return None if own is None else _numbers(own)


def _largest(M: Tensor) -> Tensor:
    """The largest absolute value in each matrix; a ValueError if one is 0 or not finite."""
    largest = torch.maximum(M.amax((-2, -1)), -M.amin((-2, -1)))
    if not torch.isfinite(largest).all():
        raise ValueError("M has entries that are not finite: its polar factor is not defined")
    if (largest == 0).any():
        each = "is" if M.dim() == 2 else "holds a matrix that is"
        raise ValueError(f"M of shape {tuple(M.shape)} {each} all zero: its polar factor is not defined")
    return largest


def _polar(
    M: Tensor, complete: bool, rtol: float | None, method: str | None, accuracy: str | None, backend: str | None
) -> tuple[Tensor, ...]:
    _check(M, rtol, method, accuracy)
    A = _backend.empty(M.shape, M.dtype, M.device)
    numbers = _write(M, complete, rtol, method, accuracy, backend, A)
    assert numbers is not None
    return A, *numbers


def _check_in_place(
    M: Tensor, complete: bool, rtol: float | None, method: str | None, accuracy: str | None, backend: str | None
) -> None:
    _check(M, rtol, method, accuracy)
    check_written("M", M, M.shape)


def _numbers(statistics: Tensor) -> tuple[Tensor, ...]:
    nuclear_norm, rank, condition, residual = (s.clone() for s in statistics.unbind(-1))
    return nuclear_norm, rank.long(), condition, residual


def _numbers_fake(M: Tensor, *options: Any) -> tuple[Tensor, ...]:
    dtypes = (torch.float64, torch.int64, torch.float64, torch.float64)
    return tuple(M.new_empty(M.shape[:-2], dtype=dtype) for dtype in dtypes)


def _fake(
    M: Tensor, complete: bool, rtol: float | None, method: str | None, accuracy: str | None, *rest: Any
) -> tuple[Tensor, ...]:
    _check(M, rtol, method, accuracy)
    return torch.empty(M.shape, dtype=M.dtype, device=M.device), *_numbers_fake(M)


def _vmap(info: Any, in_dims: Any, M: Tensor, *options: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The op itself takes a batch of matrices."""
    return torch.ops.rainbow_fast.polar(M.movedim(in_dims[0], 0), *options), (0,) * 5


def polar_flops(M: Sequence[int]) -> int:
    """``12 s^2 l + 24 s^3`` flops for each matrix with sides s <= l, as for a condition number of 1e6 to 1e8.

    There are three stages. Each takes a Gram matrix (s^2 l, one triangle) and a product (2 s^2 l), and a Newton-Schulz
    step takes the same: 12 s^2 l in all. Three inverses in each stage, and four and three products in the last stage,
    take 24 s^3.
    """
    short, long = sorted(M[-2:])
    return math.prod(M[:-2]) * (12 * short**2 * long + 24 * short**3)


_OPTIONS = "bool complete, float? rtol, str? method, str? accuracy, str? backend"
functional(
    f"polar(Tensor M, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _polar,
    _fake,
    flops=polar_flops,
    captured=False,
    derivative=DERIVATIVE,
    vmap=_vmap,
    takes_half=False,
)
writing(
    f"polar_out(Tensor M, {_OPTIONS}, Tensor(a!) out, Tensor(b!) statistics) -> ()",
    _write,
    check=_check_out,
    flops=polar_flops,
    captured=False,
    called="polar_out",
)
writing(
    f"polar_(Tensor(a!) M, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _write,
    check=_check_in_place,
    flops=polar_flops,
    captured=False,
    called="polar_",
    fake=_numbers_fake,
)

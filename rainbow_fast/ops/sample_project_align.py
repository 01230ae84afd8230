# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align: the weights W' = scale G (L A) of a sampled layer, without storing G."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import integer, number, optional_tensor, tensor
from rainbow_fast.ops.gaussian import Seed, addresses, as_key, check_key, further, gaussian_reference, seed_count
from rainbow_fast.ops.memory import check_device, check_written, matrix
from rainbow_fast.ops.precision import CODE as PRECISION_CODE
from rainbow_fast.ops.precision import check_precision, precision_of
from rainbow_fast.ops.registration import (
    Derivative,
    autocast_is_on,
    functional,
    loop,
    widened,
    without_autocast,
    writing,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TWO_TERMS = "bf16x2"  # a precision of this op alone: P in two terms of bfloat16, G in one


def sample_project_align(
    n: int,
    L: Tensor,  # (r, d) or (r, d, *kernel)
    A: Tensor | None = None,  # (d, m)
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:  # (n, m) or (n, m, *kernel); for S seeds (S, n, m, *kernel)
    r"""Sample the weights of n neurons, ``w'_i = scale g_i L A``, Gaussian with covariance ``scale^2 (L A)^T (L A)``.

    Equivalent to::

        P = L if A is None else torch.einsum("rd...,dm->rm...", L, A)
        G = rainbow_fast.gaussian(n, P.shape[0], seed=seed, stream=stream, row_offset=row_offset)
        scale * torch.einsum("nr,rm...->nm...", G.to(P.dtype), P)

    but G is generated tile by tile inside the matrix product. A block of rows that is sampled alone has the same bits
    as this slice of the whole, for any number of threads. Differentiable in L and A; the backward pass generates G
    again.

    Args:
        n: number of neurons, at least 0.
        L: factor of the weight covariance C, ``L^T L = C``. For a convolution, the axes of the kernel come last.
        A: alignment; None (default) is the identity, with m = d.
        seed, stream, row_offset: the address in G, as in `rainbow_fast.key`; or a key as ``seed``. S seeds give S
            matrices W' along a leading axis.
        scale: factor of W'; 1 by default.
        dtype: dtype of the result. The default is the dtype of L; under autocast it is the autocast dtype, unless L is
            float64. If L is narrower than float32, G is rounded to the dtype of L (except under autocast, which widens
            L). Products are summed in float64 if L is float64, else in float32, and the result is rounded once.
        precision: of the products of float32 numbers: ``"highest"``, ``"high"`` (each factor as the sum of two bfloat16
            numbers) or ``"medium"`` (as one); None (default) takes torch's setting, as `random_features` does. L A is
            a product of torch. Also ``"bf16x2"``, for L in float32 or bfloat16: as "high", but with L A computed in
            float32 (entries must be finite), and with G rounded to bfloat16, of which one number is enough: two
            products in the place of three.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; None (default) takes the best one available.

    Returns:
        W', contiguous: (n, m) or (n, m, *kernel), or (S, n, m, *kernel) for S seeds.

    Raises:
        ValueError: shapes do not match, an address is outside its range, the precision is unknown, or the backend is
            not available.
        TypeError: an argument is not a tensor or not an integer, or the backend or the precision does not support the
            dtype.

    Source: W = G C^{1/2} of Guth, Menard, Rochette and Mallat (JMLR 2024), equation 15.
    """
    P = _factor(tensor("L", L), optional_tensor("A", A), precision)
    n, packed = integer("n", n), as_key(seed, stream, row_offset)
    how = (packed, number("scale", scale), dtype or _result_dtype(L), precision, backend)
    W = torch.ops.rainbow_fast.sample_project_align(n, P.flatten(1), *how)
    return W.view(*W.shape[:-1], *P.shape[1:])


def sample_project_align_(
    out: Tensor,
    L: Tensor,
    A: Tensor | None = None,
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Write the result of `sample_project_align` into `out`, which has its shape, and return `out`. No gradient.

    The rows of `out` must be contiguous. Their stride is free, so `out` may be a slice of a larger tensor.

    Raises:
        ValueError: as `sample_project_align`; or `out` has another shape or layout, or shares memory with L.
        TypeError: as `sample_project_align`; or `out` is not float32, float64, bfloat16 or float16.
        RuntimeError: an input requires grad while grad mode is on.
    """
    P = _factor(tensor("L", L), optional_tensor("A", A), precision)
    packed = as_key(seed, stream, row_offset)
    tensor("out", out)
    number("scale", scale)
    lead = packed.dim()  # the number of axes before the axes of a row
    if out.dim() != lead + P.dim() - 1 or out.shape[: lead - 1] + out.shape[lead:] != packed.shape[:-1] + P.shape[1:]:
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted {(*packed.shape[:-1], 'n', *P.shape[1:])}")
    try:
        flat = out.view(*out.shape[:lead], math.prod(out.shape[lead:]))
    except RuntimeError:
        raise ValueError(f"out has strides {out.stride()}: wanted contiguous rows") from None
    torch.ops.rainbow_fast.sample_project_align_out(P.flatten(1), packed, scale, precision, backend, flat)
    return out


def sample_project_align_reference(G: Tensor, P: Tensor, scale: float, precision: str | None = None) -> Tensor:
    """``scale G P``. G is rounded as `_rounding` says; sums are in float64 if P is float64, else in float32."""
    compute = torch.float64 if P.dtype == torch.float64 else torch.float32
    G = G.to(_rounding(P, precision))
    return scale * (G.to(compute) @ (in_two_terms(P) if precision == TWO_TERMS else P).to(compute))


def in_two_terms(P: Tensor) -> Tensor:
    """P, float32, rounded to a sum of two bfloat16 numbers: the nearest one, and the one nearest to the remainder."""
    high = P.bfloat16().float()
    return high + (P - high).bfloat16().float()


def left_product(L: Tensor, A: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``P = L A``, contracted over the channels of L, (r, m) or (r, m, *kernel); computed in `dtype`."""
    if L.dim() < 2:
        raise ValueError(f"L has shape {tuple(L.shape)}: wanted (r, d) or (r, d, *kernel)")
    if not L.is_floating_point():
        raise TypeError(f"L is {L.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if A is None:
        return L.to(dtype)
    if A.dim() != 2 or A.shape[0] != L.shape[1]:
        raise ValueError(f"A has shape {tuple(A.shape)}: wanted (d, m) with d = {L.shape[1]}, the channels of L")
    if A.dtype != L.dtype:
        raise TypeError(f"A is {A.dtype}: wanted the dtype of L, {L.dtype}")
    check_device("L", L, A=A)
    return torch.einsum("rd...,dm->rm...", L.to(dtype), A.to(dtype))


def _result_dtype(L: Tensor) -> torch.dtype:
    if L.dtype != torch.float64 and autocast_is_on(L):
        return torch.get_autocast_dtype(L.device.type)
    return L.dtype


def _factor(L: Tensor, A: Tensor | None, precision: str | None) -> Tensor:
    """The right factor P = L A in the dtype that `precision` asks for; under autocast, in float32 or float64."""
    check_precision(precision, TWO_TERMS)
    if not autocast_is_on(L):
        return _plain_factor(L, A, precision)
    with without_autocast():
        L, A = widened((L, A))
        return _plain_factor(L, A, precision)


def _plain_factor(L: Tensor, A: Tensor | None, precision: str | None) -> Tensor:
    if precision != TWO_TERMS:
        return left_product(L, A, L.dtype)
    if L.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"precision={precision!r}: L is {L.dtype}, wanted torch.float32 or torch.bfloat16")
    return left_product(L, A, torch.float32)


def _rounding(P: Tensor, precision: str | None) -> torch.dtype:
    """The dtype that G is rounded to."""
    return torch.bfloat16 if precision == TWO_TERMS else P.dtype


def _check_out(P: Tensor, key: Tensor, scale: float, precision: str | None, backend: str | None, out: Tensor) -> None:
    _check(P, key, precision)
    if out.dtype not in DTYPES:
        raise TypeError(f"out is {out.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if out.dim() != key.dim() + 1:
        wanted = (*key.shape[:-1], "n", *P.shape[1:])
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted {wanted} for P of shape {tuple(P.shape)}")
    check_written(
        "out", out, (*key.shape[:-1], out.shape[-2], P.shape[1]), rows=backend != "reference", beside=("L", P), L=P
    )


def _check(P: Tensor, key: Tensor, precision: str | None) -> None:
    check_key(key)
    check_precision(precision, TWO_TERMS)
    if P.dim() != 2:
        raise ValueError(f"P has shape {tuple(P.shape)}: wanted (r, m)")


def _write(P: Tensor, key: Tensor, scale: float, precision: str | None, backend: str | None, out: Tensor) -> None:
    if out.dtype not in DTYPES:
        raise TypeError(f"dtype={out.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    chosen = _backend.choose(backend, P.device, P.dtype, DTYPES, "sample_project_align", called="L")
    n, r = out.shape[-2], P.shape[0]
    parts = addresses(key, n, r, out)
    G_dtype = _rounding(P, precision)
    products = precision_of("high" if precision == TWO_TERMS else precision, P)
    if chosen == "cpu" and precision == TWO_TERMS:
        P = in_two_terms(P)
    for where, part in parts:
        if chosen == "reference":
            G = torch.from_numpy(gaussian_reference(where, n, r)).to(P.device)
            part.copy_(sample_project_align_reference(G, P, scale, precision))
        elif chosen == "triton":
            _backend.run_triton("sample_project_align", P.device, part, P, G_dtype, where, scale, products)
        else:
            target = (part.data_ptr(), _backend.CODE[out.dtype], n, part.stride(0))
            with _backend.running(chosen, P.device) as run:
                _backend.kernels(chosen).sample_project_align(
                    *target, matrix(P), _backend.CODE[G_dtype], where, scale, PRECISION_CODE[products], run
                )


def _sample_project_align(
    n: int, P: Tensor, key: Tensor, scale: float, dtype: torch.dtype, precision: str | None, backend: str | None
) -> Tensor:
    _check(P, key, precision)
    out = _backend.empty((*key.shape[:-1], integer("n", n), P.shape[1]), dtype, P.device)
    _write(P, key, scale, precision, backend, out)
    return out


def _fake(
    n: int, P: Tensor, key: Tensor, scale: float, dtype: torch.dtype, precision: str | None, *rest: Any
) -> Tensor:
    _check(P, key, precision)
    return P.new_empty(*key.shape[:-1], n, P.shape[1], dtype=dtype)


def _vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    """``dP = scale G^T dW'``, for a few thousand rows of G at a time."""
    n, P, key, scale, _, precision, backend = inputs
    compute = torch.promote_types(P.dtype, torch.float32)
    (grad,) = grads
    grad_P = grad.new_zeros(P.shape, dtype=compute)
    block, G_dtype = 4096, _rounding(P, precision)
    for one, part in [(key, grad)] if key.dim() == 1 else zip(key, grad, strict=True):
        for start in range(0, n, block):
            rows = min(block, n - start)
            address = (further(one, start), G_dtype, grad.device, backend)
            G = torch.ops.rainbow_fast.gaussian(rows, P.shape[0], *address)
            grad_P = grad_P + G.to(compute).T @ part[start : start + rows].to(compute)
    return None, (scale * grad_P).to(P.dtype), None, None, None, None, None


def _jvp(inputs: Any, outputs: Any, tangents: Any) -> list[Tensor]:
    """W' is linear in P."""
    n, _, *how = inputs
    return [torch.ops.rainbow_fast.sample_project_align(n, tangents[1], *how)]


def _vmap(info: Any, in_dims: Any, n: int, P: Tensor, key: Tensor, *how: Any) -> tuple[Tensor, int]:
    """A batch of P becomes more columns of P, a batch of keys one key of several seeds; a batch of both is a loop."""
    op, (_, in_P, in_key, *_) = torch.ops.rainbow_fast.sample_project_align, in_dims
    if in_P is None:
        keys = key.movedim(in_key, 0)
        return op(n, P, keys.reshape(-1, 4), *how).view(*keys.shape[:-1], n, P.shape[1]), 0
    if in_key is None:
        columns = P.movedim(in_P, 1)
        W = op(n, columns.flatten(1), key, *how)
        return W.view(*W.shape[:-1], info.batch_size, -1), W.dim() - 1
    return loop(op.default)(info, in_dims, n, P, key, *how)


def sample_project_align_flops(n: int, P: Sequence[int], key: Sequence[int] | None = None) -> int:
    """``2 n r m`` flops for each seed, with P = L A (r, m); for a convolution, m includes the taps of the kernel.

    L A itself is a product of torch, which counts it.
    """
    return 2 * n * math.prod(P) * seed_count(key)


_HOW = "str? precision, str? backend"
functional(
    f"sample_project_align(SymInt n, Tensor P, Tensor key, float scale, ScalarType dtype, {_HOW}) -> Tensor",
    _sample_project_align,
    _fake,
    flops=sample_project_align_flops,
    derivative=Derivative(_vjp, _jvp),
    vmap=_vmap,
)
writing(
    f"sample_project_align_out(Tensor P, Tensor key, float scale, {_HOW}, Tensor(a!) out) -> ()",
    _write,
    check=_check_out,
    flops=lambda P, key, out: sample_project_align_flops(out[-2], P, key),
    called="sample_project_align_",
)

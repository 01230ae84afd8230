# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance: the sum of x y^T over samples, in float64. Feature maps are read in place."""

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import flag, number, one_of, tensor
from rainbow_fast.ops.activations import ACTIVATIONS, CODE
from rainbow_fast.ops.center import first_center, spread_samples
from rainbow_fast.ops.memory import address_of, check_device, check_written, flat, samples
from rainbow_fast.ops.patch_covariance import Patch, patch_covariance
from rainbow_fast.ops.precision import CODE as PRECISION_CODE
from rainbow_fast.ops.precision import check_precision, precision_of
from rainbow_fast.ops.registration import Derivative, functional, loop, writing

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("sum", "mean")


@overload
def cross_covariance(
    x: Tensor,
    y: Tensor | None = ...,
    *,
    activation: str = ...,
    negative_slope: float = ...,
    center: bool = ...,
    patch: int | tuple | None = ...,
    reduction: str = ...,
    precision: str | None = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def cross_covariance(
    x: Tensor,
    y: Sequence[Tensor],
    *,
    activation: str = ...,
    negative_slope: float = ...,
    center: bool = ...,
    patch: int | tuple | None = ...,
    reduction: str = ...,
    precision: str | None = ...,
    backend: str | None = ...,
) -> list[Tensor]: ...
def cross_covariance(
    x: Tensor,  # (N, d) or (N, d, *space)
    y: Tensor | Sequence[Tensor] | None = None,  # (N, m) or (N, m, *space)
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
    center: bool = False,
    patch: int | tuple | None = None,
    reduction: str = "sum",
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor | list[Tensor]:  # (d, m)
    r"""The cross-covariance :math:`\sum_s x_s y_s^\top` of two sets of activations, as a sum or a mean over samples s.

    Each position of a feature map counts as a sample. The result is uncentred unless `center` is set.

    Equivalent to::

        x = sigma(x).double().flatten(2); y = sigma(y).double().flatten(2)    # (N, d, S), (N, m, S)
        if center:
            x = x - x.mean((0, 2), keepdim=True); y = y - y.mean((0, 2), keepdim=True)
        torch.einsum("nds,nms->dm", x, y)

    but without copies: tensors in NCHW or channels_last layout, and slices of them, are read in place. float32 and
    float16 are multiplied in float32; below the precision "highest", a matrix unit multiplies them as terms of
    bfloat16. bfloat16 uses the CPU's bfloat16 products if it has them, which take subnormal numbers for zero. Sums over
    256 to 1024 samples are then added in float64. float64 inputs are computed in float64 throughout. The bits of the
    result do not depend on the number of threads. Differentiable in x and y.

    Errors of the CPU kernels, relative to the sum of the absolute values of the terms of an entry. In float32, the
    error is 2e-5 / sqrt(N) for N samples that vary and are in random order (1e-8 for four million). It is up to 5e-6 if
    neighbouring samples are equal or nearly equal (constants, offsets of 10^6, sorted data), because sums of equal
    numbers are rounded in one direction. In bfloat16, the error of squares is 2e-6, and up to 1e-5 if samples are
    equal. With `center`, the same holds for x - mean.

    Args:
        x: samples by channels, then any axes of positions.
        y: the same N and positions as x, and any number of channels. None takes y = x: the result is exactly symmetric,
            for half of the work. A list of tensors (several sampled networks against one reference) reads x once.
            With `patch`, x is read once for each y.
        activation: sigma, applied to x and to y while they are read: one of ``identity relu abs leaky_relu tanh erf
            gelu silu sign step cos``, as in `random_features`. bfloat16 and float16 are widened before sigma, and the
            values of sigma are not rounded back.
        negative_slope: slope of leaky_relu; 0.01 by default.
        center: subtract the means over samples, in the same pass. The kernel subtracts the mean of 32 samples, and the
            remaining difference from the mean is corrected exactly afterwards.
        patch: compute the covariance of k x k patches of maps (N, d, H, W) instead of single positions. Either k or
            (k, stride, padding, dilation), with the defaults stride 1, padding (k - 1) // 2 (with zeros) and dilation
            1. The result is (d k k, m k k), with both axes in the order of `torch.nn.functional.unfold`. The unfolded
            maps (im2col) are not stored.
        reduction: ``"sum"`` (default) over samples, or ``"mean"``: the sum divided by the number of samples, which is
            images times positions, or images times placements of a patch. The mean of no samples is NaN.
        precision: of the products of float32 samples: ``"highest"``, ``"high"`` (each factor as the sum of two bfloat16
            numbers) or ``"medium"`` (as one); None (default) takes torch's setting, as `random_features` does. With
            `patch`, kernels of CPUs multiply at "highest".
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; None (default) takes the best one available.

    Returns:
        (d, m) float64; a list of these if y is a list.

    Raises:
        ValueError: shapes do not match, the activation, reduction or precision is unknown, a patch does not fit the
            maps or is combined with an activation or with `center`, or the backend is not available.
        TypeError: an argument is not a tensor, dtypes differ, or the backend does not support the dtype.

    Source: M = E[phi phi'^T] of Guth, Menard, Rochette and Mallat (JMLR 2024), equations 5 to 7.
    """
    ys = _kinds(x, y, negative_slope, center)
    one_of("reduction", reduction, REDUCTIONS)
    check_precision(precision)
    if patch is not None:
        if activation != "identity" or center:
            raise ValueError(f"patch={patch!r} with activation={activation!r}, center={center}: wanted neither")
        window = Patch.of(patch, x)
        places = math.prod(window.positions(x.shape[2:]))
        sides: list[Tensor | None] = [*ys] or [None]
        results = [patch_covariance(x, other, window, precision, backend) for other in sides]
    else:
        places = math.prod(x.shape[2:])
        out = torch.ops.rainbow_fast.cross_covariance(x, ys, activation, negative_slope, center, precision, backend)
        results = list(out.split([other.shape[1] for other in ys], 1)) if len(ys) > 1 else [out]
    if reduction == "mean":
        results = [sums / (len(x) * places) for sums in results]
    return results if isinstance(y, Sequence) else results[0]


def cross_covariance_(
    out: Tensor,
    x: Tensor,
    y: Tensor | Sequence[Tensor] | None = None,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
    center: bool = False,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add `cross_covariance(x, y)` to `out`, a (d, m) float64 tensor with contiguous rows, and return `out`.

    There is no gradient. If y is a list, the results are concatenated along the columns of `out`, and m is the sum of
    the channels. `center` subtracts the means of the samples of this call.

    Raises:
        ValueError: as `cross_covariance`; or `out` has another shape or layout, or shares memory with an input.
        TypeError: as `cross_covariance`; or `out` is not float64.
        RuntimeError: an input requires grad while grad mode is on.
    """
    ys = _kinds(x, y, negative_slope, center)
    check_precision(precision)
    how = (activation, negative_slope, center, precision, backend)
    torch.ops.rainbow_fast.cross_covariance_out(x, ys, *how, tensor("out", out))
    return out


def cross_covariance_reference(x: Tensor, y: Tensor) -> Tensor:
    x, y = flat(x).double(), flat(y).double()
    return torch.einsum("nds,nms->dm", x, y)


def _kinds(x: Tensor, y: Tensor | Sequence[Tensor] | None, slope: float, center: bool) -> list[Tensor]:
    """Check the types of the arguments; returns y as a list."""
    tensor("x", x)
    number("negative_slope", slope)
    flag("center", center)
    return _as_list(y)


def _as_list(y: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """y as a list; None becomes the empty list, which means y = x."""
    if not isinstance(y, list | tuple):
        return [] if y is None else [tensor("y", y)]
    if not y:
        raise ValueError("y is empty: wanted a tensor, some tensors, or None for x")
    return [tensor("y", each) for each in y]


def _check(x: Tensor, ys: Sequence[Tensor], activation: str, precision: str | None) -> None:
    check_precision(precision)
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x is {x.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: wanted (N, d) or (N, d, *space)")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(ACTIVATIONS)}")
    for y in ys:
        if y.dim() != x.dim() or y.shape[0] != x.shape[0] or y.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"y has shape {tuple(y.shape)}: wanted the N and the positions of x, which has shape {tuple(x.shape)}"
            )
        if y.dtype != x.dtype:
            raise TypeError(f"y is {y.dtype}: wanted the dtype of x, {x.dtype}")
        check_device("x", x, y=y)


def _columns(x: Tensor, ys: Sequence[Tensor]) -> int:
    return sum(y.shape[1] for y in ys) if ys else x.shape[1]


def _check_out(
    x: Tensor, ys: Sequence[Tensor], activation: str, slope: float, center: bool, precision: str | None,
    backend: str | None, out: Tensor,
) -> None:  # fmt: skip
    _check(x, ys, activation, precision)
    wanted = (x.shape[1], _columns(x, ys))
    check_written("out", out, wanted, torch.float64, rows=backend != "reference", beside=("x", x), x=x, y=ys)


def _sigma(x: Tensor, activation: str, slope: float) -> Tensor:
    """The activation in the dtype that kernels compute in."""
    return x if activation == "identity" else ACTIVATIONS[activation][0](x.to(_computed(x)), slope)


def _computed(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _by_reference(x: Tensor, ys: Sequence[Tensor], activation: str, slope: float, center: bool) -> Tensor:
    sides = [flat(_sigma(side, activation, slope)).double() for side in (x, *ys)]
    if center:
        sides = [side - side.mean((0, 2), keepdim=True) for side in sides]
    return torch.cat([cross_covariance_reference(sides[0], side) for side in (sides[1:] or sides)], 1)


def _center(x: Tensor, activation: str, slope: float) -> Tensor:
    """`first_center` of sigma(x), (d,), in the dtype that kernels compute in."""
    some = _sigma(spread_samples(x), activation, slope).to(_computed(x))
    return first_center(some).to(some.dtype)


def _add(
    x: Tensor, ys: Sequence[Tensor], activation: str, slope: float, center: bool, precision: str | None,
    backend: str | None, out: Tensor,
) -> None:  # fmt: skip
    if x.numel() == 0 or out.numel() == 0:
        return
    chosen = _backend.choose(backend, x.device, x.dtype, DTYPES, "cross_covariance", called="x")
    if chosen == "reference":
        out += _by_reference(x, ys, activation, slope, center)
        return
    ys = [y for y in ys if y.shape[1]]  # a kernel sums x while it computes the first product
    memory = [samples(side) for side in (x, *ys)]
    shifts = [_center(side, activation, slope) if center else None for side in (x, *ys)]
    totals = [None if shift is None else torch.zeros_like(shift, dtype=torch.float64) for shift in shifts]
    products = precision_of(precision, x)
    if chosen == "triton":
        views = [view for view, _ in memory]
        _backend.run_triton(
            "cross_covariance", x.device, out, views, shifts, totals, not ys, activation, slope, products
        )
    else:
        sides = [
            (description, address_of(shift), address_of(total))
            for (_, description), shift, total in zip(memory, shifts, totals, strict=True)
        ]
        with _backend.running(chosen, x.device, workspace=True) as run:
            _backend.kernels(chosen).cross_covariance(
                out.data_ptr(), out.stride(0), sides[0], sides[1:] or sides, not ys, CODE[activation], slope,
                PRECISION_CODE[products], run,
            )  # fmt: skip
    if center:  # subtract (sum of x - a) (sum of y - b)^T / (number of samples) from the sum of (x - a) (y - b)^T
        sums = [total for total in totals if total is not None]
        out -= torch.outer(sums[0], torch.cat(sums[1:] or sums)) / (x.numel() // x.shape[1])


def _cross_covariance(
    x: Tensor, ys: Sequence[Tensor], activation: str, slope: float, center: bool, precision: str | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    _check(x, ys, activation, precision)
    out = x.new_zeros(x.shape[1], _columns(x, ys), dtype=torch.float64)
    _add(x, ys, activation, slope, center, precision, backend, out)
    return out


def _fake(
    x: Tensor, ys: Sequence[Tensor], activation: str, slope: float, center: bool, precision: str | None, *rest: Any
) -> Tensor:
    _check(x, ys, activation, precision)
    return x.new_empty(x.shape[1], _columns(x, ys), dtype=torch.float64)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """Each sample of x (N, m, *space) times a matrix (d, m): (N, d, *space)."""
    return torch.einsum("dm,nm...->nd...", matrix.to(x.dtype), x)


def _vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    """dx = sigma'(x) dM sigma(y), dy = sigma'(y) dM^T sigma(x); in the dtype that kernels compute in."""
    x, ys, activation, slope, center, *_ = inputs
    (grad,) = grads

    def values(side: Tensor) -> Tensor:
        phi = _sigma(side.to(_computed(side)), activation, slope)
        axes = [0, *range(2, side.dim())]
        return phi - phi.double().mean(axes, keepdim=True).to(phi.dtype) if center else phi

    def through(side: Tensor, grad_phi: Tensor) -> Tensor:
        slopes = _slopes(side, activation, slope)
        return (grad_phi if slopes is None else grad_phi * slopes).to(side.dtype)

    rest = (None,) * 5
    if not ys:
        return through(x, _mix(grad + grad.T, values(x))), [], *rest
    parts = grad.split([y.shape[1] for y in ys], 1)
    grad_x, phi = None, values(x)
    if needs[0]:
        grad_x = through(x, torch.stack([_mix(g, values(y)) for g, y in zip(parts, ys, strict=True)]).sum(0))
    return grad_x, [through(y, _mix(g.T, phi)) for g, y in zip(parts, ys, strict=True)], *rest


def _jvp(inputs: Any, outputs: Any, tangents: Any) -> list[Tensor]:
    """The tangent of ``sum sigma(x) sigma(y)^T``: each term is a cross-covariance with the tangent of one side."""
    x, ys, activation, slope, center, *how = inputs

    def moved(side: Tensor, tangent: Tensor) -> Tensor:
        slopes = _slopes(side, activation, slope)
        return tangent if slopes is None else tangent.to(slopes.dtype) * slopes

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.rainbow_fast.cross_covariance(a, [b.to(a.dtype)], "identity", 0.0, center, *how)

    phi = _sigma(x, activation, slope)
    moved_x = None if tangents[0] is None else moved(x, tangents[0])
    if not ys:
        assert moved_x is not None
        half = covariance(moved_x, phi)
        return [half + half.T]
    columns = []
    for y, tangent in zip(ys, tangents[1], strict=True):
        parts = [] if moved_x is None else [covariance(moved_x, _sigma(y, activation, slope))]
        parts += [] if tangent is None else [covariance(phi, moved(y, tangent))]
        zero = x.new_zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        columns.append(sum(parts, zero))
    return [torch.cat(columns, 1)]


def _slopes(side: Tensor, activation: str, slope: float) -> Tensor | None:
    """The derivative of the activation, in the dtype that kernels compute in; None for the identity."""
    return None if activation == "identity" else ACTIVATIONS[activation][1](side.to(_computed(side)), slope)


def _vmap(info: Any, in_dims: Any, x: Tensor, ys: Sequence[Tensor], *rest: Any) -> Any:
    """A batch of x or of a single y becomes more channels of it; every other batch is a loop."""
    in_x, in_ys = in_dims[0], list(in_dims[1] or [])

    def channels(t: Tensor, dim: int) -> Tensor:
        return t.movedim(dim, 1).flatten(1, 2)

    if in_x is not None and ys and all(dim is None for dim in in_ys):
        result = torch.ops.rainbow_fast.cross_covariance(channels(x, in_x), ys, *rest)
        return result.view(info.batch_size, -1, result.shape[1]), 0
    if in_x is None and len(ys) == 1 and in_ys[0] is not None:
        result = torch.ops.rainbow_fast.cross_covariance(x, [channels(ys[0], in_ys[0])], *rest)
        return result.view(len(result), info.batch_size, -1), 1
    return loop(torch.ops.rainbow_fast.cross_covariance.default)(info, in_dims, x, ys, *rest)


def cross_covariance_flops(x: Sequence[int], y: Sequence[Sequence[int]]) -> int:
    """``2 N d m`` flops for shapes x (N, d, *space) and y (N, m, *space); N includes positions, m is summed over all y.

    Without y one triangle of the symmetric result is computed: ``N d (d + 1)``.
    """
    N, d = x[0] * math.prod(x[2:]), x[1]
    return 2 * N * d * sum(shape[1] for shape in y) if y else N * d * (d + 1)


_SHARED = "Tensor x, Tensor[] y, str activation, float negative_slope, bool center, str? precision, str? backend"
functional(
    f"cross_covariance({_SHARED}) -> Tensor",
    _cross_covariance,
    _fake,
    flops=cross_covariance_flops,
    derivative=Derivative(_vjp, _jvp),
    vmap=_vmap,
)
writing(
    f"cross_covariance_out({_SHARED}, Tensor(a!) out) -> ()",
    _add,
    check=_check_out,
    flops=cross_covariance_flops,
    called="cross_covariance_",
)

# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance: the sum over samples of x y^T, in float64, with maps read in place."""

import torch
from torch import Tensor

from rainbow_fast import backend as _backend

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cross_covariance(
    x: Tensor,  # (N, d) or (N, d, *space)
    y: Tensor | None = None,  # (N, m) or (N, m, *space)
    *,
    backend: str | None = None,
) -> Tensor:  # (d, m)
    r"""The uncentred cross-covariance sum :math:`\sum_s x_s y_s^\top`; positions of a map are samples.

    Equivalent to::

        x = x.double().flatten(2); y = y.double().flatten(2)        # (N, d, S), (N, m, S)
        torch.einsum("nds,nms->dm", x, y)

    without the copies: NCHW and channels_last are read in place. float32, bfloat16 and float16 are multiplied in
    float32 tiles that are promoted to float64 every few hundred samples; float64 is float64 throughout. The result has
    the same bits for any number of threads. Differentiable in x and y.

    Args:
        x: samples by channels, then any positions.
        y: the same N and positions, other channels; None stands for x and gives an exactly symmetric result.
        backend: ``"cpu"`` or ``"reference"``; None takes the best one that is there.

    Returns:
        (d, m) float64, a sum (divide by the number of samples for the mean).

    Raises:
        ValueError: shapes that do not belong together, a backend that is missing.
        TypeError: dtypes that differ, or one that the backend does not take.

    Source: M = E[phi phi'^T] of Guth, Menard, Rochette and Mallat (JMLR 2024), equations 5 to 7.
    """
    _check(x, y)
    return torch.ops.rainbow_fast.cross_covariance(x, y, backend)


def cross_covariance_(out: Tensor, x: Tensor, y: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Add `cross_covariance(x, y)` to `out`, a (d, m) float64 tensor with contiguous rows, and return it. No gradient.

    Raises:
        ValueError: as `cross_covariance`, or an `out` of another shape.
        TypeError: as `cross_covariance`, or an `out` that is not float64.
        RuntimeError: an input that requires grad while grad mode is on.
    """
    _check(x, y)
    _check_out(out, x, y)
    torch.ops.rainbow_fast.cross_covariance_out(x, y, backend, out)
    return out


def cross_covariance_reference(x: Tensor, y: Tensor) -> Tensor:
    x, y = flat(x).double(), flat(y).double()
    return torch.einsum("nds,nms->dm", x, y)


def _check(x: Tensor, y: Tensor | None) -> None:
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: wanted (N, d) or (N, d, *space)")
    if y is None:
        return
    if y.dim() != x.dim() or y.shape[0] != x.shape[0] or y.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"y has shape {tuple(y.shape)}: wanted the N and the positions of x, which has shape {tuple(x.shape)}"
        )
    if y.dtype != x.dtype:
        raise TypeError(f"y is {y.dtype}: wanted the dtype of x, {x.dtype}")
    if y.device != x.device:
        raise ValueError(f"y is on {y.device}: wanted the device of x, {x.device}")


def _check_out(out: Tensor, x: Tensor, y: Tensor | None) -> None:
    wanted = (x.shape[1], (x if y is None else y).shape[1])
    if tuple(out.shape) != wanted:
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted (d, m) = {wanted}")
    if out.dtype != torch.float64:
        raise TypeError(f"out is {out.dtype}: wanted torch.float64")
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out has strides {out.stride()}: wanted contiguous rows (a last stride of 1)")


def flat(x: Tensor) -> Tensor:
    """(N, d, *space) -> (N, d, S)."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def samples(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What a kernel reads of (N, d, *space): pointer, dtype, sizes (N, d, S), strides; behind the tensor that holds it.

    Positions must lie at one stride, as in NCHW and channels_last; any other layout is copied.
    """
    x = x.detach()
    try:
        view = flat(x) if x.dim() <= 3 else x.view(*x.shape[:2], -1)
    except RuntimeError:
        try:
            view = x.movedim(1, -1).view(x.shape[0], -1, x.shape[1]).transpose(1, 2)
        except RuntimeError:
            view = flat(x.contiguous())
    return view, (view.data_ptr(), _backend.CODE[x.dtype], *view.shape, *view.stride())


def _cross_covariance_out(x: Tensor, y: Tensor | None, backend: str | None, out: Tensor) -> None:
    _check(x, y)
    _check_out(out, x, y)
    _backend.refuse_grad("cross_covariance_", x, y, out)
    if _backend.choose(backend, x.device, x.dtype, DTYPES) == "reference":
        out += cross_covariance_reference(x, x if y is None else y)
        return
    x_kept, x_samples = samples(x)
    y_kept, y_samples = (x_kept, x_samples) if y is None else samples(y)
    _backend.kernels().cross_covariance(
        out.data_ptr(), out.stride(0), x_samples, y_samples, y is None, torch.get_num_threads()
    )


def _cross_covariance(x: Tensor, y: Tensor | None, backend: str | None) -> Tensor:
    _check(x, y)
    out = x.new_zeros(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float64)
    _cross_covariance_out(x.detach(), None if y is None else y.detach(), backend, out)
    return out


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """Each sample of x (N, m, *space) times a matrix (d, m): (N, d, *space)."""
    return torch.einsum("dm,nm...->nd...", matrix.to(x.dtype), x)


def _setup_context(ctx, inputs, output) -> None:
    x, y, _ = inputs
    ctx.save_for_backward(x, y)


def _backward(ctx, grad: Tensor):
    x, y = ctx.saved_tensors
    if y is None:
        return _mix(grad + grad.T, x), None, None
    grad_x = _mix(grad, y) if ctx.needs_input_grad[0] else None
    grad_y = _mix(grad.T, x) if ctx.needs_input_grad[1] else None
    return grad_x, grad_y, None


_NAME = "rainbow_fast::cross_covariance"
torch.library.define(_NAME, "(Tensor x, Tensor? y, str? backend) -> Tensor")
torch.library.define(f"{_NAME}_out", "(Tensor x, Tensor? y, str? backend, Tensor(a!) out) -> ()")
torch.library.impl(_NAME, "CompositeExplicitAutograd")(_cross_covariance)
torch.library.impl(f"{_NAME}_out", "CompositeExplicitAutograd")(_cross_covariance_out)
torch.library.register_fake(_NAME)(
    lambda x, y, backend: x.new_empty(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float64)
)
torch.library.register_fake(f"{_NAME}_out")(lambda x, y, backend, out: None)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)

# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of random_features and its fused passes: G is generated again, a block of neurons at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS


def _differentiate(
    ctx, u: Tensor, shift: Tensor | None, key: Tensor | None, G: Tensor | None, n: int, upstream: Callable
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, shift and G, a block of neurons at a time.

    `upstream(phi, start, stop)` is the gradient of phi' (N S, block) for neurons start..stop, given phi' itself.
    """
    function, derivative = ACTIVATIONS[ctx.activation]
    rows = _as_rows(u)  # positions are samples
    offset = None if shift is None else shift.reshape(-1, 1)
    grad_rows, grad_shift = torch.zeros_like(rows), rows.new_zeros(rows.shape[0])
    grad_G = torch.empty_like(G) if G is not None else None
    block = max(64, min(n, 2**21 // max(1, rows.shape[0])))
    for start in range(0, n, block):
        stop = min(start + block, n)
        if G is not None:
            part = G[start:stop]
        else:
            assert key is not None
            shifted = key + torch.tensor([0, 0, start, 0])
            part = torch.ops.rainbow_fast.gaussian(
                stop - start, rows.shape[1], shifted, torch.float32, u.device, ctx.backend
            ).to(u.dtype)
        s = rows @ part.T
        s = s if offset is None else s + offset
        phi = ctx.scale * function(s, ctx.slope)
        grad_s = ctx.scale * derivative(s, ctx.slope) * upstream(phi, start, stop)
        grad_rows += grad_s @ part
        grad_shift += grad_s.sum(1)
        if grad_G is not None:
            grad_G[start:stop] = grad_s.T @ rows
    grad_u = grad_rows.view(u.shape[0], *u.shape[2:], u.shape[1]).movedim(-1, 1)
    return grad_u, None if shift is None else grad_shift.view(shift.shape), grad_G


def _keep(ctx, activation, negative_slope, scale, backend) -> None:
    ctx.activation, ctx.slope, ctx.scale, ctx.backend = activation, negative_slope, scale, backend


def _as_rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, -2)


def setup_features(ctx, inputs, output) -> None:
    u, shift, ctx.n, key, G, *rest = inputs
    ctx.save_for_backward(u, shift, key, G)
    _keep(ctx, *rest)


def backward_features(ctx, grad: Tensor):
    u, shift, key, G = ctx.saved_tensors
    upstream = _as_rows(grad)
    grad_u, grad_shift, grad_G = _differentiate(
        ctx, u, shift, key, G, ctx.n, lambda phi, start, stop: upstream[:, start:stop]
    )
    return grad_u, grad_shift, None, None, grad_G, None, None, None, None


def setup_covariance(ctx, inputs, output) -> None:
    x, u, shift, ctx.n, key, G, *rest = inputs
    ctx.save_for_backward(x, u, shift, key, G)
    _keep(ctx, *rest)


def backward_covariance(ctx, grad_M: Tensor, grad_total: Tensor, grad_square: Tensor):
    x, u, shift, key, G = ctx.saved_tensors
    grad_M, grad_total, grad_square = (g.to(x.dtype) for g in (grad_M, grad_total, grad_square))
    x_rows = _as_rows(x)
    grad_x = torch.ops.rainbow_fast.random_features_projection(
        u, grad_M, shift, key, G, ctx.activation, ctx.slope, ctx.scale, ctx.backend
    )

    def upstream(phi: Tensor, start: int, stop: int) -> Tensor:
        return x_rows @ grad_M[:, start:stop] + grad_total[start:stop] + 2 * phi * grad_square[start:stop]

    grad_u, grad_shift, grad_G = _differentiate(ctx, u, shift, key, G, ctx.n, upstream)
    return grad_x, grad_u, grad_shift, None, None, grad_G, None, None, None, None


def setup_projection(ctx, inputs, output) -> None:
    u, A, shift, key, G, *rest = inputs
    ctx.save_for_backward(u, A, shift, key, G)
    _keep(ctx, *rest)


def backward_projection(ctx, grad: Tensor):
    u, A, shift, key, G = ctx.saved_tensors
    grad_rows = _as_rows(grad)
    grad_A, _, _ = torch.ops.rainbow_fast.random_features_covariance(
        grad, u, shift, A.shape[1], key, G, ctx.activation, ctx.slope, ctx.scale, ctx.backend
    )
    grad_u, grad_shift, grad_G = _differentiate(
        ctx, u, shift, key, G, A.shape[1], lambda phi, start, stop: grad_rows @ A[:, start:stop]
    )
    return grad_u, grad_A.to(A.dtype), grad_shift, None, grad_G, None, None, None, None

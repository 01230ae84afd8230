# SPDX-License-Identifier: BSD-3-Clause
"""Derivatives of random_features and its fused ops, in reverse and forward mode.

Reverse mode is one op for all three, `random_features_gradient`, and stores no array of size N x n. Forward mode
computes ``dphi' = scale sigma'(s) ds`` with ``s = u G^T + shift``, for one block of neurons at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS, MODULUS, modulus, modulus_gradient
from rainbow_fast.ops.gaussian import further
from rainbow_fast.ops.random_features_gradient import neurons_at_a_time  # this also registers the op of reverse mode

Inputs = Sequence[Any]


def features_vjp(inputs: Inputs, outputs: Any, grads: Any, needs: Any) -> tuple:
    u, shift, n, key, G, *rest = inputs
    grad_u, grad_shift, grad_G = _gradient(u, shift, n, key, G, *rest, grad_phi=grads[0], of_G=needs[4])
    return grad_u, grad_shift, None, None, grad_G, *[None] * len(rest)


def covariance_vjp(inputs: Inputs, outputs: Any, grads: Any, needs: Any) -> tuple:
    """The gradients of the sums.

    The center of x is subtracted from x. The center of phi' changes `common`, a gradient that all samples share.
    """
    x, u, shift, x_center, center, n, key, G, *rest = inputs
    M, total, square = grads
    common = total
    if center is not None and square is not None:
        common = -2 * square * center + (0 if total is None else total)
    x_from = _from_center(x, x_center)
    grad_u = grad_shift = grad_G = grad_x = grad_x_center = grad_center = None
    if needs[1] or needs[2] or needs[7]:
        above = {"total": common, "square": square}
        above = {name: None if t is None else t.to(x.dtype) for name, t in above.items()}
        products = {"x": [x_from], "A": [M.to(x.dtype)]} if M is not None else {}
        grad_u, grad_shift, grad_G = _gradient(u, shift, n, key, G, *rest, of_G=needs[7], **above, **products)
    if needs[0] and M is not None:
        [grad_x] = torch.ops.rainbow_fast.random_features_projection(u, [M.to(x.dtype)], shift, key, G, *rest)
        if center is not None:
            off = torch.einsum("...dn,...n->...d", M, center.double()).to(x.dtype)
            grad_x = grad_x - off.view(*off.shape[:-1], 1, off.shape[-1], *[1] * (x.dim() - 2))
        grad_x = grad_x.sum(0) if grad_x.dim() > x.dim() else grad_x  # over seeds
    if needs[3] and M is not None:
        of_seeds = -torch.einsum("...dn,...n->...d", M, outputs[1])
        grad_x_center = (of_seeds.sum(0) if of_seeds.dim() > 1 else of_seeds).to(x.dtype)
    if needs[4]:
        parts = [] if M is None else [-torch.einsum("...dn,d->...n", M, _sum_of_samples(x_from))]
        parts += [] if total is None else [-_count(x) * total]
        parts += [] if square is None else [-2 * square * outputs[1]]
        grad_center = sum(parts[1:], parts[0]).to(x.dtype)
    return grad_x, grad_u, grad_shift, grad_x_center, grad_center, None, None, grad_G, *[None] * len(rest)


def _from_center(x: Tensor, x_center: Tensor | None) -> Tensor:
    return x if x_center is None else x - x_center.view(-1, *[1] * (x.dim() - 2))


def _sum_of_samples(x: Tensor) -> Tensor:
    return x.double().sum([0, *range(2, x.dim())])


def _count(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)


def projection_vjp(inputs: Inputs, outputs: Any, grads: Any, needs: Any) -> tuple:
    u, A, shift, key, G, *rest = inputs
    grad_u = grad_shift = grad_G = None
    if needs[0] or needs[2] or needs[4]:
        pairs = [(g, a) for g, a in zip(grads, A, strict=True) if g is not None]
        products = {"x": [g for g, _ in pairs], "A": [a for _, a in pairs]}
        n = max(a.shape[-1] for a in A)
        grad_u, grad_shift, grad_G = _gradient(u, shift, n, key, G, *rest, of_G=needs[4], **products)
    grads_A: list[Tensor | None] = []
    for grad, a, wanted in zip(grads, A, needs[1], strict=True):
        grads_A.append(None)
        if grad is not None and wanted:
            n = a.shape[-1]
            part = None if G is None else G[:n]
            each = [(key, grad)] if grad.dim() == _axes(u, rest) else list(zip(key, grad, strict=True))
            sums = [
                torch.ops.rainbow_fast.random_features_covariance(g, u, shift, None, None, n, one, part, *rest)[0]
                for one, g in each
            ]
            zero = torch.zeros_like(a, dtype=torch.float64)  # the sum for a key without seeds
            grads_A[-1] = (torch.stack(sums) if a.dim() == 3 and sums else sum(sums, zero)).to(a.dtype)
    return grad_u, grads_A, grad_shift, None, grad_G, *[None] * len(rest)


def _gradient(
    u, shift, n, key, G, *rest, grad_phi=None, total=None, square=None, x=(), A=(), of_G=False
) -> list[Tensor | None]:
    """The gradients of u, shift and G; None for arguments that are not given or not wanted."""
    of_u, of_shift, of_rows = torch.ops.rainbow_fast.random_features_gradient(
        u, shift, n, key, G, *rest, grad_phi, total, square, list(x), list(A), bool(of_G)
    )
    return [of_u, None if shift is None else of_shift, of_rows if of_G else None]


def features_jvp(inputs: Inputs, outputs: Any, tangents: Any) -> list[Tensor]:
    u, shift, n, key, G, *rest = inputs
    _, moved = _moved(n, u, shift, key, G, rest, (tangents[0], tangents[1], tangents[4]))
    return [moved]


def covariance_jvp(inputs: Inputs, outputs: Any, tangents: Any) -> list[Tensor]:
    x, u, shift, x_center, center, n, key, G, *rest = inputs
    M, total, square = (torch.zeros_like(t) for t in outputs)
    if tangents[0] is not None:
        moved_x = torch.ops.rainbow_fast.random_features_covariance
        M = M + moved_x(tangents[0], u, shift, None, center, n, key, G, *rest)[0]
    if tangents[3] is not None:
        M = M - torch.einsum("d,...n->...dn", tangents[3].double(), outputs[1])
    x_from = _from_center(x, x_center)
    if tangents[4] is not None:
        off = tangents[4].double()
        M = M - torch.einsum("d,...n->...dn", _sum_of_samples(x_from), off)
        total, square = total - _count(x) * off, square - 2 * outputs[1] * off
    feature_tangents = (tangents[1], tangents[2], tangents[7])
    if any(t is not None for t in feature_tangents):
        sums = []
        for start, phi, moved in _blocks(n, u, shift, key, G, rest, feature_tangents):
            off = None if center is None else center[..., start : start + phi.shape[1 - x.dim()]]
            sums.append(_moved_sums(x_from, phi, moved, off, rest))
        of_M, of_total, of_square = (torch.cat(parts, -1) for parts in zip(*sums, strict=True))
        M, total, square = M + of_M, total + of_total, square + of_square
    return [M, total, square]


def _moved_sums(x: Tensor, phi: Tensor, moved: Tensor, center: Tensor | None, rest: Sequence[Any]) -> list[Tensor]:
    """The tangents of the sums over a block of neurons, with a leading axis of seeds if phi has one."""
    if phi.dim() > x.dim():
        own = [None] * len(phi) if center is None else list(center)
        each = [_moved_sums(x, *of_seed, rest) for of_seed in zip(phi, moved, own, strict=True)]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]
    samples = [0, *range(2, x.dim())]
    M = torch.ops.rainbow_fast.cross_covariance(x, [moved], "identity", 0.0, False, rest[-2], None)
    wide, near = moved.double(), _from_center(phi, center).double()
    return [M, wide.sum(samples), 2 * (near * wide).sum(samples)]


def projection_jvp(inputs: Inputs, outputs: Any, tangents: Any) -> list[Tensor]:
    u, A, shift, key, G, *rest = inputs
    results = [torch.zeros_like(out) for out in outputs]
    if any(t is not None for t in tangents[1] or ()):
        moved_A = [torch.zeros_like(a) if t is None else t for a, t in zip(A, tangents[1], strict=True)]
        results = torch.ops.rainbow_fast.random_features_projection(u, moved_A, shift, key, G, *rest)
    feature_tangents = (tangents[0], tangents[2], tangents[4])
    if any(t is not None for t in feature_tangents):
        n, axes = max(a.shape[-1] for a in A), _axes(u, rest)
        for start, phi, moved in _blocks(n, u, shift, key, G, rest, feature_tangents):
            for place, a in enumerate(A):
                part = a[..., start : start + phi.shape[1 - axes]]
                if part.shape[-1]:
                    results[place] = results[place] + _times(moved, part, axes)
    return results


def _times(phi: Tensor, A: Tensor, dims: int) -> Tensor:
    """The first m neurons of phi (N, n, *space) times A (d, m); phi, or both, may have a leading axis of seeds."""
    if phi.dim() > dims:
        each = A if A.dim() == 3 else [A] * len(phi)
        return torch.stack([_times(one, a, dims) for one, a in zip(phi, each, strict=True)])
    return torch.einsum("nm...,dm->nd...", phi[:, : A.shape[-1]], A)


def _blocks(n: int, u, shift, key, G, rest: Sequence[Any], tangents: Sequence[Any]) -> Iterator[tuple]:
    """For each block of neurons: its first neuron, its features and their tangents. There is at least one block."""
    block = neurons_at_a_time(_count(u))
    for start in range(0, max(n, 1), block):
        stop = min(start + block, n)
        here = None if key is None else further(key, start)
        rows, moved_rows = (None if t is None else t[start:stop] for t in (G, tangents[2]))
        block_tangents = (tangents[0], tangents[1], moved_rows)
        yield start, *_moved(stop - start, u, shift, here, rows, rest, block_tangents)


def _moved(n: int, u, shift, key, G, rest: Sequence[Any], tangents: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The features and their tangents."""
    activation, slope, scale, *how = rest
    moved_u, moved_shift, moved_G = tangents

    def linear(of_u: Tensor, of_shift: Tensor | None) -> Tensor:
        return torch.ops.rainbow_fast.random_features(of_u, of_shift, n, key, G, "identity", 0.0, 1.0, *how)

    s = linear(u, shift)
    if moved_u is not None:
        ds = linear(moved_u, moved_shift)
    else:
        ds = torch.zeros_like(s) if moved_shift is None else moved_shift.unsqueeze(1).expand_as(s)
    if moved_G is not None:
        ds = ds + torch.einsum("nr...,mr->nm...", u, moved_G)
    if activation == MODULUS:
        return scale * modulus(s), scale * (modulus_gradient(s) * ds).sum(-1)
    function, slopes = ACTIVATIONS[activation]
    return scale * function(s, slope), scale * slopes(s, slope) * ds


def _axes(u: Tensor, rest: Sequence[Any]) -> int:
    """The number of axes of the features of one seed; u of a modulus has one more, of pairs."""
    return u.dim() - (rest[0] == MODULUS)

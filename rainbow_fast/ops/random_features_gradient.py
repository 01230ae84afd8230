# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of random_features and its fused passes: the features are made again, nothing of size N x n is stored.

One op, without a gradient of its own, serves all three. What comes to the features phi' (N, n) is, from above,

    given + total + 2 square phi' + sum_k x_k A_k

with given (N, n), total (n,), square (n,), x_k (N, d_k), A_k (d_k, n_k) for the first n_k neurons; each may be missing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.memory import NOTHING, address_of, matrix, samples
from rainbow_fast.ops.random_features_arguments import Features, check_upstream

BLOCK = 2**21  # features at a time, in the reference


def random_features_gradient_reference(
    u, shift, n, key, G, activation, slope, scale, backend, given, total, square, x, A, of_G
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u and shift, and of G where `of_G`; summed over seeds."""
    function, derivative = ACTIVATIONS[activation]
    rows = _as_rows(u)  # positions are samples
    offset = 0 if shift is None else shift.reshape(-1, 1)
    grad_rows, grad_shift = torch.zeros_like(rows), rows.new_zeros(rows.shape[0])
    grad_G = torch.zeros_like(G) if of_G else u.new_zeros(0)
    block = max(64, min(n, BLOCK // max(1, rows.shape[0])))
    for seed, one in enumerate([None] if key is None else key.view(-1, 4)):
        whole, a_total, a_square, pairs = _of_seed(seed, u, given, total, square, x, A)
        for start in range(0, n, block):
            stop = min(start + block, n)
            if one is None:
                part = G[start:stop]
            else:
                shifted = one + torch.tensor([0, 0, start, 0])
                size = (stop - start, rows.shape[1])
                part = torch.ops.rainbow_fast.gaussian(*size, shifted, u.dtype, u.device, backend)
            s = rows @ part.T + offset
            upstream = torch.zeros_like(s) if whole is None else _as_rows(whole)[:, start:stop]
            upstream = upstream if a_total is None else upstream + a_total[start:stop]
            if a_square is not None:
                upstream = upstream + 2 * a_square[start:stop] * scale * function(s, slope)
            for x_k, A_k in pairs:
                there = _as_rows(x_k) @ A_k[:, start:stop]
                upstream = upstream + torch.nn.functional.pad(there, (0, stop - start - there.shape[1]))
            grad_s = scale * derivative(s, slope) * upstream
            grad_rows = grad_rows + grad_s @ part
            grad_shift = grad_shift + grad_s.sum(1)
            if of_G:
                grad_G[start:stop] += grad_s.T @ rows
    grad_u = grad_rows.view(u.shape[0], *u.shape[2:], u.shape[1]).movedim(-1, 1)
    return grad_u.contiguous(), grad_shift.view(u.shape[:1] + u.shape[2:]), grad_G


def _of_seed(seed: int, u: Tensor, given, total, square, x: list[Tensor], A: list[Tensor]) -> list:
    """given, total, square and the pairs (x_k, A_k) of one seed: slices of what has an axis of seeds."""

    def pick(t: Tensor | None, axes: int) -> Tensor | None:
        return t if t is None or t.dim() == axes else t[seed]

    pairs = [(pick(x_k, u.dim()), pick(A_k, 2)) for x_k, A_k in zip(x, A, strict=True)]
    return [pick(given, u.dim()), pick(total, 1), pick(square, 1), pairs]


def _random_features_gradient(
    u, shift, n, key, G, activation, slope, scale, backend, given, total, square, x, A, of_G
) -> tuple[Tensor, Tensor, Tensor]:
    f = Features(u, shift, key, G, activation, slope, scale)
    f.check(n)
    check_upstream(f, n, given, total, square, x, A)
    chosen = f.chosen(backend)
    if of_G or chosen in ("reference", "cuda"):  # on CUDA a block of features at a time is large enough for torch
        return random_features_gradient_reference(
            u, shift, n, key, G, activation, slope, scale, backend, given, total, square, x, A, of_G
        )
    run = _by_triton if chosen == "triton" else _by_kernel
    grads_u, grads_shift = u.new_zeros(u.shape), u.new_zeros(u.shape[:1] + u.shape[2:])
    for seed, (where,) in enumerate(f.each(n)):
        grad_u, grad_shift = torch.empty_like(grads_u), torch.zeros_like(grads_shift)
        run(f, n, where, grad_u, grad_shift, *_of_seed(seed, u, given, total, square, x, A))
        grads_u += grad_u
        grads_shift += grad_shift
    return grads_u, grads_shift, u.new_zeros(0)


def _by_kernel(f: Features, n: int, where: list[int], grad_u, grad_shift, given, total, square, pairs) -> None:
    kept, features = f.memory(n)
    held, given_samples = (None, NOTHING) if given is None else samples(given)
    sums = [None if t is None else t.contiguous() for t in (total, square)]
    products = [(samples(x_k), matrix(A_k)) for x_k, A_k in pairs]
    upstream = (
        given_samples,
        *map(address_of, sums),
        [(x_samples, A_matrix) for (_, x_samples), A_matrix in products],
    )
    with _backend.running("cpu", f.u.device) as run:
        _backend.kernels().random_features_gradient(
            samples(grad_u)[1], grad_shift.data_ptr(), upstream, features(where), run
        )


def _by_triton(f: Features, n: int, where: list[int], grad_u, grad_shift, given, total, square, pairs) -> None:
    u, features = f.plain()
    shift, rows, *rest = features(where)
    x, A = [samples(x_k)[0] for x_k, _ in pairs], [A_k.detach() for _, A_k in pairs]
    given = None if given is None else samples(given)[0]
    total, square = (None if t is None else t.contiguous() for t in (total, square))
    out = samples(grad_u, written=True)[0], None if shift is None else grad_shift
    above = given, total, square, x, A
    _backend.run_triton("random_features_gradient", u.device, *out, u, shift, rows, n, *rest, *above)


_NAME = "rainbow_fast::random_features_gradient"
torch.library.define(
    _NAME,
    "(Tensor u, Tensor? shift, SymInt n, Tensor? key, Tensor? G, str activation, float negative_slope, float scale, "
    "str? backend, Tensor? given, Tensor? total, Tensor? square, Tensor[] x, Tensor[] A, bool of_G)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.impl(_NAME, "CompositeExplicitAutograd")(_random_features_gradient)
torch.library.register_fake(_NAME)(
    lambda u, shift, n, key, G, activation, slope, scale, backend, given, total, square, x, A, of_G: (
        u.new_empty(u.shape),
        u.new_empty(u.shape[:1] + u.shape[2:]),
        torch.empty_like(G) if of_G else u.new_empty(0),
    )
)


# The backward passes.


def _keep(ctx, n, *features) -> None:
    ctx.n, ctx.features = n, features
    ctx.set_materialize_grads(False)


def _as_rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, -2)


def _gradient(ctx, needs, u, shift, key, G, given=None, total=None, square=None, x=(), A=()) -> list[Tensor | None]:
    """Of u, shift and G, those that are needed."""
    if not any(needs):
        return [None, None, None]
    # The kernel has no gradient of its own: where one is wanted (create_graph=True) plain PyTorch does it.
    run: Callable = torch.ops.rainbow_fast.random_features_gradient
    if torch.is_grad_enabled():
        run = random_features_gradient_reference
    grads = run(u, shift, ctx.n, key, G, *ctx.features, given, total, square, list(x), list(A), needs[2])
    return [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]


def setup_features(ctx, inputs, output) -> None:
    u, shift, n, key, G, *rest = inputs
    ctx.save_for_backward(u, shift, key, G)
    _keep(ctx, n, *rest)


def backward_features(ctx, grad: Tensor | None):
    needs = ctx.needs_input_grad
    needed = [wanted and grad is not None for wanted in (needs[0], needs[1], needs[4])]
    u, shift, key, G = ctx.saved_tensors
    grad_u, grad_shift, grad_G = _gradient(ctx, needed, u, shift, key, G, given=grad)
    return grad_u, grad_shift, None, None, grad_G, None, None, None, None


def setup_covariance(ctx, inputs, output) -> None:
    x, u, shift, x_center, center, n, key, G, *rest = inputs
    ctx.save_for_backward(x, u, shift, x_center, center, key, G)
    _keep(ctx, n, *rest)


def backward_covariance(ctx, grad_M: Tensor | None, grad_total: Tensor | None, grad_square: Tensor | None):
    """Centers are constants: that of x goes with x, that of phi' into what all samples have in common."""
    x, u, shift, x_center, center, key, G = ctx.saved_tensors
    needs = ctx.needs_input_grad
    space = [1] * (x.dim() - 2)
    if center is not None and grad_square is not None:
        common = -2 * grad_square * center
        grad_total = common if grad_total is None else grad_total + common
    M, total, square = (None if t is None else t.to(x.dtype) for t in (grad_M, grad_total, grad_square))
    products = {}
    if M is not None:
        products = {"x": [x if x_center is None else x - x_center.view(-1, *space)], "A": [M]}
    grads = _gradient(ctx, (needs[1], needs[2], needs[7]), u, shift, key, G, total=total, square=square, **products)
    grad_x = None
    if needs[0] and M is not None:
        [grad_x] = torch.ops.rainbow_fast.random_features_projection(u, [M], shift, key, G, *ctx.features)
        if center is not None:
            off = torch.einsum("...dn,...n->...d", grad_M, center.double()).to(x.dtype)
            grad_x = grad_x - off.view(*off.shape[:-1], 1, off.shape[-1], *space)
        grad_x = grad_x.sum(0) if grad_x.dim() > x.dim() else grad_x  # over seeds
    return grad_x, *grads[:2], None, None, None, None, grads[2], None, None, None, None


def setup_projection(ctx, inputs, output) -> None:
    u, A, shift, key, G, *rest = inputs
    ctx.save_for_backward(u, shift, key, G, *A)
    _keep(ctx, max(a.shape[-1] for a in A), *rest)


def backward_projection(ctx, grads: list[Tensor | None]):
    u, shift, key, G, *A = ctx.saved_tensors
    needs = ctx.needs_input_grad
    pairs = [(grad, a) for grad, a in zip(grads, A, strict=True) if grad is not None]
    grad_u, grad_shift, grad_G = _gradient(
        ctx, (needs[0], needs[2], needs[4]), u, shift, key, G, x=[g for g, _ in pairs], A=[a for _, a in pairs]
    )
    grads_A: list[Tensor | None] = []
    for grad, a, wanted in zip(grads, A, needs[1], strict=True):
        grads_A.append(None)
        if grad is not None and wanted:
            n, total = a.shape[-1], torch.zeros_like(a, dtype=torch.float64)
            part = None if G is None else G[:n]
            for seed, (one, g) in enumerate([(key, grad)] if grad.dim() == u.dim() else zip(key, grad, strict=True)):
                M = torch.ops.rainbow_fast.random_features_covariance(
                    g, u, shift, None, None, n, one, part, *ctx.features
                )[0]
                (total if a.dim() == 2 else total[seed]).add_(M)
            grads_A[-1] = total.to(a.dtype)
    return grad_u, grads_A, grad_shift, None, grad_G, None, None, None, None

# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of random_features and its fused ops. Features are computed again; no array of size N x n is stored.

One op serves all three. Its own derivatives are those of its reference. The gradient of the features phi' (N, n) is

    grad_phi + total + 2 square phi' + sum_k x_k A_k

with grad_phi (N, n), total (n,), square (n,), x_k (N, d_k) and A_k (d_k, n_k), where x_k A_k is added to the first n_k
neurons. Each term may be missing.
"""

from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.activations import ACTIVATIONS, MODULUS, modulus, modulus_gradient
from rainbow_fast.ops.gaussian import further
from rainbow_fast.ops.memory import NOTHING, address_of, matrix, samples
from rainbow_fast.ops.memory import pairs as pairs_of
from rainbow_fast.ops.random_features_arguments import Features, check_upstream
from rainbow_fast.ops.random_features_flops import random_features_gradient_flops
from rainbow_fast.ops.registration import Args, Derivative, filled, functional, tensors_of

BLOCK = 2**21  # features in one block, if torch computes them


def neurons_at_a_time(samples: int) -> int:
    """The number of neurons for which a block has about `BLOCK` features; at least 64."""
    return max(64, BLOCK // max(1, samples))


def random_features_gradient_reference(
    u, shift, n, key, G, activation, slope, scale, precision, backend, grad_phi, total, square, x, A, of_G
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u and shift, and of G if `of_G`, summed over seeds."""
    rows = _as_rows(u)  # positions are samples, and so are the parts of a pair
    offset = 0 if shift is None else shift.reshape(-1, 1)
    grad_rows, grad_shift = torch.zeros_like(rows), rows.new_zeros(rows.shape[0])
    grads_G = []
    block = neurons_at_a_time(rows.shape[0])
    for seed, one in enumerate([None] if key is None else key.view(-1, 4)):
        whole, a_total, a_square, pairs = _of_seed(
            seed, u.dim() - (activation == MODULUS), grad_phi, total, square, x, A
        )
        for start in range(0, n, block):
            stop = min(start + block, n)
            if one is None:
                part = G[start:stop]
            else:
                size = (stop - start, rows.shape[1])
                part = torch.ops.rainbow_fast.gaussian(*size, further(one, start), u.dtype, u.device, backend)
            s = rows @ part.T + offset
            phi, slopes = _features(s, activation, slope)
            upstream = torch.zeros_like(phi) if whole is None else _as_rows(whole)[:, start:stop]
            upstream = upstream if a_total is None else upstream + a_total[start:stop]
            if a_square is not None:
                upstream = upstream + 2 * a_square[start:stop] * scale * phi
            for x_k, A_k in pairs:
                there = _as_rows(x_k) @ A_k[:, start:stop]
                upstream = upstream + torch.nn.functional.pad(there, (0, stop - start - there.shape[1]))
            grad_s = scale * (slopes * upstream.unsqueeze(1)).reshape(s.shape)
            grad_rows = grad_rows + grad_s @ part
            grad_shift = grad_shift + grad_s.sum(1)
            if of_G:
                grads_G.append(grad_s.T @ rows)
    grad_G = torch.cat(grads_G) if grads_G else torch.zeros_like(G) if of_G else u.new_zeros(0)
    grad_u = grad_rows.view(u.shape[0], *u.shape[2:], u.shape[1]).movedim(-1, 1)
    return grad_u.contiguous(), grad_shift.view(u.shape[:1] + u.shape[2:]), grad_G


def _features(s: Tensor, activation: str, slope: float) -> tuple[Tensor, Tensor]:
    """sigma(s), and its derivatives (samples, parts, n): one number, or two for the parts of a pair."""
    if activation == MODULUS:
        pairs = s.unflatten(0, (-1, 2)).movedim(1, -1)
        return modulus(pairs), modulus_gradient(pairs).movedim(-1, 1)
    function, derivative = ACTIVATIONS[activation]
    return function(s, slope), derivative(s, slope).unsqueeze(1)


def _of_seed(seed: int, axes: int, grad_phi, total, square, x: list[Tensor], A: list[Tensor]) -> list:
    """grad_phi, total, square and the pairs (x_k, A_k) of one seed: slices of tensors that have an axis of seeds.

    `axes` is the number of axes of the features of one seed.
    """

    def pick(t: Tensor | None, own: int) -> Tensor | None:
        return t if t is None or t.dim() == own else t[seed]

    pairs = [(pick(x_k, axes), pick(A_k, 2)) for x_k, A_k in zip(x, A, strict=True)]
    return [pick(grad_phi, axes), pick(total, 1), pick(square, 1), pairs]


def _random_features_gradient(
    u, shift, n, key, G, activation, slope, scale, precision, backend, grad_phi, total, square, x, A, of_G
) -> tuple[Tensor, Tensor, Tensor]:
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(n)
    check_upstream(f, n, grad_phi, total, square, x, A)
    chosen = f.chosen(backend)
    if of_G or chosen == "reference":
        return random_features_gradient_reference(
            u, shift, n, key, G, activation, slope, scale, precision, backend, grad_phi, total, square, x, A, of_G
        )
    run = _by_triton if chosen == "triton" else _by_kernel
    grads_u, grads_shift = u.new_zeros(u.shape), u.new_zeros(u.shape[:1] + u.shape[2:])
    for seed, (where,) in enumerate(f.each(n)):
        grad_u, grad_shift = torch.empty_like(grads_u), torch.zeros_like(grads_shift)
        above = _of_seed(seed, 2 + len(f.space), grad_phi, total, square, x, A)
        run(f, n, where, grad_u, grad_shift, *above)
        grads_u += grad_u
        grads_shift += grad_shift
    return grads_u, grads_shift, u.new_zeros(0)


def _by_kernel(f: Features, n: int, where: list[int], grad_u, grad_shift, grad_phi, total, square, pairs) -> None:
    kept, features = f.memory(n)
    held, grad_phi_samples = (None, NOTHING) if grad_phi is None else samples(grad_phi)
    sums = [None if t is None else t.contiguous() for t in (total, square)]
    products = [(samples(x_k), matrix(A_k)) for x_k, A_k in pairs]
    upstream = (
        grad_phi_samples,
        *map(address_of, sums),
        [(x_samples, A_matrix) for (_, x_samples), A_matrix in products],
    )
    with _backend.running("cpu", f.u.device) as run:
        _backend.kernels().random_features_gradient(
            (pairs_of if f.paired else samples)(grad_u)[1], grad_shift.data_ptr(), upstream, features(where), run
        )


def _by_triton(f: Features, n: int, where: list[int], grad_u, grad_shift, grad_phi, total, square, pairs) -> None:
    u, features = f.plain()
    shift, rows, *rest = features(where)
    x, A = [samples(x_k)[0] for x_k, _ in pairs], [A_k for _, A_k in pairs]
    grad_phi = None if grad_phi is None else samples(grad_phi)[0]
    total, square = (None if t is None else t.contiguous() for t in (total, square))
    to = torch.view_as_real(pairs_of(grad_u)[0]) if f.paired else samples(grad_u, written=True)[0]
    out = to, None if shift is None else grad_shift
    above = grad_phi, total, square, x, A
    _backend.run_triton("random_features_gradient", u.device, *out, u, shift, rows, n, *rest, *above)


def _as_rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, -2)


def _fake(u, shift, n, key, G, activation, slope, scale, precision, backend, grad_phi, total, square, x, A, of_G):
    rows = torch.empty_like(G) if of_G else u.new_empty(0)
    return u.new_empty(u.shape), u.new_empty(u.shape[:1] + u.shape[2:]), rows


# The derivatives of the gradient are the derivatives of its reference, which is plain PyTorch.


def _vjp(inputs: Args, outputs: Any, grads: Any, needs: Args) -> tuple:
    wanted = [t for t in tensors_of(inputs) if t.is_floating_point()]
    results, pull_back = torch.func.vjp(  # type: ignore[misc]  # two without `has_aux`
        lambda *values: _reference_of(inputs, values), *wanted
    )
    upstream = tuple(torch.zeros_like(t) if g is None else g for t, g in zip(results, grads, strict=True))
    gradients = iter(pull_back(upstream))
    return filled(inputs, iter([next(gradients) if t.is_floating_point() else None for t in tensors_of(inputs)]))


def _reference_of(inputs: Args, values: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The reference, called with the floating-point tensors among the inputs replaced by `values`."""
    floats = iter(values)
    every = [next(floats) if t.is_floating_point() else t for t in tensors_of(inputs)]
    return random_features_gradient_reference(*filled(inputs, iter(every)))


functional(
    "random_features_gradient(Tensor u, Tensor? shift, SymInt n, Tensor? key, Tensor? G, str activation, "
    "float negative_slope, float scale, str? precision, str? backend, Tensor? grad_phi, Tensor? total, "
    "Tensor? square, Tensor[] x, Tensor[] A, bool of_G) -> (Tensor, Tensor, Tensor)",
    _random_features_gradient,
    _fake,
    flops=random_features_gradient_flops,
    derivative=Derivative(_vjp, None, composite=random_features_gradient_reference),
    takes_half=False,
)

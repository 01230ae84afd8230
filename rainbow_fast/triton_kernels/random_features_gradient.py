# SPDX-License-Identifier: BSD-3-Clause
"""The gradients of random_features for u and shift on a GPU. No array of size N x n is stored.

For a panel of G and a block of samples, one kernel computes the features again, and from the gradient of the features
the gradient of s = u G^T + shift. The latter is written to a panel of 16 MB that stays in L2, from which the kernel of
random_features_projection computes the product with G. Each feature is computed once, for any r.

The kernels take N n (4 r + 2 sum of d_k) flops, three times that in TF32 for float32. The least times in ms in float32,
for N = 5 10^4, n = 10^6 and one product: 155 on an H100 and 492 on an A100 for r = 64, d = 128; 620 and 1970 for
r = 256, d = 512.
"""

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.activations import activate, modulus
from rainbow_fast.triton_kernels.derivatives import differentiate, through_modulus
from rainbow_fast.triton_kernels.random_features import new_sums, projection_of
from rainbow_fast.triton_kernels.samples import (
    BLOCKS,
    Blocks,
    Layout,
    Plans,
    Rows,
    close,
    compilations,
    matrix,
    offsets,
    parts_of,
    places,
    plan_of,
    products,
    scores,
    strided,
    tile,
)
from rainbow_fast.triton_kernels.variant import Variant

# Neurons and samples of a tile of features, terms at a time of the sums over the rank and over channels.
PLANS: Plans = {
    "fp32": {"NEURONS": 64, "SAMPLES": 64, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp32 sm_80": {"NEURONS": 32, "SAMPLES": 64, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp64": {"NEURONS": 32, "SAMPLES": 64, "RANK": 16, "num_warps": 8, "num_stages": 2},
}
# Of pairs there are two tiles of sums. On sm_100 they have half of the samples, so that nothing spills.
PLANS_OF_PAIRS: Plans = PLANS | {"fp32 sm_100": PLANS["fp32"] | {"SAMPLES": 32}}


@triton.jit
def upstream_kernel(
    out, of_v, first, width, u, u_channel, u_image, u_line, u_position, v, v_shift,
    w, w_channel, w_image, w_line, w_position, x, x_channel, x_image, x_line, x_position, positions, lines,
    a, a_row, a_col, total, square, shift, g, g_row, g_col, n, r, d, scale: tl.float64, one: tl.float64,
    AXES: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    NEURONS: tl.constexpr, SAMPLES: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The gradient of s for samples first, first + 1, ..., as a tile of out (n, width).

    Of pairs, that of the imaginary parts is a tile of of_v; v and v_shift as in `features_kernel`.
    """
    down = tl.cdiv(n, NEURONS)
    neurons = (tl.program_id(0) % down).to(tl.int64) * NEURONS + tl.arange(0, NEURONS)
    start = (tl.program_id(0) // down).to(tl.int64) * SAMPLES
    sample = start + tl.arange(0, SAMPLES)
    valid, there = neurons < n, sample < width
    image, line, position = places(first + start, positions, lines, AXES, SAMPLES)
    value = tl.zeros((NEURONS, SAMPLES), g.dtype.element_ty)
    if x is not None:
        at = offsets(image, line, position, x_image, x_line, x_position, AXES)
        value += scores(a, a_col, a_row, neurons, n, x, x_channel, at, there, d, one, PRECISION, RANK)
    if w is not None:  # the gradient of the features
        at = offsets(image, line, position, w_image, w_line, w_position, AXES)
        value += tile(w, neurons, w_channel, n, at, there)
    if total is not None:
        value += tl.load(total + neurons, mask=valid, other=0.0)[:, None]
    at = offsets(image, line, position, u_image, u_line, u_position, AXES)
    s = scores(g, g_row, g_col, neurons, n, u, u_channel, at, there, r, one, PRECISION, RANK)
    if shift is not None:
        s += tl.load(shift + first + sample, mask=there, other=0.0)[None, :]
    factor = tl.cast(scale, s.dtype)
    if v is not None:
        imaginary = scores(g, g_row, g_col, neurons, n, v, u_channel, at, there, r, one, PRECISION, RANK)
        if v_shift is not None:
            imaginary += tl.load(v_shift + first + sample, mask=there, other=0.0)[None, :]
    if square is not None:
        twice = 2.0 * factor * tl.load(square + neurons, mask=valid, other=0.0)
        if v is not None:
            value += twice[:, None] * modulus(s, imaginary)
        else:
            value += twice[:, None] * activate(s, ACTIVATION, SLOPE)
    to, inside = (neurons * width)[:, None] + sample[None, :], valid[:, None] & there[None, :]
    if v is not None:
        value, other = through_modulus(value * factor, s, imaginary)
        tl.store(of_v + to, other, mask=inside)
    else:
        value *= factor * differentiate(s, ACTIVATION, SLOPE)
    tl.store(out + to, value, mask=inside)


def random_features_gradient(
    grad_u: Tensor, grad_shift: Tensor | None, u: Tensor, shift: Tensor | None, rows: Rows, n: int,
    activation: str, slope: float, scale: float, precision: str,
    grad_phi: Tensor | None, total: Tensor | None, square: Tensor | None, x: Sequence[Tensor], A: Sequence[Tensor],
    blocks: Blocks = BLOCKS,
) -> None:  # fmt: skip
    """Write the gradients of u (N, r, *space) and shift (N, *space); both are contiguous. For the modulus, these and u
    (N, r, H, W, 2) are pairs, and the shift is that of `random_features`.

    The gradient of the n features is grad_phi (N, n, *space) + total (n,) + 2 square (n,) phi' + sum_k x_k A_k, with
    x_k (N, d_k, *space) and A_k (d_k, n_k), where x_k A_k is added to the first n_k neurons. Each term may be missing.
    All tensors have the dtype of u.
    """
    r = u.shape[1]
    u, v, shift, v_shift = parts_of(u, shift)
    activation = activation if v is None else "identity"
    grads = [grad_u] if v is None else list(grad_u.unbind(-1))
    grad_shifts = () if grad_shift is None else grad_shift.view(-1, len(grads)).unbind(1)
    tensors = [*grads, *x, *([] if grad_phi is None else [grad_phi]), u]
    layout = Layout(*tensors)
    strides = {id(tensor): own for tensor, own in zip(tensors, layout.strides, strict=True)}
    pairs = sorted(zip(x, A, strict=True), key=lambda pair: pair[1].shape[1] != n)  # pairs with all n neurons first
    joined = pairs.pop(0) if pairs and pairs[0][1].shape[1] == n else (None, None)
    terms: list[tuple] = [(n, grad_phi, total, square, *joined)]
    terms += [(a.shape[1], None, None, None, x_k, a) for x_k, a in pairs]
    plan = plan_of(PLANS if v is None else PLANS_OF_PAIRS, u)
    block = blocks.sums_at_once(r)
    for first in range(0, layout.samples, block):
        width = min(block, layout.samples - first)
        sums, shifts = ([new_sums(*size, width, u, blocks) for _ in grads] for size in ((r, n), (1, 1)))
        for row, g in blocks.panels(rows, n, u):
            for count, *above, x_k, A_k in terms:
                height = min(count - row, len(g))
                if height <= 0:
                    continue
                here = slice(row, row + height)
                grad_phi_k, total_k, square_k = above
                for start, samples in blocks.of_samples(height, width):
                    ds = [u.new_empty(height, samples) for _ in grads]
                    tiles = triton.cdiv(height, plan["NEURONS"]) * triton.cdiv(samples, plan["SAMPLES"])
                    w = None if grad_phi_k is None else grad_phi_k[:, here]
                    upstream_kernel[(tiles,)](
                        out=ds[0], of_v=None if v is None else ds[1], first=first + start, width=samples,
                        **strided("u", u, strides[id(u)]), v=v, v_shift=v_shift,
                        **strided("w", w, strides.get(id(grad_phi_k), NOWHERE)),
                        **strided("x", x_k, strides.get(id(x_k), NOWHERE)), **layout.grid,
                        **matrix("a", None if A_k is None else A_k[:, here]),
                        total=None if total_k is None else total_k[here],
                        square=None if square_k is None else square_k[here], shift=shift, **matrix("g", g), n=height,
                        r=r, d=0 if A_k is None else len(A_k), scale=scale, one=1.0,
                        AXES=layout.axes, ACTIVATION=activation, SLOPE=slope, PRECISION=products(precision, u.device),
                        **plan,
                    )  # fmt: skip
                    own, neurons = slice(start, start + samples), g[:height]
                    how = "identity", 0.0, 1.0, precision
                    for of_part, of_sums, of_shift in zip(ds, sums, shifts, strict=True):
                        whole = of_sums[..., own]
                        projection_of(whole, neurons.T, of_part, u, layout, 0, None, neurons, *how, blocks)
                        if grad_shift is not None:
                            of_shift[..., own] += of_part.sum(0, dtype=whole.dtype)
        for grad, of_sums in zip(grads, sums, strict=True):
            close(grad, layout, strides[id(grad)], of_sums[:, :r], first)
        for grad, of_shift in zip(grad_shifts, shifts, strict=False):
            plain = Layout(grad.view(1, 1, -1))
            close(grad, plain, plain.strides[0], of_shift, first)


NOWHERE = (0, 0, 0, 0)


def variants() -> Iterator[Variant]:
    pointers = ("out", "u", "x", "a", "g", "total", "square")
    no_pairs = {"w": None, "of_v": None, "v": None, "v_shift": None}
    yield from compilations("random_features_gradient", upstream_kernel, PLANS, pointers, no_pairs)
    of_pairs = {"w": None, "v_shift": None, "ACTIVATION": "identity", "u_position": 2}
    yield from compilations(
        "random_features_gradient of pairs", upstream_kernel, PLANS_OF_PAIRS, (*pointers, "of_v", "v"), of_pairs
    )

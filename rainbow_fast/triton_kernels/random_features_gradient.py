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

from rainbow_fast.triton_kernels.activations import activate
from rainbow_fast.triton_kernels.derivatives import differentiate
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


@triton.jit
def upstream_kernel(
    out, first, width, u, u_channel, u_image, u_line, u_position,
    w, w_channel, w_image, w_line, w_position, x, x_channel, x_image, x_line, x_position, positions, lines,
    a, a_row, a_col, total, square, shift, g, g_row, g_col, n, r, d, scale: tl.float64, one: tl.float64,
    AXES: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    NEURONS: tl.constexpr, SAMPLES: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The gradient of s for samples first, first + 1, ..., as a tile of out (n, width)."""
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
    if square is not None:
        twice = 2.0 * factor * tl.load(square + neurons, mask=valid, other=0.0)
        value += twice[:, None] * activate(s, ACTIVATION, SLOPE)
    value *= factor * differentiate(s, ACTIVATION, SLOPE)
    tl.store(out + (neurons * width)[:, None] + sample[None, :], value, mask=valid[:, None] & there[None, :])


def random_features_gradient(
    grad_u: Tensor, grad_shift: Tensor | None, u: Tensor, shift: Tensor | None, rows: Rows, n: int,
    activation: str, slope: float, scale: float, precision: str,
    grad_phi: Tensor | None, total: Tensor | None, square: Tensor | None, x: Sequence[Tensor], A: Sequence[Tensor],
    blocks: Blocks = BLOCKS,
) -> None:  # fmt: skip
    """Write the gradients of u (N, r, *space) and shift (N, *space); both are contiguous.

    The gradient of the n features is grad_phi (N, n, *space) + total (n,) + 2 square (n,) phi' + sum_k x_k A_k, with
    x_k (N, d_k, *space) and A_k (d_k, n_k), where x_k A_k is added to the first n_k neurons. Each term may be missing.
    All tensors have the dtype of u.
    """
    r = u.shape[1]
    tensors = [grad_u, *x, *([] if grad_phi is None else [grad_phi]), u]
    layout = Layout(*tensors)
    strides = {id(tensor): own for tensor, own in zip(tensors, layout.strides, strict=True)}
    pairs = sorted(zip(x, A, strict=True), key=lambda pair: pair[1].shape[1] != n)  # pairs with all n neurons first
    joined = pairs.pop(0) if pairs and pairs[0][1].shape[1] == n else (None, None)
    terms: list[tuple] = [(n, grad_phi, total, square, *joined)]
    terms += [(a.shape[1], None, None, None, x_k, a) for x_k, a in pairs]
    plan = plan_of(PLANS, u)
    block = blocks.sums_at_once(r)
    for first in range(0, layout.samples, block):
        width = min(block, layout.samples - first)
        sums, of_shift = new_sums(r, n, width, u, blocks), new_sums(1, 1, width, u, blocks)
        for row, g in blocks.panels(rows, n, u):
            for count, *above, x_k, A_k in terms:
                height = min(count - row, len(g))
                if height <= 0:
                    continue
                here = slice(row, row + height)
                grad_phi_k, total_k, square_k = above
                for start, samples in blocks.of_samples(height, width):
                    ds = u.new_empty(height, samples)
                    tiles = triton.cdiv(height, plan["NEURONS"]) * triton.cdiv(samples, plan["SAMPLES"])
                    w = None if grad_phi_k is None else grad_phi_k[:, here]
                    upstream_kernel[(tiles,)](
                        out=ds, first=first + start, width=samples, **strided("u", u, strides[id(u)]),
                        **strided("w", w, strides.get(id(grad_phi_k), NOWHERE)),
                        **strided("x", x_k, strides.get(id(x_k), NOWHERE)), **layout.grid,
                        **matrix("a", None if A_k is None else A_k[:, here]),
                        total=None if total_k is None else total_k[here],
                        square=None if square_k is None else square_k[here], shift=shift, **matrix("g", g), n=height,
                        r=r, d=0 if A_k is None else len(A_k), scale=scale, one=1.0,
                        AXES=layout.axes, ACTIVATION=activation, SLOPE=slope, PRECISION=products(precision, u.device),
                        **plan,
                    )  # fmt: skip
                    own = slice(start, start + samples)
                    part, neurons = sums[..., own], g[:height]
                    how = "identity", 0.0, 1.0, precision
                    projection_of(part, neurons.T, ds, u, layout, 0, None, neurons, *how, blocks)
                    if grad_shift is not None:
                        of_shift[..., own] += ds.sum(0, dtype=sums.dtype)
        close(grad_u, layout, strides[id(grad_u)], sums[:, :r], first)
        if grad_shift is not None:
            plain = Layout(grad_shift.view(1, 1, -1))
            close(grad_shift, plain, plain.strides[0], of_shift, first)


NOWHERE = (0, 0, 0, 0)


def variants() -> Iterator[Variant]:
    pointers = ("out", "u", "x", "a", "g", "total", "square")
    yield from compilations("random_features_gradient", upstream_kernel, PLANS, pointers, {"w": None})

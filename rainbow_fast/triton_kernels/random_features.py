# SPDX-License-Identifier: BSD-3-Clause
"""random_features and its two fused ops on a GPU. Neither G nor any array of size N x n is stored.

The kernel of gaussian generates G once for all samples, in panels of 16 MB that stay in L2 for the kernels that read
them. A tile of features, neurons by samples, stays in registers between the product that computes it and the product
that uses it. With more than 128 channels (64 in float64), several products use it. The features are then written to a
panel of 16 MB, too, and not computed several times. Moduli of pairs are always written to it: two products make them.
At most 32 terms are summed inside the tensor cores, which round towards zero, then at most 2048 in float32, and these
sums in float64. The division of sums depends only on shapes, and there are no atomics, so the bits are the same on all
machines of a family.

The kernels take 2 N n r flops, and 2 N n d for a fused op, three times that in TF32 for float32. They read b N (r + d)
bytes for each panel; random_features writes b N n bytes; n r values of G are generated. The least times in ms, for
arithmetic in TF32 (495 and 156 TF) and in float64 (67 and 19.5 TF), for memory (3.35 and 2.0 TB/s) and for generation
(0.70 and 0.44 T/s):

    N = 5 10^4, n = 10^6       H100                                   A100
    r = 64, d = 128            116 float32, 287 float64, 0.1 of G     369, 985, 0.1
    r = 256, d = 512           465, 1150, 0.4                         1480, 3940, 0.6
    random_features alone, float32, N = 10^4, n = 10^5, r = 256:
                               3.1, 1.2 written                       9.8, 2.0 written
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.activations import activate, modulus
from rainbow_fast.triton_kernels.rounding import multiply
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

# Neurons and samples of a tile of features, channels of the second product, terms at a time of the sum over the rank.
FEATURES: Plans = {
    "fp32": {"NEURONS": 64, "SAMPLES": 128, "RANK": 32, "num_warps": 8, "num_stages": 3},
    "fp64": {"NEURONS": 64, "SAMPLES": 64, "RANK": 16, "num_warps": 4, "num_stages": 3},
}
FEATURES_OF_PAIRS: Plans = FEATURES | {  # two tiles of sums: half of the neurons, so that nothing spills
    "fp64": {"NEURONS": 32, "SAMPLES": 64, "RANK": 16, "num_warps": 4, "num_stages": 3}
}
COVARIANCE: Plans = {
    "fp32": {"NEURONS": 64, "SAMPLES": 32, "CHANNELS": 128, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp32 sm_80": {"NEURONS": 32, "SAMPLES": 32, "CHANNELS": 128, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp64": {"NEURONS": 64, "SAMPLES": 32, "CHANNELS": 64, "RANK": 16, "num_warps": 8, "num_stages": 2},
    "fp64 sm_90": {
        "NEURONS": 64,
        "SAMPLES": 32,
        "CHANNELS": 64,
        "RANK": 16,
        "num_warps": 8,
        "num_stages": 3,
    },  # 2 spill
}
PROJECTION: Plans = {
    "fp32": {"NEURONS": 32, "SAMPLES": 64, "CHANNELS": 128, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp32 gfx942": {"NEURONS": 32, "SAMPLES": 32, "CHANNELS": 128, "RANK": 32, "num_warps": 8, "num_stages": 2},
    "fp64": {"NEURONS": 32, "SAMPLES": 64, "CHANNELS": 64, "RANK": 16, "num_warps": 8, "num_stages": 2},
}


@triton.jit
def features_kernel(
    out, out_channel, out_image, out_line, out_position, u, u_channel, u_image, u_line, u_position, positions, lines,
    v, v_shift, first, width, shift, g, g_row, g_col, n, r, scale: tl.float64, one: tl.float64,
    PLAIN: tl.constexpr, AXES: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    NEURONS: tl.constexpr, SAMPLES: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """A tile of the features of samples first, first + 1, ..., written to `out`; with `PLAIN`, `out` is (n, width).

    Of pairs, v are the imaginary parts, with the strides of u, and v_shift those of the shift.
    """
    down = tl.cdiv(n, NEURONS)
    neurons = (tl.program_id(0) % down).to(tl.int64) * NEURONS + tl.arange(0, NEURONS)
    start = (tl.program_id(0) // down).to(tl.int64) * SAMPLES
    sample = start + tl.arange(0, SAMPLES)
    there = sample < width
    image, line, position = places(first + start, positions, lines, AXES, SAMPLES)
    at = offsets(image, line, position, u_image, u_line, u_position, AXES)
    s = scores(g, g_row, g_col, neurons, n, u, u_channel, at, there, r, one, PRECISION, RANK)
    if shift is not None:
        s += tl.load(shift + first + sample, mask=there, other=0.0)[None, :]
    if v is not None:
        imaginary = scores(g, g_row, g_col, neurons, n, v, u_channel, at, there, r, one, PRECISION, RANK)
        if v_shift is not None:
            imaginary += tl.load(v_shift + first + sample, mask=there, other=0.0)[None, :]
        s = modulus(s, imaginary)
    value = activate(s, ACTIVATION, SLOPE) * tl.cast(scale, s.dtype)
    to = sample if PLAIN else offsets(image, line, position, out_image, out_line, out_position, AXES)
    inside = (neurons < n)[:, None] & there[None, :]
    tl.store(out + (neurons * out_channel)[:, None] + to[None, :], value, mask=inside)


@triton.jit
def covariance_kernel(
    out, o_row, o_part, total, square, t_part,
    x, x_channel, x_image, x_line, x_position, x_center, center,
    u, u_channel, u_image, u_line, u_position, positions, lines,
    phi, first, width, begin, each, shift, g, g_row, g_col, n, d, r, scale: tl.float64, one: tl.float64,
    AXES: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, HELD: tl.constexpr,
    NEURONS: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Add the products of a block of neurons with a block of channels to `out`, for `each` samples from `first` on.

    The features are computed here, or read from phi (n, width). If there is a center, the features contain the factor
    `scale`, and the products are multiplied by `one`, which keeps the compiler from summing inside the product.
    """
    down, across = tl.cdiv(n, NEURONS), tl.maximum(tl.cdiv(d, CHANNELS), 1)
    block, part = tl.program_id(0) % (down * across), (tl.program_id(0) // (down * across)).to(tl.int64)
    neurons = (block // across).to(tl.int64) * NEURONS + tl.arange(0, NEURONS)
    c = (block % across).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    begin += part * each
    end = tl.minimum(begin + each, width)
    work: tl.constexpr = x.dtype.element_ty
    outer = scale if center is None else one
    factor = tl.cast(outer, work)
    k = tl.arange(0, RANK).to(tl.int64)
    if HELD:
        held = tile(g, neurons, g_row, n, k * g_col, k < r)
    products = tl.zeros((CHANNELS, NEURONS), work)
    sums, squares = tl.zeros((NEURONS,), tl.float64), tl.zeros((NEURONS,), tl.float64)
    for step in range(tl.cdiv(end - begin, SAMPLES).to(tl.int32)):
        start = begin + step * SAMPLES
        sample = start + tl.arange(0, SAMPLES)
        there = sample < end
        image, line, position = places(first + start, positions, lines, AXES, SAMPLES)
        if phi is not None:
            f = tile(phi, neurons, width, n, sample, there)
        else:
            at = offsets(image, line, position, u_image, u_line, u_position, AXES)
            if HELD:
                none = tl.zeros((NEURONS, SAMPLES), work)
                s = multiply(held, tile(u, k, u_channel, r, at, there), none, PRECISION)
            else:
                s = scores(g, g_row, g_col, neurons, n, u, u_channel, at, there, r, one, PRECISION, RANK)
            if shift is not None:
                s += tl.load(shift + first + sample, mask=there, other=0.0)[None, :]
            f = activate(s, ACTIVATION, SLOPE)
        if center is not None:
            off = tl.load(center + neurons, mask=neurons < n, other=0.0)
            f = f * tl.cast(scale, work) - off[:, None]
        f = tl.where(there[None, :], f, 0.0)
        sums += tl.sum(f, 1)
        squares += tl.sum(f * f, 1)
        at = offsets(image, line, position, x_image, x_line, x_position, AXES)
        against = tile(x, c, x_channel, d, at, there)
        if x_center is not None:
            against -= tl.load(x_center + c, mask=c < d, other=0.0)[:, None]
        # The factor is applied here and not to the features: it keeps the compiler from moving the sum into the dot.
        products += multiply(against, tl.trans(f), tl.zeros((CHANNELS, NEURONS), work), PRECISION) * factor
    target = out + part * o_part + (c * o_row)[:, None] + neurons[None, :]
    inside = (c < d)[:, None] & (neurons < n)[None, :]
    tl.store(target, tl.load(target, mask=inside, other=0.0) + products, mask=inside)
    if block % across == 0:
        at = part * t_part + neurons
        previous = tl.load(total + at, mask=neurons < n, other=0.0)
        tl.store(total + at, previous + sums * outer, mask=neurons < n)
        previous = tl.load(square + at, mask=neurons < n, other=0.0)
        tl.store(square + at, previous + squares * outer * outer, mask=neurons < n)


@triton.jit
def projection_kernel(
    sums, s_part, s_row, first, width, u, u_channel, u_image, u_line, u_position, positions, lines,
    phi, a, a_row, a_col, shift, g, g_row, g_col, begin, each, n, d, r, scale: tl.float64, one: tl.float64,
    AXES: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, HELD: tl.constexpr,
    NEURONS: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Add a tile of A phi', summed over `each` neurons, to sums (parts, d, at least width), at samples from `first` on.

    The features are computed here, or read from phi (n, width).
    """
    down, across = tl.cdiv(d, CHANNELS), tl.cdiv(width, SAMPLES)
    block, part = tl.program_id(0) % (down * across), (tl.program_id(0) // (down * across)).to(tl.int64)
    c = (block % down).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    start = (block // down).to(tl.int64) * SAMPLES
    sample = start + tl.arange(0, SAMPLES)
    there = sample < width
    image, line, position = places(first + start, positions, lines, AXES, SAMPLES)
    at = offsets(image, line, position, u_image, u_line, u_position, AXES)
    begin += part * each
    end = tl.minimum(begin + each, n)
    work: tl.constexpr = a.dtype.element_ty
    factor = tl.cast(scale, work)
    k = tl.arange(0, RANK).to(tl.int64)
    if HELD:
        held = tile(u, k, u_channel, r, at, there)
    if shift is not None:
        added = tl.load(shift + first + sample, mask=there, other=0.0)[None, :]
    x = tl.zeros((CHANNELS, SAMPLES), work)
    for step in range(tl.cdiv(end - begin, NEURONS).to(tl.int32)):
        neurons = begin + step * NEURONS + tl.arange(0, NEURONS)
        if phi is not None:
            f = tile(phi, neurons, width, end, sample, there)
        else:
            if HELD:
                none = tl.zeros((NEURONS, SAMPLES), work)
                s = multiply(tile(g, neurons, g_row, end, k * g_col, k < r), held, none, PRECISION)
            else:
                s = scores(g, g_row, g_col, neurons, end, u, u_channel, at, there, r, one, PRECISION, RANK)
            if shift is not None:
                s += added
            f = tl.where((neurons < end)[:, None], activate(s, ACTIVATION, SLOPE), 0.0)
        against = tile(a, c, a_row, d, neurons * a_col, neurons < end)
        x += multiply(against, f, tl.zeros((CHANNELS, SAMPLES), work), PRECISION) * factor
    target = sums + part * s_part + (c * s_row)[:, None] + sample[None, :]
    inside = (c < d)[:, None] & there[None, :]
    tl.store(target, tl.load(target, mask=inside, other=0.0) + x, mask=inside)


def _features(
    out: Tensor, strides: Sequence[int], u: Tensor, layout: Layout, first: int, width: int, shift: Tensor | None,
    g: Tensor, activation: str, slope: float, scale: float, precision: str, plain: bool,
) -> None:  # fmt: skip
    """Compute the features of samples first, first + 1, ...; the last tensor of the layout is u, or its real parts."""
    u, v, shift, v_shift = parts_of(u, shift)
    plan = plan_of(FEATURES if v is None else FEATURES_OF_PAIRS, u)
    activation = activation if v is None else "identity"
    tiles = triton.cdiv(len(g), plan["NEURONS"]) * triton.cdiv(width, plan["SAMPLES"])
    features_kernel[(tiles,)](
        **strided("out", out, strides), **strided("u", u, layout.strides[-1]), **layout.grid, v=v, v_shift=v_shift,
        first=first, width=width, shift=shift, **matrix("g", g), n=len(g), r=g.shape[1], scale=scale, one=1.0,
        PLAIN=plain, AXES=layout.axes, ACTIVATION=activation, SLOPE=slope, PRECISION=products(precision, u.device),
        **plan,
    )  # fmt: skip


def random_features(
    out: Tensor, u: Tensor, shift: Tensor | None, rows: Rows, activation: str, slope: float, scale: float,
    precision: str = "highest", blocks: Blocks = BLOCKS,
) -> None:  # fmt: skip
    """Write the features of u (N, r, *space) into `out` (N, n, *space).

    Both may have any strides and at most two axes of space. For the modulus, u (N, r, H, W, 2) has pairs, and the shift
    (2, N, *space) has the real parts, then the imaginary ones.
    """
    both = Layout(out, parts_of(u)[0])
    if not both.samples:
        return
    for first, g in blocks.panels(rows, out.shape[1], u):
        to = out[:, first : first + len(g)]
        how = activation, slope, scale, precision
        _features(to, both.strides[0], u, both, 0, both.samples, shift, g, *how, False)


def random_features_covariance(
    out: Tensor, total: Tensor, square: Tensor, x: Tensor, x_center: Tensor | None, center: Tensor | None, u: Tensor,
    shift: Tensor | None, rows: Rows, activation: str, slope: float, scale: float, precision: str = "highest",
    blocks: Blocks = BLOCKS,
) -> None:  # fmt: skip
    """Add the sums of x phi', phi' and phi'^2 over samples to float64 out (d, n), total (n,) and square (n,).

    x_center (d,) is subtracted from x, and center (n,) from phi'; both are contiguous or None.
    """
    d, n = out.shape
    real = parts_of(u)[0]
    both = Layout(x, real)
    if not both.samples:
        return
    plan = plan_of(COVARIANCE, u)
    fused = d <= plan["CHANNELS"] and real is u
    for row, g in blocks.panels(rows, n, u):
        here = slice(row, row + len(g))
        ranges = [(0, both.samples)] if fused else list(blocks.of_samples(len(g), both.samples))
        tiles = triton.cdiv(len(g), plan["NEURONS"]) * triton.cdiv(max(d, 1), plan["CHANNELS"])
        parts, each = blocks.split(tiles, ranges[0][1], plan["SAMPLES"])
        sums = [out[:, here], total[None, here], square[None, here]]
        o, t, s = sums if parts == 1 else [out.new_zeros(parts, *whole.shape) for whole in sums]
        for first, width in ranges:
            phi = None if fused else u.new_empty(len(g), width)
            if phi is not None:
                how = activation, slope, scale, precision
                _features(phi, (width, 0, 0, 1), u, both, first, width, shift, g, *how, True)
            for begin in range(0, width, parts * each):
                covariance_kernel[(tiles * parts,)](
                    out=o, o_row=o.stride(-2), o_part=o.stride(0), total=t, square=s, t_part=t.stride(0),
                    **strided("x", x, both.strides[0]), x_center=x_center,
                    center=None if center is None else center[here], **strided("u", real, both.strides[1]), **both.grid,
                    phi=phi, first=first, width=width, begin=begin, each=each, shift=shift if fused else None,
                    **matrix("g", g), n=len(g), d=d, r=u.shape[1], scale=scale if fused else 1.0, one=1.0,
                    AXES=both.axes, ACTIVATION=activation, SLOPE=slope, PRECISION=products(precision, u.device),
                    HELD=fused and u.shape[1] <= plan["RANK"], **plan,
                )  # fmt: skip
        if parts > 1:
            for whole, part in zip(sums, (o, t, s), strict=True):
                plain = Layout(whole[None])
                close(whole, plain, plain.strides[0], part, 0, add=True)


def random_features_projection(
    out: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, rows: Rows, activation: str, slope: float, scale: float,
    precision: str = "highest", blocks: Blocks = BLOCKS,
) -> None:  # fmt: skip
    """Write A phi' (N, d, *space) for A (d, n) and the first n neurons into `out`, which may have any strides."""
    d, n = A.shape
    real = parts_of(u)[0]
    both = Layout(out, real)
    fused = d <= plan_of(PROJECTION, u)["CHANNELS"] and real is u
    block = blocks.sums_at_once(d)
    for first in range(0, both.samples if d else 0, block):
        width = min(block, both.samples - first)
        sums = new_sums(d, n, width, u, blocks)
        for row, g in blocks.panels(rows, n, u):
            a = A[:, row : row + len(g)]
            if fused:
                how = activation, slope, scale, precision
                projection_of(sums, a, None, u, both, first, shift, g, *how, blocks)
                continue
            for start, count in blocks.of_samples(len(g), width):
                phi = u.new_empty(len(g), count)
                where = (first + start, count, shift)
                _features(phi, (count, 0, 0, 1), u, both, *where, g, activation, slope, scale, precision, True)
                part, how = sums[..., start : start + count], ("identity", 0.0, 1.0, precision)
                projection_of(part, a, phi, real, both, 0, None, g, *how, blocks)
        close(out, both, both.strides[0], sums, first)


def new_sums(d: int, n: int, width: int, u: Tensor, blocks: Blocks) -> Tensor:
    """Zeros (parts, d, width) for the sums of `projection_of` over n neurons."""
    plan = plan_of(PROJECTION, u)
    tiles = triton.cdiv(width, plan["SAMPLES"]) * triton.cdiv(d, plan["CHANNELS"])
    parts, _ = blocks.split(tiles, n, plan["NEURONS"])
    return torch.zeros(parts, d, width, dtype=torch.float64, device=u.device)


def projection_of(
    sums: Tensor, a: Tensor, phi: Tensor | None, u: Tensor, layout: Layout, first: int, shift: Tensor | None,
    g: Tensor, activation: str, slope: float, scale: float, precision: str, blocks: Blocks,
) -> None:  # fmt: skip
    """Add the products of a (d, n) with features to sums (parts, d, width).

    The features are those of samples first, first + 1, ... and neurons g; or phi (n, width), if it is given.
    """
    plan = plan_of(PROJECTION, u)
    (parts, d, width), (n, r) = sums.shape, g.shape
    tiles = triton.cdiv(width, plan["SAMPLES"]) * triton.cdiv(d, plan["CHANNELS"])
    if not tiles:
        return
    each = blocks.terms(parts, n, plan["NEURONS"])
    for begin in range(0, n, parts * each):
        projection_kernel[(tiles * parts,)](
            sums=sums, s_part=sums.stride(0), s_row=sums.stride(1), first=first, width=width,
            **strided("u", u, layout.strides[-1]), **layout.grid, phi=phi, **matrix("a", a), shift=shift,
            **matrix("g", g), begin=begin, each=each, n=n, d=d, r=r, scale=scale, one=1.0,
            AXES=layout.axes, ACTIVATION=activation, SLOPE=slope, PRECISION=products(precision, u.device),
            HELD=phi is None and r <= plan["RANK"], **plan,
        )  # fmt: skip


def variants() -> Iterator[Variant]:
    no_pairs = {"PLAIN": False, "v": None, "v_shift": None}
    yield from compilations("random_features", features_kernel, FEATURES, ("out", "u", "g"), no_pairs)
    of_pairs = {"PLAIN": True, "v_shift": None, "ACTIVATION": "identity", "u_position": 2}
    parts = "out", "u", "v", "g"
    yield from compilations("random_features of pairs", features_kernel, FEATURES_OF_PAIRS, parts, of_pairs)
    for name, kernel, plans, other in (
        ("covariance", covariance_kernel, COVARIANCE, "x"),
        ("projection", projection_kernel, PROJECTION, "a"),
    ):
        no_phi = {"phi": None}
        centers = {"x_center": None, "center": None} if name == "covariance" else {}
        for what, pointers, constants in (
            ("short rank", (other, "u", "g"), {"HELD": True} | no_phi),
            ("long rank", (other, "u", "g"), {"HELD": False} | no_phi),
            ("of phi", (other, "phi"), {"HELD": False, "u": None, "g": None}),
        ):
            yield from compilations(f"random_features_{name} {what}", kernel, plans, pointers, centers | constants)
            if centers:
                name_centered = f"random_features_{name} about centers {what}"
                yield from compilations(name_centered, kernel, plans, (*pointers, *centers), constants)

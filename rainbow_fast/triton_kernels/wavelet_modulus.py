# SPDX-License-Identifier: BSD-3-Clause
"""wavelet_modulus and its gradient on a GPU, for maps of at most 32 x 32 pixels. Only z and the output are in memory.

A tile of 16 or 32 rows and 32 columns holds as many whole maps as fit. Convolutions along an axis are products with
small matrices, which include the border and have a block for each map: five along rows and nine along columns (six and
ten if phi has a width of its own), on tensor cores. A program computes 16 rows of a tile of the output. That of the
gradient computes 16 rows of a tile of z; it computes all responses again, and multiplies by the transposed matrices.

Triton 3.8 keeps real outputs, and gradients of outputs of 16 rows, in registers. The gradient spills 16 bytes a thread
on sm_80; that of outputs of 32 rows 64 to 88 on sm_90; complex outputs with `skip` 112 on sm_80.

A product with a zero of a matrix would carry NaN from one map to the others of its tile. Numbers that are not finite
are therefore replaced by zeros and counted in each map; a map that has one becomes NaN.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.activations import modulus
from rainbow_fast.triton_kernels.derivatives import through_modulus
from rainbow_fast.triton_kernels.rounding import dot, rounded
from rainbow_fast.triton_kernels.samples import products

# The places of the matrices of an axis.
G, C, S, HC, HS, PHI, ONES = (tl.constexpr(place) for place in range(7))
BLOCK, TILE = tl.constexpr(16), tl.constexpr(32)  # rows of the output that are in registers at a time, columns
WARPS = 4  # each has a quarter of the columns of a block


class Filters(NamedTuple):
    """The filters of a bank, for maps of some size.

    Attributes:
        rows: matrices (7, rows of the output, rows of the input), 16 or 32 each, that multiply a map from the left: g,
            c, s, hc, hs and phi of `WaveletBank.filters`, and one whose entries are 1 in the blocks of maps.
        columns: transposed matrices (7, columns of the input, columns of the output), 32 each, that multiply from the
            right.
        maps: how many maps lie in a tile, along its rows and along its columns.
        size: rows and columns of the output.
        beta: that of the diagonal wavelets, (1,).
        own: whether phi has a width of its own.
    """

    rows: Tensor
    columns: Tensor
    maps: tuple[int, int]
    size: tuple[int, int]
    beta: Tensor
    own: bool


@triton.jit
def left(rows, top, number: tl.constexpr, H: tl.constexpr, LINES: tl.constexpr):
    """The rows top, top + 1, ... of a matrix that multiplies from the left: (BLOCK, H)."""
    row = number * LINES + top + tl.arange(0, BLOCK)
    return tl.load(rows + row[:, None] * H + tl.arange(0, H)[None, :])


@triton.jit
def upright(rows, top, first, number: tl.constexpr, H: tl.constexpr, LINES: tl.constexpr):
    """The columns first, first + 1, ... of the matrix of `left`, as rows: (BLOCK, BLOCK)."""
    row = number * LINES + top + tl.arange(0, BLOCK)
    return tl.load(rows + row[None, :] * H + (first + tl.arange(0, BLOCK))[:, None])


@triton.jit
def right(columns, number: tl.constexpr):
    """A matrix that multiplies from the right: (TILE, TILE)."""
    row = number * TILE + tl.arange(0, TILE)
    return tl.load(columns + row[:, None] * TILE + tl.arange(0, TILE)[None, :])


@triton.jit
def places(maps, channels, height, width, top, DOWN: tl.constexpr, ACROSS: tl.constexpr, ROWS: tl.constexpr):
    """Of each entry of the rows top, top + 1, ... of a tile: image (int64), channel, row and column in its map, and
    whether it belongs to a map."""
    row, column = top + tl.arange(0, ROWS)[:, None], tl.arange(0, TILE)[None, :]
    down, across = row // height, column // width
    first = tl.program_id(0).to(tl.int64) * (DOWN * ACROSS)
    image = first // channels
    number = down * ACROSS + across
    inside = (down < DOWN) & (across < ACROSS) & (number < maps - first)
    channel = (first - image * channels).to(tl.int32) + number
    return image + channel // channels, channel % channels, row % height, column % width, inside


@triton.jit
def offsets(image, channel, row, column, s_image, s_channel, s_row, s_column):
    at = image * s_image + channel * tl.cast(s_channel, tl.int64)
    return at + row * tl.cast(s_row, tl.int64) + column * tl.cast(s_column, tl.int64)


@triton.jit
def responses(
    z, rows, columns, beta, top, OWN: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The low-pass, and the real and the imaginary parts of the four wavelets, each (BLOCK, TILE), of z (H, TILE).

    Barriers keep the compiler from starting all products at once, which would need too many registers.
    """
    zero = tl.zeros((BLOCK, TILE), z.dtype)
    g = right(columns, G)
    by_g = dot(left(rows, top, G, H, LINES), z, zero, PRECISION)
    gg = dot(by_g, g, zero, PRECISION)
    re_3 = dot(by_g, right(columns, C), zero, PRECISION)
    tl.debug_barrier()
    gs = dot(by_g, right(columns, S), zero, PRECISION)
    tl.debug_barrier()
    re_1 = dot(dot(left(rows, top, C, H, LINES), z, zero, PRECISION), g, zero, PRECISION)
    tl.debug_barrier()
    im_1 = dot(dot(left(rows, top, S, H, LINES), z, zero, PRECISION), g, zero, PRECISION)
    tl.debug_barrier()
    hc, hs = right(columns, HC), right(columns, HS)
    by_hc = dot(left(rows, top, HC, H, LINES), z, zero, PRECISION)
    cc, cs = dot(by_hc, hc, zero, PRECISION), dot(by_hc, hs, zero, PRECISION)
    tl.debug_barrier()
    by_hs = dot(left(rows, top, HS, H, LINES), z, zero, PRECISION)
    sc, ss = dot(by_hs, hc, zero, PRECISION), dot(by_hs, hs, zero, PRECISION)
    mean = cc - tl.load(beta) * gg
    low = gg
    if OWN:
        tl.debug_barrier()
        by_phi = dot(left(rows, top, PHI, H, LINES), z, zero, PRECISION)
        low = dot(by_phi, right(columns, PHI), zero, PRECISION)
    return low, mean - ss, re_1, mean + ss, re_3, sc + cs, im_1, sc - cs, -gs


@triton.jit
def lines_of(
    low, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3, columns, beta, OWN: tl.constexpr, PRECISION: tl.constexpr
):
    """The gradients of the six products along rows for gradients of the responses, all (BLOCK, TILE)."""
    none = tl.zeros((BLOCK, TILE), low.dtype)
    diagonal = re_0 + re_2
    of_gg = -tl.load(beta) * diagonal
    of_phi = none
    if OWN:
        of_phi = dot(low, tl.trans(right(columns, PHI)), none, PRECISION)
    else:
        of_gg += low
    g = tl.trans(right(columns, G))
    of_g = dot(of_gg, g, none, PRECISION)
    of_g = dot(re_3, tl.trans(right(columns, C)), of_g, PRECISION)
    of_g = dot(-im_3, tl.trans(right(columns, S)), of_g, PRECISION)
    tl.debug_barrier()
    of_c, of_s = dot(re_1, g, none, PRECISION), dot(im_1, g, none, PRECISION)
    tl.debug_barrier()
    hc, hs = tl.trans(right(columns, HC)), tl.trans(right(columns, HS))
    of_hc = dot(im_0 - im_2, hs, dot(diagonal, hc, none, PRECISION), PRECISION)
    tl.debug_barrier()
    of_hs = dot(re_2 - re_0, hs, dot(im_0 + im_2, hc, none, PRECISION), PRECISION)
    return of_g, of_c, of_s, of_hc, of_hs, of_phi


@triton.jit
def across_rows(
    total, of_g, of_c, of_s, of_hc, of_hs, of_phi, rows, top, first, OWN: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """total and the rows first, first + 1, ... of the gradient of z, (BLOCK, TILE)."""
    total = dot(upright(rows, top, first, G, H, LINES), of_g, total, PRECISION)
    tl.debug_barrier()
    total = dot(upright(rows, top, first, C, H, LINES), of_c, total, PRECISION)
    total = dot(upright(rows, top, first, S, H, LINES), of_s, total, PRECISION)
    tl.debug_barrier()
    total = dot(upright(rows, top, first, HC, H, LINES), of_hc, total, PRECISION)
    total = dot(upright(rows, top, first, HS, H, LINES), of_hs, total, PRECISION)
    if OWN:
        total = dot(upright(rows, top, first, PHI, H, LINES), of_phi, total, PRECISION)
    return total


@triton.jit
def read(pointer, at, inside, dtype: tl.constexpr):
    """The numbers, with zeros for those that are not finite; and 1 where one was not."""
    value = tl.load(pointer + at, mask=inside, other=0.0).to(dtype)
    wrong = value * 0 != 0
    return tl.where(wrong, 0.0, value), wrong


@triton.jit
def put(out, at, re, im, broken, inside, PAIRS: tl.constexpr):
    """Write numbers or pairs, and NaN into broken maps."""
    tl.store(out + at, rounded(tl.where(broken, float("nan"), re), out.dtype.element_ty), mask=inside)
    if PAIRS:
        tl.store(out + at + 1, tl.where(broken, float("nan"), im), mask=inside)


@triton.jit
def responses_of_pairs(
    first, second, rows, columns, beta, top, PARTS: tl.constexpr, OWN: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The responses, and the imaginary part of the low-pass, to z = first + i second, or to a real z."""
    low, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3 = responses(
        first, rows, columns, beta, top, OWN, PRECISION, H, LINES
    )
    low_i = tl.zeros((BLOCK, TILE), first.dtype)
    if PARTS == 2:
        low_i, a_0, a_1, a_2, a_3, b_0, b_1, b_2, b_3 = responses(
            second, rows, columns, beta, top, OWN, PRECISION, H, LINES
        )
        re_0, re_1, re_2, re_3 = re_0 - b_0, re_1 - b_1, re_2 - b_2, re_3 - b_3
        im_0, im_1, im_2, im_3 = im_0 + a_0, im_1 + a_1, im_2 + a_2, im_3 + a_3
    return low, low_i, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3


@triton.jit
def maps_kernel(
    out, z, z_image, z_channel, z_row, z_column, maps, channels, height, width, lines, across, rows, columns, beta,
    PARTS: tl.constexpr, SKIP: tl.constexpr, OWN: tl.constexpr, PRECISION: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, H: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A block of the output of a tile of DOWN x ACROSS maps."""
    work: tl.constexpr = rows.dtype.element_ty
    PAIRS: tl.constexpr = SKIP or PARTS == 2
    image, channel, row, column, inside = places(maps, channels, height, width, 0, DOWN, ACROSS, H)
    at = offsets(image, channel, row, column, z_image, z_channel, z_row, z_column)
    first, wrong = read(z, at, inside, work)
    second = first
    if PARTS == 2:
        second, also = read(z, at + 1, inside, work)
        wrong = wrong | also
    top = tl.program_id(1) * BLOCK
    count = dot(left(rows, top, ONES, H, LINES), wrong.to(work), tl.zeros((BLOCK, TILE), work), PRECISION)
    broken = dot(count, right(columns, ONES), tl.zeros((BLOCK, TILE), work), PRECISION) > 0
    low, low_i, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3 = responses_of_pairs(
        first, second, rows, columns, beta, top, PARTS, OWN, PRECISION, H, LINES
    )

    image, channel, row, column, inside = places(maps, channels, lines, across, top, DOWN, ACROSS, BLOCK)
    numbers: tl.constexpr = 2 if PAIRS else 1
    step = tl.cast(lines, tl.int64) * across * numbers
    here = image * (channels * (10 if SKIP else 5)) * step + (row * across + column) * numbers
    at = here + channel * step
    wave = here + (channels + 4 * channel) * step
    put(out, at, low, low_i, broken, inside, PAIRS)
    zero = tl.zeros((BLOCK, TILE), work)
    if SKIP:
        put(out, wave, re_0, im_0, broken, inside, True)
        put(out, wave + step, re_1, im_1, broken, inside, True)
        put(out, wave + 2 * step, re_2, im_2, broken, inside, True)
        put(out, wave + 3 * step, re_3, im_3, broken, inside, True)
        at += channels * 5 * step
        wave += channels * 5 * step
        put(out, at, modulus(low, low_i), zero, broken, inside, True)
    put(out, wave, modulus(re_0, im_0), zero, broken, inside, PAIRS)
    put(out, wave + step, modulus(re_1, im_1), zero, broken, inside, PAIRS)
    put(out, wave + 2 * step, modulus(re_2, im_2), zero, broken, inside, PAIRS)
    put(out, wave + 3 * step, modulus(re_3, im_3), zero, broken, inside, PAIRS)


@triton.jit
def back(grad, at, step, channels, re, im, wrong, inside, SKIP: tl.constexpr):
    """The gradients of the responses re and im, from those of the modulus and, with SKIP, of re and im themselves."""
    half = channels * 5 * step if SKIP else 0
    tl.debug_barrier()
    upstream, bad = read(grad, at + half, inside, re.dtype)
    re, im = through_modulus(upstream, re, im)
    wrong = wrong | bad
    if SKIP:
        more, bad = read(grad, at, inside, re.dtype)
        re += more
        wrong = wrong | bad
        more, bad = read(grad, at + 1, inside, re.dtype)
        im += more
        wrong = wrong | bad
    return re, im, wrong


@triton.jit
def gradient_kernel(
    out, grad, z, z_image, z_channel, z_row, z_column, maps, channels, height, width, lines, across,
    rows, columns, beta,
    PARTS: tl.constexpr, SKIP: tl.constexpr, OWN: tl.constexpr, PRECISION: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, H: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A block of the gradient of z for a tile of DOWN x ACROSS maps. `out` is contiguous."""
    work: tl.constexpr = rows.dtype.element_ty
    numbers: tl.constexpr = 2 if SKIP or PARTS == 2 else 1
    total, total_i = tl.zeros((BLOCK, TILE), work), tl.zeros((BLOCK, TILE), work)
    counts = tl.zeros((BLOCK, TILE), work)
    own = tl.program_id(1) * BLOCK
    step = tl.cast(lines, tl.int64) * across * numbers
    for top in range(0, LINES, BLOCK):
        image, channel, row, column, inside = places(maps, channels, height, width, 0, DOWN, ACROSS, H)
        at = offsets(image, channel, row, column, z_image, z_channel, z_row, z_column)
        first, broken = read(z, at, inside, work)
        second = first
        if PARTS == 2:
            second, also = read(z, at + 1, inside, work)
            broken = broken | also
        low, low_i, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3 = responses_of_pairs(
            first, second, rows, columns, beta, top, PARTS, OWN, PRECISION, H, LINES
        )
        image, channel, row, column, inside = places(maps, channels, lines, across, top, DOWN, ACROSS, BLOCK)
        here = image * (channels * (10 if SKIP else 5)) * step + (row * across + column) * numbers
        at = here + channel * step
        wave = here + (channels + 4 * channel) * step
        of_low, wrong = read(grad, at, inside, work)
        of_low_i = tl.zeros((BLOCK, TILE), work)
        if PARTS == 2:
            of_low_i, bad = read(grad, at + 1, inside, work)
            wrong = wrong | bad
        if SKIP:
            upstream, bad = read(grad, at + channels * 5 * step, inside, work)
            low, low_i = through_modulus(upstream, low, low_i)
            wrong = wrong | bad
            of_low += low
            of_low_i += low_i
        re_0, im_0, wrong = back(grad, wave, step, channels, re_0, im_0, wrong, inside, SKIP)
        re_1, im_1, wrong = back(grad, wave + step, step, channels, re_1, im_1, wrong, inside, SKIP)
        re_2, im_2, wrong = back(grad, wave + 2 * step, step, channels, re_2, im_2, wrong, inside, SKIP)
        re_3, im_3, wrong = back(grad, wave + 3 * step, step, channels, re_3, im_3, wrong, inside, SKIP)

        none = tl.zeros((BLOCK, TILE), work)
        tl.debug_barrier()
        over = right(columns, ONES)
        count = dot(left(rows, top, ONES, H, LINES), broken.to(work), none, PRECISION)
        count = dot(dot(count, over, wrong.to(work), PRECISION), tl.trans(over), none, PRECISION)
        counts = dot(upright(rows, top, own, ONES, H, LINES), count, counts, PRECISION)
        tl.debug_barrier()
        of_g, of_c, of_s, of_hc, of_hs, of_phi = lines_of(
            of_low, re_0, re_1, re_2, re_3, im_0, im_1, im_2, im_3, columns, beta, OWN, PRECISION
        )
        total = across_rows(total, of_g, of_c, of_s, of_hc, of_hs, of_phi, rows, top, own, OWN, PRECISION, H, LINES)
        if PARTS == 2:
            of_g, of_c, of_s, of_hc, of_hs, of_phi = lines_of(
                of_low_i, im_0, im_1, im_2, im_3, -re_0, -re_1, -re_2, -re_3, columns, beta, OWN, PRECISION
            )
            total_i = across_rows(
                total_i, of_g, of_c, of_s, of_hc, of_hs, of_phi, rows, top, own, OWN, PRECISION, H, LINES
            )
    image, channel, row, column, inside = places(maps, channels, height, width, own, DOWN, ACROSS, BLOCK)
    at = (((image * channels + channel) * height + row) * width + column) * PARTS
    broken = counts > 0
    tl.store(out + at, rounded(tl.where(broken, float("nan"), total), out.dtype.element_ty), mask=inside)
    if PARTS == 2:
        tl.store(out + at + 1, rounded(tl.where(broken, float("nan"), total_i), out.dtype.element_ty), mask=inside)


def wavelet_modulus(out: Tensor, z: Tensor, skip: bool, filters: tuple) -> None:
    """Write the output into `out`, contiguous; z is (N, c, H, W), or (N, c, H, W, 2) with pairs beside each other.

    `filters` are `Filters`, or a tuple of what they hold.
    """
    _launch(maps_kernel, (out,), z, skip, Filters(*filters))


def wavelet_modulus_gradient(out: Tensor, z: Tensor, grad: Tensor, skip: bool, filters: tuple) -> None:
    """Write the gradient of z into `out`, contiguous as `grad` is, the gradient of the output."""
    _launch(gradient_kernel, (out, grad), z, skip, Filters(*filters))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], z: Tensor, skip: bool, filters: Filters) -> None:
    images, channels, height, width = z.shape[:4]
    (down, across), (_, lines, H) = filters.maps, filters.rows.shape
    blocks = (lines if kernel is maps_kernel else H) // BLOCK.value
    kernel[(triton.cdiv(images * channels, down * across), blocks)](
        *tensors, z, *z.stride()[:4], images * channels, channels, height, width, *filters.size,
        filters.rows, filters.columns, filters.beta,
        z.dim() - 3, skip, filters.own, products("highest", z.device), down, across, H, lines,
        num_warps=WARPS, num_stages=1,
    )  # fmt: skip

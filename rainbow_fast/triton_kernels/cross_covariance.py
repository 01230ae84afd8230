# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance on a GPU: products over ranges of samples (parts), which a second kernel adds.

Tensor cores round their sums towards zero. A chain of sums inside them is therefore at most 128 samples long. It is
then added to a float32 sum, and the rounding error of this addition is the start of the next chain. The parts are added
in float64, in a fixed order. The error is below 3e-7 of the sum of the absolute values of the products, 1e-6 if these
are equal. float64 is summed in float64 throughout.

The kernel reads b N (d + m) bytes, b = 2, 4 or 8, and writes 8 bytes for each entry and part. It takes 2 N d m flops,
half of it if symmetric, three times that in TF32 for float32. For N = 10^6 and d = m, the least times in ms for memory
and for arithmetic are

                      H100 (3.35 TB/s, 989 / 495 / 67 TF)    A100 (2.0 TB/s, 312 / 156 / 19.5 TF)
    bfloat16   d = 64        0.08   0.01                            0.13   0.03
               d = 512       0.61   0.53                            1.0    1.7
               d = 2048      2.4    8.5                             4.1    27
    float32    d = 512       1.2    3.2                             2.0    10
    float64    d = 512       2.4    7.8                             4.1    27

There are also three additions for each entry and 128 samples. They take 3/8 of the time of the bfloat16 products on an
H100, 3/16 on an A100, and at most 1/16 of the time of the float32 products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.activations import KEEP_PRECISION, activate
from rainbow_fast.triton_kernels.rounding import multiply
from rainbow_fast.triton_kernels.samples import Layout, family, offsets, places, products, strided

WORKSPACE = 64 * 2**20  # bytes for the parts
BLOCK = 2048  # channels of each side in one launch; two parts of this size fill the workspace
CHAIN = 128  # samples in a chain of sums
SHORTEST = 512  # fewest samples in a range
HEIGHT = tl.constexpr(16)  # height of groups of tiles with neighbouring programs, which share samples in L2


@dataclass(frozen=True)
class Plan:
    """Tiles of at most rows x columns channels. `step` samples (half for ragged maps) are loaded `stages` ahead."""

    rows: int
    columns: int
    step: int
    stages: int


@dataclass(frozen=True)
class Capacity:
    """The number of programs that fill a GPU, and the plans for products of 16 bits, float32 and float64."""

    programs: int
    half: Plan
    single: Plan
    double: Plan


# Capacities by `family`. That of sm_80 is used for all other NVIDIA GPUs; its tiles fit into 99 KiB of shared memory.
MACHINES = {
    "sm_80": Capacity(216, Plan(128, 128, 32, 4), Plan(128, 64, 16, 4), Plan(64, 64, 16, 4)),
    "sm_90": Capacity(264, Plan(128, 128, 64, 4), Plan(128, 64, 32, 3), Plan(64, 64, 16, 4)),
    "sm_100": Capacity(296, Plan(128, 128, 64, 4), Plan(128, 64, 32, 3), Plan(64, 64, 16, 4)),
    "gfx942": Capacity(608, Plan(128, 128, 64, 2), Plan(128, 64, 32, 2), Plan(64, 64, 16, 2)),
}


@triton.jit
def _tile(
    x, s_channel, s_image, s_line, s_position, positions, lines, channels, shift, c, first, end,
    AXES: tl.constexpr, SHIFTED: tl.constexpr, KEEP: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    STEP: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """sigma(x) - shift for channels c and at most STEP samples from first to end, along axis ALONG; zeros outside."""
    image, line, position = places(first, positions, lines, AXES, STEP)
    at = offsets(image, line, position, s_image, s_line, s_position, AXES)
    inside = tl.expand_dims(c < channels, ALONG) & tl.expand_dims(first + tl.arange(0, STEP) < end, 1 - ALONG)
    value = tl.load(x + tl.expand_dims(c * s_channel, ALONG) + tl.expand_dims(at, 1 - ALONG), mask=inside, other=0.0)
    if ACTIVATION != "identity" or not KEEP:
        work: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
        value = activate(value.to(work), ACTIVATION, SLOPE)
        if SHIFTED:
            value -= tl.expand_dims(tl.load(shift + c, mask=c < channels, other=0.0), ALONG)
        if SHIFTED or ACTIVATION == "cos":
            value = tl.where(inside, value, 0.0)
        if KEEP:
            value = value.to(x.dtype.element_ty)
    return value


@triton.jit
def _sum(tile, ALONG: tl.constexpr):
    """The sum of a tile over samples, as float64. It is computed in float32, or in float64 for a float64 tile."""
    if tile.dtype == tl.float64:
        return tl.sum(tile, ALONG)
    else:
        return tl.sum(tile.to(tl.float32), ALONG).to(tl.float64)


@triton.jit
def products_kernel(
    parts, samples, each,
    x, x_channel, x_image, x_line, x_position, x_positions, x_lines, d, x_shift, x_sums,
    y, y_channel, y_image, y_line, y_position, y_positions, y_lines, m, y_shift, y_sums,
    X_AXES: tl.constexpr, Y_AXES: tl.constexpr, Y_ALONG: tl.constexpr, X_SHIFTED: tl.constexpr, Y_SHIFTED: tl.constexpr,
    X_SUMS: tl.constexpr, Y_SUMS: tl.constexpr, SYMMETRIC: tl.constexpr, KEEP: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """One tile of X Y^T over one range of samples, written to its part; in float32, as a sum and its rounding error."""
    down, across = tl.cdiv(d, ROWS), tl.cdiv(m, COLUMNS)
    tile, part = tl.program_id(0) % (down * across), (tl.program_id(0) // (down * across)).to(tl.int64)
    top = tile // (HEIGHT * across) * HEIGHT
    height = tl.minimum(down - top, HEIGHT)
    i, j = top + tile % (HEIGHT * across) % height, tile % (HEIGHT * across) // height
    if SYMMETRIC:
        if i * ROWS >= (j + 1) * COLUMNS:  # the whole tile is below the diagonal
            return
    row, column = i.to(tl.int64) * ROWS + tl.arange(0, ROWS), j.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    begin = part * each
    end = tl.minimum(begin + each, samples)

    work: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    high, low = tl.zeros((ROWS, COLUMNS), work), tl.zeros((ROWS, COLUMNS), work)
    x_sum, y_sum = tl.zeros((ROWS,), tl.float64), tl.zeros((COLUMNS,), tl.float64)
    first = begin
    for step in range(tl.cdiv(end - begin, STEP).to(tl.int32)):
        a = _tile(
            x, x_channel, x_image, x_line, x_position, x_positions, x_lines, d, x_shift, row, first, end,
            X_AXES, X_SHIFTED, KEEP, ACTIVATION, SLOPE, STEP, 1,
        )  # fmt: skip
        b = _tile(
            y, y_channel, y_image, y_line, y_position, y_positions, y_lines, m, y_shift, column, first, end,
            Y_AXES, Y_SHIFTED, KEEP, ACTIVATION, SLOPE, STEP, Y_ALONG,
        )  # fmt: skip
        if X_SUMS:
            x_sum += _sum(a, 1)
        if Y_SUMS:
            y_sum += _sum(b, Y_ALONG)
        if Y_ALONG == 1:
            b = tl.trans(b)
        if work == tl.float64:
            high = multiply(a, b, high, PRECISION)
        else:
            low = multiply(a, b, low, PRECISION)
            if step % CHAIN == CHAIN - 1:  # Kahan summation: the next chain begins with the rounding error
                total = high + low
                low -= total - high
                high = total
        first += STEP

    inside = (row < d)[:, None] & (column < m)[None, :]
    at = (row * m)[:, None] + column[None, :]
    if work == tl.float64:
        tl.store(parts + part * d * m + at, high, mask=inside)
    else:
        tl.store(parts + 2 * part * d * m + at, high, mask=inside)
        tl.store(parts + (2 * part + 1) * d * m + at, low, mask=inside)
    if X_SUMS:
        if j == 0:
            tl.store(x_sums + part * d + row, x_sum, mask=row < d)
    if Y_SUMS:
        if i == 0:
            tl.store(y_sums + part * m + column, y_sum, mask=column < m)


@triton.jit(do_not_specialize=["count"])
def parts_kernel(
    out, ld, d, m, parts, count, size, s_row, s_column,
    SYMMETRIC: tl.constexpr, PARTS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """out (d, m) += the float64 sum of `count` parts of `size` numbers, in an order that depends only on `count`."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    row, column = entry // m, entry % m
    inside = row < d
    if SYMMETRIC:  # only the upper triangle of a part is valid
        source = tl.minimum(row, column) * s_row + tl.maximum(row, column) * s_column
    else:
        source = row * s_row + column * s_column
    total = tl.zeros((ENTRIES,), tl.float64)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < count)[:, None] & inside[None, :]
        value = tl.load(parts + (part.to(tl.int64) * size)[:, None] + source[None, :], mask=there, other=0.0)
        total += tl.sum(value.to(tl.float64), 0)
    at = out + row * ld + column
    tl.store(at, tl.load(at, mask=inside, other=0.0) + total, mask=inside)


@dataclass(frozen=True)
class _Side:
    """Some channels of x or y, as arguments of a kernel."""

    data: Tensor
    layout: Layout
    shift: Tensor | None
    total: Tensor | None

    @staticmethod
    def of(x: Tensor, some: slice, shift: Tensor | None, total: Tensor | None) -> "_Side":
        x = x[:, some]
        shift, total = (None if t is None else t[some] for t in (shift, total))
        return _Side(x, Layout(x), shift, total)

    @property
    def ragged(self) -> bool:
        """Whether samples are neighbours in memory, but in lines whose length is not a multiple of 16.

        Triton cannot vectorise over these samples, and lets threads run along the last axis.
        """
        return self.layout.axes > 1 and self.layout.grid["positions"] % 16 != 0 and self.layout.strides[0][0] != 1

    def arguments(self, name: str, sums: Tensor | None) -> dict[str, Any]:
        """The arguments of `products_kernel` whose names begin with `name`, "x" or "y"."""
        sizes = {f"{name}_{axis}": size for axis, size in self.layout.grid.items()}
        upper = {"AXES": self.layout.axes, "SHIFTED": self.shift is not None, "SUMS": sums is not None}
        return {
            **strided(name, self.data, self.layout.strides[0]), **sizes, f"{name}_shift": self.shift,
            f"{name}_sums": sums, **{f"{name.upper()}_{key}": value for key, value in upper.items()},
        }  # fmt: skip


def cross_covariance(
    out: Tensor,
    sides: Sequence[Tensor],
    shifts: Sequence[Tensor | None],
    totals: Sequence[Tensor | None],
    symmetric: bool,
    activation: str,
    slope: float,
    precision: str = "highest",
    *,
    block: int = BLOCK,
    machine: Capacity | None = None,
) -> None:
    """Add the sums of x y^T over samples to `out` (d, m), float64 with contiguous rows; m are the channels of all y.

    Args:
        out: the results of the ys, one after the other along the columns.
        sides: x and the ys, (images, channels, lines, positions) with any strides.
        shifts: for each side, one number for each channel that is subtracted from sigma(x), or None; float64 for
            float64 sides, else float32.
        totals: for each side, a float64 tensor with one number for each channel, to which the sums of sigma(x) - shift
            are added, or None.
        symmetric: there are no ys, and y is x.
        activation, slope: sigma and its slope, as in the op.
        precision: of float32 products: "highest", "high" or "medium".
        block: the largest number of channels of each side in one launch.
        machine: the capacity to plan for; None (default) for that of the device.
    """
    x, *ys = sides
    last = 0
    for own, y in enumerate([x] if symmetric else ys, start=0 if symmetric else 1):
        first, last = last, last + y.shape[1]
        for i in range(0, x.shape[1], block):
            for j in range(i if symmetric else 0, y.shape[1], block):
                down, across = slice(i, i + block), slice(j, j + block)
                left = _Side.of(x, down, shifts[0], None if symmetric or own > 1 or j > 0 else totals[0])
                right = _Side.of(y, across, shifts[own], None if i > 0 else totals[own])
                mirror = symmetric and i < j
                _one(
                    out[:, first:last][down, across],
                    out[across, down] if mirror else None,
                    left, right, symmetric and i == j, activation, slope, precision,
                    machine or MACHINES[family(x.device)],
                )  # fmt: skip


def _one(
    out: Tensor, mirrored: Tensor | None, x: _Side, y: _Side, symmetric: bool, activation: str, slope: float,
    precision: str, machine: Capacity,
) -> None:  # fmt: skip
    """One block of the result, and its transpose on the other side of the diagonal, `mirrored`, if it is given."""
    d, m, samples = x.data.shape[1], y.data.shape[1], x.layout.samples
    if d * m * samples == 0:
        return
    dtype = x.data.dtype
    keep = x.shift is None and y.shift is None
    keep = keep and (dtype in (torch.float32, torch.float64) or activation in KEEP_PRECISION)
    half = keep and dtype.itemsize == 2
    plan = machine.double if dtype == torch.float64 else machine.half if half else machine.single
    rows, columns = edge(d, plan.rows), edge(m, plan.columns)
    step = plan.step // 2 if x.ragged or y.ragged else plan.step
    down, across = triton.cdiv(d, rows), triton.cdiv(m, columns)
    tiles = sum(across - i * rows // columns for i in range(down)) if symmetric else down * across
    count, each = _ranges(samples, tiles, d * m, machine.programs)
    planes = count if dtype == torch.float64 else 2 * count
    device = x.data.device
    parts = torch.empty(planes, d, m, dtype=dtype if dtype == torch.float64 else torch.float32, device=device)
    x_sums = None if x.total is None else torch.empty(count, d, dtype=torch.float64, device=device)
    y_sums = None if y.total is None else torch.empty(count, m, dtype=torch.float64, device=device)
    products_kernel[(down * across * count,)](
        parts=parts, samples=samples, each=each, **x.arguments("x", x_sums), d=d, **y.arguments("y", y_sums), m=m,
        Y_ALONG=int(y.ragged), SYMMETRIC=symmetric, KEEP=keep, ACTIVATION=activation,
        SLOPE=slope if activation == "leaky_relu" else 0.0, PRECISION=products(precision, device),
        ROWS=rows, COLUMNS=columns, STEP=step, CHAIN=CHAIN // step,
        num_warps=warps(rows, columns), num_stages=plan.stages,
    )  # fmt: skip
    _add_parts(out, parts, m, 1, symmetric)
    if mirrored is not None:
        _add_parts(mirrored, parts, 1, m, False)
    for total, sums in ((x.total, x_sums), (y.total, y_sums)):
        if total is not None and sums is not None:
            _add_parts(total.unsqueeze(0), sums, 0, 1, False)


def warps(rows: int, columns: int) -> int:
    return 8 if rows * columns >= 128 * 64 else 4


def edge(channels: int, most: int) -> int:
    return min(most, max(32, triton.next_power_of_2(channels)))


def _ranges(samples: int, tiles: int, numbers: int, programs: int) -> tuple[int, int]:
    """The number of ranges of samples and their length; they depend only on shapes."""
    count = min(triton.cdiv(programs, tiles), samples // SHORTEST, WORKSPACE // (8 * numbers))
    each = triton.cdiv(triton.cdiv(samples, max(1, count)), CHAIN) * CHAIN
    return triton.cdiv(samples, each), each


def _add_parts(out: Tensor, parts: Tensor, s_row: int, s_column: int, symmetric: bool) -> None:
    (d, m), count = out.shape, len(parts)
    at_once = min(64, triton.next_power_of_2(count))
    entries = 2048 // at_once
    parts_kernel[(triton.cdiv(d * m, entries),)](
        out, out.stride(0), d, m, parts, count, parts.stride(0), s_row, s_column, symmetric, at_once, entries,
        num_warps=4,
    )  # fmt: skip

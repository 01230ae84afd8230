# SPDX-License-Identifier: BSD-3-Clause
"""Access to samples in strided memory, and code that random_features and its gradient share.

A tensor (N, c, lines, positions) is a matrix of c channels by samples; a sample is a position of a line of an image.
All tensors of a kernel have their samples in the same order, each with its own strides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.gaussian import gaussian
from rainbow_fast.triton_kernels.rounding import INTERPRETED, full, multiply
from rainbow_fast.triton_kernels.variant import Variant


def products(precision: str, device: torch.device) -> str:
    """The precision that kernels take: "high", "medium", or a word of `tl.dot` in the place of "highest"."""
    return full(family(device)) if precision == "highest" else precision


@triton.jit
def places(first, positions, lines, AXES: tl.constexpr, STEP: tl.constexpr):
    """Image, line and position (int64) of samples first, first + 1, ...; `AXES` is the number of axes that exist."""
    k = tl.arange(0, STEP)
    zero = tl.zeros((STEP,), tl.int64)
    if AXES == 1:
        return zero, zero, first + k
    else:
        line = first // positions
        at = (first - line * positions).to(positions.dtype) + k  # 32 bits if the length of a line fits
        position, at = (at % positions).to(tl.int64), at // positions
        if AXES == 2:
            return line + at, zero, position
        else:
            image = line // lines
            at = (line - image * lines).to(lines.dtype) + at
            return image + at // lines, (at % lines).to(tl.int64), position


@triton.jit
def offsets(image, line, position, s_image, s_line, s_position, AXES: tl.constexpr):
    at = position * s_position
    if AXES > 1:
        at += image * s_image
    if AXES > 2:
        at += line * s_line
    return at


@triton.jit
def tile(x, rows, s_row, height, columns, width):
    """x at rows * s_row + columns, where columns are offsets; zero for rows >= height and where `width` is False."""
    inside = (rows < height)[:, None] & width[None, :]
    return tl.load(x + (rows * s_row)[:, None] + columns[None, :], mask=inside, other=0.0)


@triton.jit
def scores(
    g, g_row, g_col, neurons, n, u, u_channel, at, width, r, one,
    PRECISION: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """G u^T, neurons by samples. Only RANK terms are summed inside the tensor cores, which round towards zero.

    `one` is 1. As the compiler does not know its value, it cannot move the outer sum into the tensor cores.
    """
    s = tl.zeros((neurons.shape[0], at.shape[0]), g.dtype.element_ty)
    for first in range(0, r, RANK):
        k = (first + tl.arange(0, RANK)).to(tl.int64)
        a = tile(g, neurons, g_row, n, k * g_col, k < r)
        b = tile(u, k, u_channel, r, at, width)
        s += multiply(a, b, tl.zeros(s.shape, s.dtype), PRECISION) * tl.cast(one, s.dtype)
    return s


@triton.jit(do_not_specialize=["parts"])
def close_kernel(
    out, out_channel, out_image, out_line, out_position, positions, lines,
    sums, s_part, parts, channels, first, samples,
    AXES: tl.constexpr, ADD: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Write, or with `ADD` add, the sum of float64 parts (channels, samples) to `out`, at samples first, first + 1, ...

    The parts are summed in their order.
    """
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    start = tl.program_id(0).to(tl.int64) * SAMPLES
    s = start + tl.arange(0, SAMPLES)
    inside = (c < channels)[:, None] & (s < samples)[None, :]
    source = sums + (c * samples)[:, None] + s[None, :]
    image, line, position = places(first + start, positions, lines, AXES, SAMPLES)
    at = offsets(image, line, position, out_image, out_line, out_position, AXES)
    target = out + (c * out_channel)[:, None] + at[None, :]
    value = tl.zeros((CHANNELS, SAMPLES), tl.float64)
    if ADD:
        value += tl.load(target, mask=inside, other=0.0)
    for _ in range(parts):
        value += tl.load(source, mask=inside, other=0.0)
        source += s_part
    tl.store(target, value.to(out.dtype.element_ty), mask=inside)


Rows = Tensor | list[int]  # rows of G: explicit (n, r), or the address [seed, stream, row, column] of generated rows


@dataclass(frozen=True)
class Blocks:
    """How the work is divided. The division depends only on shapes, so that results do not depend on the machine.

    Attributes:
        panel: values of G or of features at a time. 16 MB in float32, which stay in L2 for the kernels that read them.
        tallest: most rows of a panel.
        sums: float64 sums for one block of samples.
        flush: most terms of a float32 sum of products, which is then added to a float64 sum.
        programs: wanted number of programs of a launch, for which sums are split: a few for each multiprocessor.
    """

    panel: int = 2**22
    tallest: int = 2**14
    sums: int = 2**22
    flush: int = 2048
    programs: int = 512

    def panels(self, rows: Rows, n: int, u: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Panels of the first n rows of G, with as many columns as u has channels: (first row, rows).

        The next panel overwrites the last one, so kernels that read a panel must be launched before the next panel.
        """
        if n == 0:
            return
        if isinstance(rows, Tensor):
            tallest = self.tallest
            yield from ((first, rows[first : min(first + tallest, n)]) for first in range(0, n, tallest))
            return
        r = u.shape[1]
        height = min(n, self.tallest, max(self.panel // max(r, 1) // 128, 1) * 128)
        panel = torch.empty(height, r, dtype=u.dtype, device=u.device)
        seed, stream, row, column = rows
        for first in range(0, n, height):
            part = panel[: n - first]
            gaussian(part, [seed, stream, row + first, column])
            yield first, part

    def split(self, tiles: int, length: int, step: int) -> tuple[int, int]:
        """The number of parts in which to sum `length` terms, for enough programs, and the terms of each per launch."""
        parts = max(1, min(triton.cdiv(self.programs, max(tiles, 1)), triton.cdiv(length, 4 * step)))
        return parts, self.terms(parts, length, step)

    def terms(self, parts: int, length: int, step: int) -> int:
        return min(self.flush, triton.cdiv(max(triton.cdiv(length, parts), 1), step) * step)

    def sums_at_once(self, channels: int) -> int:
        """The number of samples whose float64 sums fit into the workspace."""
        return max(self.sums // max(channels, 1) // 128, 1) * 128

    def of_samples(self, neurons: int, samples: int) -> Iterator[tuple[int, int]]:
        """Blocks of samples whose features fit into a panel: (first sample, number of samples)."""
        block = max(self.panel // neurons // 128, 1) * 128
        for first in range(0, samples, block):
            yield first, min(block, samples - first)


BLOCKS = Blocks()
CLOSE = {"CHANNELS": 16, "SAMPLES": 64, "num_warps": 4}


class Layout:
    """The common layout of tensors (N, c, *space) with at most two axes of space.

    It has as few and as long lines as the strides of all tensors allow.
    """

    def __init__(self, *tensors: Tensor) -> None:
        views = [x.reshape(*x.shape[:2], *[1] * (4 - x.dim()), *x.shape[2:]) for x in tensors]
        images, _, lines, positions = views[0].shape
        strides = [[x.stride(axis) for axis in (1, 0, 2, 3)] for x in views]
        self.samples = images * lines * positions
        if all(lines == 1 or positions == 1 or s[2] == positions * s[3] for s in strides):
            for s in strides:
                s[3] = s[2] if positions == 1 else s[3]
            lines, positions = 1, lines * positions
            if all(images == 1 or positions == 1 or s[1] == positions * s[3] for s in strides):
                for s in strides:
                    s[3] = s[1] if positions == 1 else s[3]
                images, positions = 1, images * positions
        self.axes = 3 if lines > 1 else 2 if images > 1 else 1
        self.grid = {"positions": positions, "lines": lines}
        self.strides = strides  # for each tensor the strides of channel, image, line, position


def parts_of(u: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The real and imaginary parts of pairs u (N, r, H, W, 2), and of their shift (2, N, *space); else u and shift.

    They are (u, v, shift, v_shift), with None for what is missing.
    """
    if u.dim() < 5:
        return u, None, shift, None
    return u[..., 0], u[..., 1], *((None, None) if shift is None else (shift[0], shift[1]))


# The arguments of kernels that belong together, by their names.


def strided(name: str, x: Tensor | None, strides: Sequence[int]) -> dict[str, Any]:
    """A tensor, and its strides in the order of `Layout`."""
    names = (f"{name}_{axis}" for axis in ("channel", "image", "line", "position"))
    return {name: x, **dict(zip(names, strides, strict=True))}


def matrix(name: str, x: Tensor | None) -> dict[str, Any]:
    """A matrix and its strides; zeros without a matrix."""
    row, col = (0, 0) if x is None else x.stride()
    return {name: x, f"{name}_row": row, f"{name}_col": col}


def close(out: Tensor, layout: Layout, strides: list[int], sums: Tensor, first: int, *, add: bool = False) -> None:
    """Write the sum of parts (parts, channels, samples) to `out` from sample `first` on; with `add`, add it."""
    parts, channels, samples = sums.shape
    if sums.numel() == 0:
        return
    grid = (triton.cdiv(samples, CLOSE["SAMPLES"]), triton.cdiv(channels, CLOSE["CHANNELS"]))
    close_kernel[grid](
        **strided("out", out, strides), **layout.grid, sums=sums, s_part=sums.stride(0), parts=parts,
        channels=channels, first=first, samples=samples, AXES=layout.axes, ADD=add, **CLOSE,
    )  # fmt: skip


Plans = dict[str, dict[str, int]]  # by dtype, "fp32" or "fp64", and by dtype and family of machines, "fp32 sm_80"


def plan_of(plans: Plans, u: Tensor) -> dict[str, int]:
    type = "fp64" if u.dtype == torch.float64 else "fp32"
    return plans.get(f"{type} {family(u.device)}", plans[type])


def family(device: torch.device) -> str:
    """The family of machines that share plans. It does not depend on the size of the machine, so neither do bits."""
    if INTERPRETED:
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


COUNTED = 256  # the rank for which the instructions of kernels of a long rank are counted
LONG = ("begin", "each", "first", "width", "o_part", "s_part", "s_row", "t_part")  # arguments that may need int64


def compilations(name: str, kernel, plans: Plans, pointers: tuple[str, ...], constants: dict) -> Iterator[Variant]:
    """The variants of a kernel for NCHW maps with a multiple of 16 positions, relu and no shift."""
    fixed = {"AXES": 2, "ACTIVATION": "relu", "SLOPE": 0.0, "shift": None} | constants
    unit = ("lines", "g_col", "a_col", "out_position", "u_position", "x_position", "w_position")
    names = [p.name for p in kernel.params if not p.is_constexpr and p.name not in ("scale", "one", *fixed)]
    fixed |= {key: 1 for key in unit if key in names}
    types = {key: "i64" if key in LONG else "i32" for key in names if key not in fixed}
    types |= {key: "*fp64" for key in ("out", "sums", "total", "square") if key in names}
    for type, precision in (("fp32", "highest"), ("fp32", "high"), ("fp64", "highest")):
        own = types | {key: f"*{type}" for key in pointers}
        for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
            plan = plans.get(f"{type} {target}", plans[type])
            constexprs = fixed | {key: value for key, value in plan.items() if key.isupper()}
            constexprs["PRECISION"] = full(target) if precision == "highest" else precision
            options = {key: value for key, value in plan.items() if not key.isupper()}
            yield Variant(
                f"{name} {type}" + " in two terms" * (precision == "high"), kernel, own, constexprs, options,
                tuple(own), products=True, inner=COUNTED // plan["RANK"], targets=(target,),
            )  # fmt: skip

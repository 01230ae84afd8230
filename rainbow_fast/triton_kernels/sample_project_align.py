# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align on a GPU: W' = scale G P, each number of G made once.

Up to a rank of 128 (float32: 64) a program keeps G of its rows and makes all columns of W' from it, a tile of P at a
time (`panel_kernel`). Beyond that, and in float64, slabs of G that fit into the L2 cache are written and multiplied
(`product_kernel`).

Bytes: b n m of W' written once, b r m of P read; operations: 2 n r m, 6 times as many in float32; 44 n r instructions.
Floors in ns per row of m = 1152: writing float32 is 1.4 on an H100 (3.35 TB/s) and 2.3 on an A100 (2.0 TB/s), bfloat16
half of it. Multiplying at r = 64 and 512: bfloat16 0.15 and 1.2 on an H100 (989 TF), 0.47 and 3.8 on an A100 (312 TF);
float32 0.9 and 7.2, 2.8 and 23. Generating: 0.09 and 0.73, 0.15 and 1.2. So narrow layers are bound by memory, wide
ones by the tensor cores.

A product of float32 is six of bfloat16: G and P are sums of three terms each, exactly, and the products smaller than
2^-26 of the whole are left out. TF32, three times, takes as long, but its operands spill.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.gaussian import gaussian
from rainbow_fast.triton_kernels.philox import EXACT, gaussian_tile, words
from rainbow_fast.triton_kernels.rounding import dot, rounded, split
from rainbow_fast.triton_kernels.variant import Variant

# By the number of terms: the largest rank that a program keeps, its rows, the columns of a tile, its warps.
PANEL = {
    1: {"RANK": 128, "ROWS": 128, "COLS": 64, "num_warps": 8},
    3: {"RANK": 64, "ROWS": 64, "COLS": 64, "num_warps": 4},
}
# By the dtype of the operands and the number of terms: a tile of W', and of how much of the rank at a time.
PRODUCT = {
    (torch.bfloat16, 1): {"ROWS": 128, "COLS": 128, "DEPTH": 64, "num_warps": 8},
    (torch.float16, 1): {"ROWS": 128, "COLS": 128, "DEPTH": 64, "num_warps": 8},
    (torch.bfloat16, 3): {"ROWS": 128, "COLS": 64, "DEPTH": 32, "num_warps": 8},
    (torch.float64, 1): {"ROWS": 64, "COLS": 64, "DEPTH": 16, "num_warps": 4},
}
STAGES = {"cuda": 3, "hip": 2}  # tiles of P on their way, as shared memory allows
PROGRAMS = 264  # two for each multiprocessor of an H100
SLAB = 16 << 20  # bytes of G at a time; an A100 has 40 MB of L2
MOST_COLUMNS = 1 << 30  # of one program, which counts them in 32 bits


@triton.jit
def load(pointers, plane, mask, TERMS: tl.constexpr):
    first = tl.load(pointers, mask=mask, other=0)
    if TERMS == 1:
        return (first,)
    else:
        second = tl.load(pointers + plane, mask=mask, other=0)
        return first, second, tl.load(pointers + 2 * plane, mask=mask, other=0)


@triton.jit
def product(a, b, acc, TERMS: tl.constexpr):
    """acc + a b of operands in TERMS terms, the smallest products first."""
    if TERMS == 3:
        acc = dot(a[2], b[0], acc)
        acc = dot(a[1], b[1], acc)
        acc = dot(a[0], b[2], acc)
        acc = dot(a[1], b[0], acc)
        acc = dot(a[0], b[1], acc)
    return dot(a[0], b[0], acc)


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "stream", "row_offset", "first_group"])
def panel_kernel(
    out,
    P,
    n: tl.int64,
    m: tl.int64,
    r: tl.int32,
    columns: tl.int32,  # of one program
    out_row: tl.int64,
    P_plane: tl.int64,
    P_row,
    P_col,
    seed_lo: tl.int32,
    seed_hi: tl.int32,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    scale: tl.float32,
    SKIP: tl.constexpr,  # columns of the first group that lie before the tile
    TERMS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
):
    top, left = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1).to(tl.int64) * columns
    i, q = tl.arange(0, ROWS), tl.arange(0, RANK // 4)
    g = gaussian_tile(top + row_offset + i, first_group.to(tl.uint32) + q, seed_lo, seed_hi, stream)
    a = split(g, P.dtype.element_ty, TERMS)
    k = tl.arange(0, RANK) - SKIP
    inside = (k >= 0) & (k < r) if SKIP else k < r
    rows = i < tl.minimum(n - top, ROWS).to(tl.int32)
    width = tl.minimum(m - left, columns).to(tl.int32)
    P += left * P_col + k.to(tl.int64)[:, None] * P_row
    out += top * out_row + left + i.to(tl.int64)[:, None] * out_row
    for start in tl.range(0, width, COLS, num_stages=STAGES):
        j = start + tl.arange(0, COLS)
        b = load(P + j.to(tl.int64)[None, :] * P_col, P_plane, inside[:, None] & (j < width)[None, :], TERMS)
        w = product(a, b, tl.zeros((ROWS, COLS), tl.float32), TERMS) * scale
        tl.store(out + j[None, :], rounded(w, out.dtype.element_ty), mask=rows[:, None] & (j < width)[None, :])


@triton.jit
def product_kernel(
    out,
    G,
    P,
    n: tl.int32,
    m: tl.int64,
    r: tl.int32,
    out_row: tl.int64,
    G_plane: tl.int64,
    G_row: tl.int64,
    P_plane: tl.int64,
    P_row,
    P_col,
    scale: tl.float64,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    type: tl.constexpr = tl.float64 if P.dtype.element_ty == tl.float64 else tl.float32
    top, left = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1).to(tl.int64) * COLS
    i, j = tl.arange(0, ROWS), tl.arange(0, COLS)
    rows = i < tl.minimum(n - top, ROWS).to(tl.int32)
    cols = j < tl.minimum(m - left, COLS).to(tl.int32)
    G += (top + i)[:, None] * G_row
    P += left * P_col + j.to(tl.int64)[None, :] * P_col
    factor = tl.full((), scale, type)
    w = tl.zeros((ROWS, COLS), type)
    for start in tl.range(0, r, DEPTH, num_stages=STAGES):
        k = start + tl.arange(0, DEPTH)
        a = load(G + k[None, :], G_plane, rows[:, None] & (k < r)[None, :], TERMS)
        b = load(P + k.to(tl.int64)[:, None] * P_row, P_plane, (k < r)[:, None] & cols[None, :], TERMS)
        if TERMS == 1:
            w = product(a, b, w, TERMS)
        else:
            # Tensor cores round towards zero: long sums are made outside. Were it not for the factor, the compiler
            # would let them add w after all.
            w += product(a, b, tl.zeros((ROWS, COLS), type), TERMS) * factor
    if TERMS == 1:
        w *= factor
    out += (top + i)[:, None] * out_row + left + j[None, :]
    tl.store(out, rounded(w, out.dtype.element_ty), mask=rows[:, None] & cols[None, :])


def three_terms(P: Tensor) -> Tensor:
    """A float32 matrix as the sum of three of bfloat16, (3, r, m), exactly."""
    first = P.to(torch.bfloat16)
    rest = P - first
    second = rest.to(torch.bfloat16)
    return torch.stack([first, second, (rest - second).to(torch.bfloat16)])


def sample_project_align(out: Tensor, P: Tensor, where: list[int], scale: float) -> None:
    """Write scale G P into `out` (n, m), whose rows are contiguous; P (r, m), G at `where` as in `gaussian`.

    An infinite entry of a float32 P gives NaN.
    """
    n, m = out.shape
    if out.numel() == 0:
        return
    planes = three_terms(P) if P.dtype == torch.float32 else P[None]
    skip = where[3] & 3
    rank = max(16, triton.next_power_of_2(P.shape[0] + skip))
    if planes.dtype == torch.float64 or rank > PANEL[len(planes)]["RANK"]:
        _by_slabs(out, planes, where, scale)
        return
    panel = {**PANEL[len(planes)], "RANK": rank, "STAGES": _stages()}
    down, across = triton.cdiv(n, panel["ROWS"]), triton.cdiv(m, panel["COLS"])
    columns = min(triton.cdiv(across, triton.cdiv(PROGRAMS, down)) * panel["COLS"], MOST_COLUMNS)
    *seeds, row_offset, col_offset = words(where)
    shape = (out, planes, n, m, P.shape[0], columns, out.stride(0), *planes.stride())
    address = (*seeds, row_offset, col_offset >> 2, scale, skip, len(planes))
    panel_kernel[down, triton.cdiv(m, columns)](*shape, *address, **panel, **EXACT)


def _by_slabs(out: Tensor, planes: Tensor, where: list[int], scale: float) -> None:
    (n, m), (terms, r, _) = out.shape, planes.shape
    tile = {**PRODUCT[planes.dtype, terms], "STAGES": _stages()}
    pitch = max(16, triton.cdiv(r, 16) * 16)
    rows = min(n, triton.cdiv(SLAB, terms * pitch * planes.element_size() * tile["ROWS"]) * tile["ROWS"])
    slab = torch.empty(terms, rows, pitch, dtype=planes.dtype, device=out.device)[..., :r]
    seed, stream, row_offset, col_offset = where
    for start in range(0, n, rows):
        part = out[start : start + rows]
        gaussian(slab[:, : len(part)], [seed, stream, row_offset + start, col_offset])
        grid = (triton.cdiv(len(part), tile["ROWS"]), triton.cdiv(m, tile["COLS"]))
        shape = (part, slab, planes, len(part), m, r, out.stride(0), *slab.stride()[:2], *planes.stride())
        product_kernel[grid](*shape, scale, terms, **tile, **EXACT)


def _stages() -> int:
    return STAGES["hip" if torch.version.hip else "cuda"]


_NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TARGETS = {"cuda": ("sm_80", "sm_90", "sm_100"), "hip": ("gfx942",)}


def variants() -> Iterator[Variant]:
    for platform, stages in STAGES.items():
        for out, type, rank, terms in (("fp32", "bf16", 16, 3), ("fp32", "bf16", 64, 3), ("bf16", "bf16", 128, 1)):
            panel = {**PANEL[terms], "RANK": rank, "STAGES": stages}
            warps = panel.pop("num_warps")
            yield Variant(
                f"sample_project_align {out} rank {rank}",
                panel_kernel,
                {"out": f"*{out}", "P": f"*{type}", "P_row": "i32"},
                {"P_col": 1, "SKIP": 0, "TERMS": terms, **panel},
                {"num_warps": warps, **EXACT},
                aligned=("out", "P", "m", "r", "columns", "out_row", "P_plane", "P_row"),
                gaussians=rank * panel["ROWS"] // (32 * warps),
                products=True,
                targets=_TARGETS[platform],
            )
        for (dtype, terms), tile in PRODUCT.items():
            tile = {**tile, "STAGES": stages}
            warps, type = tile.pop("num_warps"), _NAMES[dtype]
            out = "fp32" if terms == 3 else type
            yield Variant(
                f"sample_project_align {out} any rank",
                product_kernel,
                {"out": f"*{out}", "G": f"*{type}", "P": f"*{type}", "P_row": "i32"},
                {"P_col": 1, "TERMS": terms, **tile},
                {"num_warps": warps, **EXACT},
                aligned=("out", "G", "P", "m", "r", "out_row", "G_plane", "G_row", "P_plane", "P_row"),
                products=True,
                targets=_TARGETS[platform],
            )

# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align on a GPU: W' = scale G P, with each number of G generated once.

Up to a rank of 128 (64 in float32), a program keeps the rows of G that it needs, and computes all columns of W' from
them, one tile of P at a time (`panel_kernel`). For larger ranks, and in float64, slabs of G that fit into the L2 cache
are written and then multiplied (`product_kernel`).

W' takes b n m written bytes, and P takes b r m read bytes. There are 2 n r m operations, 6 times as many in float32,
and 44 n r instructions for G. The least times in ns for a row of m = 1152 are: for writing float32, 1.4 on an H100
(3.35 TB/s) and 2.3 on an A100 (2.0 TB/s), half of it for bfloat16; for products at r = 64 and 512 in bfloat16, 0.15 and
1.2 on an H100 (989 TF), 0.47 and 3.8 on an A100 (312 TF); in float32, 0.9 and 7.2, and 2.8 and 23; for generation, 0.09
and 0.73, and 0.15 and 1.2. Narrow layers are bound by memory, wide layers by the tensor cores.

A float32 product is six bfloat16 products: G and P are exact sums of three terms each, and the products below 2^-26 of
the whole are left out. Three TF32 products take as long, but their operands spill registers. If G is rounded to
bfloat16 ("bf16x2"), P is the sum of two terms, and there are two products. At the precision "high", both have two terms
and three products; at "medium", both are rounded to bfloat16.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.gaussian import gaussian
from rainbow_fast.triton_kernels.philox import EXACT, gaussian_tile, words
from rainbow_fast.triton_kernels.rounding import product, rounded, split
from rainbow_fast.triton_kernels.variant import Variant

# By the number of terms of G and of P: the largest rank, the rows of a program, the columns of a tile, the warps.
PANEL = {
    (1, 1): {"RANK": 128, "ROWS": 128, "COLS": 64, "num_warps": 8},
    (1, 2): {"RANK": 128, "ROWS": 128, "COLS": 32, "num_warps": 8},
    (2, 2): {"RANK": 64, "ROWS": 64, "COLS": 64, "num_warps": 4},
    (3, 3): {"RANK": 64, "ROWS": 64, "COLS": 64, "num_warps": 4},
}
# By the dtype of P, or the precision: the terms of G and of P, the tile of W', the part of the rank that is summed at a
# time.
PRODUCT: dict[torch.dtype | str, dict[str, int]] = {
    torch.float32: {"G_TERMS": 3, "TERMS": 3, "ROWS": 128, "COLS": 64, "DEPTH": 32, "num_warps": 8},
    "high": {"G_TERMS": 2, "TERMS": 2, "ROWS": 128, "COLS": 64, "DEPTH": 32, "num_warps": 8},
    "bf16x2": {"G_TERMS": 1, "TERMS": 2, "ROWS": 128, "COLS": 64, "DEPTH": 64, "num_warps": 8},
    torch.float64: {"G_TERMS": 1, "TERMS": 1, "ROWS": 64, "COLS": 64, "DEPTH": 16, "num_warps": 4},
    torch.bfloat16: {"G_TERMS": 1, "TERMS": 1, "ROWS": 128, "COLS": 128, "DEPTH": 64, "num_warps": 8},
    torch.float16: {"G_TERMS": 1, "TERMS": 1, "ROWS": 128, "COLS": 128, "DEPTH": 64, "num_warps": 8},
}
STAGES = {"cuda": 3, "hip": 2}  # tiles of P that are loaded ahead, as shared memory allows
PROGRAMS = 264  # two for each multiprocessor of an H100
SLAB = 16 << 20  # bytes of G at a time; an A100 has 40 MB of L2
MOST_COLUMNS = 1 << 30  # most columns of one program, which counts them in 32 bits


@triton.jit
def load_terms(pointers, plane, TERMS: tl.constexpr):
    first = tl.load(pointers)
    if TERMS == 1:
        return (first,)
    elif TERMS == 2:
        return first, tl.load(pointers + plane)
    else:
        return first, tl.load(pointers + plane), tl.load(pointers + 2 * plane)


@triton.jit(do_not_specialize=["n", "seed_lo", "seed_hi", "stream", "row_offset", "first_group"])
def panel_kernel(
    out,
    P,  # padded planes, see `planes`
    n: tl.int64,
    m: tl.int64,
    columns: tl.int32,  # columns of one program
    out_row: tl.int64,
    P_plane: tl.int64,
    P_row: tl.int64,
    seed_lo: tl.int32,
    seed_hi: tl.int32,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    scale: tl.float32,
    G_TERMS: tl.constexpr,
    TERMS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
):
    top, left = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1).to(tl.int64) * columns
    i, q = tl.arange(0, ROWS), tl.arange(0, RANK // 4)
    g = gaussian_tile(top + row_offset + i, first_group.to(tl.uint32) + q, seed_lo, seed_hi, stream)
    a = split(g, P.dtype.element_ty, G_TERMS)
    rows = i < tl.minimum(n - top, ROWS).to(tl.int32)
    width = tl.minimum(m - left, columns).to(tl.int32)
    P += left + tl.arange(0, RANK).to(tl.int64)[:, None] * P_row
    out += left + (top + i)[:, None] * out_row
    for start in tl.range(0, width, COLS, num_stages=STAGES):
        j = start + tl.arange(0, COLS)
        b = load_terms(P + j[None, :], P_plane, TERMS)
        w = product(a, b, tl.zeros((ROWS, COLS), tl.float32), G_TERMS, TERMS) * scale
        tl.store(out + j[None, :], rounded(w, out.dtype.element_ty), mask=rows[:, None] & (j < width)[None, :])


@triton.jit
def product_kernel(
    out,
    G,  # planes of whole tiles
    P,
    n: tl.int32,
    m: tl.int64,
    r: tl.int32,
    out_row: tl.int64,
    G_plane: tl.int64,
    P_plane: tl.int64,
    P_row: tl.int64,
    scale: tl.float64,
    G_TERMS: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    type: tl.constexpr = tl.float64 if P.dtype.element_ty == tl.float64 else tl.float32
    # Neighbouring programs share columns of P. A one-dimensional grid has no bound on their number.
    down = tl.cdiv(n, ROWS)
    across = tl.program_id(0) // down
    top, left = (tl.program_id(0) - across * down).to(tl.int64) * ROWS, across.to(tl.int64) * COLS
    i, j, k = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, DEPTH)
    G += (top + i)[:, None] * r + k[None, :]
    P += left + k.to(tl.int64)[:, None] * P_row + j[None, :]
    factor = tl.full((), scale, type)
    w = tl.zeros((ROWS, COLS), type)
    for _ in tl.range(0, r, DEPTH, num_stages=STAGES):
        a, b = load_terms(G, G_plane, G_TERMS), load_terms(P, P_plane, TERMS)
        if TERMS == 1:
            w = product(a, b, w, G_TERMS, TERMS)
        else:
            # Tensor cores round towards zero, so long sums are computed outside of them. The factor keeps the compiler
            # from moving the sum into the tensor cores.
            w += product(a, b, tl.zeros((ROWS, COLS), type), G_TERMS, TERMS) * factor
        G += DEPTH
        P += DEPTH * P_row
    if TERMS == 1:
        w *= factor
    inside = (i < n - top)[:, None] & (j < m - left)[None, :]
    out += left + (top + i)[:, None] * out_row + j[None, :]
    tl.store(out, rounded(w, out.dtype.element_ty), mask=inside)


def planes(P: Tensor, terms: int, skip: int, rank: int, cols: int) -> Tensor:
    """P in whole tiles, (terms, rank, a multiple of cols): its rows begin at row `skip`, and zeros surround them.

    The zeros cancel columns of G that are generated but not part of the product. Several terms are bfloat16 numbers
    whose sum is P; three represent float32 exactly, two nearly. With one term, P keeps its dtype.
    """
    r, m = P.shape
    shape = (terms, rank, triton.cdiv(m, cols) * cols)
    padded = torch.zeros(shape, dtype=torch.bfloat16 if terms > 1 else P.dtype, device=P.device)
    for term in padded[:, skip : skip + r, :m]:
        term.copy_(P)
        P = P - term if terms > 1 else P
    return padded


def sample_project_align(
    out: Tensor,
    P: Tensor,
    G_dtype: torch.dtype,
    where: list[int],
    scale: float,
    precision: str = "highest",
    *,
    programs: int = PROGRAMS,
    slab_bytes: int = SLAB,
) -> None:
    """Write scale G P into `out` (n, m), whose rows are contiguous. P (r, m) may have any strides; G is at `where`.

    G is rounded to the dtype of P. It may also be rounded to bfloat16 with a float32 P, which is then the sum of two
    bfloat16 numbers. An infinite entry of a float32 P gives NaN, and so does an entry that bfloat16 rounds to infinity
    (from 3.396e38 on). With one term, sums stay inside the tensor cores, which round towards zero; this error is
    smaller than that of rounding G.

    Args:
        precision: of float32 products: "highest", "high" or "medium".
        programs: number of programs of a launch of `panel_kernel`.
        slab_bytes: bytes of G at a time for `product_kernel`.
    """
    if out.numel() == 0:
        return
    rounds_G = P.dtype == torch.float32 and G_dtype == torch.bfloat16
    if P.dtype == torch.float32 and precision == "medium" and not rounds_G:
        P = P.bfloat16()
    splits = P.dtype == torch.float32 and precision == "high"
    form = "bf16x2" if rounds_G else "high" if splits else P.dtype
    tile = PRODUCT[form]
    G_terms, terms = tile["G_TERMS"], tile["TERMS"]
    panel = PANEL[G_terms, terms]
    if P.dtype == torch.float64 or P.shape[0] + (where[3] & 3) > panel["RANK"]:
        _by_slabs(out, P, tile, where, scale, slab_bytes)
        return
    (n, m), skip = out.shape, where[3] & 3
    rank = max(16, triton.next_power_of_2(P.shape[0] + skip))
    padded = planes(P, terms, skip, rank, panel["COLS"])
    down, across = triton.cdiv(n, panel["ROWS"]), triton.cdiv(m, panel["COLS"])
    columns = min(triton.cdiv(across, triton.cdiv(programs, down)) * panel["COLS"], MOST_COLUMNS)
    *seeds, row_offset, col_offset = words(where)
    arrays = (out, padded, n, m, columns, out.stride(0), *padded.stride()[:2])
    constants = {**panel, "RANK": rank, "G_TERMS": G_terms, "TERMS": terms, "STAGES": _stages()}
    grid = (down, triton.cdiv(m, columns))
    panel_kernel[grid](*arrays, *seeds, row_offset, col_offset >> 2, scale, **constants, **EXACT)


def _by_slabs(out: Tensor, P: Tensor, tile: dict[str, int], where: list[int], scale: float, slab_bytes: int) -> None:
    (n, m), (seed, stream, row_offset, col_offset) = out.shape, where
    skip, terms = col_offset & 3, tile["TERMS"]
    rank = max(1, triton.cdiv(P.shape[0] + skip, tile["DEPTH"])) * tile["DEPTH"]
    padded, G_terms = planes(P, terms, skip, rank, tile["COLS"]), tile["G_TERMS"]
    row = G_terms * rank * padded.itemsize
    tiles = min(triton.cdiv(n, tile["ROWS"]), max(1, slab_bytes // (row * tile["ROWS"])))
    slab = padded.new_empty(G_terms, tiles * tile["ROWS"], rank)
    constants = {**tile, "STAGES": _stages()}
    for start in range(0, n, slab.shape[1]):
        part = out[start : start + slab.shape[1]]
        gaussian(slab if len(slab) > 1 else slab[0], [seed, stream, row_offset + start, col_offset - skip])
        grid = (triton.cdiv(len(part), tile["ROWS"]) * triton.cdiv(m, tile["COLS"]),)
        strides = (out.stride(0), slab.stride(0), *padded.stride()[:2])
        product_kernel[grid](part, slab, padded, len(part), m, rank, *strides, scale, **constants, **EXACT)


def _stages() -> int:
    return STAGES["hip" if torch.version.hip else "cuda"]


NAMES = {(2, 2): ", both in two terms", (1, 2): ", P in two terms"}
_TARGETS = {"cuda": ("sm_80", "sm_90", "sm_100"), "hip": ("gfx942",)}


def variants() -> Iterator[Variant]:
    for platform, stages in STAGES.items():
        panels = (
            ((3, 3), 16, "fp32", ()),
            ((3, 3), 64, "fp32", ("m", "out_row")),
            ((2, 2), 64, "fp32", ("m", "out_row")),
            ((1, 2), 128, "bf16", ()),
            ((1, 1), 128, "bf16", ()),
        )
        for terms, rank, out, aligned in panels:
            panel = {**PANEL[terms], "RANK": rank, "G_TERMS": terms[0], "TERMS": terms[1], "STAGES": stages}
            warps = panel.pop("num_warps")
            yield Variant(
                f"sample_project_align {out} rank {rank}" + NAMES.get(terms, ""),
                panel_kernel,
                {"out": f"*{out}", "P": "*bf16"},
                panel,
                {"num_warps": warps, **EXACT},
                aligned=("out", "P", "columns", "P_plane", "P_row", *aligned),
                gaussians=rank * panel["ROWS"] // (32 * warps),
                products=True,
                targets=_TARGETS[platform],
            )
        for form, type in zip(PRODUCT, ("bf16", "bf16", "bf16", "fp64", "bf16", "fp16"), strict=True):
            tile = {**PRODUCT[form], "STAGES": stages}
            warps, out = tile.pop("num_warps"), "fp32" if form in (torch.float32, "high") else type
            yield Variant(
                f"sample_project_align {out} any rank" + NAMES.get((tile["G_TERMS"], tile["TERMS"]), ""),
                product_kernel,
                {"out": f"*{out}", "G": f"*{type}", "P": f"*{type}"},
                tile,
                {"num_warps": warps, **EXACT},
                aligned=("out", "G", "P", "m", "r", "out_row", "G_plane", "P_plane", "P_row"),
                products=True,
                targets=_TARGETS[platform],
            )

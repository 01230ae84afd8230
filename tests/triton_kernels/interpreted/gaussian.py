# SPDX-License-Identifier: BSD-3-Clause
"""The Triton gaussian has the bits of the reference; run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
import triton
import triton.language as tl
from here import differing_bits
from torch import Tensor

from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.triton_kernels.gaussian import gaussian
from rainbow_fast.triton_kernels.philox import philox
from rainbow_fast.triton_kernels.tiles import NARROW, WIDE

SEED, STREAM = 2**63 - 1, 2**32 - 1

TILES = {  # rows, cols, row_offset, col_offset
    "one": (1, 1, 0, 0),
    "one-column-of-many-rows": (NARROW["ROWS"] + 3, 1, 0, 2),
    "whole-tiles": (WIDE["ROWS"], 8 * WIDE["GROUPS"], 8, 4),
    "a-column-too-many": (WIDE["ROWS"] + 1, 4 * WIDE["GROUPS"] + 1, 5, 0),
    "one-column-before-the-end-of-a-group": (3, 300, 5, 7),
    "narrow-tiles-across-a-group": (NARROW["ROWS"] + 1, 16, 5, 1),
    "rows-cross-2^32": (40, 21, 2**32 - 19, 0),
    "rows-end-at-2^56": (19, 70, 2**56 - 19, 5),
    "columns-cross-2^32": (9, 203, 0, 2**32 - 101),
    "columns-end-at-2^34": (7, 131, 3, 2**34 - 131),
}


def expected(rows: int, cols: int, row_offset: int = 0, col_offset: int = 0) -> Tensor:
    return torch.from_numpy(gaussian_reference([SEED, STREAM, row_offset, col_offset], rows, cols))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_matches_reference(guarded, tile: tuple[int, int, int, int]) -> None:
    rows, cols, *offsets = tile
    out = guarded(rows, cols)
    gaussian(out, [SEED, STREAM, *offsets])
    assert differing_bits(out, expected(rows, cols, *offsets)) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_round_the_float32_value(guarded, dtype: torch.dtype) -> None:
    out = guarded(33, 301, dtype=dtype)
    gaussian(out, [SEED, STREAM, 7, 1])
    assert differing_bits(out, expected(33, 301, 7, 1).to(dtype)) == 0


def test_writes_its_tile_and_nothing_else(guarded) -> None:
    whole = guarded(33, 330)
    gaussian(whole[:, 5:316], [SEED, STREAM, 0, 3])
    assert differing_bits(whole[:, 5:316], expected(33, 311, 0, 3)) == 0
    assert whole[:, :5].isnan().all() and whole[:, 316:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(guarded, shape: tuple[int, int]) -> None:
    gaussian(guarded(*shape), [SEED, STREAM, 0, 3])


@triton.jit
def both_philox(ours, theirs, seed, N: tl.constexpr):
    j = tl.arange(0, N)
    zero = tl.zeros((N,), tl.uint32)
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    a0, a1, a2, a3 = philox(j.to(tl.uint32), zero, zero, zero, low, high)
    b0, b1, b2, b3 = tl.randint4x(seed, j)
    tl.store(ours + j, a0 ^ (a1 * 3) ^ (a2 * 5) ^ (a3 * 7))
    tl.store(theirs + j, b0 ^ (b1 * 3) ^ (b2 * 5) ^ (b3 * 7))


def test_rounds_are_those_of_triton() -> None:
    """tl.randint4x is Philox4x32-10 at counter (offset, 0, 0, 0)."""
    ours, theirs = torch.zeros(256, dtype=torch.int32), torch.ones(256, dtype=torch.int32)
    both_philox[(1,)](ours, theirs, 0x0123456789ABCDEF, 256)
    assert torch.equal(ours, theirs)

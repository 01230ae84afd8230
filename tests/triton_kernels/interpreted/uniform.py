# SPDX-License-Identifier: BSD-3-Clause
"""The Triton uniform has the bits of the reference; run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
from here import differing_bits
from torch import Tensor

from rainbow_fast.ops.uniform import uniform_reference
from rainbow_fast.triton_kernels.tiles import NARROW, WIDE
from rainbow_fast.triton_kernels.uniform import uniform

SEED, STREAM = 2**63 - 1, 2**32 - 1
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

TILES = {  # rows, cols, row_offset, col_offset
    "one": (1, 1, 0, 0),
    "whole-tiles": (WIDE["ROWS"], 8 * WIDE["GROUPS"], 8, 4),
    "one-column-before-the-end-of-a-group": (3, 300, 5, 7),
    "narrow-tiles-across-a-group": (NARROW["ROWS"] + 1, 16, 5, 1),
    "rows-cross-2^32": (40, 21, 2**32 - 19, 0),
    "rows-end-at-2^56": (19, 70, 2**56 - 19, 5),
    "columns-cross-2^32": (9, 203, 0, 2**32 - 101),
    "columns-end-at-2^34": (7, 131, 3, 2**34 - 131),
}


def expected(rows: int, cols: int, row_offset: int, col_offset: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(uniform_reference([SEED, STREAM, row_offset, col_offset], rows, cols, dtype)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_matches_reference(guarded, tile: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    rows, cols, *offsets = tile
    out = guarded(rows, cols, dtype=dtype)
    uniform(out, [SEED, STREAM, *offsets])
    assert differing_bits(out, expected(rows, cols, *offsets, dtype)) == 0


def test_writes_its_tile_and_nothing_else(guarded) -> None:
    whole = guarded(33, 330, dtype=torch.float64)
    uniform(whole[:, 5:316], [SEED, STREAM, 0, 3])
    assert differing_bits(whole[:, 5:316], expected(33, 311, 0, 3, torch.float64)) == 0
    assert whole[:, :5].isnan().all() and whole[:, 316:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(guarded, shape: tuple[int, int]) -> None:
    uniform(guarded(*shape), [SEED, STREAM, 0, 3])

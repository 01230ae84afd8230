# SPDX-License-Identifier: BSD-3-Clause
"""The Triton sample_project_align against float64; run by tests/triton_kernels/test_triton.py."""

import functools

import numpy as np
import pytest
import torch
from here import differing_bits, draw
from tolerance import assert_close_to_float64
from torch import Tensor

from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.ops.sample_project_align import in_two_terms, sample_project_align_reference
from rainbow_fast.triton_kernels import sample_project_align as kernels

SCALE = 0.3


def check(
    out: Tensor, P: Tensor, row_offset: int = 0, col_offset: int = 0, rounding: torch.dtype | None = None
) -> None:
    """Fill `out` with the kernel, and compare it with float64."""
    where = [2**63 - 1, 5 << 12, row_offset, col_offset]
    kernels.sample_project_align(out, P, rounding or P.dtype, where, SCALE)
    G = torch.from_numpy(gaussian_reference(where, len(out), len(P)))
    precision = "bf16x2" if rounding else None
    plain = sample_project_align_reference(G, P, SCALE, precision).to(out.dtype)
    wanted = SCALE * (G.to(rounding or P.dtype).double() @ (in_two_terms(P) if rounding else P).double())
    assert_close_to_float64(out, wanted, plain, terms=len(P))


CASES = {  # n, r, m, row_offset, col_offset
    "one": (1, 1, 1, 0, 0),
    "rank-0": (3, 0, 5, 0, 1),
    "odd": (67, 5, 27, 3, 0),  # the first layer of a network for images
    "rows-cross-2^32": (40, 9, 70, 2**32 - 19, 0),
    "columns-cross-2^32": (5, 60, 9, 0, 2**32 - 37),
    "columns-end-at-2^34": (5, 13, 9, 2**56 - 5, 2**34 - 13),
    "whole-panel": (64, 64, 128, 0, 4),
    "one-more-than-a-panel": (65, 64, 65, 0, 1),
    "many-tiles-of-rank": (130, 131, 66, 7, 2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_float64(guarded, case: tuple[int, int, int, int, int]) -> None:
    n, r, m, *offsets = case
    check(guarded(n, m), draw(r, m), *offsets)


@pytest.mark.parametrize("r", [7, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(guarded, dtype: torch.dtype, r: int) -> None:
    check(guarded(70, 67, dtype=dtype), draw(r, 67).to(dtype), 1, 3)


@pytest.mark.parametrize("r", [7, 70])
def test_a_result_of_another_dtype(guarded, r: int) -> None:
    check(guarded(9, 67, dtype=torch.bfloat16), draw(r, 67))
    check(guarded(9, 67), draw(r, 67).bfloat16())
    check(guarded(9, 67), draw(r, 67).double())


@pytest.mark.parametrize("r", [7, 125, 126, 200])  # one that a program keeps, three columns on; and one more
def test_two_terms(guarded, r: int) -> None:
    check(guarded(130, 67), draw(r, 67), 1, 3, torch.bfloat16)
    check(guarded(9, 67, dtype=torch.bfloat16), draw(67, r).T, rounding=torch.bfloat16)


@pytest.mark.parametrize("r", [7, 62, 130])  # one that a program keeps, and more
@pytest.mark.parametrize(("precision", "terms"), [("high", 2), ("medium", 1)])
def test_precisions(guarded, precision: str, terms: int, r: int) -> None:
    where, P, out = [3, 1, 7, 1], draw(r, 67), guarded(130, 67)
    kernels.sample_project_align(out, P, P.dtype, where, SCALE, precision)
    G = torch.from_numpy(gaussian_reference(where, 130, r))
    sides = [t.bfloat16().double() if terms == 1 else in_two_terms(t).double() for t in (G, P)]
    size = SCALE * (G.double().abs() @ P.double().abs())
    # The product of both second terms is at most 2^-16; float32 sums have 1e-6.
    left_out = 2.0**-16 if terms == 2 else 0
    assert ((out - SCALE * sides[0] @ sides[1]).abs() <= (left_out + 1e-6) * size).all()
    assert ((out - SCALE * G.double() @ P.double()).abs() <= 2.0 ** (-14 if terms == 2 else -7) * size).all()


@pytest.mark.parametrize("r", [7, 70])
def test_any_layout(guarded, r: int) -> None:
    check(guarded(5, 9), draw(9, r).T)
    whole = guarded(5, 90)
    check(whole[:, 3:80], draw(r, 154)[:, ::2])
    assert whole[:, :3].isnan().all() and whole[:, 80:].isnan().all()


@pytest.mark.parametrize("r", [7, 70])
def test_empty(guarded, r: int) -> None:
    for n, m in ((0, 4), (4, 0)):
        kernels.sample_project_align(guarded(n, m), draw(r, m), torch.float32, [1, 0, 0, 0], 1.0)


def in_order(a: np.ndarray, b: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """A product that adds the terms of each entry in order, at any place in a tile, which NumPy's BLAS need not do."""
    terms = (a[:, k, None].astype(dtype) * b[k].astype(dtype) for k in range(a.shape[1]))
    return functools.reduce(np.add, terms)


@pytest.mark.parametrize("r", [7, 70])
def test_the_way_of_making_it_does_not_matter(guarded, monkeypatch: pytest.MonkeyPatch, r: int) -> None:
    """The same bits for rows alone, for all columns in one program, and for one tile of rows in each slab."""
    monkeypatch.setattr(np, "matmul", in_order)  # which the interpreter takes for a product of tiles
    P, whole, part, other = draw(r, 150), guarded(200, 150), guarded(70, 150), guarded(200, 150)
    kernels.sample_project_align(whole, P, torch.float32, [3, 1, 0, 0], SCALE)
    kernels.sample_project_align(part, P, torch.float32, [3, 1, 130, 0], SCALE)
    assert differing_bits(whole[130:], part) == 0
    kernels.sample_project_align(other, P, torch.float32, [3, 1, 0, 0], SCALE, programs=1, slab_bytes=1)
    assert differing_bits(whole, other) == 0


def test_terms_are_exact() -> None:
    P = draw(3, 50) * torch.logspace(-20, 20, 50)
    planes = kernels.planes(P, 3, 2, 16, 64)
    assert planes.shape == (3, 16, 64) and planes.dtype == torch.bfloat16
    assert torch.equal(planes.double().sum(0)[2:5, :50], P.double())
    assert (planes[:, :2] == 0).all() and (planes[:, 5:] == 0).all() and (planes[:, :, 50:] == 0).all()

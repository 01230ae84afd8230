# SPDX-License-Identifier: BSD-3-Clause
"""polar of matrices with null directions: the rank, what stays zero, and how it is completed."""

import math

import pytest
import torch
from here import BACKENDS, draw
from matrices import isometry, matrix, orthogonality, power_law

import rainbow_fast as rf


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("d", "m"), [(128, 128), (60, 200), (200, 60)], ids=["square", "wide", "tall"])
def test_rank_deficient(d: int, m: int, dtype: torch.dtype, backend: str) -> None:
    r = min(d, m) // 2
    S = power_law(r, 100.0)
    left, right = isometry(d, r, 0), isometry(m, r, 1)
    M = ((left * S) @ right.T).to(dtype)
    partial = rf.polar(M, backend=backend)
    # Rounding the entries of M to float32 moves its smallest singular value by up to 6e-8 of the largest.
    assert int(partial.rank) == r and abs(partial.condition / 100 - 1) < 1e-5
    assert abs(partial.nuclear_norm / S.sum() - 1) < 1e-6
    # On the range the goal holds. Off it, A is zero to the rounding of its entries and the tilt that rounding M causes.
    goal = 1e-6 if dtype == torch.float32 else 1e-11
    assert torch.linalg.norm(partial.A.double() - left @ right.T) / math.sqrt(r) <= goal
    assert torch.linalg.svdvals(partial.A.double())[r] <= goal
    assert partial.residual <= (1e-6 if dtype == torch.float32 else 1e-13)  # the rounding of M, and some of float64

    complete = rf.polar(M, rank="complete", backend=backend)
    assert orthogonality(complete.A) <= (5e-7 if dtype == torch.float32 else 1e-13)
    added = complete.A.double() - partial.A.double()
    assert torch.linalg.norm(left.T @ added) <= 10 * goal and torch.linalg.norm(added @ right) <= 10 * goal
    for a, b in zip(complete[1:], partial[1:], strict=True):
        assert torch.equal(a, b)  # statistics are those of the directions that M determines


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("d", "m"), [(20, 20), (20, 31), (31, 20)], ids=["square", "wide", "tall"])
def test_completion_depends_on_the_null_spaces_alone(d: int, m: int, backend: str) -> None:
    left, right = isometry(d, 12, 0), isometry(m, 12, 1)
    added = []
    for seed in (5, 7):  # the same spaces with other singular vectors and values, and another polar factor
        M = left @ matrix(12, 12, power_law(12, 30.0 * seed), seed=seed) @ right.T
        complete, partial = rf.polar(M, rank="complete", backend=backend), rf.polar(M, backend=backend)
        assert int(partial.rank) == 12
        added.append(complete.A - partial.A)
    # 1e-10: the null spaces are known to the rounding of float64 times the condition
    torch.testing.assert_close(added[0], added[1], rtol=0, atol=1e-10)
    assert torch.linalg.matrix_rank(added[0], atol=1e-6) == min(d, m) - 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_rank_needs_no_completion(backend: str) -> None:
    M = matrix(9, 14, power_law(9, 10.0))
    assert torch.equal(rf.polar(M, rank="complete", backend=backend).A, rf.polar(M, backend=backend).A)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_decides_the_rank(backend: str) -> None:
    M = matrix(6, 8, torch.tensor([1.0, 0.1, 1e-3, 1e-5, 1e-9, 1e-12]))
    for rtol, rank in ((0.05, 2), (1e-2, 2), (1e-4, 3), (1e-7, 4), (1e-10, 5), (None, 6), (0.0, 6)):
        result = rf.polar(M, rtol=rtol, backend=backend)
        assert int(result.rank) == rank
        assert int(torch.linalg.matrix_rank(result.A, atol=0.5)) == rank
    assert int(rf.polar(M.float(), backend=backend).rank) == 4  # 8 eps of float32 is 1e-6
    assert int(rf.polar(torch.ones(4, 4), backend=backend).rank) == 1


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)], ids=["wide", "tall", "square"])
def test_rows_and_columns_of_zeros_are_null(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are never active: the rest is iterated, and no singular factors are computed."""
    M = draw(3, *shape, dtype=torch.float64)
    M[0, 3] = M[0, :, 7] = M[2, 11:14] = 0
    wanted = [rf.polar(one, backend="reference") for one in M]
    for factors in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, factors, None)
    got = rf.polar(M)
    for i, one in enumerate(wanted):
        torch.testing.assert_close(got.A[i], one.A, rtol=0, atol=1e-12)  # condition below 1e3 in float64
        assert got.rank[i] == one.rank
        torch.testing.assert_close(got.condition[i], one.condition, rtol=0.01, atol=0)  # as documented
    assert (got.A[0, 3] == 0).all() and (got.A[0, :, 7] == 0).all()

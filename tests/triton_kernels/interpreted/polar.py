# SPDX-License-Identifier: BSD-3-Clause
"""The iteration of polar for GPUs with interpreted kernels is as right as the CPU kernel;
run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
from here import draw
from matrices import assert_is_polar, isometry, matrix, orthogonality, power_law

from rainbow_fast.triton_kernels.lanczos import largest_eigenvalue
from rainbow_fast.triton_kernels.polar import DONE, FAILED, NULL, combine, polar
from rainbow_fast.triton_kernels.zolotarev import zolotarev

NUCLEAR_NORM, RANK, CONDITION, RESIDUAL, ORTHOGONALITY, OUTCOME = range(6)

# dtype, shape, condition, forward error: as tests/ops/test_polar.py
CASES = {
    "one-stage": (torch.float32, (33, 70), 1e3, 2e-6),
    "two-stages-tall": (torch.float32, (70, 20), 1e6, 2e-6),
    "one-stage-double": (torch.float64, (70, 33), 1e3, 5e-12),
    "three-stages-double": (torch.float64, (33, 33), 1e8, 1e-7),
}


@pytest.mark.parametrize(("dtype", "shape", "condition", "forward"), CASES.values(), ids=CASES)
def test_accuracy(guarded, dtype: torch.dtype, shape: tuple[int, int], condition: float, forward: float) -> None:
    M = matrix(*shape, power_law(min(shape), condition), dtype)
    out = guarded(1, *shape, dtype=dtype)
    [statistics] = polar(out, M[None], 0.0)
    A, single = out[0], dtype == torch.float32
    assert_is_polar(M, A, forward=forward, condition=condition)
    S = torch.linalg.svdvals(M.double())
    assert statistics[OUTCOME] == DONE and statistics[RANK] == min(shape)
    # As in tests/ops/test_polar.py; residual and orthogonality are estimated from eight Gaussian rows.
    assert abs(statistics[NUCLEAR_NORM] / S.sum() - 1) <= (5e-8 if single else 1e-13)
    assert abs(statistics[CONDITION] / (S[0] / S[-1]) - 1) <= 0.01
    H = A.double() @ M.double().T if shape[0] <= shape[1] else A.double().T @ M.double()
    left = M.double() - ((H + H.T) / 2 @ A.double() if shape[0] <= shape[1] else A.double() @ (H + H.T) / 2)
    exact = float(torch.linalg.norm(left) / torch.linalg.norm(M.double()))
    assert 0.5 < statistics[RESIDUAL] / exact < 2 and 0.5 < statistics[ORTHOGONALITY] / orthogonality(A) < 2


@pytest.mark.parametrize("shape", [(33, 33), (50, 20)], ids=str)
def test_accuracy_of_float32(guarded, shape: tuple[int, int]) -> None:
    """Float64 matrices as float32 ones: there is no Newton-Schulz step, and the claim is that of ops/polar.py."""
    M, out = matrix(*shape, power_law(min(shape), 1e8)), guarded(1, *shape, dtype=torch.float64)
    [statistics] = polar(out, M[None], 1e-10, True)
    assert statistics[OUTCOME] == DONE and orthogonality(out[0]) <= 1e-6 and statistics[RESIDUAL] <= 1e-6


EDGES = {
    "one-by-one": (1, 1, [3.0]),
    "row": (1, 7, [2.0]),
    "column": (7, 1, [2.0]),
    "all-equal": (6, 9, [5.0] * 6),  # the Krylov vectors end at once
    "two-clusters": (10, 10, [1.0] * 5 + [1e-5] * 5),
    "one-tinier": (10, 11, [1.0] * 9 + [5e-7]),  # not resolved by the first Gram matrix
}


@pytest.mark.parametrize(("d", "m", "values"), EDGES.values(), ids=EDGES)
def test_edges(guarded, d: int, m: int, values: list[float]) -> None:
    M, out = matrix(d, m, torch.tensor(values)), guarded(1, d, m, dtype=torch.float64)
    [statistics] = polar(out, M[None], 0.0)
    assert_is_polar(M, out[0], forward=1e-9, condition=values[0] / values[-1])
    assert abs(statistics[CONDITION] * values[-1] / values[0] - 1) < 0.001


def test_matrices_of_a_batch_go_their_own_ways(guarded) -> None:
    """Matrices of one, two and three stages, one with a null direction, one with a NaN, in the caller's strides."""
    conditions = (5.0, 1e9, 30.0, 1e5, 7.0)
    stack = torch.stack([matrix(9, 14, power_law(9, c), seed=s) for s, c in enumerate(conditions)])
    stack[2, 3] = stack[2, 4]
    stack[4, 0, 0] = torch.nan
    out = guarded(5, 9, 14, dtype=torch.float64)
    statistics = polar(out, stack.mT.contiguous().mT, 1e-12)
    assert statistics[:, OUTCOME].tolist() == [DONE, DONE, NULL, DONE, FAILED]
    assert out[2].isnan().all() and out[4].isnan().all()
    for i in (0, 1, 3):
        assert_is_polar(stack[i], out[i], forward=1e-6, condition=conditions[i])
    assert polar(out[:0], stack[:0], 0.0).shape == (0, 6)


def test_null_where_the_condition_says_so(guarded) -> None:
    M = matrix(12, 20, power_law(12, 1e6), torch.float32)[None]
    out = guarded(1, 12, 20)
    # Below 1 / condition and above it
    for rtol, outcome in ((0.9e-6, DONE), (1.1e-6, NULL)):
        assert polar(out, M, rtol)[0, OUTCOME] == outcome


@pytest.mark.parametrize("d", [7, 50, 150])
def test_largest_eigenvalue(d: int) -> None:
    """It is an estimate from below: exact in a whole Krylov space, within 1 % at the dense edge of a Wishart matrix."""
    X = draw(d, 2 * d, dtype=torch.float64)
    R = (X @ X.T)[None]
    exact = torch.linalg.eigvalsh(R[0])[-1]
    estimate = largest_eigenvalue(R, draw(d, dtype=torch.float64, seed=1))
    assert (-1e-8 if d < 32 else -0.01) < estimate / exact - 1 < 1e-12


@pytest.mark.parametrize("d", [1, 33, 70])
def test_combine(guarded, d: int) -> None:
    inputs, coefficients = draw(2, 3, d, d, dtype=torch.float64), draw(3, 4, 3, dtype=torch.float64, seed=1)
    out = guarded(4, 3, d, d, dtype=torch.float64)
    combine(out, inputs, coefficients)
    both = torch.einsum("boi,ibjk->objk", coefficients[..., :2], (inputs + inputs.mT) / 2)
    wanted = both + coefficients[..., 2].T[..., None, None] * torch.eye(d)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-14)  # three terms of order one
    assert torch.equal(out, out.mT)


def test_invariant_under_rotations() -> None:
    M, Q, R = matrix(8, 11, power_law(8, 20.0)), isometry(8, 8, 5), isometry(11, 11, 6)
    out = torch.empty(2, 8, 11, dtype=torch.float64)
    polar(out, torch.stack([M, Q @ M @ R]), 0.0)
    torch.testing.assert_close(out[1], Q @ out[0] @ R, rtol=0, atol=1e-13)  # rounding times a condition of 20


def test_zolotarev_equioscillates() -> None:
    """The function alternates 2 count + 2 times between its values at low and at 1, which makes it the best one."""
    low = torch.tensor([5e-4, 0.3], dtype=torch.float64)
    for count in (1, 3):
        f = zolotarev(low, count)
        x = low[:, None] ** torch.linspace(1, 0, 20001, dtype=torch.float64)
        values = torch.stack([f.of(column) for column in x.T], 1)
        least, largest = values.min(1).values, values.max(1).values
        # low and 1 are points of the grid; the other extrema agree to the rounding of the elliptic functions.
        torch.testing.assert_close(least, f.of(low), rtol=1e-9, atol=0)
        torch.testing.assert_close(largest, torch.ones(2).double(), rtol=1e-9, atol=0)
        rises = values.diff(dim=1) > 0
        assert (rises[:, 1:] != rises[:, :-1]).sum(1).tolist() == 2 * [2 * count]  # extrema inside

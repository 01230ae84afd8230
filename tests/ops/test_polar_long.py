# SPDX-License-Identifier: BSD-3-Clause
"""polar of matrices with one long side, and polar_, which overwrites its matrix."""

import math

import pytest
import torch
from here import BACKENDS, draw, fresh_python
from matrices import assert_is_polar, isometry, matrix, orthogonality, power_law
from torch import Tensor

import rainbow_fast as rf

IN_PLACE = torch.ops.rainbow_fast.polar_.default
DTYPES = (torch.float32, torch.float64)
# The sizes where L Q begins, for polar (256) and for polar_ (16); and an odd width of several blocks.
SHAPES = {"wide": (24, 6144), "tall": (6144, 24), "in-place": (40, 640), "row": (1, 300), "blocks": (7, 100_003)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("condition", "single", "double"), [(1e3, 2e-6, 5e-12), (1e8, 2e-6, 1e-7)], ids=str)
@pytest.mark.parametrize(("d", "m"), SHAPES.values(), ids=SHAPES)
def test_accuracy(d: int, m: int, condition: float, single: float, double: float, dtype: torch.dtype) -> None:
    """Checks the bounds of test_polar.py."""
    condition = condition if d > 1 else 1.0
    M = matrix(d, m, power_law(min(d, m), condition), dtype)
    wanted, written = rf.polar(M, rtol=0.0), M.clone()
    result = rf.polar_(written, rtol=0.0)
    assert result.A is written
    S = torch.linalg.svdvals(M.double())
    for factors in (wanted, result):
        assert_is_polar(M, factors.A, forward=single if dtype == torch.float32 else double, condition=condition)
        assert factors.residual <= (5e-7 if dtype == torch.float32 else 1e-10) and int(factors.rank) == min(d, m)
        assert abs(factors.nuclear_norm / S.sum() - 1) <= (5e-8 if dtype == torch.float32 else 1e-13)
        assert abs(factors.condition / (S[0] / S[-1]) - 1) <= 0.01


def test_the_last_digits_of_the_condition() -> None:
    """Directions at 1e-13 of the largest take three steps. They are orthonormal, and as exact as float64 allows."""
    M = matrix(20, 500, power_law(20, 1e13))
    result = rf.polar_(M.clone(), rtol=0.0)
    # Some hundred roundings of float64 in A, some thousand in its product with M
    assert orthogonality(result.A) <= 1e-13 and result.residual <= 1e-12
    exact = torch.linalg.svdvals(M).sum()
    assert abs(result.nuclear_norm / exact - 1) <= 1e-13  # roundings of a sum of 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_within_a_factor_of_two(dtype: torch.dtype) -> None:
    M = draw(30, 2000, dtype=dtype)
    result = rf.polar_(M.clone())
    A, M64 = result.A.double(), M.double()
    P = A @ M64.T
    exact = torch.linalg.norm(M64 - (P + P.T) / 2 @ A) / torch.linalg.norm(M64)
    assert 0.5 < result.residual / exact < 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(12, 600), (600, 12), (40, 60)], ids=["wide", "tall", "near-square"])
def test_writes_over_its_matrix_and_nothing_else(guarded, shape: tuple[int, int], dtype: torch.dtype, backend) -> None:
    M = matrix(*shape, power_law(min(shape), 10.0), dtype)
    wanted = rf.polar(M, backend=backend)
    d, m = shape
    layouts = [
        guarded(*shape, dtype=dtype),
        guarded(m, d, dtype=dtype).T,
        guarded(2 * d, 3 * m, dtype=dtype)[::2, 1::3],
    ]
    for written in layouts:
        result = rf.polar_(written.copy_(M), backend=backend)
        # Condition 10, and sums in another order: one rounding of float32, some of float64.
        torch.testing.assert_close(written, wanted.A, rtol=0, atol=6e-8 if dtype == torch.float32 else 2e-14)
        # M itself is a float32 number, 6e-8
        torch.testing.assert_close(result.nuclear_norm, wanted.nuclear_norm, rtol=1e-7, atol=0)
        assert result.rank == wanted.rank
    assert layouts[2]._base.isnan().sum() == 5 * M.numel(), "written between the entries of a strided matrix"


def test_batch_in_place() -> None:
    stack = torch.stack([matrix(8, 200, power_law(8, c), seed=s) for s, c in enumerate((5.0, 1e5, 30.0))])
    stack[2, 3] = stack[2, 4]
    for written in (stack.clone(), stack.mT.contiguous().mT):
        result = rf.polar_(written)
        assert result.rank.tolist() == [8, 8, 7]
        for one, got in zip(stack, written, strict=True):
            torch.testing.assert_close(got, rf.polar(one).A, rtol=0, atol=1e-9)  # as in test_polar.py


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 660), (660, 40)], ids=["wide", "tall"])
def test_null_directions(shape: tuple[int, int], dtype: torch.dtype) -> None:
    left, right = isometry(shape[0], 25, 0), isometry(shape[1], 25, 1)
    M = ((left * power_law(25, 100.0)) @ right.T).to(dtype)
    goal = 1e-6 if dtype == torch.float32 else 1e-11  # as in test_polar_rank.py
    partial = rf.polar_(M.clone())
    assert int(partial.rank) == 25 and abs(partial.condition / 100 - 1) < 0.01
    assert torch.linalg.norm(partial.A.double() - left @ right.T) / 5 <= goal
    assert partial.residual <= goal
    complete = rf.polar_(M.clone(), rank="complete")
    assert orthogonality(complete.A) <= (5e-7 if dtype == torch.float32 else 1e-13)
    wanted = rf.polar(M, rank="complete", backend="reference").A
    torch.testing.assert_close(complete.A, wanted, rtol=0, atol=10 * goal)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_and_columns_of_zeros_stay_so(transposed: bool) -> None:
    M = draw(20, 700, dtype=torch.float64)
    M[3] = M[:, 7] = M[11:14] = 0
    wanted = rf.polar(M, backend="reference")
    written = M.T.clone().T if transposed else M.clone()
    factors = rf.polar_(written)
    torch.testing.assert_close(written, wanted.A, rtol=0, atol=1e-13)  # condition below 2
    assert int(factors.rank) == 16 and ((written == 0) == (M == 0)).all()


def test_scale_does_not_matter() -> None:
    M = matrix(20, 400, power_law(20, 50.0))
    wanted = rf.polar_(M.clone())
    for exponent in (-1000, -100, 100, 1000):  # squares overflow or vanish, except for the smaller ones
        result = rf.polar_(M * 2.0**exponent)
        torch.testing.assert_close(result.A, wanted.A, rtol=0, atol=1e-13)  # condition 50: some hundred roundings
        assert abs(result.nuclear_norm / 2.0**exponent / wanted.nuclear_norm - 1) < 1e-13  # a sum of 20


# --- registration ---


def test_registration() -> None:
    M = matrix(4, 100, torch.tensor([1.0, 0.5, 0.1]))
    torch.library.opcheck(IN_PLACE, (M, False, 1e-10, None, None, None))
    torch.library.opcheck(IN_PLACE, (torch.stack([M, M]), True, 1e-10, None, "float32", None))


def test_compiles() -> None:
    def scaled(M: Tensor) -> Tensor:
        M = M * 2
        result = rf.polar_(M)
        return M * result.nuclear_norm

    M = matrix(4, 100, power_law(4, 5.0))
    torch.testing.assert_close(torch.compile(scaled, fullgraph=True)(M), scaled(M))


MEMORY = """
import torch
import rainbow_fast as rf
from memory import status

rf.polar_(torch.ones(64, 1100).double().addcmul_(torch.eye(64, 1100).double(), torch.tensor(3.0).double()))
M = torch.empty(64, 2**18, dtype=torch.float64)
for row in M:
    row.normal_()
before = status("VmHWM")
rf.polar_(M)
print((status("VmHWM") - before) / M.nbytes)
"""


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes an SVD")
def test_memory() -> None:
    """Memory: eight to 64 rows and some blocks, less than half of M, which is 128 MiB. A copy would be all of M."""
    assert float(fresh_python(MEMORY)) < 0.5


# --- bad input ---

GOOD = matrix(3, 60, power_law(3, 5.0))
NAN = GOOD.clone().index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan).double())
BAD = {
    "vector": (torch.ones(3), {}, ValueError, r"M has shape \(3,\): wanted \(\*batch, d, m\), neither d nor m 0"),
    "dtype": (GOOD.half(), {}, TypeError, r"M is torch.float16: wanted torch.float32 or torch.float64"),
    "rank": (GOOD.clone(), {"rank": "full"}, ValueError, r"rank='full': wanted 'partial' or 'complete'"),
    "rtol": (GOOD.clone(), {"rtol": 1.0}, ValueError, r"rtol=1.0: wanted 0 <= rtol < 1"),
    "method": (GOOD.clone(), {"method": "qr"}, ValueError, r"method='qr': wanted None or 'svd'"),
    "nan": (NAN, {}, ValueError, r"M has entries that are not finite"),
    "zero": (torch.zeros(3, 60), {}, ValueError, r"M of shape \(3, 60\) is all zero: its polar factor is not defined"),
    "expanded": (torch.ones(60).expand(3, 60), {}, ValueError, r"M has strides \(0, 1\): wanted a different address"),
    "backend": (GOOD.clone(), {"backend": "abacus"}, ValueError, r"backend='abacus' is not available on cpu"),
    "gradient": (GOOD.clone().requires_grad_(), {}, RuntimeError, r"polar_ writes into given memory"),
}


@pytest.mark.parametrize(("M", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(M: Tensor, options: dict, error: type[Exception], message: str) -> None:
    before = M.detach().clone()
    with pytest.raises(error, match=message):
        rf.polar_(M, **options)
    assert torch.equal(M.nan_to_num() if M.isnan().any() else M, before.nan_to_num()), "written before the error"

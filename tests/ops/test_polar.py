# SPDX-License-Identifier: BSD-3-Clause
"""polar: orthogonal to rounding, optimal to 1e-11, and defined for rank-deficient matrices."""

import importlib
import math

import pytest
import torch
from here import BACKENDS, LEVELS, assert_compiles_once, differing_bits, draw, level, random_state_untouched, threads
from matrices import EPS, assert_is_polar, isometry, matrix, power_law
from torch import Tensor

import rainbow_fast as rf

polar_module = importlib.import_module("rainbow_fast.ops.polar")  # the package names its function alike
OP, OUT = torch.ops.rainbow_fast.polar.default, torch.ops.rainbow_fast.polar_out.default

# --- matches the reference ---

SHAPES = {"square": (96, 96), "wide": (64, 250), "tall": (250, 64), "goal": (256, 1024)}
# The condition number of M, then the forward error of float32 and of float64 results. In float64 the goal is the gap.
# A float64 input determines its weakest direction to eps * condition; the sum of several weak directions is allowed.
CONDITIONS = {"1e3": (1e3, 2e-6, 5e-12), "1e6": (1e6, 2e-6, 1e-9), "1e8": (1e8, 2e-6, 1e-7)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("condition", "single", "double"), CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize(("d", "m"), SHAPES.values(), ids=SHAPES)
def test_accuracy(
    d: int, m: int, condition: float, single: float, double: float, dtype: torch.dtype, backend: str
) -> None:
    M = matrix(d, m, power_law(min(d, m), condition), dtype)
    result = rf.polar(M, rtol=0.0, backend=backend)
    assert result.A.dtype == dtype and result.A.shape == M.shape
    assert_is_polar(M, result.A, forward=single if dtype == torch.float32 else double, condition=condition)
    S = torch.linalg.svdvals(M.double())
    single_result = dtype == torch.float32
    # As in `assert_is_polar`. The nuclear norm is a sum of many singular values; the condition is Lanczos' estimate.
    assert int(result.rank) == min(d, m) and result.residual <= (5e-7 if single_result else 1e-10)
    assert abs(result.nuclear_norm / S.sum() - 1) <= (5e-8 if single_result else 1e-13)
    assert abs(result.condition / (S[0] / S[-1]) - 1) <= 0.01
    assert result.nuclear_norm.dtype == result.condition.dtype == result.residual.dtype == torch.float64
    assert result.rank.dtype == torch.int64


EDGES = {  # shapes, and singular values that are difficult for the method
    "one-by-one": (1, 1, [3.0]),
    "row": (1, 7, [2.0]),
    "column": (7, 1, [2.0]),
    "all-equal": (20, 33, [5.0] * 20),  # any eigenvectors of the Gram matrix will do
    "two-clusters": (30, 30, [1.0] * 15 + [1e-5] * 15),
    "one-tiny": (40, 41, [1.0] * 39 + [2e-6]),  # barely resolved by a Gram matrix
    "one-tinier": (40, 41, [1.0] * 39 + [5e-7]),  # not resolved
    "corrected-once": (40, 40, [1.0] * 39 + [1.1e-4]),
    "wider-than-a-chunk": (5, 4100, [1.0, 0.5, 0.1, 1e-2, 1e-3]),  # of the sums
    "blocks": (150, 160, [1.0] * 75 + [3e-3] * 75),  # a Cholesky factor of several blocks, the last one not whole
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("d", "m", "values"), EDGES.values(), ids=EDGES)
def test_edges(d: int, m: int, values: list[float], name: str) -> None:
    M = matrix(d, m, torch.tensor(values))
    with level(name):
        result = rf.polar(M, rtol=0.0, backend="cpu")
    # 1e-9: rounding of float64 times the condition, at most 2e6
    assert_is_polar(M, result.A, forward=1e-9, condition=values[0] / values[-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch(backend: str) -> None:
    stack = torch.stack(
        [matrix(10, 14, power_law(10, c), seed=s) for s, c in enumerate((5.0, 1e5, 30.0, 2.0, 1e3, 9.0))]
    )
    stack[2, 3] = stack[2, 4]  # of rank 9, so that it takes another way than its neighbours
    batch = stack.view(2, 3, 10, 14)
    for M in (batch, batch.mT.contiguous().mT):
        together = rf.polar(M, backend=backend)
        assert [tuple(t.shape) for t in together] == [(2, 3, 10, 14)] + 4 * [(2, 3)]
        assert together.rank.flatten().tolist() == [10, 10, 9, 10, 10, 10]
        for i in range(6):
            alone = rf.polar(stack[i], backend=backend)
            # 1e-9: sums in another order, times a condition of 1e5 at most
            torch.testing.assert_close(together.A.flatten(0, 1)[i], alone.A, rtol=0, atol=1e-9)
            torch.testing.assert_close(together.nuclear_norm.flatten()[i], alone.nuclear_norm)
    empty = rf.polar(torch.ones(0, 3, 4), backend=backend)
    assert empty.A.shape == (0, 3, 4) and empty.rank.shape == (0,)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
def test_method_svd_is_the_reference() -> None:
    M = matrix(12, 30, power_law(12, 10.0))
    by_svd, reference = rf.polar(M, method="svd", backend="cpu"), rf.polar(M, backend="reference")
    for a, b in zip(by_svd, reference, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
def test_warns_where_the_iteration_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(polar_module.CERTIFIED, torch.float64, 0.0)  # which nothing reaches
    M = matrix(12, 30, power_law(12, 10.0))
    with pytest.warns(RuntimeWarning, match=r"did not converge \(residual .*\): the float64 SVD is taken instead"):
        result = rf.polar(M, backend="cpu")
    assert torch.equal(result.A, rf.polar(M, method="svd").A)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [64, 300], ids=str)
def test_estimates(d: int, dtype: torch.dtype) -> None:
    """The condition is right within 1 %, also for a spectrum with dense ends; the residual within a factor of two."""
    M = draw(d, 4 * d, dtype=dtype)
    result = rf.polar(M)
    S = torch.linalg.svdvals(M.double())
    assert abs(result.condition / (S[0] / S[-1]) - 1) < 0.01
    A, M64 = result.A.double(), M.double()
    P = A @ M64.T
    exact = torch.linalg.norm(M64 - (P + P.T) / 2 @ A) / torch.linalg.norm(M64)
    assert 0.5 < result.residual / exact < 2


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
@pytest.mark.parametrize("condition", [1 + 1e-6, 1.01, 1.1], ids=str)
def test_condition_of_equal_singular_values(condition: float) -> None:
    """Lanczos' vectors end early here. What is left by cancellation must not be taken for a new direction."""
    M = matrix(24, 127, power_law(24, condition), torch.float64)
    assert abs(rf.polar(M).condition / condition - 1) < 0.001


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    M = matrix(12, 30, power_law(12, 10.0))
    wanted = rf.polar(M, backend=backend).A
    strided = torch.full((24, 90), torch.nan, dtype=torch.float64)[::2, 1::3].copy_(M)
    for other in (M.T.contiguous().T, strided):
        # 1e-14: condition 10, and sums in another order
        torch.testing.assert_close(rf.polar(other, backend=backend).A, wanted, rtol=0, atol=1e-14)
    assert differing_bits(rf.polar(M.T, backend=backend).A, wanted.T) == 0  # one of the two is transposed first


# --- invariants ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scale_does_not_matter(dtype: torch.dtype, backend: str) -> None:
    M = matrix(20, 30, power_law(20, 50.0), dtype)
    wanted = rf.polar(M, backend=backend)
    # 8e-31 and 1e30; in float64, numbers whose squares overflow. Powers of two, so that M is not rounded again
    for exponent in (-100, 100) if dtype == torch.float32 else (-1000, -100, 100, 1000):
        result = rf.polar(M * 2.0**exponent, backend=backend)
        assert differing_bits(result.A, wanted.A) == 0
        assert torch.equal(result.nuclear_norm, wanted.nuclear_norm * 2.0**exponent)
        assert torch.equal(result.condition, wanted.condition) and torch.equal(result.residual, wanted.residual)


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthogonal_maps_commute_with_it(backend: str) -> None:
    M, Q, R = matrix(15, 22, power_law(15, 20.0)), isometry(15, 15, 5), isometry(22, 22, 6)
    A = rf.polar(M, backend=backend).A
    # 1e-13: rounding of float64 times a condition of 20, through two products
    torch.testing.assert_close(rf.polar(Q @ M @ R, backend=backend).A, Q @ A @ R, rtol=0, atol=1e-13)
    torch.testing.assert_close(rf.polar(A, backend=backend).A, A, rtol=0, atol=1e-13)
    torch.testing.assert_close(rf.polar(-M, backend=backend).A, -A, rtol=0, atol=1e-13)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="LAPACK is torch's affair")
def test_threads_agree_to_rounding() -> None:
    M = matrix(130, 300, power_law(130, 100.0))
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(rf.polar(M).A)
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)  # LAPACK's eigenvectors differ in the last places


def test_random_state() -> None:
    with random_state_untouched():
        for backend in BACKENDS:
            rf.polar(torch.ones(4, 5), rank="complete", backend=backend)


# --- known answers ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_known_answers(dtype: torch.dtype, backend: str) -> None:
    def both(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=dtype)

    within = {"rtol": 0, "atol": 4 * EPS[dtype]}  # entries of order one
    result = rf.polar(both([0, -2], [3, 0]), backend=backend)  # a rotation times a diagonal
    torch.testing.assert_close(result.A, both([0, -1], [1, 0]), **within)
    assert (float(result.nuclear_norm), int(result.rank)) == (pytest.approx(5), 2)
    # M is exact, and its statistics are float64.
    assert float(result.condition) == pytest.approx(1.5) and result.residual < 1e-14

    result = rf.polar(both([3, 0, 0], [0, 0, 0]), backend=backend)
    torch.testing.assert_close(result.A, both([1, 0, 0], [0, 0, 0]), **within)
    assert (float(result.nuclear_norm), int(result.rank), float(result.condition)) == (pytest.approx(3), 1, 1)

    torch.testing.assert_close(rf.polar(both([3, 4]), backend=backend).A, both([0.6, 0.8]), **within)
    torch.testing.assert_close(rf.polar(both([-2.0]), backend=backend).A, both([-1.0]), **within)


# --- registration ---


@pytest.mark.parametrize("complete", [False, True], ids=["partial", "complete"])
def test_registration(complete: bool) -> None:
    M = matrix(4, 6, torch.tensor([1.0, 0.5, 0.1]))
    torch.library.opcheck(OP, (M, complete, 1e-10, None, None, None))
    torch.library.opcheck(OP, (torch.stack([M, M]), complete, 1e-10, None, "float32", None))
    torch.library.opcheck(
        OUT, (M, complete, 1e-10, None, None, None, torch.zeros(4, 6).double(), torch.zeros(4).double())
    )


def test_compiles_once() -> None:
    def both(M: Tensor) -> Tensor:
        result = rf.polar(M)
        return result.A * result.nuclear_norm + result.rank

    assert_compiles_once(both, [(matrix(4, m, power_law(4, 5.0)),) for m in range(6, 12)], dynamic=True)


def test_what_has_a_gradient() -> None:
    result = rf.polar(matrix(3, 4, power_law(3, 5.0)).requires_grad_())
    assert [t.requires_grad for t in result] == [True, True, False, False, False]


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=["wide", "tall"])
def test_writes_its_output_and_nothing_else(guarded, shape: tuple[int, int], backend: str) -> None:
    M = matrix(*shape, power_law(5, 5.0))
    out, statistics = guarded(*shape, dtype=torch.float64), guarded(4, dtype=torch.float64)
    OUT(M, False, 1e-10, None, None, backend, out, statistics)
    wanted = rf.polar(M, rtol=1e-10, backend=backend)
    assert torch.equal(out, wanted.A) and statistics.tolist() == [float(t) for t in wanted[1:]]


# --- bad input ---

GOOD = matrix(3, 4, power_law(3, 5.0))
NAN = GOOD.clone().index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan).double())
BAD = {
    "vector": (torch.ones(3), {}, ValueError, r"M has shape \(3,\): wanted \(\*batch, d, m\), neither d nor m 0"),
    "empty": (torch.ones(0, 3), {}, ValueError, r"M has shape \(0, 3\): wanted \(\*batch, d, m\), neither d nor m 0"),
    "dtype": (GOOD.half(), {}, TypeError, r"M is torch.float16: wanted torch.float32 or torch.float64"),
    "rank": (GOOD, {"rank": "full"}, ValueError, r"rank='full': wanted 'partial' or 'complete'"),
    "rtol": (GOOD, {"rtol": 1.0}, ValueError, r"rtol=1.0: wanted 0 <= rtol < 1"),
    "rtol-nan": (GOOD, {"rtol": math.nan}, ValueError, r"rtol=nan: wanted 0 <= rtol < 1"),
    "method": (GOOD, {"method": "qr"}, ValueError, r"method='qr': wanted None or 'svd'"),
    "accuracy": (GOOD, {"accuracy": "single"}, ValueError, r"accuracy='single': wanted None or 'float32'"),
    "nan": (NAN, {}, ValueError, r"M has entries that are not finite"),
    "nan-in-a-batch": (torch.stack([GOOD, NAN]), {}, ValueError, r"M has entries that are not finite"),
    "zero-in-a-batch": (
        torch.stack([GOOD, 0 * GOOD]),
        {},
        ValueError,
        r"M of shape \(2, 3, 4\) holds a matrix that is all zero: its polar factor is not defined",
    ),
    "infinite": (GOOD / 0, {}, ValueError, r"M has entries that are not finite"),
    "zero": (torch.zeros(3, 4), {}, ValueError, r"M of shape \(3, 4\) is all zero: its polar factor is not defined"),
    "backend": (GOOD, {"backend": "abacus"}, ValueError, r"backend='abacus' is not available on cpu"),
}


@pytest.mark.parametrize(("M", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(M: Tensor, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rf.polar(M, **options)


def doubles(*shape: int) -> Tensor:
    return torch.full(shape, 7.0, dtype=torch.float64)


BAD_OUT = {
    "shape": (GOOD, doubles(3, 3), doubles(4), ValueError, r"out has shape \(3, 3\): wanted \(3, 4\)"),
    "dtype": (GOOD, doubles(3, 4).float(), doubles(4), TypeError, r"out is torch.float32: wanted torch.float64"),
    "statistics": (GOOD, doubles(3, 4), doubles(5), ValueError, r"statistics has shape \(5,\): wanted \(4,\)"),
    "zero": (torch.zeros(3, 4).double(), doubles(3, 4), doubles(4), ValueError, r"is all zero"),
    "nan": (NAN, doubles(3, 4), doubles(4), ValueError, r"not finite"),
    "gradient": (GOOD.clone().requires_grad_(), doubles(3, 4), doubles(4), RuntimeError, r"polar_out .* no gradient"),
}


@pytest.mark.parametrize(("M", "out", "statistics", "error", "message"), BAD_OUT.values(), ids=BAD_OUT)
def test_bad_output(M: Tensor, out: Tensor, statistics: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OUT(M, False, 1e-10, None, None, None, out, statistics)
    assert (out == 7).all() and (statistics == 7).all(), "written before the error"

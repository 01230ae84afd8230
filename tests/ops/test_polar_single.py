# SPDX-License-Identifier: BSD-3-Clause
"""polar to the accuracy of float32: orthogonality and backward error at most 1e-6 for any condition and dtype."""

import importlib
import math

import pytest
import torch
from here import BACKENDS, LEVELS, differing_bits, draw, level, threads
from matrices import isometry, matrix, orthogonality, power_law
from torch import Tensor

import rainbow_fast as rf

polar_module = importlib.import_module("rainbow_fast.ops.polar")  # the package names its function alike
DTYPES = [torch.float32, torch.float64]
GOAL = 1e-6  # what `accuracy="float32"` claims


def backward_error(M: Tensor, A: Tensor) -> float:
    """|M - H A|_F / |M|_F with H = sym(M A^T), in float64."""
    if M.shape[0] > M.shape[1]:
        return backward_error(M.T, A.T)
    M, A = M.double(), A.double()
    P = A @ M.T
    return float(torch.linalg.norm(M - (P + P.T) / 2 @ A) / torch.linalg.norm(M))


def assert_is_polar(M: Tensor, result: rf.Polar) -> None:
    """The claims, and the statistics of the result."""
    assert orthogonality(result.A) <= GOAL and backward_error(M, result.A) <= GOAL and result.residual <= GOAL
    S = torch.linalg.svdvals(M.double())
    # Errors of orthogonality of 1e-6 change the trace by half as much.
    assert abs(result.nuclear_norm / S.sum() - 1) <= GOAL / 2 and int(result.rank) == len(S)
    assert result.A.dtype == M.dtype and result.nuclear_norm.dtype == torch.float64


def noise(count: int) -> Tensor:
    """Some directions of a signal, and many that are lost in it."""
    return torch.cat([power_law(count // 3, 30.0), torch.full((count - count // 3,), 1e-9, dtype=torch.float64)])


SPECTRA = {
    "equal": lambda d: torch.ones(d),
    "1e3": lambda d: power_law(d, 1e3),
    "1e6": lambda d: power_law(d, 1e6),
    "1e9": lambda d: power_law(d, 1e9),
    "noise": noise,
    "clusters": lambda d: torch.tensor([1.0, 1e-4, 1e-8]).repeat_interleave(-(-d // 3))[:d],
    "one-tiny": lambda d: torch.cat([torch.ones(d - 1), torch.tensor([2e-10])]),
}
SHAPES = {"square": (150, 150), "wide": (60, 80), "tall": (300, 70), "longer": (50, 400)}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(("d", "m"), SHAPES.values(), ids=SHAPES)
def test_accuracy(d: int, m: int, spectrum, dtype: torch.dtype, backend: str) -> None:
    M = matrix(d, m, spectrum(min(d, m)), dtype)
    result = rf.polar(M, rtol=0.0, accuracy="float32", backend=backend)
    assert_is_polar(M, result)
    S = torch.linalg.svdvals(M.double())
    # Lanczos' estimate; rounding moves the smallest singular values, by 1e-16 of the largest for each stage
    assert abs(result.condition / (S[0] / S[-1]) - 1) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_accuracy_of_large_matrices(spectrum, dtype: torch.dtype) -> None:
    """Sums of float32 have many terms here. Rounding of M to float32 makes singular values of 1e-11 of the largest."""
    M = matrix(1100, 1100, spectrum(1100), dtype)
    assert_is_polar(M, rf.polar(M, rtol=0.0, accuracy="float32"))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("d", "m"), [(1, 1), (1, 7), (7, 1), (5, 4100), (150, 160), (17, 20)], ids=str)
def test_edges(d: int, m: int, name: str) -> None:
    M = matrix(d, m, power_law(min(d, m), 1e3 if d > 1 < m else 1.0))
    with level(name):
        assert_is_polar(M, rf.polar(M, accuracy="float32", backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_null_directions(backend: str) -> None:
    """The rank is that of the default, and singular factors take over."""
    left, right = isometry(90, 40, 0), isometry(100, 40, 1)
    M = (left * power_law(40, 100.0)) @ right.T
    partial, complete = (rf.polar(M, rank=r, accuracy="float32", backend=backend) for r in ("partial", "complete"))
    assert int(partial.rank) == 40 and torch.linalg.norm(partial.A - left @ right.T) / math.sqrt(40) <= GOAL
    assert orthogonality(complete.A) <= GOAL


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_decides_the_rank(backend: str) -> None:
    M = matrix(6, 8, torch.tensor([1.0, 0.1, 1e-3, 1e-5, 1e-9, 1e-12]))
    for rtol, rank in ((0.05, 2), (1e-4, 3), (1e-7, 4), (1e-10, 5)):
        assert int(rf.polar(M, rtol=rtol, accuracy="float32", backend=backend).rank) == rank


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_matrices_in_place(dtype: torch.dtype) -> None:
    for shape in ((30, 1000), (1000, 30)):  # by their LQ decomposition
        M = matrix(*shape, power_law(30, 1e8), dtype)
        written = M.clone()
        assert_is_polar(M, rf.polar_(written, rtol=1e-10, accuracy="float32"))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_batches_and_scales(dtype: torch.dtype, backend: str) -> None:
    conditions = (5.0, 1e5, 1e8)
    stack = torch.stack([matrix(20, 25, power_law(20, c), dtype, seed=s) for s, c in enumerate(conditions)])
    together = rf.polar(stack, rtol=1e-10, accuracy="float32", backend=backend)
    for i, M in enumerate(stack):
        assert_is_polar(M, rf.Polar(*(t[i] for t in together)))
    M = stack[1]
    wanted = rf.polar(M, rtol=1e-10, accuracy="float32", backend=backend).A
    strided = torch.full((40, 75), torch.nan, dtype=dtype)[::2, 1::3].copy_(M)
    for other in (M.T.contiguous().T, strided):
        assert orthogonality(rf.polar(other, rtol=1e-10, accuracy="float32", backend=backend).A) <= GOAL
    for exponent in (-100, 100) if dtype == torch.float32 else (-1000, 1000):
        scaled = rf.polar(M * 2.0**exponent, rtol=1e-10, accuracy="float32", backend=backend)
        assert differing_bits(scaled.A, wanted) == 0


@pytest.mark.skipif("cpu" not in BACKENDS, reason="LAPACK is torch's affair")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    for shape, condition in (((200, 210), 1e3), ((210, 200), 1e8), ((260, 260), 1e9)):
        M = matrix(*shape, power_law(min(shape), condition), dtype)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(rf.polar(M, rtol=1e-10, accuracy="float32").A)
        assert all(differing_bits(results[0], other) == 0 for other in results[1:])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the iteration is compiled")
def test_default_accuracy_where_the_iteration_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    M = matrix(12, 15, power_law(12, 10.0))
    wanted = rf.polar(M)
    monkeypatch.setitem(polar_module.CERTIFIED, torch.float32, 0.0)  # which nothing reaches
    for got, expected in zip(rf.polar(M, accuracy="float32"), wanted, strict=True):
        assert torch.equal(got, expected)


def test_reference_and_svd_ignore_it() -> None:
    M = draw(9, 14, dtype=torch.float64)
    for options in ({"backend": "reference"}, {"method": "svd"}):
        assert torch.equal(rf.polar(M, accuracy="float32", **options).A, rf.polar(M, **options).A)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_derivative(dtype: torch.dtype) -> None:
    """It is that of the exact factor, up to the error of A times the condition."""
    M, D = matrix(7, 9, power_law(7, 5.0), dtype), draw(7, 9, dtype=dtype)
    grads = []
    for accuracy in ("float32", None):
        leaf = M.clone().requires_grad_()
        (rf.polar(leaf, accuracy=accuracy).A * D).sum().backward()
        grads.append(leaf.grad)
    assert torch.linalg.norm(grads[0] - grads[1]) <= 5e-6 * torch.linalg.norm(grads[1])

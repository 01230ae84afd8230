# SPDX-License-Identifier: BSD-3-Clause
"""The precision of float32 products: what is read from torch's settings, and the errors of every op at every level."""

from collections.abc import Callable, Iterator

import pytest
import torch
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, level
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.precision import PRECISIONS, in_force

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BOUNDS = {"high": 2.0**-14, "medium": 2.0**-7}  # of the sum of the absolute values of the products
UNITS = [name for name in LEVELS if name.startswith("amx")]
needs_kernels = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    """The settings of a new process, before and after each test."""
    settings = [torch.backends, torch.backends.mkldnn, torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]

    def unset_all() -> None:
        torch.set_float32_matmul_precision("highest")
        for each in settings:
            each.fp32_precision = "none"

    unset_all()
    yield
    unset_all()


# --- torch's settings ---


def test_default_of_torch() -> None:
    assert in_force(CPU) == in_force(GPU) == "highest"


@pytest.mark.parametrize(("name", "on_gpu"), [("highest", "highest"), ("high", "high"), ("medium", "high")])
def test_the_older_setting(name: str, on_gpu: str) -> None:
    """On a GPU, torch multiplies in TF32 at "medium" as at "high"."""
    torch.set_float32_matmul_precision(name)
    assert in_force(CPU) == name and in_force(GPU) == on_gpu


def test_the_newer_settings() -> None:
    """Each is read where it is in force; the older getter raises an error for some of them."""
    torch.backends.fp32_precision = "tf32"
    assert in_force(CPU) == in_force(GPU) == "high"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert in_force(CPU) == "medium" and in_force(GPU) == "high"
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    assert in_force(CPU) == "highest" and in_force(GPU) == "high"


def test_a_newer_setting_after_the_older_one() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert torch.get_float32_matmul_precision() == "high" and in_force(CPU) == "highest"


# --- the ops ---

X, Y, U, G = draw(700, 53), draw(700, 90, seed=1), draw(700, 70, seed=2), draw(130, 70, seed=3)
P, A, GRAD = draw(70, 90, seed=4), draw(53, 130, seed=5), draw(700, 130, seed=6)
NEURONS = {"G": G, "activation": "identity", "backend": "cpu"}


def product(*factors: Tensor) -> Tensor:
    out = factors[0]
    for factor in factors[1:]:
        out = out @ factor
    return out


def gradient(precision: str | None) -> Tensor:
    u = U.clone().requires_grad_()
    rf.random_features(u, 130, **NEURONS, precision=precision).backward(GRAD)
    assert u.grad is not None
    return u.grad


# For each op, a call with a precision, and the factors whose product it computes.
CALLS: dict[str, tuple[Callable[[str | None], Tensor], list[Tensor]]] = {
    "cross_covariance": (lambda p: rf.cross_covariance(X, Y, backend="cpu", precision=p), [X.T, Y]),
    "one side": (lambda p: rf.cross_covariance(Y, backend="cpu", precision=p), [Y.T, Y]),
    "patches": (
        lambda p: rf.cross_covariance(X.view(7, 53, 10, 10), patch=1, backend="cpu", precision=p),
        [X.view(7, 53, 100).transpose(0, 1).flatten(1), X.view(7, 53, 100).transpose(0, 1).flatten(1).T],
    ),
    "sample_project_align": (
        lambda p: rf.sample_project_align(300, P, seed=1, backend="cpu", precision=p),
        [rf.gaussian(300, 70, seed=1), P],
    ),
    "random_features": (lambda p: rf.random_features(U, 130, **NEURONS, precision=p), [U, G.T]),
    "random_features_covariance": (
        lambda p: rf.random_features_covariance(X, U, 130, **NEURONS, precision=p)[0],
        [X.T, U, G.T],
    ),
    "random_features_projection": (
        lambda p: rf.random_features_projection(U, A, **NEURONS, precision=p),
        [U, G.T, A.T],
    ),
    "gradient": (gradient, [GRAD, G]),
}
FIXED = ("patches",)  # the kernels of CPUs multiply in full


@needs_kernels
@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("call", CALLS)
def test_errors(name: str, call: str) -> None:
    """At most the bounds on every level. Levels with a matrix unit are not better than they need to be."""
    run, factors = CALLS[call]
    exact = product(*(f.double() for f in factors))
    size = product(*(f.double().abs() for f in factors))
    with level(name):
        full = run("highest")
        for precision, bound in BOUNDS.items():
            got = run(precision)
            assert ((got - exact).abs() <= bound * size).all()
            assert (differing_bits(got, full) > 0) == (name in UNITS and call not in FIXED)


@needs_kernels
@pytest.mark.parametrize("call", CALLS)
def test_default_is_the_setting_of_torch(call: str) -> None:
    """An op reads it at every call. A given precision comes first."""
    run, _ = CALLS[call]
    results = {precision: run(precision) for precision in PRECISIONS}
    for precision in PRECISIONS:
        torch.set_float32_matmul_precision(precision)
        assert differing_bits(run(None), results[precision]) == 0
        assert differing_bits(run("highest"), results["highest"]) == 0


@needs_kernels
@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_same_bits_for_any_number_of_threads(name: str, precision: str) -> None:
    with level(name):
        for run, _ in CALLS.values():
            assert_same_for_threads(lambda run=run: run(precision))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_have_no_precision(dtype: torch.dtype) -> None:
    x, y, p = X.to(dtype), Y.to(dtype), P.to(dtype)
    for run in (
        lambda precision: rf.cross_covariance(x, y, precision=precision),
        lambda precision: rf.cross_covariance(x, y, activation="tanh", precision=precision),
        lambda precision: rf.sample_project_align(30, p, seed=1, precision=precision),
    ):
        assert differing_bits(run("medium"), run("highest")) == 0


@needs_kernels
def test_features_in_float64_have_no_precision() -> None:
    u, rows = U.double(), G.double()
    how = {"G": rows, "activation": "tanh"}
    medium, full = (rf.random_features(u, 130, **how, precision=each) for each in ("medium", "highest"))
    assert differing_bits(medium, full) == 0


@needs_kernels
def test_accumulator() -> None:
    for precision in PRECISIONS:
        moments = rf.CrossCovariance(precision=precision)
        moments.update(X, Y)
        x, y = moments.x.center, moments.y.center
        assert x is not None and y is not None and moments.cross is not None
        sides = (X - x.float(), Y - y.float())
        assert differing_bits(moments.cross, rf.cross_covariance(*sides, precision=precision)) == 0


REFUSED: dict[str, Callable[[object], object]] = {
    "cross_covariance": lambda p: rf.cross_covariance(X, precision=p),
    "cross_covariance_": lambda p: rf.cross_covariance_(torch.zeros(53, 53, dtype=torch.float64), X, precision=p),
    "patches": lambda p: rf.cross_covariance(X.view(7, 53, 10, 10), patch=1, precision=p),
    "CrossCovariance": lambda p: rf.CrossCovariance(precision=p),
    "random_features": lambda p: rf.random_features(U, 130, G=G, precision=p),
    "random_features_covariance": lambda p: rf.random_features_covariance(X, U, 130, G=G, precision=p),
    "random_features_projection": lambda p: rf.random_features_projection(U, A, G=G, precision=p),
}


@pytest.mark.parametrize("op", REFUSED)
@pytest.mark.parametrize("value", ["low", "bf16x2", 3])
def test_unknown_precision(op: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^precision={value!r}: wanted None or one of highest, high, medium$"):
        REFUSED[op](value)


@pytest.mark.parametrize("value", ["low", 3])
def test_unknown_precision_of_weights(value: object) -> None:
    wanted = rf"^precision={value!r}: wanted None or one of highest, high, medium, bf16x2$"
    for run in (
        lambda: rf.sample_project_align(3, P, seed=1, precision=value),
        lambda: rf.sample_project_align_(torch.zeros(3, 90), P, seed=1, precision=value),
    ):
        with pytest.raises(ValueError, match=wanted):
            run()


def test_registered_ops_refuse_an_unknown_precision() -> None:
    ops, key = torch.ops.rainbow_fast, rf.key(1)
    features = [None, key, None, "relu", 0.0, 1.0, "low", None]
    for run in (
        lambda: ops.cross_covariance(X, [], "identity", 0.0, False, "low", None),
        lambda: ops.patch_covariance(X.view(7, 53, 10, 10), None, [1, 1, 0, 1], "low", None),
        lambda: ops.sample_project_align(3, P, key, 1.0, torch.float32, "low", None),
        lambda: ops.random_features(U, None, 3, *features[1:]),
        lambda: ops.random_features_covariance(X, U, None, None, None, 3, *features[1:]),
        lambda: ops.random_features_projection(U, [A], *features),
    ):
        with pytest.raises(ValueError, match="precision='low': wanted None or one of"):
            run()

# SPDX-License-Identifier: BSD-3-Clause
"""random_features and its two fused passes: values, bits, gradients by regeneration, and constant memory."""

import sys

import pytest
import torch
from features import FAR, plainly, problem, three
from here import (
    BACKENDS,
    LEVELS,
    assert_same_for_threads,
    differing_bits,
    draw,
    fresh_python,
    laid_out,
    level,
    random_state_untouched,
)
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import ACTIVATIONS

ops = torch.ops.rainbow_fast


def check(x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, activation: str = "relu", **options) -> None:
    at = {"G": options["G"]} if "G" in options else FAR
    got = three(
        x, u, A, shift, activation=activation, scale=0.7, **at, **{k: v for k, v in options.items() if k != "G"}
    )
    G = options["G"] if "G" in options else rf.gaussian(A.shape[1], u.shape[1], backend="reference", **FAR).to(u.dtype)
    plain = plainly(x, u, A, shift, G, activation)
    exact = plainly(*(None if t is None else t.double() for t in (x, u, A, shift, G)), activation)
    assert [t.dtype for t in got] == [u.dtype, *[torch.float64] * 3, u.dtype]
    for a, b, c in zip(got, exact, plain, strict=True):
        # Sums of u G^T have r terms; sums of features have 256 before they are promoted to float64.
        assert_close_to_float64(a.to(u.dtype), b, c, terms=max(u.shape[1], 256))


# --- matches the reference ---

SHAPES = {  # of u, then n
    "one": ((1, 1), 1),
    "no-samples": ((0, 3), 4),
    "no-images": ((0, 3, 2, 2), 4),
    "no-positions": ((3, 3, 0), 4),
    "no-neurons": ((7, 3), 0),
    "rank-zero": ((7, 0), 50),  # the features of the shift alone
    "one-more-than-tiles": ((241, 9), 241),  # 240 a chunk, 240 neurons a block
    "few-neurons-many-samples": ((5003, 3), 5),  # more parts of the sum than threads
    "many-neurons-few-samples": ((3, 6), 5003),
    "rank-beyond-a-chunk": ((9, 1030), 50),
    "images-cut-by-chunks": ((7, 6, 11, 13), 53),
    "images-of-one-position": ((50, 6, 1, 1), 30),
    "sequence": ((3, 17, 99), 50),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "n"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(shape: tuple[int, ...], n: int, backend: str) -> None:
    x, u, A, shift = problem(shape, n)
    check(x, u, A, shift, backend=backend)
    check(x, u, A, None, backend=backend)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_dtype_on_every_level(dtype: torch.dtype, name: str) -> None:
    with level(name):
        check(*problem((6, 35, 9, 11), 301, 53, dtype), backend="cpu")
        check(*problem((300, 35), 77, 1, dtype), backend="cpu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    if activation not in ("sign", "step"):
        check(*problem((40, 3, 5), 37), activation=activation)
        return
    x, u, A, _ = problem((40, 3, 5), 37)  # not continuous: small integers, so that nothing is rounded and zeros occur
    u, G = u.mul(3).round(), draw(37, 3, seed=5).mul(3).round()
    check(x, u, A, u[:, 0].contiguous(), activation=activation, G=G)


LAYOUTS = {
    "channels-last": ("channels_last", "channels_last"),
    "one-of-each": ("contiguous", "channels_last"),
    "every-axis-strided": ("sliced", "transposed"),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layouts: tuple[str, str], backend: str) -> None:
    x, u, A, shift = problem((5, 19, 6, 7), 50)
    other = laid_out(x, layouts[0]), laid_out(u, layouts[1]), laid_out(A, layouts[0] if len(A) == 1 else "sliced")
    check(*other, laid_out(shift.unsqueeze(1), "transposed").squeeze(1), backend=backend)
    if backend == "cpu":  # one chain of fused multiply-adds, wherever the numbers come from
        features = [rf.random_features(t, 50, **FAR) for t in (u, laid_out(u, layouts[1]))]
        assert differing_bits(*features) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_overlapping_strides(backend: str) -> None:
    x, u, A, _ = problem((70, 4, 3, 2), 30)
    check(x[:1].expand_as(x), u[:, :1].expand_as(u), A[:, :1].expand_as(A), u[:1, 0].expand(70, 3, 2), backend=backend)
    check(x, u, A, None, G=draw(1, 4).expand(30, 4), backend=backend)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_explicit_weights(backend: str) -> None:
    x, u, A, shift = problem((30, 9, 4), 61)
    for G in (draw(61, 9, seed=4), draw(9, 61, seed=4).T, draw(122, 30, seed=4)[::2, 3:12]):
        check(x, u, A, shift, G=G, backend=backend)
    G = rf.gaussian(61, 9, **FAR)
    for a, b in zip(
        three(x, u, A, shift, G=G, backend=backend), three(x, u, A, shift, backend=backend, **FAR), strict=True
    ):
        assert differing_bits(a, b) == 0


# --- invariants ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("shape", "n"), [((2003, 7), 11), ((5, 7, 6, 6), 1300)], ids=["many-samples", "many-neurons"])
def test_any_number_of_threads(shape: tuple[int, ...], n: int, name: str) -> None:
    x, u, A, shift = problem(shape, n)
    with level(name):
        assert_same_for_threads(lambda: three(x, u, A, shift, activation="gelu", backend="cpu", **FAR))


@pytest.mark.parametrize("name", LEVELS)
def test_neurons_nest(name: str) -> None:
    x, u, _, shift = problem((20, 7, 6, 6), 600)
    with level(name):
        whole = rf.random_features(u, 600, shift=shift, **FAR)
        whole_sums = rf.random_features_covariance(x, u, 600, shift=shift, **FAR)
        for start, stop in ((0, 1), (5, 250), (239, 600)):
            at = {**FAR, "row_offset": FAR["row_offset"] + start}
            assert differing_bits(rf.random_features(u, stop - start, shift=shift, **at), whole[:, start:stop]) == 0
            sums = rf.random_features_covariance(x, u, stop - start, shift=shift, **at)
            # 1e-5: the number of neurons decides the parts of the sums, which are of order 1000 here
            for a, b in zip(sums, whole_sums, strict=True):
                torch.testing.assert_close(a, b[..., start:stop], rtol=1e-5, atol=1e-2)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_identity_is_the_sampled_layer(backend: str) -> None:
    u = draw(40, 6, dtype=torch.float64)
    W = rf.sample_project_align(30, torch.eye(6, dtype=torch.float64), seed=3)
    got = rf.random_features(u, 30, activation="identity", seed=3, backend=backend)
    torch.testing.assert_close(got, u @ W.T, rtol=0, atol=1e-13)  # six terms of order one


def test_arc_cosine_kernel() -> None:
    u, n = draw(3, 5, dtype=torch.float64), 200_000
    _, total, square = rf.random_features_covariance(u[:1, :1], u[:1], n, seed=1)
    norm = float(u[0].norm())
    # E relu(s) = |u| / sqrt(2 pi), E relu(s)^2 = |u|^2 / 2 (variance 5 |u|^4 / 4): five standard deviations
    assert abs(total.mean() - norm / (2 * torch.pi) ** 0.5) < 5 * norm * (0.5 - 1 / (2 * torch.pi)) ** 0.5 / n**0.5
    assert abs(square.mean() - norm**2 / 2) < 5 * norm**2 * 1.25**0.5 / n**0.5


def test_random_state() -> None:
    x, u, A, shift = problem((5, 3), 4)
    with random_state_untouched():
        for backend in BACKENDS:
            out = three(x, u.requires_grad_(), A, shift, seed=1, backend=backend)
            sum(t.sum() for t in out).backward()


@pytest.mark.skipif("cpu" not in BACKENDS or sys.platform != "linux", reason="for kernels; reads /proc")
def test_memory_does_not_grow_with_the_features() -> None:
    code = """
import torch, rainbow_fast as rf
from memory import status
def grown(call):
    call(50, 1000)  # threads and code that come with the first call; its buffers are small
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmHWM")
    call(N, n)
    print((status("VmHWM") - before) // 2**20)
torch.set_num_threads(2)
N, n = 2000, 200_000
x, u, A = torch.randn(N, 4), torch.randn(N, 8), torch.randn(4, n)
grown(lambda N, n: rf.random_features_covariance(x[:N], u[:N], n, seed=1))
grown(lambda N, n: rf.random_features_projection(u[:N], A[:, :n], seed=1))
u.requires_grad_(); A.requires_grad_(); n = 120_000
grown(lambda N, n: rf.random_features_projection(u[:N], A[:, :n], seed=1).sum().backward())
"""
    covariance, projection, backward = map(int, fresh_python(code, RAINBOW_FAST_ISA="").split())  # MiB
    # Features would take 1526 MiB, in the backward pass 915. The sums themselves take 9, gradients and their sums
    # in float64 6; buffers of two threads 16 (the goal).
    assert covariance <= 9 + 16 and projection <= 16 and backward <= 6 + 16


# --- known answers ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answers(backend: str) -> None:
    x, u = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    G, shift, A = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 3.0]]), torch.tensor([1.0, -1.0]), torch.ones(1, 3)
    options = {"G": G, "scale": 2.0, "backend": backend}
    phi, M, total, square, projected = three(x, u, A, shift, **options)
    assert phi.tolist() == [[4, 0, 2], [4, 0, 4]]  # 2 relu of [[2, 0, 1], [2, -2, 2]]
    assert (M.tolist(), total.tolist(), square.tolist()) == ([[12, 0, 10]], [8, 0, 6], [32, 0, 20])
    assert projected.tolist() == [[6], [8]]


# --- output forms ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_writes_its_output_and_nothing_else(guarded, layout: str, backend: str) -> None:
    x, u, A, shift = problem((5, 3, 7, 3), 53)
    phi, M, total, square, projected = three(x, u, A, shift, seed=1, backend=backend)
    rest = (rf.key(1), None, "relu", 0.01, 1.0, None, backend)
    for op, inputs, wanted in (
        (ops.random_features_out, (u, shift), phi),
        (lambda *args: ops.random_features_projection_out(*args[:-1], [args[-1]]), (u, [A], shift), projected),
    ):
        N, c, h, w = wanted.shape
        out = guarded(N, h, w, c).permute(0, 3, 1, 2) if layout == "channels_last" else guarded(N, c, h, w)
        op(*inputs, *rest, out)
        assert differing_bits(out, wanted) == 0
    sums = [guarded(*t.shape, dtype=torch.float64).fill_(1) for t in (M, total, square)]
    ops.random_features_covariance_out(x, u, shift, None, None, *rest, *sums)
    for got, wanted in zip(sums, (M, total, square), strict=True):
        torch.testing.assert_close(got, wanted + 1, rtol=1e-14, atol=1e-14)  # added, in float64


# --- bad input ---

X, U, A, S = problem((5, 3, 2), 4)
BAD = {
    "u": ({"u": U[0, 0]}, ValueError, r"u has shape \(2,\): wanted \(N, r\) or \(N, r, \*space\)"),
    "shift": ({"shift": S[1:]}, ValueError, r"shift has shape \(4, 2\): wanted \(5, 2\), u without its channels"),
    "shift-dtype": ({"shift": S.double()}, TypeError, r"shift is torch.float64: wanted the dtype of u, torch.float32"),
    "activation": ({"activation": "softmax"}, ValueError, r"activation='softmax': wanted one of identity, relu, .*cos"),
    "no-source": ({"seed": None}, ValueError, r"seed and G are both missing: wanted one of the two"),
    "two-sources": ({"G": draw(4, 3)}, ValueError, r"seed and G are both given: wanted one of the two"),
    "G": ({"seed": None, "G": draw(3, 4)}, ValueError, r"G has shape \(3, 4\): wanted \(n, r\) = \(4, 3\)"),
    "G-dtype": ({"seed": None, "G": draw(4, 3).double()}, TypeError, r"G is torch.float64: wanted the dtype of phi'"),
    "seed": ({"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
    "key-twice": ({"seed": rf.key(1), "stream": 1}, ValueError, r"seed is a packed key, which holds"),
    "last-row": ({"row_offset": 2**56 - 1}, ValueError, r"rows=4 at .*: wanted row_offset \+ rows <= 2\^56"),
    "backend": ({"backend": "abacus"}, ValueError, r"backend='abacus' is not available on cpu"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"u": U, "seed": 1, **change}
    with pytest.raises(error, match=message):
        rf.random_features(n=4, **arguments)
    with pytest.raises(error, match=message):
        rf.random_features_covariance(X, n=4, **arguments)
    with pytest.raises(error, match=message):
        rf.random_features_projection(A=A, **arguments)


BAD_OWN = {  # of one form only
    "n": (lambda: rf.random_features(U, -1, seed=1), ValueError, r"n=-1: wanted n >= 0"),
    "x": (lambda: rf.random_features_covariance(X[1:], U, 4, seed=1), ValueError, r"x has .* wanted the N and the pos"),
    "x-dtype": (lambda: rf.random_features_covariance(X.double(), U, 4, seed=1), TypeError, r"x is .*float64: wanted"),
    "A": (lambda: rf.random_features_projection(U, A[0], seed=1), ValueError, r"A has shape \(4,\): wanted \(d, n\)"),
    "A-dtype": (lambda: rf.random_features_projection(U, A.double(), seed=1), TypeError, r"A is .*float64: wanted"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_OWN.values(), ids=BAD_OWN)
def test_bad_input_of_one_form(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes any dtype")
def test_unsupported_dtype() -> None:
    with pytest.raises(
        TypeError, match=r"dtype torch.float16 is not supported by backend 'cpu' \(it takes float32, float64\)"
    ):
        rf.random_features(U.half(), 4, seed=1)
    assert rf.random_features(U.half(), 4, seed=1, backend="reference").dtype == torch.float16


def test_bad_output() -> None:
    rest = (rf.key(1), None, "relu", 0.01, 1.0, None, None)
    M, total = torch.zeros(5, 4).double(), torch.zeros(4).double()
    outs = [
        torch.zeros(5, 4, 3),
        torch.zeros(5, 4, 2).double(),
        torch.zeros(5, 4, 2),
        M.float(),
        M,
        torch.zeros(5, 4, 2),
    ]

    def sums_out(*sums: Tensor) -> None:
        ops.random_features_covariance_out(X, U, None, None, None, *rest, *sums)

    calls = [
        (
            lambda: ops.random_features_out(U, None, *rest, outs[0]),
            ValueError,
            r"out has shape \(5, 4, 3\): wanted \(5, 4, 2\)",
        ),
        (
            lambda: ops.random_features_out(U, None, *rest, outs[1]),
            TypeError,
            r"out is torch.float64: wanted torch.float32",
        ),
        (
            lambda: ops.random_features_projection_out(U, [A], None, *rest, [outs[2]]),
            ValueError,
            r"out has shape .*: wanted \(5, 5, 2\)",
        ),
        (
            lambda: ops.random_features_covariance_out(X, U, None, None, None, *rest, outs[3], total, total),
            TypeError,
            r"out is",
        ),
        (
            lambda: ops.random_features_covariance_out(X, U, None, None, None, *rest, M, total[1:], total),
            ValueError,
            r"total has",
        ),
        (
            lambda: ops.random_features_covariance_out(X, U, None, None, None, *rest, M, total, total.float()),
            TypeError,
            r"square is",
        ),
    ]
    u = U.clone().requires_grad_()
    calls.append((lambda: ops.random_features_out(u, None, *rest, outs[5]), RuntimeError, r"has no gradient"))
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
    assert all((t == 0).all() for t in (*outs, total)), "written before the error"


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes any layout")
def test_outputs_of_any_strides() -> None:
    u, out = draw(2, 3, 4, 5), laid_out(torch.zeros(2, 6, 4, 5), "transposed")
    ops.random_features_out(u, None, rf.key(1), None, "relu", 0.01, 1.0, None, None, out)
    assert torch.equal(out, rf.random_features(u, 6, seed=1))
    u, out = draw(2, 3, 4, 5, 6), torch.zeros(2, 6, 5, 4, 6).transpose(2, 3)  # no stride spans three axes
    with pytest.raises(ValueError, match=r"out has strides .*: wanted at most two axes of space, or one stride"):
        ops.random_features_out(u, None, rf.key(1), None, "relu", 0.01, 1.0, None, None, out)
    assert (out == 0).all(), "written before the error"


def test_registered_ops_check_what_kernels_read() -> None:
    """torch.ops can be called directly, without checks: a tensor too small for u must not be read beyond its end."""
    u, rest = torch.zeros(8, 3), ("relu", 0.01, 1.0, None, None)
    with pytest.raises(ValueError, match="shift has shape"):
        ops.random_features(u, torch.zeros(2), 5, rf.key(0), None, *rest)
    with pytest.raises(ValueError, match="G has shape"):
        ops.random_features(u, None, 5, None, torch.zeros(4, 3), *rest)
    with pytest.raises(ValueError, match="seed and G are both missing"):
        ops.random_features(u, None, 5, None, None, *rest)
    with pytest.raises(ValueError, match="x has shape"):
        ops.random_features_covariance(torch.zeros(7, 2), u, None, None, None, 5, rf.key(0), None, *rest)
    with pytest.raises(TypeError, match="A is torch.float64"):
        ops.random_features_projection(u, [torch.zeros(2, 5, dtype=torch.float64)], None, rf.key(0), None, *rest)

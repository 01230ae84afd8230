# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align: scale G (L A) with exactly the bits of G, for any rows alone, on every instruction set."""

import pytest
import torch
from here import (
    BACKENDS,
    LEVELS,
    assert_compiles_once,
    assert_same_for_threads,
    differing_bits,
    draw,
    level,
    random_state_untouched,
)
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf

OP = torch.ops.rainbow_fast.sample_project_align.default
OUT = torch.ops.rainbow_fast.sample_project_align_out.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FAR = {"seed": 2**63 - 2, "stream": 7, "row_offset": 2**32 - 5}  # rows cross 2^32


def check(W: Tensor, P: Tensor, scale: float = 1.0, **at: int) -> None:
    """Compares W with scale G P, summed in float64, and computed by plain PyTorch in the computing type."""
    r = P.shape[0]
    flat = P.flatten(1)
    G = rf.gaussian(W.shape[0], r, backend="reference", **at)
    computing = torch.float64 if P.dtype == torch.float64 else torch.float32
    plain = scale * (G.to(computing) @ flat.to(computing))
    exact = scale * (G.double() @ flat.double())
    # One chain of r fused multiply-adds; the order of the reference's sums is up to the BLAS.
    assert_close_to_float64(W.flatten(1), exact, plain.to(W.dtype), terms=r)


# --- matches the reference ---

SHAPES = {  # n, r, m
    "one": (1, 1, 1),
    "no-neurons": (0, 3, 4),
    "no-columns": (3, 4, 0),
    "one-more-than-tiles": (97, 33, 49),  # 96 rows a block, 8 x 48 a tile
    "one-less-than-tiles": (95, 31, 47),
    "half-a-vector": (5, 7, 24),
    "two-thirds-of-a-panel": (5, 7, 29),
    "rank-beyond-a-chunk": (13, 1030, 60),  # partial sums wait between chunks of 1024
    "rank-of-three-chunks": (100, 2053, 5),
    "columns-beyond-a-packed-block": (9, 5, 4707),  # 96 panels of at most 48 columns are packed at a time
    "packed-blocks-of-few-panels": (3, 50_000, 200),  # and at most 32 MiB
    "many-blocks-of-rows": (1000, 6, 10),  # more tasks than threads
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "r", "m"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(n: int, r: int, m: int, backend: str) -> None:
    P = draw(r, m)
    check(rf.sample_project_align(n, P, scale=0.3, backend=backend, **FAR), P, 0.3, **FAR)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_on_every_level(dtype: torch.dtype, name: str) -> None:
    P = draw(130, 101, dtype=dtype)
    with level(name):
        check(rf.sample_project_align(99, P, backend="cpu", **FAR), P, **FAR)
        columns = draw(101, 130, dtype=dtype).T  # the rank runs along memory
        check(rf.sample_project_align(99, columns, backend="cpu", **FAR), columns, **FAR)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_of_another_dtype(dtype: torch.dtype, backend: str) -> None:
    P = draw(20, 30)
    W = rf.sample_project_align(50, P, seed=1, dtype=dtype, backend=backend)
    wanted = rf.sample_project_align(50, P, seed=1, backend=backend).to(dtype)
    assert differing_bits(W, wanted) == 0  # computed in float32, rounded once


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_rank_zero_gives_zeros(backend: str) -> None:
    assert (rf.sample_project_align(100, torch.ones(0, 70), seed=1, backend=backend) == 0).all()


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution_and_alignment(backend: str) -> None:
    L, A = draw(6, 4, 3, 2), draw(4, 9, seed=1)
    W = rf.sample_project_align(11, L, A, seed=5, backend=backend)
    assert W.shape == (11, 9, 3, 2) and W.is_contiguous()
    check(W, torch.einsum("rdhw,dm->rmhw", L, A), seed=5)
    if backend == "cpu":
        corner = rf.sample_project_align(11, L[:, :, 0, 0], seed=5)  # a strided slice of L
        assert differing_bits(corner, rf.sample_project_align(11, L, seed=5)[..., 0, 0]) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_overlapping_strides(backend: str) -> None:
    for P in (draw(1, 40).expand(20, 40), draw(20, 1).expand(20, 40), draw(60).unfold(0, 40, 1)):
        check(rf.sample_project_align(30, P, seed=1, backend=backend), P, seed=1)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("r", [7, 140])
def test_two_terms(r: int, backend: str) -> None:
    P, how = draw(r, 70), {"precision": "bf16x2", "backend": backend}
    W = rf.sample_project_align(130, P, scale=0.5, **how, **FAR)
    G = rf.gaussian(130, r, dtype=torch.bfloat16, backend="reference", **FAR).double()
    high = P.bfloat16()
    taken = high.double() + (P - high.float()).bfloat16().double()
    plain = 0.5 * (G.float() @ taken.float())
    assert_close_to_float64(W, 0.5 * G @ taken, plain, terms=r)
    # Two roundings to 8 bits leave an error of 2^-16 of each entry; float32 sums add their own.
    size = 0.5 * G.abs() @ P.double().abs()
    assert ((W - 0.5 * G @ P.double()).abs() <= (2.0**-16 + 2.0**-22) * size).all()
    rounded = rf.sample_project_align(130, P.bfloat16(), scale=0.5, dtype=torch.float32, backend=backend, **FAR)
    assert ((rounded - 0.5 * G @ P.double()).abs() > 2.0**-12 * size).any()  # one term would not be that exact


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_terms_of_a_product_of_bfloat16(guarded, backend: str) -> None:
    L, A = draw(6, 4, 3, dtype=torch.bfloat16), draw(4, 9, seed=1, dtype=torch.bfloat16)
    how = {"seed": [5, 6], "precision": "bf16x2", "backend": backend}
    W = rf.sample_project_align(11, L, A, **how)
    assert W.dtype == torch.bfloat16 and W.shape == (2, 11, 9, 3)
    single = rf.sample_project_align(11, L.float(), A.float(), **how)  # L A is not rounded to bfloat16
    assert differing_bits(W, single.bfloat16()) == 0
    out = guarded(2, 11, 9, 3, dtype=torch.bfloat16)
    assert differing_bits(rf.sample_project_align_(out, L, A, **how), W) == 0


# --- invariants ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identity_gives_the_bits_of_gaussian(dtype: torch.dtype, name: str) -> None:
    key = rf.key(2**63 - 2, 7, 2**32 - 50, 2**32 - 2)  # rows and columns cross 2^32, and begin at an odd column
    for r in (1, 50, 1027):  # within a group of four, a panel, more than a chunk
        with level(name):
            W = rf.sample_project_align(101, torch.eye(r, dtype=dtype), seed=key, backend="cpu")
            split = rf.sample_project_align(101, torch.eye(r), seed=key, precision="bf16x2", backend="cpu")
        assert differing_bits(W, rf.gaussian(101, r, seed=key, dtype=dtype, backend="reference")) == 0
        rounded = rf.gaussian(101, r, seed=key, dtype=torch.bfloat16, backend="reference")
        assert differing_bits(split, rounded.float()) == 0


@pytest.mark.parametrize("name", LEVELS)
def test_rows_alone_and_any_number_of_threads(name: str) -> None:
    P = draw(37, 1300)
    with level(name):
        assert_same_for_threads(lambda: rf.sample_project_align(500, P, backend="cpu", **FAR))
        whole = rf.sample_project_align(500, P, backend="cpu", **FAR)
        for start, stop in ((0, 1), (1, 4), (93, 190), (499, 500)):
            at = {**FAR, "row_offset": FAR["row_offset"] + start}
            part = rf.sample_project_align(stop - start, P, backend="cpu", **at)
            assert differing_bits(part, whole[start:stop]) == 0
        columns = rf.sample_project_align(500, P[:, 777:900], backend="cpu", **FAR)  # nor do the other columns matter
        assert differing_bits(columns, whole[:, 777:900]) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_covariance_of_the_rows(backend: str) -> None:
    P, n = draw(5, 8), 40_000
    W = rf.sample_project_align(n, P, seed=3, scale=2.0, backend=backend).double()
    C = 4 * P.double().T @ P.double()
    # Guth et al.: E |C_n - C|^2 = (tr^2 C + tr C^2) / n; only 1e-3 of the seeds are above three times its root
    expected = ((C.trace() ** 2 + (C * C).sum()) / n).sqrt()
    assert torch.linalg.norm(W.T @ W / n - C) < 3 * expected


def test_random_state() -> None:
    with random_state_untouched():
        for backend in BACKENDS:
            L = draw(3, 4).requires_grad_()
            rf.sample_project_align(5, L, seed=1, backend=backend).sum().backward()


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_seeds(guarded, dtype: torch.dtype, backend: str) -> None:
    L, A, seeds = draw(6, 4, 3, dtype=dtype), draw(4, 9, seed=1, dtype=dtype), [2**63 - 1, 0, 7]
    W = rf.sample_project_align(11, L, A, seed=seeds, stream=2, row_offset=3, backend=backend)
    assert W.shape == (3, 11, 9, 3) and W.is_contiguous()
    for slice_, seed in zip(W, seeds, strict=True):
        alone = rf.sample_project_align(11, L, A, seed=seed, stream=2, row_offset=3, backend=backend)
        assert differing_bits(slice_, alone) == 0
    whole = guarded(3, 15, 9, 3, dtype=dtype)
    part = whole[:, 2:13]
    rf.sample_project_align_(part, L, A, seed=rf.key(seeds, 2, 3), backend=backend)
    assert differing_bits(part, W) == 0 and whole[:, :2].isnan().all() and whole[:, 13:].isnan().all()
    assert rf.sample_project_align(11, L, seed=[], backend=backend).shape == (0, 11, 4, 3)


# --- known answers ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answers(backend: str) -> None:
    # The first four numbers of G (seed 0x0123456789abcdef, stream 7), small integers, and a power of two: sums by hand
    # are 0.9467635, 0.20070095, 0.15558271, -0.53946036.
    P = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    W = rf.sample_project_align(1, P, seed=0x0123456789ABCDEF, stream=7, scale=0.5, backend=backend)
    assert [f"{x:08x}" for x in W.view(torch.int32)[0].tolist()] == ["3ef25f19", "3e4d84b3"]


# --- registration ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration(dtype: torch.dtype) -> None:
    for precision in (None, "bf16x2"):
        how = (precision, None)
        torch.library.opcheck(OP, (5, draw(3, 4).requires_grad_(), rf.key(1), 0.5, dtype, *how))
        torch.library.opcheck(OUT, (draw(3, 4), rf.key(1), 0.5, *how, torch.zeros(5, 4, dtype=dtype)))
        torch.library.opcheck(OP, (5, draw(3, 4).requires_grad_(), rf.key([1, 2]), 0.5, dtype, *how))
        torch.library.opcheck(OUT, (draw(3, 4), rf.key([1, 2]), 0.5, *how, torch.zeros(2, 5, 4, dtype=dtype)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str) -> None:
    L, A = draw(3, 2, 2, dtype=torch.float64).requires_grad_(), draw(2, 4, dtype=torch.float64, seed=1).requires_grad_()
    for key in (rf.key(3, 2, 2**32 - 3, 1), rf.key([3, 4], 2, 2**32 - 3, 1)):
        assert torch.autograd.gradcheck(
            lambda L, A, key=key: rf.sample_project_align(6, L, A, seed=key, scale=0.7, backend=backend), (L, A)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_generates_the_same_rows_again(dtype: torch.dtype) -> None:
    n, P = 9000, draw(7, 3, dtype=dtype).requires_grad_()  # three blocks of 4096 rows
    grad = draw(n, 3, dtype=dtype, seed=1)
    rf.sample_project_align(n, P, seed=1, row_offset=5, scale=0.5).backward(grad)
    G = rf.gaussian(n, 7, seed=1, row_offset=5)
    plain = (0.5 * (G.to(dtype).T @ grad)).to(dtype)
    assert_close_to_float64(P.grad, 0.5 * (G.double().T @ grad.double()), plain, terms=n)


def test_gradient_in_two_terms() -> None:
    L, A, grad = draw(7, 3).requires_grad_(), draw(3, 5, seed=1).requires_grad_(), draw(40, 5, seed=2)
    rf.sample_project_align(40, L, A, seed=1, scale=0.5, precision="bf16x2").backward(grad)
    G = rf.gaussian(40, 7, seed=1, dtype=torch.bfloat16)
    P_grad = 0.5 * (G.double().T @ grad.double())  # the gradient of G P: rounding P has no gradient
    plain = 0.5 * (G.float().T @ grad)
    assert_close_to_float64(L.grad, P_grad @ A.detach().double().T, plain @ A.detach().T, terms=40)
    assert_close_to_float64(A.grad, L.detach().double().T @ P_grad, L.detach().T @ plain, terms=40)


@pytest.mark.parametrize("form", ["value", "out"])
def test_one_compilation_for_ten_seeds(form: str) -> None:
    L, A = draw(3, 4), draw(4, 5, seed=1)

    def weights(key: Tensor) -> Tensor:
        if form == "out":
            return rf.sample_project_align_(torch.zeros(6, 5), L, A, seed=key) * 2
        return rf.sample_project_align(6, L, A, seed=key) * 2

    assert_compiles_once(weights, [(rf.key(seed),) for seed in range(10)])
    if form == "value":
        assert_compiles_once(weights, [(rf.key([seed, seed + 1]),) for seed in range(10)])


def test_one_compilation_for_int_seeds_and_widths_where_they_are_dynamic() -> None:
    P = draw(3, 4)
    calls = [(seed, seed + 20) for seed in range(3, 13)]
    assert_compiles_once(lambda seed, n: rf.sample_project_align(n, P, seed=seed), calls, dynamic=True)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_writes_its_output_and_nothing_else(guarded, backend: str) -> None:
    L = draw(6, 4, 3, 2)
    for whole in (guarded(20, 4, 3, 2), guarded(20, 4, 3, 2, dtype=torch.float16)):
        part = whole[5:12]
        assert rf.sample_project_align_(part, L, seed=1, row_offset=5, backend=backend) is part
        wanted = rf.sample_project_align(7, L, seed=1, row_offset=5, dtype=whole.dtype, backend=backend)
        assert differing_bits(part, wanted) == 0
        assert whole[:5].isnan().all() and whole[12:].isnan().all()
    columns = guarded(9, 50)
    rf.sample_project_align_(columns[:, 3:46], draw(6, 43), seed=1, backend=backend)
    assert columns[:, :3].isnan().all() and columns[:, 46:].isnan().all() and columns[:, 3:46].isfinite().all()
    assert rf.sample_project_align_(torch.ones(0, 4, 3, 2), L, seed=1, backend=backend).shape == (0, 4, 3, 2)


# --- bad input ---

L = draw(3, 4)
BAD = {
    "n": ({"n": -1}, ValueError, r"n=-1: wanted n >= 0"),
    "L": ({"L": L[0]}, ValueError, r"L has shape \(4,\): wanted \(r, d\) or \(r, d, \*kernel\)"),
    "A": ({"A": draw(3, 4)}, ValueError, r"A has shape \(3, 4\): wanted \(d, m\) with d = 4, the channels of L"),
    "A-dim": ({"A": draw(4)}, ValueError, r"A has shape \(4,\): wanted \(d, m\) with d = 4"),
    "A-dtype": ({"A": draw(4, 4).double()}, TypeError, r"A is torch.float64: wanted the dtype of L, torch.float32"),
    "seed": ({"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
    "key-twice": ({"seed": rf.key(1), "row_offset": 1}, ValueError, r"seed is a packed key, which holds"),
    "last-row": ({"row_offset": 2**56 - 1}, ValueError, r"rows=5 at row_offset=.*: wanted row_offset \+ rows <= 2\^56"),
    "last-column": ({"seed": rf.key(1, 0, 0, 2**34 - 1)}, ValueError, r"wanted col_offset \+ cols <= 2\^34"),
    "precision": (
        {"precision": "bf16"},
        ValueError,
        r"precision='bf16': wanted None or one of highest, high, medium, bf16x2",
    ),
    "precision-dtype": (
        {"L": L.double(), "precision": "bf16x2"},
        TypeError,
        r"precision='bf16x2': L is torch.float64, wanted torch.float32 or torch.bfloat16",
    ),
    "precision-A": (
        {"A": draw(4, 4).bfloat16(), "precision": "bf16x2"},
        TypeError,
        r"A is torch.bfloat16: wanted the dtype of L, torch.float32",
    ),
    "backend": ({"backend": "abacus"}, ValueError, r"backend='abacus' is not available on cpu"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"n": 5, "L": L, "seed": 1, **change}
    with pytest.raises(error, match=message):
        rf.sample_project_align(**arguments)
    out = torch.full((5, 4), 7.0)
    if arguments.pop("n") == 5:
        with pytest.raises(error, match=message):
            rf.sample_project_align_(out, **arguments)
    assert (out == 7).all(), "written before the error"


BAD_OUT = {
    "dim": (torch.zeros(5), L, r"out has shape \(5,\): wanted \('n', 4\)"),
    "columns": (torch.zeros(5, 3), L, r"out has shape \(5, 3\): wanted \('n', 4\)"),
    "kernel": (torch.zeros(5, 4, 2), draw(3, 4, 3), r"out has shape \(5, 4, 2\): wanted \('n', 4, 3\)"),
    "seeds": (torch.zeros(5, 4), L, r"out has shape \(5, 4\): wanted \(2, 'n', 4\)"),
    "strides": (torch.zeros(5, 3, 4).transpose(1, 2), draw(3, 4, 3), r"out has strides .*: wanted contiguous rows"),
}


@pytest.mark.parametrize(("out", "L", "message"), BAD_OUT.values(), ids=BAD_OUT)
def test_bad_output(out: Tensor, L: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.sample_project_align_(out, L, seed=[1, 2] if "2, 'n'" in message else 1)
    assert (out == 0).all(), "written before the error"


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes any layout and dtype")
def test_what_only_the_reference_takes() -> None:
    out = torch.zeros(4, 5).T
    with pytest.raises(ValueError, match=r"out has strides \(1, 5\): wanted contiguous rows"):
        rf.sample_project_align_(out, L, seed=1)
    assert (out == 0).all(), "written before the error"
    check(rf.sample_project_align_(out, L, seed=1, backend="reference"), L, seed=1)
    with pytest.raises(TypeError, match=r"L is torch.int32: wanted one of torch.float32, .*torch.float16"):
        rf.sample_project_align(5, L.int(), seed=1, dtype=torch.float32)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_integer_results_are_refused(backend: str | None) -> None:
    with pytest.raises(TypeError, match=r"dtype=torch.int32: wanted one of torch.float32"):
        rf.sample_project_align(5, L, seed=1, dtype=torch.int32, backend=backend)
    out = torch.zeros(5, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"out is torch.int64: wanted one of torch.float32, .*torch.float16"):
        rf.sample_project_align_(out, L, seed=1, backend=backend)
    assert (out == 0).all(), "written before the error"


def test_output_form_refuses_gradients() -> None:
    out = torch.zeros(5, 4)
    with pytest.raises(RuntimeError, match=r"sample_project_align_ writes into given memory and has no gradient"):
        rf.sample_project_align_(out, L.clone().requires_grad_(), seed=1)
    assert (out == 0).all(), "written before the error"

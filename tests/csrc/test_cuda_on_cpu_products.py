# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align and cross_covariance in CUDA, on a CPU with the arithmetic of tensor cores, against float64."""

import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import build
from here import differing_bits, draw, laid_out
from torch import Tensor

from rainbow_fast import backend
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.activations import CODE as ACTIVATION
from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.ops.memory import address_of, matrix, samples
from rainbow_fast.ops.precision import CODE as PRECISION

if not (os.environ.get("CXX") or shutil.which("c++")):
    pytest.skip("no C++ compiler here", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Errors as a share of the sum of the products' magnitudes. Tensor cores cut off at 2^-23 of their sum where they add,
# for positive data always in one direction. They cut off each term at 2^-24 of the largest one, which matters for
# products of float16 with their 22 bits. tf32 drops 2^-22 of a product, and float32 sums are rounded.
ERROR = {torch.float32: 5e-7, torch.float64: 1e-14, torch.bfloat16: 5e-7, torch.float16: 5e-7}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.fixture(autouse=True)
def forward_again() -> Iterator[None]:
    yield
    build.set_order(0)


# --- sample_project_align ---


def align(
    out: Tensor,
    P: Tensor,
    at: tuple[int, int, int, int],
    scale: float = 1.0,
    generated: torch.dtype | None = None,
    precision: str = "highest",
) -> Tensor:
    target = (out.data_ptr(), backend.CODE[out.dtype], out.shape[0], out.stride(0))
    rounding = backend.CODE[generated or P.dtype]
    how = (rounding, at, scale, PRECISION[precision], (0, 0, 0, 0))
    build.load().cuda.sample_project_align(*target, matrix(P), *how)
    return out


def normals(at: tuple[int, int, int, int], n: int, r: int) -> Tensor:
    return torch.from_numpy(gaussian_reference(list(at), n, r))


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_gives_the_bits_of_g(guarded, dtype: torch.dtype) -> None:
    at = (2**62 + 3, 2**32 - 1, 2**40 + 1, 6)  # a row above 2^32, and a column inside a group of four
    W = align(guarded(67, 41, dtype=dtype), torch.eye(41, dtype=dtype), at)
    wanted = normals(at, 67, 41).to(dtype)
    if dtype == torch.float32:  # two parts of eleven bits
        assert (W - wanted).abs().div(wanted.abs()).max() <= 2.0**-22
    else:
        assert differing_bits(W, wanted) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n, r, m, column",
    [
        (130, 37, 257, 0),  # two strips, two tiles, the last of one column
        (3, 517, 8, 3),  # more columns of G than are kept at a time
        (2, 1, 1, 1),
        (2, 0, 3, 0),  # a rank of 0: zeros
    ],
)
def test_project(guarded, n: int, r: int, m: int, column: int, dtype: torch.dtype) -> None:
    at, P = (11, 5, 77, column), draw(r, m, dtype=dtype).relu()
    G, P64 = normals(at, n, r).to(dtype).double(), P.double()
    for columns in (P, P.T.contiguous().T):  # copied 16 bytes at a time where m allows, and read along columns
        whole = guarded(n, m + 3, dtype=wide(dtype))
        out = align(whole[:, :m], columns, at, 0.5)
        error = (out - 0.5 * G @ P64).abs() / (0.5 * G.abs() @ P64.abs()).clamp(min=1e-300)
        assert r == 0 or error.max() <= ERROR[dtype], float(error.max())
        assert r > 0 or (out == 0).all()
        assert whole[:, m:].isnan().all()


@pytest.mark.parametrize("n, r, m, column", [(130, 37, 257, 0), (3, 517, 8, 3), (2, 0, 3, 0)])
def test_two_terms(guarded, n: int, r: int, m: int, column: int) -> None:
    at, P = (11, 5, 77, column), draw(r, m).relu()
    G, high = normals(at, n, r).bfloat16().double(), P.bfloat16()
    taken = high.double() + (P - high.float()).bfloat16().double()
    for columns in (P, P.T.contiguous().T):
        whole = guarded(n, m + 3)
        out = align(whole[:, :m], columns, at, 0.5, torch.bfloat16)
        assert ((out - 0.5 * G @ taken).abs() <= ERROR[torch.float32] * (0.5 * G.abs() @ taken)).all()
        assert whole[:, m:].isnan().all()
    if 0 < r < m:  # not some other rounding of P
        assert ((out - 0.5 * G @ P.double()).abs() > ERROR[torch.float32] * (0.5 * G.abs() @ taken)).any()


# Two terms of both sides leave out the product of both second ones, 2^-16 of a product, and 2^-16 of each side.
BOUNDS = {"high": 2.0**-14, "medium": 2.0**-7}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("n, r, m, column", [(130, 37, 257, 0), (3, 517, 8, 3), (2, 0, 3, 0)])
def test_precisions_of_weights(guarded, n: int, r: int, m: int, column: int, precision: str) -> None:
    at, P = (11, 5, 77, column), draw(r, m).relu()
    G = normals(at, n, r).double()
    for columns in (P, P.T.contiguous().T):
        whole = guarded(n, m + 3)
        out = align(whole[:, :m], columns, at, 0.5, precision=precision)
        assert ((out - 0.5 * G @ P.double()).abs() <= BOUNDS[precision] * (0.5 * G.abs() @ P.double())).all()
        assert whole[:, m:].isnan().all()
    if 0 < r < m:  # no more exact than it needs to be
        assert ((out - 0.5 * G @ P.double()).abs() > 1e-6 * (0.5 * G.abs() @ P.double())).any()


@pytest.mark.parametrize("rounding", [torch.float32, torch.bfloat16], ids=["three-products", "two-terms"])
def test_device_of_less_shared_memory(guarded, rounding: torch.dtype) -> None:
    """A GeForce has 99 KiB for each block: half as much of G is kept, with the same bits."""
    P, at = draw(517, 20), (11, 5, 77, 3)
    wanted = align(guarded(30, 20), P, at, generated=rounding)
    build.set_most_shared(99)
    try:
        assert differing_bits(align(guarded(30, 20), P, at, generated=rounding), wanted) == 0
    finally:
        build.set_most_shared()


def test_blocks_of_rows_have_the_bits_of_the_whole(guarded) -> None:
    P = draw(20, 264, dtype=torch.bfloat16)
    whole = align(guarded(140, 264, dtype=torch.float16), P, (1, 2, 3, 0))
    build.set_order(5)
    part = align(guarded(9, 264, dtype=torch.float16), P, (1, 2, 3 + 127, 0))
    assert differing_bits(whole[127:136], part) == 0


# --- cross_covariance ---


def add_covariance(
    out: Tensor, sides: list[Tensor], shifts: list[Tensor], totals: list[Tensor], workspace: Tensor, **options
) -> None:
    held = [samples(side) for side in sides]
    described = [
        (description, address_of(shift), address_of(total))
        for (_, description), shift, total in zip(
            held, shifts or [None] * len(sides), totals or [None] * len(sides), strict=True
        )
    ]
    activation = ACTIVATION[options.get("activation", "identity")]
    build.load().cuda.cross_covariance(
        out.data_ptr(), out.stride(0), described[0], described[1:] or described, len(sides) == 1, activation, 0.25,
        PRECISION[options.get("precision", "highest")], (0, 0, workspace.data_ptr(), workspace.nbytes),
    )  # fmt: skip


def check(
    guarded,
    sides: list[Tensor],
    *,
    shifts: bool = False,
    room: int = 0,
    activation: str = "identity",
    precision: str = "highest",
) -> Tensor:
    """Adds to an `out` of ones inside a wider matrix and compares it, and the totals, with float64."""
    dtype = sides[0].dtype
    values = [ACTIVATIONS[activation][0](side.to(wide(dtype)), 0.25).double() for side in sides]
    values = [v.flatten(2) if v.dim() > 2 else v.unsqueeze(2) for v in values]
    means = [v[:2].mean((0, 2)).to(wide(dtype)) for v in values] if shifts else []
    values = [v - mean.double().unsqueeze(1) for v, mean in zip(values, means, strict=True)] if shifts else values
    totals = [guarded(len(mean), dtype=torch.float64).fill_(1) for mean in means]
    x, y = values[0], torch.cat(values[1:] or values, 1)
    whole = guarded(x.shape[1], y.shape[1] + 3, dtype=torch.float64)
    out = whole[:, :-3].fill_(1)
    how = {"activation": activation, "precision": precision}
    add_covariance(out, sides, means, totals, guarded(room, dtype=torch.float64), **how)
    scale = torch.einsum("nds,nms->dm", x.abs(), y.abs())
    error = (out - 1 - torch.einsum("nds,nms->dm", x, y)).abs() / (scale + 1)
    # the errors of the activation, a few units in the last place on both sides, come in addition
    allowed = BOUNDS.get(precision, ERROR[dtype] * (1 if activation in ("identity", "relu") else 3))
    assert error.max() <= allowed, float(error.max())
    assert precision == "highest" or error.max() > 1e-6  # no more exact than it needs to be
    assert whole[:, -3:].isnan().all()
    for side in range(0 if not shifts else len(sides)):
        error = (totals[side] - 1 - values[side].sum((0, 2))).abs() / values[side].abs().sum((0, 2))
        assert error.max() <= ERROR[dtype], float(error.max())
    if len(sides) == 1:
        assert differing_bits(out, out.T) == 0
    return out.clone()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
def test_layouts(guarded, layout: str, dtype: torch.dtype) -> None:
    for space in [(), (4, 8), (5, 3)]:  # lines that are a multiple of 16 bytes, and that are not
        x = laid_out(draw(9, 72, *space, dtype=dtype), layout)
        y = draw(9, 24, *space, dtype=dtype, seed=1)
        check(guarded, [x, y, y[:, 1:4]], activation="relu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_than_a_tile_and_symmetric(guarded, dtype: torch.dtype) -> None:
    x = draw(70, 136, dtype=dtype).relu()  # with samples for more than two stages, the last one incomplete
    symmetric = check(guarded, [x])
    assert (symmetric - check(guarded, [x, x])).abs().max() <= 200 * ERROR[dtype]


@pytest.mark.parametrize("precision", BOUNDS)
def test_precisions_of_covariances(guarded, precision: str) -> None:
    for layout in ("contiguous", "channels_last"):
        x = laid_out(draw(9, 72, 5, 3), layout)
        check(guarded, [x, draw(9, 24, 5, 3, seed=1)], activation="relu", precision=precision)
    check(guarded, [draw(70, 136)], precision=precision)
    check(guarded, [draw(70, 136), draw(70, 9, seed=1)], shifts=True, precision=precision)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slabs(guarded, dtype: torch.dtype) -> None:
    """Four slabs if there is room for them, one if there is none; the same bits in any order of blocks."""
    x = draw(4097, 9, dtype=dtype)
    if dtype != torch.float64:  # positive: what tensor cores cut off adds up, unless their sums are taken over in time
        x = x.relu()
    for sides in ([x], [x, x[:, :3]]):
        check(guarded, sides, room=0)
        first = check(guarded, sides, room=4 * 81, shifts=True)
        build.set_order(7)
        assert differing_bits(first, check(guarded, sides, room=4 * 81, shifts=True)) == 0
        build.set_order(0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activations_and_shifts(guarded, activation: str, dtype: torch.dtype) -> None:
    x, y = draw(5, 6, 11, dtype=dtype) * 3, laid_out(draw(5, 4, 11, dtype=dtype, seed=1), "channels_last")
    check(guarded, [x, y], activation=activation)
    check(guarded, [x, y], activation=activation, shifts=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([[-1.0, torch.nan, 2.0]], dtype=dtype)
    out = torch.zeros(3, 3, dtype=torch.float64)
    add_covariance(out, [x], [], [], torch.zeros(0), activation="relu")
    assert out[1].isnan().all() and out[[0, 2]][:, [0, 2]].tolist() == [[0, 0], [0, 4]]


def test_nothing_to_add() -> None:
    out = torch.ones(3, 2, dtype=torch.float64)
    add_covariance(out, [torch.empty(0, 3), torch.empty(0, 2)], [], [], torch.zeros(0))
    assert (out == 1).all()

# SPDX-License-Identifier: BSD-3-Clause
"""The Triton cross_covariance against float64, in any layout; run by tests/triton_kernels/test_triton.py."""

from dataclasses import replace

import pytest
import torch
from here import differing_bits, draw, laid_out
from tolerance import assert_in_class
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.memory import samples
from rainbow_fast.triton_kernels import cross_covariance as kernel


def exact(x: Tensor, activation: str = "identity", shift: Tensor | None = None) -> Tensor:
    """(d, samples), float64"""
    slope = float(torch.tensor(0.01)) if x.dtype != torch.float64 else 0.01
    value = ACTIVATIONS[activation][0](x.double(), slope).movedim(1, 0).flatten(1)
    return value if shift is None else value - shift.double().unsqueeze(1)


def run(
    out: Tensor, sides: list[Tensor], *, shifts=None, totals=None, activation: str = "identity", **launch
) -> Tensor:
    """Adds to `out`, which is 1 before, and returns the difference."""
    none = [None] * len(sides)
    views = [samples(side)[0] for side in sides]
    out.fill_(1)
    kernel.cross_covariance(out, views, shifts or none, totals or none, len(sides) == 1, activation, 0.01, **launch)
    return out - 1


def check(got: Tensor, x: Tensor, y: Tensor, name: str = "tensor cores") -> None:
    """x, y: (channels, samples), float64."""
    assert_in_class(got, x @ y.T, x.abs() @ y.abs().T, name)


def tensor(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.fixture(autouse=True)
def guarded_workspace(guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the launcher allocates is full of NaN, with a rim that must not change."""
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: guarded(*shape, dtype=dtype))


SHAPES = {  # of x, and the channels of y
    "one": ((1, 1), 1),
    "one-more-than-a-tile-and-a-chain": ((129, 129), 65),
    "images-cut-by-steps": ((3, 5, 5, 11), 33),
    "images-of-one-position": ((40, 6, 1, 1), 5),
    "volume": ((2, 3, 4, 5, 6), 4),
    "several-ranges-of-unequal-length": ((1500, 9), 10),
}


@pytest.mark.parametrize(("shape", "m"), SHAPES.values(), ids=SHAPES)
def test_matches_float64(guarded, shape: tuple[int, ...], m: int) -> None:
    x, y = draw(*shape), draw(shape[0], m, *shape[2:], seed=1)
    whole = guarded(shape[1], m + 3, dtype=torch.float64)
    check(run(whole[:, 1:-2], [x, y]), exact(x), exact(y))
    assert whole[:, :1].isnan().all() and whole[:, -2:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (4, 3, 0), (0, 3, 4, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    x, y = draw(*shape), draw(shape[0], 2, *shape[2:])
    assert (run(tensor(shape[1], 2), [x, y]) == 0).all()
    assert (run(tensor(shape[1], shape[1]), [x]) == 0).all()


LAYOUTS = {
    "channels-last": ("channels_last", "channels_last"),
    "one-of-each": ("contiguous", "channels_last"),
    "every-axis-strided": ("sliced", "contiguous"),
    "copied": ("transposed", "sliced"),
}


@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(dtype: torch.dtype, layouts: tuple[str, str]) -> None:
    for space in ((4, 4), (3, 7), (1, 7), (7, 1)):  # of whole vectors, and with a rest
        x, y = draw(5, 19, *space, dtype=dtype), draw(5, 40, *space, dtype=dtype, seed=1)
        x, y = laid_out(x, layouts[0]), laid_out(y, layouts[1])
        check(run(tensor(19, 40), [x, y]), exact(x), exact(y))


def test_slices_of_lines_and_shared_samples() -> None:
    wide = torch.full((4, 9, 5, 8), torch.nan)
    x = wide[::2, 1:-2, 1:4, :5].copy_(draw(2, 6, 3, 5))  # three axes with their own strides, read in place
    check(run(tensor(6, 6), [x]), exact(x), exact(x))
    windows = draw(60).unfold(0, 7, 1)
    check(run(tensor(7, 7), [windows]), exact(windows), exact(windows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, y = draw(70, 35, dtype=dtype), draw(70, 5, dtype=dtype, seed=1)
    check(run(tensor(35, 5), [x, y]), exact(x), exact(y), "float64" if dtype == torch.float64 else "tensor cores")


@pytest.mark.parametrize("d", [1, 33, 140])
def test_symmetric_to_the_last_bit(d: int) -> None:
    x = draw(3, d, 9)
    got = run(tensor(d, d), [x])
    check(got, exact(x), exact(x))
    assert differing_bits(got, got.T.contiguous()) == 0


def test_blocks_of_a_large_result() -> None:
    x, y, z = draw(30, 21), draw(30, 9, seed=1), draw(30, 4, seed=2)
    check(run(tensor(21, 13), [x, y, z], block=8), exact(x), torch.cat([exact(y), exact(z)]))
    got = run(tensor(21, 21), [x], block=8)
    check(got, exact(x), exact(x))
    assert differing_bits(got, got.T.contiguous()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shifts_and_totals_of_several_sides(dtype: torch.dtype) -> None:
    sides = [draw(3, c, 5, 5, dtype=dtype, seed=c).add_(2) for c in (9, 4, 6)]
    work = torch.float64 if dtype == torch.float64 else torch.float32
    shifts = [side.to(work).mean((0, 2, 3)) for side in sides]
    totals = [torch.ones(side.shape[1], dtype=torch.float64) for side in sides]
    got = run(tensor(9, 10), sides, shifts=shifts, totals=totals)
    x, *ys = (exact(side, "identity", shift) for side, shift in zip(sides, shifts, strict=True))
    name = "float64" if dtype == torch.float64 else "tensor cores"
    check(got, x, torch.cat(ys), name)
    for total, side in zip(totals, (x, *ys), strict=True):
        assert_in_class(total - 1, side.sum(1), side.abs().sum(1), name)


def test_shift_and_total_of_itself() -> None:
    x, shift, total = draw(700, 5), draw(5, seed=1), torch.ones(5, dtype=torch.float64)
    got = run(tensor(5, 5), [x], shifts=[shift], totals=[total])
    value = exact(x, "identity", shift)
    check(got, value, value)
    assert_in_class(total - 1, value.sum(1), value.abs().sum(1), "tensor cores")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_leave_zeros_outside(activation: str, dtype: torch.dtype) -> None:
    """cos(0) = 1 must not count for samples past the end. Values of sigma are not rounded to bfloat16."""
    x, y = draw(21, 5, dtype=dtype), draw(21, 4, dtype=dtype, seed=1)
    got = run(tensor(5, 4), [x, y], activation=activation)
    check(got, exact(x, activation), exact(y, activation), "float64" if dtype == torch.float64 else "tensor cores")


def test_non_finite_samples_reach_the_result() -> None:
    x, y = draw(150, 20), draw(150, 4, seed=1)
    x[123, 7] = torch.nan
    got = run(tensor(20, 4), [x, y])
    assert got[7].isnan().all() and got.isfinite().sum() == 19 * 4


def test_chains_are_promoted_and_lose_nothing() -> None:
    """1, then chains of 2^-19 (1 + 2^-10): a float32 sum loses every single product, and keeps a part of each chain."""
    machine = replace(kernel.MACHINES["sm_90"], programs=1)  # one range
    x, y = torch.full((640, 1), 2.0**-13), torch.full((640, 1), 2.0**-13 * (1 + 2.0**-10))
    x[0] = y[0] = 1.0
    x[1:128] = 0.0
    check(run(tensor(1, 1), [x, y], machine=machine), exact(x), exact(y), "float64")


@pytest.mark.parametrize(("precision", "bound"), [("high", 2.0**-14), ("medium", 2.0**-7)])
def test_precisions(precision: str, bound: float) -> None:
    """Of float32 products alone: bfloat16 samples are multiplied as they are."""
    x, y = draw(150, 40), draw(150, 70, seed=1)
    got, full = (run(tensor(40, 70), [x, y], precision=each) for each in (precision, "highest"))
    size = exact(x).abs() @ exact(y).abs().T
    assert ((got - exact(x) @ exact(y).T).abs() <= bound * size).all() and not torch.equal(got, full)
    narrow = [x.bfloat16(), y.bfloat16()]
    got, full = (run(tensor(40, 70), narrow, precision=each) for each in (precision, "highest"))
    assert differing_bits(got, full) == 0

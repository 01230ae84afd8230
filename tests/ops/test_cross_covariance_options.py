# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance of several sides at once, through an activation, about the mean."""

import pytest
import torch
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, laid_out, level
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import ACTIVATIONS


def direct(x: Tensor, y: Tensor) -> Tensor:
    x, y = (t.movedim(1, -1).flatten(0, -2) for t in (x, y))
    return x.T @ y


def check(x: Tensor, y: Tensor, got: Tensor) -> None:
    """Compares with float64; x and y are float32 and are what the products are made of."""
    assert_close_to_float64(got.float(), direct(x.double(), y.double()), direct(x, y), terms=256)


# --- several sides ---

CHANNELS = (70, 1, 16, 130, 5)  # beyond a panel; one; a whole vector; two panels; less than a vector


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_several_sides_are_each_alone(dtype: torch.dtype, name: str) -> None:
    x = draw(5, 20, 9, 7, dtype=dtype)
    ys = [draw(5, m, 9, 7, dtype=dtype, seed=m) for m in CHANNELS]
    ys[1], ys[3] = laid_out(ys[1], "channels_last"), laid_out(ys[3], "sliced")
    with level(name):
        together = rf.cross_covariance(x, ys, backend="cpu")
        for y, got in zip(ys, together, strict=True):
            assert got.shape == (20, y.shape[1])
            # The last places may differ: blocks of columns may begin elsewhere, which moves the ends of the slabs of a
            # long sum.
            alone = rf.cross_covariance(x, y, backend="cpu")
            torch.testing.assert_close(got, alone, rtol=1e-13, atol=1e-12)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_of_one_is_a_list(backend: str) -> None:
    x, y = draw(30, 4), draw(30, 6, seed=1)
    (got,) = rf.cross_covariance(x, (y,), backend=backend)
    assert torch.equal(got, rf.cross_covariance(x, y, backend=backend))
    out = torch.zeros(4, 10, dtype=torch.float64)
    rf.cross_covariance_(out, x, [y, x], backend=backend)
    check(x, torch.cat([y, x], 1), out)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_side_without_channels_before_another(backend: str) -> None:
    """A side without channels has no tile, but the sums over x that `center` needs are still taken."""
    x, y = draw(600, 3), draw(600, 4, seed=1)
    x[300:] += 3
    y[300:] += 3
    got = rf.cross_covariance(x, [y[:, :0], y], center=True, backend=backend)
    assert got[0].shape == (3, 0)
    check(x - x.mean(0), y - y.mean(0), got[1])


def test_several_sides_for_any_number_of_threads() -> None:
    x, ys = draw(3001, 30), [draw(3001, m, seed=m) for m in CHANNELS]
    assert_same_for_threads(lambda: tuple(rf.cross_covariance(x, ys, center=True, activation="gelu")))


# --- an activation ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, name: str) -> None:
    x, y = draw(3, 13, 8, 9), draw(3, 37, 8, 9, seed=1)
    sigma = lambda t: ACTIVATIONS[activation][0](t, 0.2)  # noqa: E731
    with level(name):
        for layout in ("contiguous", "channels_last"):
            sides = laid_out(x, layout), laid_out(y, layout)
            got = rf.cross_covariance(*sides, activation=activation, negative_slope=0.2, backend="cpu")
            check(sigma(x.double()).float(), sigma(y.double()).float(), got)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_activations_of_half_precision_are_not_rounded(activation: str, dtype: torch.dtype, name: str) -> None:
    x, y = draw(4, 13, 77, dtype=dtype), draw(4, 37, 77, dtype=dtype, seed=1)
    sigma = ACTIVATIONS[activation][0]
    with level(name):
        got = rf.cross_covariance(x, y, activation=activation, backend="cpu")
    check(sigma(x.float(), 0), sigma(y.float(), 0), got)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_relu_keeps_nan(dtype: torch.dtype, name: str) -> None:
    x = draw(1, 9, 70, dtype=dtype)  # read where it lies
    for sign in (1, -1):
        x[0, 4, 33] = sign * torch.nan
        with level(name):
            got = rf.cross_covariance(x, torch.ones(1, 3, 70, dtype=dtype), activation="relu", backend="cpu")
        assert got[4].isnan().all() and got.isfinite().sum() == 8 * 3


# --- about the mean ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_center_is_exact(layout: str, name: str) -> None:
    # The mean is 1000 times the spread: subtracting it only at the end would cost six of the seven digits.
    x = laid_out(draw(5, 18, 11, 13) + 1000, layout)
    ys = [laid_out(draw(5, m, 11, 13, seed=m) - 500, layout) for m in (70, 3)]
    about = [t.double() - t.double().mean((0, 2, 3), keepdim=True) for t in (x, *ys)]
    with level(name):
        several = rf.cross_covariance(x, ys, center=True, backend="cpu")
        own = rf.cross_covariance(x, center=True, backend="cpu")
    # After the shift, numbers are exact in float32 or rounded to half a unit of 1: 2^-24 of the largest sums.
    for got, y in zip([*several, own], [*about[1:], about[0]], strict=True):
        exact = direct(about[0], y)
        torch.testing.assert_close(got, exact, rtol=0, atol=2e-6 * exact.abs().max().item())
    assert differing_bits(own, own.T) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_center_and_activation_together(dtype: torch.dtype, backend: str) -> None:
    x, y = draw(700, 5, dtype=dtype) + 1, draw(700, 8, dtype=dtype, seed=1)
    got = rf.cross_covariance(x, y, center=True, activation="relu", backend=backend)
    a, b = x.double().relu(), y.double().relu()
    exact = (a - a.mean(0)).T @ (b - b.mean(0))
    tolerance = 1e-12 if dtype == torch.float64 else 700 * 2.0**-24  # 700 terms of order one, each rounded to float32
    torch.testing.assert_close(got, exact, rtol=0, atol=tolerance)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sample_about_its_mean_is_zero(backend: str) -> None:
    assert (rf.cross_covariance(draw(1, 4), center=True, backend=backend) == 0).all()


# --- gradients, bad input ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_options(backend: str) -> None:
    x = draw(4, 3, 2, dtype=torch.float64).requires_grad_()
    ys = [draw(4, m, 2, dtype=torch.float64, seed=m).requires_grad_() for m in (2, 1)]

    def several(x: Tensor, *ys: Tensor) -> list[Tensor]:
        return rf.cross_covariance(x, ys, activation="tanh", center=True, backend=backend)

    def own(x: Tensor) -> Tensor:
        return rf.cross_covariance(x, activation="silu", center=True, backend=backend)

    assert torch.autograd.gradcheck(several, (x, *ys))
    assert torch.autograd.gradcheck(own, (x,))


BAD = {
    "no-y": (([],), {}, r"y is empty: wanted a tensor, some tensors, or None for x"),
    "one-y": (([draw(4, 3, 2), draw(4, 3)],), {}, r"y has shape \(4, 3\): wanted the N and the positions of x"),
    "activation": ((), {"activation": "sine"}, r"activation='sine': wanted one of identity, relu, abs"),
}


@pytest.mark.parametrize(("args", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(args: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.cross_covariance(draw(4, 3, 2), *args, **options)

# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance of patches: the same as with an im2col, borders included."""

import pytest
import torch
from here import BACKENDS, LEVELS, assert_compiles_once, assert_same_for_threads, differing_bits, draw, laid_out, level
from tolerance import assert_close_to_float64
from torch import Tensor
from torch.nn.functional import unfold

import rainbow_fast as rf

OP = torch.ops.rainbow_fast.patch_covariance.default
OUT = torch.ops.rainbow_fast.patch_covariance_out.default


def unfolded(x: Tensor, y: Tensor, patch: tuple) -> Tensor:
    k, stride, padding, dilation = patch
    a, b = (unfold(t, k, dilation, padding, stride).movedim(1, -1).flatten(0, 1) for t in (x, y))
    return a.T @ b


def check(x: Tensor, y: Tensor, patch: tuple, got: Tensor) -> None:
    assert got.dtype == torch.float64
    plain = unfolded(x.float(), y.float(), patch)
    assert_close_to_float64(got.float(), unfolded(x.double(), y.double(), patch), plain, terms=256)


PATCHES = {  # (k, stride, padding, dilation), and the map
    "one": ((1, 1, 0, 1), (5, 6)),
    "same": ((3, 1, 1, 1), (8, 7)),
    "valid": ((3, 1, 0, 1), (8, 7)),
    "more-padding-than-same": ((3, 1, 2, 1), (6, 5)),
    "five": ((5, 1, 2, 1), (9, 12)),
    "even": ((2, 1, 1, 1), (7, 8)),
    "dilated": ((3, 1, 2, 2), (9, 8)),
    "dilated-valid": ((3, 1, 0, 3), (9, 8)),
    "map-smaller-than-the-kernel": ((5, 1, 2, 1), (2, 3)),
    "one-position": ((3, 1, 1, 1), (1, 1)),
    "only-padding-at-some-taps": ((3, 1, 3, 2), (2, 2)),
    "strided": ((3, 2, 1, 1), (8, 7)),
    "strided-beyond-the-kernel": ((2, 3, 0, 1), (8, 7)),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("patch", "space"), PATCHES.values(), ids=PATCHES)
def test_is_the_covariance_of_an_im2col(patch: tuple, space: tuple, backend: str) -> None:
    x, y = draw(3, 5, *space), draw(3, 4, *space, seed=1)
    check(x, y, patch, rf.cross_covariance(x, y, patch=patch, backend=backend))
    own = rf.cross_covariance(x, patch=patch, backend=backend)
    check(x, x, patch, own)
    if backend != "reference" and patch[1] == 1:
        assert differing_bits(own, own.T) == 0


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_on_every_level(dtype: torch.dtype, name: str) -> None:
    x, y = draw(2, 18, 11, 20, dtype=dtype), draw(2, 33, 11, 20, dtype=dtype, seed=1)
    with level(name):
        for layout in ("contiguous", "channels_last"):
            got = rf.cross_covariance(laid_out(x, layout), laid_out(y, layout), patch=3, backend="cpu")
            check(x, y, (3, 1, 1, 1), got)


LARGE = {  # more than is packed or summed at a time
    "maps": ((130, 7, 12, 11), (3, 1, 1, 1)),
    "lines": ((2, 7, 40, 450), (3, 1, 1, 1)),
    "positions-of-a-line": ((1, 7, 9, 2600), (3, 1, 2, 2)),
}


@pytest.mark.parametrize(("shape", "patch"), LARGE.values(), ids=LARGE)
def test_in_several_batches(shape: tuple, patch: tuple) -> None:
    x, y = draw(*shape), draw(shape[0], 3, *shape[2:], seed=1)
    check(x, y, patch, rf.cross_covariance(x, y, patch=patch))
    check(x, x, patch, rf.cross_covariance(x, patch=patch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_that_fill_no_tile(dtype: torch.dtype) -> None:
    for channels in (1, 3, 7):  # fewer than the rows of a tile, and one more; the memory around them must not matter
        around = torch.full((4, channels, 6, 5), torch.nan, dtype=dtype)
        around[1:3] = draw(2, channels, 6, 5, dtype=dtype)
        x = around[1:3]
        check(x, x, (3, 1, 1, 1), rf.cross_covariance(x, x.clone(), patch=3))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_sides(backend: str) -> None:
    x, ys = draw(2, 3, 6, 5), [draw(2, m, 6, 5, seed=m) for m in (2, 4)]
    for y, got in zip(ys, rf.cross_covariance(x, ys, patch=3, backend=backend), strict=True):
        assert torch.equal(got, rf.cross_covariance(x, y, patch=3, backend=backend))


def test_numbers_that_are_left_out() -> None:
    x = draw(2, 3, 7, 9)
    for short, full in ((5, (5, 1, 2, 1)), ((5,), (5, 1, 2, 1)), ((3, 2), (3, 2, 1, 1)), ((4, 1, 0), (4, 1, 0, 1))):
        assert torch.equal(rf.cross_covariance(x, patch=short), rf.cross_covariance(x, patch=full))


def test_any_number_of_threads() -> None:
    x, y = draw(3, 20, 9, 9), draw(3, 70, 9, 9, seed=1)
    assert_same_for_threads(lambda: (rf.cross_covariance(x, y, patch=3), rf.cross_covariance(x, patch=(3, 2))))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)], ids=["no-images", "no-channels"])
def test_nothing(shape: tuple) -> None:
    got = rf.cross_covariance(torch.empty(shape), patch=3)
    assert got.shape == (9 * shape[1], 9 * shape[1]) and (got == 0).all()


# --- registration ---


@pytest.mark.parametrize("of", ["two", "itself"])
def test_registration(of: str) -> None:
    x = draw(2, 2, 4, 3).requires_grad_()
    y = draw(2, 1, 4, 3, seed=1).requires_grad_() if of == "two" else None
    torch.library.opcheck(OP, (x, y, [2, 1, 0, 1], None, None))
    out = torch.zeros(8, 4 if of == "two" else 8, dtype=torch.float64)
    torch.library.opcheck(OUT, (x.detach(), None if y is None else y.detach(), [2, 1, 0, 1], None, None, out))


@pytest.mark.parametrize("patch", [(3, 1, 1, 1), (2, 2, 0, 1)], ids=["shifts", "strided"])
def test_gradients(patch: tuple) -> None:
    x, y = (draw(2, c, 4, 3, dtype=torch.float64, seed=c).requires_grad_() for c in (2, 1))
    assert torch.autograd.gradcheck(lambda x, y: rf.cross_covariance(x, y, patch=patch), (x, y))
    assert torch.autograd.gradcheck(lambda x: rf.cross_covariance(x, patch=patch), (x,))


def test_compiles_once() -> None:
    calls = [(draw(n, 2, 6, 5, seed=n),) for n in range(3, 8)]
    assert_compiles_once(lambda x: rf.cross_covariance(x, patch=3), calls, dynamic=True)


# --- bad input ---

X = draw(2, 3, 5, 4)
BAD = {
    "number": (X, {"patch": ()}, r"patch=\(\): wanted k, or \(k, stride, padding, dilation\)"),
    "k": (X, {"patch": 0}, r"patch=0: wanted k, stride and dilation of at least 1, padding of at least 0"),
    "padding": (X, {"patch": (3, 1, -1)}, r"patch=\(3, 1, -1\): wanted k, stride and dilation of at least 1"),
    "map": (X[0], {"patch": 3}, r"x has shape \(3, 5, 4\): wanted maps \(N, d, H, W\) for patch=3"),
    "fit": (X, {"patch": (5, 1, 0)}, r"patch=\(5, 1, 0\): wanted one that fits into maps of shape \(5, 4\)"),
    "activation": (X, {"patch": 3, "activation": "relu"}, r"patch=3 with activation='relu', center=False: wanted nei"),
    "center": (X, {"patch": 3, "center": True}, r"patch=3 with activation='identity', center=True: wanted neither"),
}


@pytest.mark.parametrize(("x", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(x: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.cross_covariance(x, **options)


def test_a_patch_of_integers() -> None:
    with pytest.raises(TypeError, match=r"patch=1\.0: wanted an integer, got float"):
        rf.cross_covariance(X, patch=(3, 1.0))


def test_another_dtype_is_a_type_error_as_without_patches() -> None:
    for options in ({}, {"patch": 3}):
        with pytest.raises(TypeError, match=r"y is torch.float64: wanted the dtype of x, torch.float32"):
            rf.cross_covariance(X, X.double(), **options)


def test_bad_output() -> None:
    out = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"out has shape \(3, 3\): wanted \(27, 27\)"):
        torch.ops.rainbow_fast.patch_covariance_out(X, None, [3, 1, 1, 1], None, None, out)
    assert (out == 0).all(), "written before the error"
    out = torch.zeros(27, 27, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"out has strides \(1, 27\): wanted contiguous rows"):
        torch.ops.rainbow_fast.patch_covariance_out(X, None, [3, 1, 1, 1], None, None, out.T)
    with pytest.raises(ValueError, match=r"y has shape \(2, 3, 5, 3\): wanted the N and the positions of x, which has"):
        torch.ops.rainbow_fast.patch_covariance_out(X, X[..., :3], [3, 1, 1, 1], None, None, out)
    with pytest.raises(TypeError, match=r"y is torch.float64: wanted the dtype of x, torch.float32"):
        torch.ops.rainbow_fast.patch_covariance_out(X, X.double(), [3, 1, 1, 1], None, None, out)
    assert (out == 0).all(), "written before the error"


def test_output_form_adds_and_refuses_gradients() -> None:
    out = torch.ones(27, 27, dtype=torch.float64)
    torch.ops.rainbow_fast.patch_covariance_out(X, None, [3, 1, 1, 1], None, None, out)
    # Added in float64, to 1
    torch.testing.assert_close(out, 1 + rf.cross_covariance(X, patch=3), rtol=1e-14, atol=1e-14)
    with pytest.raises(RuntimeError, match=r"patch_covariance_out writes into given memory and has no gradient"):
        torch.ops.rainbow_fast.patch_covariance_out(X.clone().requires_grad_(), None, [3, 1, 1, 1], None, None, out)

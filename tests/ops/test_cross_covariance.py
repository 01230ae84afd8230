# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance: maps read in place in any layout, long sums, equal bits on any threads."""

import pytest
import torch
from here import (
    BACKENDS,
    LEVELS,
    assert_compiles_once,
    assert_same_for_threads,
    differing_bits,
    draw,
    laid_out,
    level,
    random_state_untouched,
)
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf

OP = torch.ops.rainbow_fast.cross_covariance.default
OUT = torch.ops.rainbow_fast.cross_covariance_out.default


def direct(x: Tensor, y: Tensor) -> Tensor:
    """One matrix product, in the dtype of x and y; samples are rows."""
    x, y = (t.movedim(1, -1).flatten(0, -2) for t in (x, y))
    return x.T @ y


def check(x: Tensor, y: Tensor, got: Tensor) -> None:
    assert got.dtype == torch.float64
    plain = direct(x, y) if x.dtype == torch.float64 else direct(x.float(), y.float())
    # 256 terms are summed in the computing type before they are promoted; plain PyTorch sums all terms in this type.
    assert_close_to_float64(got.to(plain.dtype), direct(x.double(), y.double()), plain, terms=256)


# --- matches the reference ---

SHAPES = {  # of x, and the channels of y
    "one": ((1, 1), 1),
    "no-samples": ((0, 3), 2),
    "no-channels": ((5, 0), 2),
    "no-positions": ((4, 3, 0), 2),
    "no-images": ((0, 3, 4, 4), 2),
    "one-channel-many-samples": ((5003, 1), 3),
    "one-more-than-every-tile": ((257, 259), 129),  # more than a chunk, a block of rows, a block of columns
    "two-blocks-of-rows-and-columns": ((77, 150), 301),
    "images-cut-by-chunks": ((7, 5, 11, 13), 9),
    "images-of-one-position": ((300, 6, 1, 1), 5),
    "sequence": ((3, 17, 99), 50),
    "volume": ((2, 3, 4, 5, 6), 4),
    "many-slabs": ((20_011, 9), 10),  # more parts of the sum than threads, of unequal length
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "m"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(shape: tuple[int, ...], m: int, backend: str) -> None:
    x, y = draw(*shape), draw(shape[0], m, *shape[2:], seed=1)
    check(x, y, rf.cross_covariance(x, y, backend=backend))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_on_every_level(dtype: torch.dtype, name: str) -> None:
    x, y = draw(6, 35, 9, 11, dtype=dtype), draw(6, 53, 9, 11, dtype=dtype, seed=1)
    tall, wide = draw(3, 203, 331, dtype=dtype), draw(3, 70, 331, dtype=dtype, seed=1)
    with level(name):
        for layout in ("contiguous", "channels_last"):  # transposes, and vectors of channels
            check(x, y, rf.cross_covariance(laid_out(x, layout), laid_out(y, layout), backend="cpu"))
        # Chunks within an image are read in place, those across two images are packed; both add to the same sums.
        check(tall, wide, rf.cross_covariance(tall, wide, backend="cpu"))


@pytest.mark.parametrize("name", LEVELS)
def test_half_precision_subnormals_and_extremes(name: str) -> None:
    # The kernels widen 16 bits themselves: 128 codes in a row fill vectors, 3 more codes are widened one by one.
    for dtype in (torch.bfloat16, torch.float16):
        codes = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        codes = codes[codes.isfinite()]
        x = codes[: len(codes) // 131 * 131].view(1, -1, 131)
        exact = x[0].double()
        if dtype == torch.bfloat16 and name.startswith(("avx512_bf16", "amx")):  # their instructions treat them as zero
            exact = torch.where(exact.abs() < torch.finfo(dtype).smallest_normal, 0.0, exact)
        with level(name):  # each channel of x times the 131 unit vectors gives the numbers themselves
            unit = torch.eye(131, dtype=dtype).unsqueeze(0)
            assert torch.equal(rf.cross_covariance(x, unit, backend="cpu"), exact)


LAYOUTS = {
    "channels-last": ("channels_last", "channels_last"),
    "one-of-each": ("contiguous", "channels_last"),
    "every-axis-strided": ("sliced", "contiguous"),
    "no-single-stride-of-positions": ("transposed", "sliced"),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # bfloat16 goes in pairs of positions
def test_layouts(dtype: torch.dtype, layouts: tuple[str, str], backend: str) -> None:
    for space in ((6, 7), (7, 7), (1, 7), (7, 1), (1, 1)):
        x, y = draw(5, 19, *space, dtype=dtype), draw(5, 50, *space, dtype=dtype, seed=1)
        x, y = laid_out(x, layouts[0]), laid_out(y, layouts[1])
        check(x, y, rf.cross_covariance(x, y, backend=backend))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_overlapping_strides(backend: str) -> None:
    x, y = draw(1, 5, 1, 1).expand(70, 5, 3, 2), draw(70, 1, 3, 2).expand(70, 9, 3, 2)  # one image; one channel
    check(x, y, rf.cross_covariance(x, y, backend=backend))
    windows = draw(100).unfold(0, 7, 1)  # samples that share memory
    check(windows, windows, rf.cross_covariance(windows, backend=backend))


def test_memory_format_is_read_in_place() -> None:
    from rainbow_fast.ops.memory import samples

    x = draw(4, 6, 5, 3)
    for layout in ("contiguous", "channels_last"):
        maps = laid_out(x, layout)
        assert samples(maps)[1][0] == maps.data_ptr()
    assert samples(laid_out(x, "sliced"))[1][0] != 0
    flat = draw(40, 12)[::3, 1:9:2]
    assert samples(flat)[1][0] == flat.data_ptr()


# --- invariants ---


@pytest.mark.parametrize("name", LEVELS)
def test_any_number_of_threads(name: str) -> None:
    x, y = draw(6007, 30), draw(6007, 131, seed=1)
    with level(name):
        assert_same_for_threads(
            lambda: (rf.cross_covariance(x, y, backend="cpu"), rf.cross_covariance(y, backend="cpu"))
        )


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [1, 17, 49, 300], ids=["one", "one-tile", "beyond-a-tile", "beyond-a-block"])
def test_self_covariance(d: int, backend: str) -> None:
    x = draw(31, d, 37)
    got = rf.cross_covariance(x, backend=backend)
    check(x, x, got)
    if backend != "reference":  # torch's own product is symmetric to rounding only
        assert differing_bits(got, got.T) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_transpose_and_additivity(backend: str) -> None:
    x, y = draw(900, 21, dtype=torch.float64), draw(900, 33, dtype=torch.float64, seed=1)
    whole = rf.cross_covariance(x, y, backend=backend)
    # 1e-12: sums of 900 products of order one, rounded in float64 in different orders
    torch.testing.assert_close(rf.cross_covariance(y, x, backend=backend).T, whole, rtol=0, atol=1e-12)
    parts = torch.zeros_like(whole)
    for start in range(0, 900, 250):
        rf.cross_covariance_(parts, x[start : start + 250], y[start : start + 250], backend=backend)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_million_samples_keep_eight_digits() -> None:
    count, generator = 4_000_000, torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, c, generator=generator).relu_() for c in (4, 5))
    cross, own, exact, exact_own = rf.cross_covariance(x, y), rf.cross_covariance(x), 0, 0
    for a, b in zip(x.split(2**17), y.split(2**17), strict=True):
        exact, exact_own = exact + a.double().T @ b.double(), exact_own + a.double().T @ a.double()
    assert ((cross - exact).abs() / exact).max() <= 1e-8  # eight digits, as promised for positive numbers
    assert ((own - exact_own).abs() / exact_own).max() <= 1e-8  # the same


def test_non_finite_samples_reach_the_result() -> None:
    x = draw(300, 20)
    x[123, 7] = torch.nan
    got = rf.cross_covariance(x, draw(300, 4, seed=1))
    assert got[7].isnan().all() and got.isfinite().sum() == 19 * 4  # its own channel, and no other


def test_random_state() -> None:
    with random_state_untouched():
        for backend in BACKENDS:
            rf.cross_covariance(draw(10, 3), backend=backend)


# --- known answers ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answers(backend: str) -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # 2 images, 2 channels, 2 positions
    y = torch.tensor([[[1.0, -1.0]], [[2.0, 0.0]]])
    assert rf.cross_covariance(x, y, backend=backend).tolist() == [[9.0], [13.0]]
    assert rf.cross_covariance(x, backend=backend).tolist() == [[66.0, 94.0], [94.0, 138.0]]


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_adds_to_its_output(guarded, backend: str) -> None:
    whole = guarded(3, 9, dtype=torch.float64)
    out = whole[:, 2:6]  # rows of a wider matrix
    out.fill_(1)
    x, y = draw(8, 3, dtype=torch.float64), draw(8, 4, dtype=torch.float64, seed=1)
    assert rf.cross_covariance_(out, x, y, backend=backend) is out
    torch.testing.assert_close(out, 1 + x.T @ y, rtol=0, atol=1e-14)  # eight terms of order one
    assert whole[:, :2].isnan().all() and whole[:, 6:].isnan().all()
    square = torch.ones(3, 3, dtype=torch.float64)
    # Eight terms, too
    torch.testing.assert_close(rf.cross_covariance_(square, x, backend=backend), 1 + x.T @ x, rtol=0, atol=1e-14)


# --- registration ---


@pytest.mark.parametrize("of", ["several", "itself"])
def test_registration(of: str) -> None:
    ys = [draw(3, m, 5, seed=m).requires_grad_() for m in ((4, 1) if of == "several" else ())]
    rest = ("tanh", 0.0, of == "several", "high", None)
    torch.library.opcheck(OP, (draw(3, 2, 5).requires_grad_(), ys, *rest))
    out = torch.zeros(2, 5 if ys else 2, dtype=torch.float64)
    torch.library.opcheck(OUT, (draw(3, 2, 5), [y.detach() for y in ys], *rest, out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str) -> None:
    x, y = (
        draw(4, 3, 2, dtype=torch.float64).requires_grad_(),
        draw(4, 2, 2, dtype=torch.float64, seed=1).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda x, y: rf.cross_covariance(x, y, backend=backend), (x, y))
    assert torch.autograd.gradcheck(lambda x: rf.cross_covariance(x, backend=backend), (x,))
    assert torch.autograd.gradcheck(lambda y: rf.cross_covariance(x.detach(), y, backend=backend), (y,))


def test_gradient_keeps_the_dtype_of_the_samples() -> None:
    x = draw(4, 3, dtype=torch.bfloat16).requires_grad_()
    rf.cross_covariance(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    # 2 of the 8 bits of bfloat16: the gradient is a sum of three numbers, which is doubled and rounded
    wanted = 2 * x.detach().double().sum(1, keepdim=True).expand(4, 3)
    torch.testing.assert_close(x.grad.double(), wanted, rtol=2**-6, atol=2**-6)


def test_compiles_once() -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return rf.cross_covariance_(rf.cross_covariance(x, y) + 1, x, y)

    calls = [(draw(n, 3, n + 1, seed=n), draw(n, 4, n + 1, seed=n + 1)) for n in range(5, 15)]
    assert_compiles_once(both, calls, dynamic=True)


# --- bad input ---

X = draw(4, 3, 2)
BAD = {
    "x-dim": ((X[:, 0, 0], None), ValueError, r"x has shape \(4,\): wanted \(N, d\) or \(N, d, \*space\)"),
    "y-dim": ((X, X[..., 0]), ValueError, r"y has shape \(4, 3\): wanted the N and the positions of x"),
    "y-samples": ((X, X[1:]), ValueError, r"y has shape \(3, 3, 2\): wanted the N .* shape \(4, 3, 2\)"),
    "y-positions": ((X, X[..., :1]), ValueError, r"y has shape \(4, 3, 1\): wanted the N and the positions of x"),
    "y-dtype": ((X, X.double()), TypeError, r"y is torch.float64: wanted the dtype of x, torch.float32"),
    "y-device": ((X, X.to("meta")), ValueError, r"y is on meta: wanted the device of x, cpu"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    out = torch.full((3, 3), 7.0, dtype=torch.float64)
    for call in (rf.cross_covariance, lambda x, y: rf.cross_covariance_(out, x, y)):
        with pytest.raises(error, match=message):
            call(*arguments)
    assert (out == 7).all(), "written before the error"


BAD_OUT = {
    "shape": (
        torch.zeros(3, 2, dtype=torch.float64),
        ValueError,
        r"out has shape \(3, 2\): wanted \(3, 3\)",
    ),
    "dtype": (torch.zeros(3, 3), TypeError, r"out is torch.float32: wanted torch.float64"),
    "rows": (
        torch.zeros(3, 6, dtype=torch.float64)[:, ::2],
        ValueError,
        r"out has strides \(6, 2\): wanted contiguous",
    ),
}


@pytest.mark.parametrize(("out", "error", "message"), BAD_OUT.values(), ids=BAD_OUT)
def test_bad_output(out: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rf.cross_covariance_(out, X)
    assert (out == 0).all(), "written before the error"


def test_output_form_refuses_gradients() -> None:
    out, x = torch.zeros(3, 3, dtype=torch.float64), X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"cross_covariance_ writes into given memory and has no gradient"):
        rf.cross_covariance_(out, x)
    assert (out == 0).all(), "written before the error"
    with torch.no_grad():
        assert torch.equal(rf.cross_covariance_(out, x), rf.cross_covariance(X))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes any dtype")
def test_unsupported_dtype() -> None:
    message = (
        r"dtype torch.int32 is not supported by backend 'cpu' \(it takes float32, .*float16\): use backend='reference'"
    )
    with pytest.raises(TypeError, match=message):
        rf.cross_covariance(X.int())
    assert rf.cross_covariance(X.int(), backend="reference").dtype == torch.float64


# --- reduction ---

X, Y = draw(5, 3, 4, 6), draw(5, 2, 4, 6)
REDUCED = {  # arguments, and over how many samples the mean is taken
    "maps": ((X, Y), {}, 5 * 4 * 6),
    "one-side": ((X,), {}, 5 * 4 * 6),
    "several-sides": ((X, [Y, X]), {}, 5 * 4 * 6),
    "centred": ((X, Y), {"center": True}, 5 * 4 * 6),
    "rows": ((X[:, :, 0, 0], Y[:, :, 0, 0]), {}, 5),
    "patches": ((X, Y), {"patch": (3, 2, 0, 1)}, 5 * 1 * 2),
}


@pytest.mark.parametrize(("arguments", "options", "count"), REDUCED.values(), ids=REDUCED)
def test_mean_is_the_sum_over_the_number_of_samples(arguments, options, count):
    sums = rf.cross_covariance(*arguments, **options)
    means = rf.cross_covariance(*arguments, **options, reduction="mean")
    assert type(means) is type(sums)
    for total, mean in zip(sums, means, strict=True):
        assert torch.equal(mean, total / count)


def test_mean_differentiates_and_is_nan_of_nothing():
    x = X.double().requires_grad_()
    (gradient,) = torch.autograd.grad(rf.cross_covariance(x, reduction="mean").trace(), x)
    torch.testing.assert_close(gradient, 2 * x.detach() / (5 * 4 * 6))
    assert rf.cross_covariance(X[:0], reduction="mean").isnan().all()


def test_other_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction='none': wanted one of sum, mean"):
        rf.cross_covariance(X, reduction="none")

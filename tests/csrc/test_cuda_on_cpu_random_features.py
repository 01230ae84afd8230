# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels of random_features, run on a CPU by tests/helpers/cuda_on_cpu."""

import os
import shutil

import pytest
import torch
from cuda_on_cpu import build
from features import FAR, plainly, problem
from here import differing_bits, draw, laid_out
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops import memory
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.random_features_arguments import Features

if not (os.environ.get("CXX") or shutil.which("c++")):
    pytest.skip("no C++ compiler here", allow_module_level=True)

WORKSPACE = 1 << 20  # bytes


def run(
    x: Tensor,
    u: Tensor,
    A: list[Tensor],
    shift: Tensor | None,
    n: int,
    G: Tensor | None = None,
    activation: str = "relu",
    make=torch.empty,
    workspace: int = WORKSPACE,
    centers: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    precision: str = "highest",
) -> tuple[Tensor, ...]:
    """The three forms: phi'; the sums of x phi', phi' and phi'^2, each added to ones; and phi' A^T for each A."""
    kernels, (N, _, *space) = build.load().cuda, u.shape
    room = torch.empty(workspace // 8, dtype=torch.float64)
    stream = (0, 0, room.data_ptr(), workspace)
    kept, features = Features(u, shift, None, G, activation, 0.01, 0.7, precision).memory(n)
    struct = features(tuple(FAR.values()) + (0,))
    phi = make(N, n, *space, dtype=u.dtype)
    kernels.random_features(memory.samples(phi, written=True)[1], struct, stream)
    sums = [make(*shape, dtype=torch.float64).fill_(1) for shape in ((x.shape[1], n), (n,), (n,))]
    x_kept, x_samples = memory.samples(x)
    offs = map(memory.address_of, centers)
    kernels.random_features_covariance(*(t.data_ptr() for t in sums), x_samples, *offs, struct, stream)
    out = [make(N, len(a), *space, dtype=u.dtype) for a in A]
    pairs = [(memory.samples(o, written=True)[1], memory.matrix(a)) for o, a in zip(out, A, strict=True)]
    kernels.random_features_projection(pairs, struct, stream)
    return phi, *sums, *out


def check(x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, G: Tensor | None = None, **options) -> None:
    n = A.shape[1]
    got = run(x, u, [A], shift, n, G, **options)
    activation = options.get("activation", "relu")
    if G is None:
        G = rf.gaussian(n, u.shape[1], backend="reference", **FAR).to(u.dtype)
    plain = plainly(x, u, A, shift, G, activation)
    exact = plainly(*(None if t is None else t.double() for t in (x, u, A, shift, G)), activation)
    for k, (a, b, c) in enumerate(zip(got, exact, plain, strict=True)):
        # Products of two parts of tf32 lose 2^-22 of a term, and a sum of 32 terms in tensor cores as much. The float64
        # error of the sums is not judged, because their terms have these errors anyway.
        added = 1 if k in (1, 2, 3) else 0
        assert_close_to_float64((a - added).to(u.dtype), b, c, terms=max(u.shape[1], 64))


SHAPES = {  # of u, then n
    "one": ((1, 1), 1),
    "no-samples": ((0, 3), 4),
    "no-positions": ((3, 3, 0), 4),
    "no-neurons": ((7, 3), 0),
    "rank-zero": ((7, 0), 50),
    "one-more-than-tiles": ((129, 65), 65),  # 64 or 128 rows, 32 columns, 64 terms
    "parts": ((2100, 3), 5),  # more samples than one part
    "rank-beyond-a-strip": ((9, 520), 34),  # G made for each tile again
    "images-cut-by-tiles": ((3, 6, 5, 7), 53),
    "images-of-one-position": ((50, 6, 1, 1), 30),
}


@pytest.mark.parametrize(("shape", "n"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(shape: tuple[int, ...], n: int) -> None:
    x, u, A, shift = problem(shape, n)
    check(x, u, A, shift)


@pytest.mark.parametrize(("precision", "bound"), [("high", 2.0**-14), ("medium", 2.0**-7)])
@pytest.mark.parametrize(("shape", "n"), [((70, 9, 2), 37), ((40, 130), 70), ((9, 520), 34)], ids=str)
def test_precisions(shape: tuple[int, ...], n: int, precision: str, bound: float) -> None:
    """Errors against sums of magnitudes: a part of a stage, several stages, a strip that is made again."""
    x, u, A, _ = problem(shape, n)
    G = rf.gaussian(n, u.shape[1], backend="reference", **FAR)
    phi, M, _, _, projected = run(x, u, [A], None, n, activation="identity", precision=precision)
    full = run(x, u, [A], None, n, activation="identity")
    sides = [t.double().flatten(2).movedim(1, -1).flatten(0, 1) if t.dim() > 2 else t.double() for t in (x, u)]
    got = [t.double().flatten(2).movedim(1, -1).flatten(0, 1) if t.dim() > 2 else t.double() for t in (phi, projected)]
    factors = [[sides[1], G.double().T], [sides[0].T, sides[1], G.double().T], [sides[1], G.double().T, A.double().T]]
    for each, product in zip((got[0], M - 1, got[1]), factors, strict=True):
        exact = 0.7 * torch.linalg.multi_dot(product)
        size = 0.7 * torch.linalg.multi_dot([factor.abs() for factor in product])
        assert ((each - exact).abs() <= bound * size).all()
    assert all(differing_bits(a, b) > 0 for a, b in zip((phi, M, projected), (full[0], full[1], full[4]), strict=True))


def test_float64() -> None:
    check(*problem((2, 35, 5, 7), 70, 53, torch.float64))
    check(*problem((40, 300), 34, 1, torch.float64))  # beyond a strip


@pytest.mark.parametrize("channels", [129, 0])
def test_channels_of_the_second_product(channels: int) -> None:
    x, u, A, _ = problem((33, 9), 37, channels)
    check(x, u, A, None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    if activation not in ("sign", "step"):
        for dtype in (torch.float32, torch.float64):
            check(*problem((12, 3, 3), 37, dtype=dtype), activation=activation)
        return
    x, u, A, _ = problem((12, 3, 3), 37)  # not continuous: small integers, so that nothing is rounded and zeros occur
    u, G = u.mul(3).round(), draw(37, 3, seed=5).mul(3).round()
    check(x, u, A, u[:, 0].contiguous(), activation=activation, G=G)


@pytest.mark.parametrize("layouts", [("channels_last", "channels_last"), ("sliced", "transposed")], ids=str)
def test_layouts(layouts: tuple[str, str]) -> None:
    x, u, A, shift = problem((2, 19, 6, 7), 50)
    check(laid_out(x, layouts[0]), laid_out(u, layouts[1]), laid_out(A, "sliced"), shift)
    out = [t.contiguous(memory_format=torch.channels_last) for t in run(x, u, [A], shift, 50)[::4]]

    def last(N: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(N, h, w, c, dtype=dtype).permute(0, 3, 1, 2)

    results = run(
        x,
        u,
        [A],
        shift,
        50,
        make=lambda *s, dtype: last(*s, dtype=dtype) if len(s) == 4 else torch.empty(s, dtype=dtype),
    )
    for a, b in zip(results[::4], out, strict=True):
        assert differing_bits(a, b) == 0


def test_explicit_weights() -> None:
    x, u, A, shift = problem((30, 9, 4), 61)
    for G in (draw(61, 9, seed=4), draw(9, 61, seed=4).T, draw(122, 30, seed=4)[::2, 3:12]):
        check(x, u, A, shift, G)
    G = rf.gaussian(61, 9, **FAR)
    for a, b in zip(run(x, u, [A], shift, 61, G), run(x, u, [A], shift, 61), strict=True):
        assert differing_bits(a, b) == 0
    # Sizes of a workspace that is too small for G, or for parts of sums
    for a, b in zip(run(x, u, [A], shift, 61, workspace=0), run(x, u, [A], shift, 61), strict=True):
        assert differing_bits(a, b) == 0


def test_nested_projections_have_the_bits_of_calls_of_their_own() -> None:
    x, u, _, shift = problem((130, 9), 100)
    A = [
        draw(d, n, seed=d)
        for d, n in ((5, 100), (40, 33), (17, 64), (100, 1), (1, 50), (3, 0), (2, 2), (2, 3), (4, 90))
    ]
    for a, got in zip(A, run(x, u, A, shift, 100)[4:], strict=True):
        assert differing_bits(got, run(x, u, [a], shift, 100)[4]) == 0


def test_writes_its_output_and_nothing_else(guarded) -> None:
    x, u, A, shift = problem((3, 5, 7, 3), 53)
    for got, wanted in zip(run(x, u, [A], shift, 53, make=guarded), run(x, u, [A], shift, 53), strict=True):
        assert differing_bits(got, wanted) == 0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_any_order_of_threads(order: int) -> None:
    x, u, A, shift = problem((150, 70), 70)
    wanted = run(x, u, [A], shift, 70, activation="tanh")
    build.set_order(order)
    try:
        for a, b in zip(run(x, u, [A], shift, 70, activation="tanh"), wanted, strict=True):
            assert differing_bits(a, b) == 0
    finally:
        build.set_order(0)


def test_device_of_less_shared_memory() -> None:
    """A GeForce has 99 KiB a block: G is made again where an A100 keeps it, with equal bits. float64 is refused."""
    x, u, A, shift = problem((40, 300), 34)
    wanted = run(x, u, [A], shift, 34)
    build.set_most_shared(99)
    try:
        for a, b in zip(run(x, u, [A], shift, 34), wanted, strict=True):
            assert differing_bits(a, b) == 0
        with pytest.raises(RuntimeError, match=r"random_features was not launched: it takes \d+ bytes of shared"):
            run(x.double(), u.double(), [A.double()], None, 34)
    finally:
        build.set_most_shared()


def test_sums_are_as_good_as_float32_allows() -> None:
    x, u, A, _ = problem((2048, 8), 40)
    x = x.abs()  # all terms of one sign: nothing cancels, and roundings towards zero would add up
    M = run(x, u, [A], None, 40)[1] - 1
    G = rf.gaussian(40, 8, backend="reference", **FAR)
    exact = plainly(*(t.double() for t in (x, u, A)), None, G.double(), "relu")[1]
    # A sum of 32 terms has four roundings towards zero, 1e-7 on average, a feature has one, 5e-8; and 2^-23 of a term.
    assert ((M - exact).abs() / exact).max() < 3e-7


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_centers(dtype: torch.dtype, layout: str) -> None:
    """A case with more samples than a part and more channels than a block."""
    x, u, A, shift = problem((3, 9, 25, 15), 70, 130, dtype)
    x_center, center = draw(130, dtype=dtype, seed=4), draw(70, dtype=dtype, seed=5)
    G = rf.gaussian(70, 9, backend="reference", **FAR).to(dtype)
    results = []
    for kind in (torch.float64, dtype):
        phi = plainly(*(t.to(kind) for t in (x, u, A, shift, G)), "relu")[0] - center.to(kind).view(-1, 1, 1)
        off = x.to(kind) - x_center.to(kind).view(-1, 1, 1)
        over = (0, 2, 3)
        results.append((torch.einsum("nmhw,ndhw->dm", phi, off), phi.sum(over), (phi * phi).sum(over)))
    got = run(laid_out(x, layout), u, [], shift, 70, centers=(x_center, center))[1:]
    for a, b, c in zip(got, *results, strict=True):
        assert_close_to_float64((a - 1).to(dtype), b, c, terms=64)
    # One without the other
    for which in (0, 1):
        centers = [None, None]
        centers[which] = (x_center, center)[which]
        zeros = [torch.zeros_like(x_center), torch.zeros_like(center)]
        zeros[which] = centers[which]
        for a, b in zip(
            run(x, u, [], shift, 70, centers=centers), run(x, u, [], shift, 70, centers=zeros), strict=True
        ):
            assert differing_bits(a, b) == 0

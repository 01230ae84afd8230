# SPDX-License-Identifier: BSD-3-Clause
"""Properties for any shape, layout, dtype and offset, on examples drawn by hypothesis, the same in every run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from here import differing_bits, draw
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import rainbow_fast as rf

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)

SIZES = st.one_of(st.integers(0, 20), st.sampled_from([47, 48, 49, 63, 65, 95, 97]))  # around the sizes of tiles
LONG = st.one_of(SIZES, st.sampled_from([239, 241, 255, 257, 1023, 1025]))  # and around the sizes of parts of sums
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
WIDE = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**63 - 1)
ROWS = st.one_of(st.integers(0, 100), st.integers(2**32 - 100, 2**32 + 100), st.just(2**56 - 2**14))
COLUMNS = st.one_of(st.integers(0, 9), st.integers(2**32 - 100, 2**32), st.just(2**34 - 2**14))
ORDERS = st.permutations(range(3))  # of the axes in memory
STEPS = st.tuples(*[st.integers(1, 3)] * 3)
RIM = 7  # what surrounds an output


def arranged(shape: tuple[int, ...], dtype: torch.dtype, order: list[int], steps: tuple[int, ...]) -> Tensor:
    """A view of this shape, of memory full of RIM; every axis has its own stride and margin."""
    sizes = [shape[a] * steps[a] + 2 for a in order]
    whole = torch.full(sizes, RIM, dtype=dtype).permute([order.index(a) for a in range(len(shape))])
    return whole[tuple(slice(1, 1 + n * step, step) for n, step in zip(shape, steps, strict=True))]


@contextmanager
def nothing_else_written(out: Tensor) -> Iterator[Tensor]:
    """The memory outside of the view `out` is RIM before and after."""
    yield out
    values = out.clone()
    out.fill_(RIM)
    whole = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
    assert (whole == RIM).all(), "written outside of the output"
    out.copy_(values)


def some(shape: tuple[int, ...], dtype: torch.dtype, order: list[int], steps: tuple[int, ...], seed: int = 0) -> Tensor:
    return arranged(shape, dtype, order, steps).copy_(draw(*shape, dtype=dtype, seed=seed))


def assert_near(got: Tensor, wanted: Tensor, terms: int, dtype: torch.dtype = torch.float64) -> None:
    """Two ways to sum `terms` numbers of order one in dtype differ by five random roundings of the largest sum."""
    assert got.shape == wanted.shape
    scale = 1 + max(wanted.abs().max().item(), terms**0.5) if wanted.numel() else 1.0
    allowed = 5 * torch.finfo(dtype).eps * (1 + terms) ** 0.5 * scale
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=allowed)


# --- gaussian, uniform ---


@few
@given(st.sampled_from([rf.gaussian, rf.uniform]), LONG, LONG, SEEDS, ROWS, COLUMNS, DTYPES, st.data())
def test_tiles_of_the_whole_are_the_whole(numbers, rows, cols, seed, row, col, dtype, data) -> None:
    whole = numbers(rows, cols, seed=seed, stream=3, row_offset=row, col_offset=col, dtype=dtype)
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, cols))
    bottom, right = data.draw(st.integers(top, rows)), data.draw(st.integers(left, cols))
    out = arranged((bottom - top, right - left), dtype, [0, 1], (data.draw(st.integers(1, 3)), 1))
    at = {"seed": seed, "stream": 3, "row_offset": row + top, "col_offset": col + left}
    with nothing_else_written(out):
        numbers(bottom - top, right - left, out=out, **at)
    assert differing_bits(out, whole[top:bottom, left:right]) == 0


# --- cross_covariance ---


@few
@given(SIZES, SIZES, SIZES, st.integers(0, 9), DTYPES, st.tuples(ORDERS, STEPS, ORDERS, STEPS))
def test_layouts_of_samples_agree(N, d, m, S, dtype, memory) -> None:
    x, y = some((N, d, S), dtype, *memory[:2]), some((N, m, S), dtype, *memory[2:], seed=1)
    wanted = rf.cross_covariance(x.contiguous(), y.contiguous())
    assert differing_bits(rf.cross_covariance(x, y), wanted) == 0
    assert_near(wanted, torch.einsum("nds,nms->dm", x.double(), y.double()), N * S, torch.float32)
    out = arranged((d, m), torch.float64, [0, 1], (memory[1][0], 1)).fill_(0)
    with nothing_else_written(out):
        rf.cross_covariance_(out, x, y)
    assert differing_bits(out, wanted) == 0


@few
@given(LONG, SIZES, DTYPES, ORDERS, STEPS)
def test_self_covariance_is_symmetric(N, d, dtype, order, steps) -> None:
    x = some((N, d, 3), dtype, order, steps)
    got = rf.cross_covariance(x)
    assert differing_bits(got, got.T) == 0
    assert_near(got, rf.cross_covariance(x, x.clone()), 3 * N, torch.float32)


@few
@given(
    st.integers(1, 30), st.integers(1, 20), st.lists(SIZES, min_size=1, max_size=3), DTYPES, st.booleans(),
    st.sampled_from(["identity", "relu", "tanh", "sign"]), st.tuples(ORDERS, STEPS),
)  # fmt: skip
def test_sides_agree_with_calls_of_their_own(N, d, sides, dtype, center, activation, memory) -> None:
    x, ys = some((N, d, 9), dtype, *memory), [draw(N, m, 9, dtype=dtype, seed=i) for i, m in enumerate(sides)]
    how = {"activation": activation, "center": center}
    for y, got in zip(ys, rf.cross_covariance(x, ys, **how), strict=True):
        assert differing_bits(got, rf.cross_covariance(x, y, **how)) == 0
        assert_near(got, rf.cross_covariance(x, y, backend="reference", **how), 9 * N, torch.float32)


@few
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(4, 9), st.integers(4, 9), DTYPES,
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 4), st.integers(1, 2)),
)  # fmt: skip
def test_patches_are_unfolded_maps(N, d, m, H, W, dtype, patch) -> None:
    k, stride, padding, dilation = patch
    assume(dilation * (k - 1) < min(H, W) + 2 * padding)
    x, y = draw(N, d, H, W, dtype=dtype), draw(N, m, H, W, dtype=dtype, seed=1)
    unfolded = [torch.nn.functional.unfold(t.double(), k, dilation, padding, stride) for t in (x, y)]
    got = rf.cross_covariance(x, y, patch=patch)
    assert_near(got, torch.einsum("nds,nms->dm", *unfolded), unfolded[0].shape[2] * N, torch.float32)


@few
@given(LONG, SIZES, SIZES, WIDE, st.data())
def test_samples_add_up_in_any_order_and_in_batches(N, d, m, dtype, data) -> None:
    x, y = draw(N, d, dtype=dtype), draw(N, m, dtype=dtype, seed=1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    split = data.draw(st.integers(0, N))
    total = torch.zeros(d, m, dtype=torch.float64)
    for batch in (order[:split], order[split:]):
        rf.cross_covariance_(total, x[batch], y[batch])
    assert_near(total, rf.cross_covariance(x, y), N, dtype)


# --- sample_project_align ---


@few
@given(SIZES, LONG, SIZES, SEEDS, ROWS, DTYPES, st.data())
def test_blocks_of_rows_have_the_same_bits(n, r, m, seed, row, dtype, data) -> None:
    P = some((r, m, 1), dtype, data.draw(ORDERS), data.draw(STEPS))[..., 0]
    whole = rf.sample_project_align(n, P.contiguous(), seed=seed, row_offset=row, scale=0.5)
    first = data.draw(st.integers(0, n))
    count = data.draw(st.integers(0, n - first))
    out = arranged((count, m), dtype, [0, 1], (data.draw(st.integers(1, 3)), 1))
    with nothing_else_written(out):
        rf.sample_project_align_(out, P, seed=seed, row_offset=row + first, scale=0.5)
    assert differing_bits(out, whole[first : first + count]) == 0


# --- random_features ---


@few
@given(
    SIZES, SIZES, LONG, SIZES, st.integers(1, 9), WIDE, SEEDS, ROWS, st.sampled_from(["relu", "tanh", "gelu", "cos"])
)
def test_three_forms_of_features_agree(N, r, n, d, S, dtype, seed, row, activation) -> None:
    how = {"seed": seed, "row_offset": row, "activation": activation, "scale": 0.7}
    x, u, A = draw(N, d, S, dtype=dtype), draw(N, r, S, dtype=dtype, seed=1), draw(d, n, dtype=dtype, seed=2)
    u = u / (1 + r) ** 0.5
    phi = rf.random_features(u, n, **how)
    G = rf.gaussian(n, r, seed=seed, row_offset=row, dtype=dtype)
    assert differing_bits(rf.random_features(u, n, G=G, activation=activation, scale=0.7), phi) == 0
    M, total, square = rf.random_features_covariance(x, u, n, **how)
    assert_near(M, rf.cross_covariance(x, phi), N * S, dtype)
    assert_near(total, phi.double().sum((0, 2)), N * S, dtype)
    assert_near(square, (phi.double() ** 2).sum((0, 2)), N * S, dtype)
    projection = rf.random_features_projection(u, A, **how)
    assert_near(projection, torch.einsum("nms,dm->nds", phi.double(), A.double()), n, dtype)


@few
@given(SIZES, SIZES, LONG, st.integers(1, 9), WIDE, SEEDS, st.tuples(ORDERS, STEPS, ORDERS, STEPS), st.data())
def test_neurons_nest_in_any_layout(N, r, n, S, dtype, seed, memory, data) -> None:
    u = some((N, r, S), dtype, *memory[:2])
    whole = rf.random_features(u.contiguous(), n, seed=seed, activation="tanh")
    first = data.draw(st.integers(0, n))
    count = data.draw(st.integers(0, n - first))
    out = arranged((N, count, S), dtype, *memory[2:])
    key = rf.key(seed, 0, first)
    with nothing_else_written(out):
        torch.ops.rainbow_fast.random_features_out(u, None, key, None, "tanh", 0.0, 1.0, None, None, out)
    assert differing_bits(out, whole[:, first : first + count]) == 0
    A = draw(5, count, dtype=dtype)
    aligned = arranged((N, 5, S), dtype, *memory[2:])
    with nothing_else_written(aligned):
        torch.ops.rainbow_fast.random_features_projection_out(
            u, [A], None, key, None, "tanh", 0.0, 1.0, None, None, [aligned]
        )
    wanted = rf.random_features_projection(u.contiguous(), A, seed=key, activation="tanh")
    assert differing_bits(aligned, wanted) == 0


@few
@given(
    st.integers(1, 12), st.integers(0, 12), st.lists(LONG, min_size=1, max_size=3), st.lists(SEEDS, max_size=3), WIDE,
    st.booleans(),
)  # fmt: skip
def test_seeds_and_widths_have_the_bits_of_their_own_calls(N, r, widths, seeds, dtype, maps) -> None:
    u = draw(N, r, 3, 2, dtype=dtype) if maps else draw(N, r, dtype=dtype)
    A = [draw(4, n, dtype=dtype, seed=i) for i, n in enumerate(widths)]
    for a, got in zip(A, rf.random_features_projection(u, A, seed=seeds), strict=True):
        assert len(got) == len(seeds)
        for seed, one in zip(seeds, got, strict=True):
            assert differing_bits(one, rf.random_features_projection(u, a, seed=seed)) == 0
    for seed, one in zip(seeds, rf.random_features(u, widths[0], seed=seeds), strict=True):
        assert differing_bits(one, rf.random_features(u, widths[0], seed=seed)) == 0


# --- polar ---


def orthogonal(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(d, d, dtype=torch.float64, seed=seed)).Q


@few
@given(st.integers(1, 40), st.integers(1, 60), WIDE, st.integers(-30, 30), st.booleans())
def test_polar_factor_is_an_isometry_that_maps_commute_with(d, m, dtype, exponent, transposed) -> None:
    left, right = orthogonal(d, 1), orthogonal(m, 2)
    k = min(d, m)
    spectrum = torch.linspace(1, 2, k, dtype=torch.float64)
    M = ((left[:, :k] * spectrum) @ right[:k]).to(dtype)
    M = M.T.contiguous().T if transposed else M
    out = rf.polar(M)
    A = out.A.double()
    # Condition 2 and widths below 60: each bound is a few dozen roundings of numbers of order one.
    allowed = 100 * torch.finfo(dtype).eps
    gram = A @ A.T if d <= m else A.T @ A
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=allowed)
    torch.testing.assert_close(A, left[:, :k] @ right[:k], rtol=0, atol=allowed)
    turned = rf.polar((left.T @ M.double() @ right.T).to(dtype)).A.double()
    torch.testing.assert_close(left @ turned @ right, A, rtol=0, atol=allowed)
    scaled = rf.polar(M * 2.0**exponent)
    torch.testing.assert_close(scaled.A, out.A, rtol=0, atol=allowed)
    torch.testing.assert_close(scaled.nuclear_norm, out.nuclear_norm * 2.0**exponent, rtol=allowed, atol=0)


@few
@given(st.integers(0, 4), st.integers(1, 30), st.integers(1, 30), WIDE, ORDERS, STEPS)
def test_matrices_of_a_batch_are_alone(batch, d, m, dtype, order, steps) -> None:
    M = some((batch, d, m), dtype, order, steps)
    out = rf.polar(M)
    assert out.rank.shape == (batch,)
    for i, one in enumerate(M):
        alone = rf.polar(one.contiguous())
        assert differing_bits(out.A[i], alone.A) == 0
        for got, wanted in zip(out[1:], alone[1:], strict=True):  # float64 sums, over contiguous rows in vectors
            torch.testing.assert_close(got[i], wanted, rtol=1e-12, atol=1e-15)

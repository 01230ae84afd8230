# SPDX-License-Identifier: BSD-3-Clause
"""random_features for several seeds and several widths in one call, at a million neurons, and beyond 2^31 elements."""

import os
from pathlib import Path

import pytest
import torch
from features import FAR, plainly, problem, three
from here import BACKENDS, LEVELS, assert_compiles_once, assert_same_for_threads, differing_bits, draw, laid_out, level
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf

ops = torch.ops.rainbow_fast
SEEDS = [3, 2**63 - 1, 0]
AT = {"stream": 7, "row_offset": 2**32 - 5}

# --- several seeds ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(250, 7), (5, 7, 3, 2)], ids=["samples", "maps"])
def test_several_seeds(shape: tuple[int, ...], backend: str) -> None:
    x, u, A, shift = problem(shape, 53)
    several = three(x, u, A, shift, seed=SEEDS, backend=backend, **AT)
    of_key = three(x, u, A, shift, seed=rf.key(SEEDS, **AT), backend=backend)
    for s, seed in enumerate(SEEDS):
        for got, again, alone in zip(
            several, of_key, three(x, u, A, shift, seed=seed, backend=backend, **AT), strict=True
        ):
            assert got.shape == (3, *alone.shape) and differing_bits(got[s], alone) == 0
            assert differing_bits(again[s], alone) == 0


def test_a_projection_for_each_seed() -> None:
    _, u, _, _ = problem((30, 7, 2), 53)
    A = laid_out(draw(3, 5, 53), "transposed")
    B = draw(4, 20, seed=8)
    got = rf.random_features_projection(u, [A, B], seed=SEEDS)
    for s, seed in enumerate(SEEDS):
        assert differing_bits(got[0][s], rf.random_features_projection(u, A[s], seed=seed)) == 0
        assert differing_bits(got[1][s], rf.random_features_projection(u, B, seed=seed)) == 0


def test_no_seeds() -> None:
    x, u, A, shift = (t.requires_grad_() for t in problem((6, 3), 4))
    several = three(x, u, A, shift, seed=[])
    assert [t.shape[0] for t in several] == [0] * 5
    grads = torch.autograd.grad(sum(t.sum() for t in several), (x, u, A, shift))
    assert all((g == 0).all() for g in grads)


def test_seeds_write_into_given_memory(guarded) -> None:
    x, u, A, shift = problem((5, 3, 7, 3), 53)
    phi, M, total, square, projected = three(x, u, A, shift, seed=SEEDS)
    rest = (rf.key(SEEDS), None, "relu", 0.01, 1.0, None, None)
    for out in (guarded(3, 5, 53, 7, 3), guarded(3, 5, 7, 3, 53).permute(0, 1, 4, 2, 3)):
        ops.random_features_out(u, shift, *rest, out)
        assert differing_bits(out, phi) == 0
    out = guarded(3, 5, 7, 3, 5).permute(0, 1, 4, 2, 3)
    ops.random_features_projection_out(u, [A], shift, *rest, [out])
    assert differing_bits(out, projected) == 0
    sums = [guarded(*t.shape, dtype=torch.float64).zero_() for t in (M, total, square)]
    ops.random_features_covariance_out(x, u, shift, None, None, *rest, *sums)
    assert all(differing_bits(a, b) == 0 for a, b in zip(sums, (M, total, square), strict=True))


# --- several widths ---

WIDTHS = [40, 1, 600, 0, 240]  # in any order; inside a chunk of 240 neurons, at its end, and beyond


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1003, 7), (5, 7, 3, 2)], ids=["samples", "maps"])
def test_several_widths_have_the_bits_of_their_own_calls(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    _, u, _, shift = problem(shape, 1, dtype=dtype)
    A = [draw(3 + k, n, dtype=dtype, seed=k) for k, n in enumerate(WIDTHS)]
    A[2] = laid_out(A[2], "transposed")
    with level(name):
        for got, alone in zip(rf.random_features_projection(u, A, shift=shift, **FAR), A, strict=True):
            assert differing_bits(got, rf.random_features_projection(u, alone, shift=shift, **FAR)) == 0
        assert_same_for_threads(lambda: tuple(rf.random_features_projection(u, A, seed=1)))


def test_several_widths_by_the_reference() -> None:
    x, u, _, shift = problem((30, 7, 2), 1)
    A = [draw(3, n, seed=n) for n in WIDTHS]
    for backend in BACKENDS:
        got = rf.random_features_projection(u, A, shift=shift, backend=backend, seed=1)
        sums = rf.random_features_covariance(x, u, WIDTHS, shift=shift, backend=backend, seed=1)
        for n, a, projected, (M, total, square) in zip(WIDTHS, A, got, sums, strict=True):
            G = rf.gaussian(n, 7, seed=1)
            plain = plainly(x, u, a, shift, G, "relu", 1.0)
            exact = plainly(*(t.double() for t in (x, u, a, shift, G)), "relu", 1.0)
            for g, e, p in zip((M, total, square, projected), exact[1:], plain[1:], strict=True):
                assert_close_to_float64(g.to(u.dtype), e, p, terms=240)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_neurons_beyond_a_width_do_not_enter(backend: str) -> None:
    u, G = draw(50, 3), draw(20, 3, seed=1)
    G[10:] = torch.nan
    A = [draw(2, n, seed=2) for n in (20, 10)]
    got = rf.random_features_projection(u, A, G=G, activation="tanh", backend=backend)
    assert got[0].isnan().all() and got[1].isfinite().all()


def test_widths_of_a_covariance_are_views() -> None:
    x, u, _, _ = problem((30, 7), 1)
    sums = rf.random_features_covariance(x, u, (5, 9), seed=[1, 2])
    (M, total, square), whole = sums[0], rf.random_features_covariance(x, u, 9, seed=[1, 2])
    assert (M.shape, total.shape, square.shape) == ((2, 5, 5), (2, 5), (2, 5))
    assert M.untyped_storage().data_ptr() == sums[1][0].untyped_storage().data_ptr()
    for got, wanted in zip(sums[1], whole, strict=True):
        assert differing_bits(got, wanted) == 0


def test_explicit_weights_of_several_widths() -> None:
    _, u, _, _ = problem((30, 7), 1)
    G, A = draw(50, 7, seed=4), [draw(2, 50), draw(3, 20)]
    for got, a in zip(rf.random_features_projection(u, A, G=G), A, strict=True):
        assert differing_bits(got, rf.random_features_projection(u, a, G=G[: a.shape[1]])) == 0


# --- sizes ---


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference stores the features")
def test_a_million_neurons() -> None:
    n = 10**6
    u, x, A = draw(9, 3), draw(9, 2), draw(2, n, seed=2)
    M, total, square = rf.random_features_covariance(x, u, n, seed=5)
    projected = rf.random_features_projection(u, A, seed=5)
    G = rf.gaussian(n, 3, seed=5)
    phi = (u.double() @ G.double().T).relu()
    torch.testing.assert_close(M, x.double().T @ phi, rtol=0, atol=1e-5)  # nine terms of at most about 20
    torch.testing.assert_close(total, phi.sum(0), rtol=0, atol=1e-5)  # nine terms of at most 13
    # Nine squares, each at most 158, in float32.
    torch.testing.assert_close(square, phi.square().sum(0), rtol=0, atol=1e-3)
    plain = (u @ G.T).relu() @ A.T
    assert_close_to_float64(projected, phi @ A.double().T, plain, terms=240)


def sparse(folder: Path, size: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """A float32 tensor with these strides, in a file that takes disk space only where it is written."""
    length = 1 + sum((n - 1) * s for n, s in zip(size, strides, strict=True))
    (folder / "sparse").touch()
    os.truncate(folder / "sparse", 4 * length)
    return torch.from_file(str(folder / "sparse"), shared=True, size=length).as_strided(size, strides)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference copies")
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "channels", "positions"])
def test_elements_beyond_2_31(tmp_path: Path, axis: int) -> None:
    strides = [(2**31 + 7, 3, 1), (1, 2**31 + 7, 5), (3, 1, 2**31 + 7)][axis]
    size = [(2, 3, 3), (3, 2, 3), (3, 3, 2)][axis]
    small = draw(*size)
    far = sparse(tmp_path, size, strides).copy_(small)
    _, u, A, _ = problem(size, 5)
    for got, wanted in (
        (rf.random_features(far, 5, seed=1), rf.random_features(small, 5, seed=1)),
        (rf.random_features_covariance(far, u, 5, seed=1)[0], rf.random_features_covariance(small, u, 5, seed=1)[0]),
        (rf.random_features_projection(far, A, seed=1), rf.random_features_projection(small, A, seed=1)),
    ):
        assert differing_bits(got, wanted) == 0
    rest = (rf.key(1), None, "relu", 0.01, 1.0, None, None)
    n = size[1]
    ops.random_features_out(u, None, *rest, far)
    assert differing_bits(far.contiguous(), rf.random_features(u, n, seed=1)) == 0
    ops.random_features_projection_out(u, [A[:n]], None, *rest, [far])
    assert differing_bits(far.contiguous(), rf.random_features_projection(u, A[:n], seed=1)) == 0


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference copies")
@pytest.mark.parametrize("strides", [(2**31 + 7, 1), (1, 2**31 + 7)], ids=["rows", "columns"])
def test_matrices_beyond_2_31(tmp_path: Path, strides: tuple[int, int]) -> None:
    small = draw(2, 2)
    far = sparse(tmp_path, (2, 2), strides).copy_(small)
    u = draw(9, 2, seed=1)
    for call in (
        lambda t: rf.random_features(u, 2, G=t),
        lambda t: rf.random_features_projection(u, t, seed=1),
        lambda t: rf.sample_project_align(3, t, seed=1),
    ):
        assert differing_bits(call(far), call(small)) == 0
    if strides[1] == 1:
        wanted = rf.sample_project_align(2, small, seed=1)
        far.copy_(small)
        assert differing_bits(rf.sample_project_align_(far, small, seed=1).contiguous(), wanted) == 0
        rf.gaussian(2, 2, seed=1, out=far)
        assert differing_bits(far.contiguous(), rf.gaussian(2, 2, seed=1)) == 0


# --- bad input ---

X, U, A, _ = problem((5, 3, 2), 4)
BAD = {
    "no-widths": (lambda: rf.random_features_covariance(X, U, [], seed=1), r"n is an empty list: wanted at least one"),
    "width": (lambda: rf.random_features_covariance(X, U, [3, -1], seed=1), r"n=-1: wanted n >= 0"),
    "no-A": (lambda: rf.random_features_projection(U, [], seed=1), r"A is an empty list: wanted at least one \(d, n\)"),
    "A": (lambda: rf.random_features_projection(U, [A, A[0]], seed=1), r"A has shape \(4,\): wanted \(d, n\)$"),
    "A-one-seed": (
        lambda: rf.random_features_projection(U, A.expand(2, 5, 4), seed=1),
        r"A has shape \(2, 5, 4\): wanted \(d, n\)$",
    ),
    "A-seeds": (
        lambda: rf.random_features_projection(U, A.expand(2, 5, 4), seed=[1, 2, 3]),
        r"A has shape \(2, 5, 4\): wanted \(d, n\) or \(3, 'd', 'n'\)",
    ),
    "G": (lambda: rf.random_features_projection(U, [A, A[:, :2]], G=draw(2, 3)), r"wanted \(n, r\) = \(4, 3\)"),
    "outs": (
        lambda: ops.random_features_projection_out(U, [A], None, rf.key(1), None, "relu", 0.01, 1.0, None, None, []),
        r"out has 0 tensors: wanted 1, one for each A",
    ),
    "upstream": (
        lambda: ops.random_features_gradient(
            U, None, 4, rf.key(1), None, "relu", 0.01, 1.0, None, None, X, None, None, [], [], False
        ),
        r"grad_phi is torch.float32 of shape \(5, 5, 2\): wanted torch.float32 of shape \(5, 4, 2\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_one_compilation_for_ten_keys_of_seeds() -> None:
    x, u, A, shift = problem((4, 3, 2), 6, 2)

    def all_of_them(key: Tensor) -> Tensor:
        parts = [*three(x, u, A, shift, seed=key), *rf.random_features_projection(u, [A, A[:, :3]], seed=key)]
        return torch.cat([t.double().flatten() for t in parts])

    assert_compiles_once(all_of_them, [(rf.key([seed, seed + 1]),) for seed in range(10)])

# SPDX-License-Identifier: BSD-3-Clause
"""random_features_covariance about centers is right if means are thousands of times the deviations."""

import pytest
import torch
from features import FAR, plainly, problem
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, laid_out, level
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.random_features import random_features_reference

ops = torch.ops.rainbow_fast


def sums(x: Tensor, phi: Tensor) -> tuple[Tensor, ...]:
    """The results for x and phi' less their centers."""
    x, phi = (t.flatten(2) if t.dim() > 2 else t.unsqueeze(2) for t in (x, phi))
    return torch.einsum("nds,nms->dm", x, phi), phi.sum((0, 2)), (phi * phi).sum((0, 2))


def check(x: Tensor, u: Tensor, x_center: Tensor | None, center: Tensor | None, shift: Tensor, **options) -> None:
    n = 53 if center is None else len(center)
    got = rf.random_features_covariance(
        x, u, n, shift=shift, x_center=x_center, center=center, scale=0.7, activation="gelu", **FAR, **options
    )
    G = rf.gaussian(n, u.shape[1], backend="reference", **FAR).to(u.dtype)
    space, results = [1] * (x.dim() - 2), []
    for dtype in (torch.float64, u.dtype):
        values = random_features_reference(u.to(dtype), G.to(dtype), shift.to(dtype), "gelu", 0.01, 0.7)
        off_x, off = (0 if t is None else t.to(dtype).view(-1, *space) for t in (x_center, center))
        results.append(sums(x.to(dtype) - off_x, values - off))
    for a, b, c in zip(got, *results, strict=True):
        assert_close_to_float64(a.to(u.dtype), b, c, terms=max(u.shape[1], 256))


SHAPES = {  # of u, then n and d
    "one": ((1, 1), 1, 1),
    "no-samples": ((0, 3), 4, 5),
    "no-channels": ((7, 3), 5, 0),
    "one-more-than-tiles": ((241, 9), 241, 33),
    "many-channels": ((70, 3), 67, 130),
    "images-cut-by-chunks": ((7, 6, 11, 13), 53, 5),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "n", "d"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(shape: tuple[int, ...], n: int, d: int, backend: str) -> None:
    x, u, _, shift = problem(shape, n, d)
    x_center, center = draw(d, seed=4), draw(n, seed=5)
    check(x, u, x_center, center, shift, backend=backend)
    check(x, u, None, center, shift, backend=backend)
    check(laid_out(x, "transposed"), u, x_center, draw(53, seed=5), shift, backend=backend)
    check(x, u, x_center, None, shift, backend=backend)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2003, 7), (5, 7, 6, 6)], ids=["many-samples", "maps"])
def test_every_level_and_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    x, u, _, shift = problem(shape, 1, 19, dtype)
    centers = {"x_center": draw(19, dtype=dtype, seed=4), "center": draw(301, dtype=dtype, seed=5)}
    with level(name):
        check(x, u, *centers.values(), shift, backend="cpu")
        options = {"shift": shift, "backend": "cpu", **centers, **FAR}
        assert_same_for_threads(lambda: rf.random_features_covariance(x, u, 301, **options))


# --- what centers are for ---

RATIOS = torch.tensor([0.0, 3.0, 1e3, -1e3, 1e4, -2.0])  # of means to standard deviations


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_means_of_ten_thousand_deviations(activation: str, backend: str) -> None:
    """u and G have so few digits that u G^T is exact in float32, in any order of its sums."""
    N, n, d = 1500, 24, 5
    u = torch.cat([draw(N, 4).mul(16).round() / 16, torch.ones(N, 1)], 1)
    G = torch.cat([draw(n, 4, seed=1).mul(32).round() / 64, RATIOS.repeat(n // 6).unsqueeze(1)], 1)
    x = draw(N, d, seed=2) + torch.tensor([0.0, 1e4, -1e4, 1.0, 1e3])
    phi = ACTIVATIONS[activation][0](u.double() @ G.double().T, 0.01)
    x_center, center = x[:100].mean(0), phi[:100].mean(0).float()  # centers near the means are enough
    got = rf.random_features_covariance(
        x, u, n, x_center=x_center, center=center, G=G, activation=activation, backend=backend
    )
    X, P = x.double() - x_center.double(), phi - center.double()
    sizes = torch.outer(X.norm(dim=0), P.norm(dim=0)), P.norm(dim=0) * N**0.5, (P * P).sum(0)
    for value, exact, size in zip(got, sums(X, P), sizes, strict=True):
        # 1e-6 of deviations and of variances; for a dead unit no error
        assert ((value - exact).abs() <= 1e-6 * size).all()
    alive = phi.std(0) > 0
    variances = (got[2] / N - (got[1] / N) ** 2)[alive]
    torch.testing.assert_close(variances, phi.var(0, correction=0)[alive], rtol=2e-6, atol=0)  # of two sums


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_equal_features(backend: str) -> None:
    """Sums of a thousand thirds. Equal numbers are always rounded in one direction, 16 at a time, or 32 on a GPU."""
    u, x, G = torch.full((1000, 1), 1 / 3), torch.ones(1000, 1), torch.ones(3, 1)
    _, total, square = rf.random_features_covariance(x, u, 3, G=G, activation="identity", backend=backend)
    third = u[0, 0].double()
    # 5e-7: eight roundings of 2^-24; each binade of a sum of equal numbers loses its share (EQUAL of tolerance.py)
    assert ((total / 1000 / third - 1).abs() <= 5e-7).all() and ((square / 1000 / third**2 - 1).abs() <= 5e-7).all()
    options = {"G": G, "activation": "identity", "backend": backend}
    center = rf.random_features(u[:1], 3, **options)[0]
    zeros = rf.random_features_covariance(x, u, 3, center=center, x_center=x[0], **options)
    assert all((t == 0).all() for t in zeros)


# --- several seeds and widths, gradients ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_seeds_and_widths(backend: str) -> None:
    x, u, _, shift = problem((40, 7, 3), 1)
    x_center, center = draw(5, seed=4), laid_out(draw(2, 50, seed=5), "sliced")
    options = {"shift": shift, "x_center": x_center, "backend": backend}
    several = rf.random_features_covariance(x, u, [20, 50], center=center, seed=[3, 4], **options)
    for s, seed in enumerate([3, 4]):
        alone = rf.random_features_covariance(x, u, [20, 50], center=center[s], seed=seed, **options)
        for k, n in enumerate([20, 50]):
            own = rf.random_features_covariance(x, u, n, center=center[s, :n], seed=seed, **options)
            for a, b, c in zip(several[k], alone[k], own, strict=True):
                assert differing_bits(a[s], b) == 0
                torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-3)  # sums of order 100, cut into other parts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [3, [1, 2]], ids=["one-seed", "two-seeds"])
def test_gradients(seed: int | list[int], backend: str) -> None:
    x, u, _, shift = (t.requires_grad_() for t in problem((4, 3, 2), 6, 2, torch.float64))
    off = draw(6, dtype=torch.float64, seed=5) if seed == 3 else draw(2, 6, dtype=torch.float64, seed=5)
    options = {"x_center": draw(2, dtype=torch.float64, seed=4), "center": off, "seed": seed, "backend": backend}

    def call(x: Tensor, u: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        M, *others = rf.random_features_covariance(x, u, [6, 3], shift=shift, activation="tanh", scale=0.7, **options)
        return (*M, *others[0])

    assert torch.autograd.gradcheck(call, (x, u, shift))
    assert backend != BACKENDS[0] or torch.autograd.gradgradcheck(call, (x, u, shift))


def test_gradients_of_all_inputs_in_float32() -> None:
    x, u, A, shift = (t.requires_grad_() for t in problem((300, 3, 2), 40))
    centers = [(10 + draw(size, seed=4)).requires_grad_() for size in (5, 40)]
    options = {"shift": shift, "activation": "gelu", "scale": 0.7}
    got = rf.random_features_covariance(x, u, 40, x_center=centers[0], center=centers[1], **options, **FAR)
    above = [draw(*t.shape, dtype=torch.float64, seed=6) for t in got]
    grads = torch.autograd.grad(got, (x, u, shift, *centers), above)
    wide = [t.detach().double().requires_grad_() for t in (x, u, A, shift, *centers)]
    phi = plainly(*wide[:4], rf.gaussian(40, 3, **FAR).double(), "gelu")[0]
    off_x, off = (t.unsqueeze(1) for t in wide[4:])
    exact = torch.autograd.grad(sums(wide[0] - off_x, phi - off), (wide[0], wide[1], *wide[3:]), above)
    for a, b in zip(grads, exact, strict=True):
        # float32 sums of 40 to 600 terms about centers of ten: 1e-5 is 160 roundings of the largest.
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * float(b.abs().max()))


def test_registration() -> None:
    x, u, _, shift = problem((4, 3, 2), 6, 2, torch.float64)
    centers = draw(2, dtype=torch.float64, seed=4), draw(6, dtype=torch.float64, seed=5)
    rest = (rf.key(3), None, "tanh", 0.01, 0.7, None, None)
    inputs = [t.requires_grad_() for t in (x, u, shift)]
    torch.library.opcheck(ops.random_features_covariance.default, (*inputs, *centers, 6, *rest))
    x, u, shift = (t.detach() for t in (x, u, shift))
    M, total = torch.zeros(2, 6).double(), torch.zeros(6).double()
    torch.library.opcheck(
        ops.random_features_covariance_out.default, (x, u, shift, *centers, *rest, M, total, total.clone())
    )


# --- bad input ---

X, U, _, _ = problem((5, 3, 2), 4)
BAD = {
    "x_center": ({"x_center": draw(4)}, ValueError, r"x_center has shape \(4,\): wanted \(d,\) = \(5,\)"),
    "x_center-dtype": (
        {"x_center": draw(5).double()},
        TypeError,
        r"x_center is torch.float64: wanted the dtype of phi'",
    ),
    "center": ({"center": draw(5)}, ValueError, r"center has shape \(5,\): wanted \(n,\) = \(4,\)"),
    "center-dtype": ({"center": draw(4).double()}, TypeError, r"^center is torch.float64: wanted the dtype of phi'"),
    "center-of-seeds": (
        {"center": draw(4), "seed": [1, 2]},
        ValueError,
        r"center has shape \(4,\): wanted \(S, n\) = \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"seed": 1, **change}
    with pytest.raises(error, match=message):
        rf.random_features_covariance(X, U, 4, **arguments)
    seeds = () if arguments["seed"] == 1 else (2,)
    out = [torch.zeros(*seeds, *shape, dtype=torch.float64) for shape in ((5, 4), (4,), (4,))]
    rest = (
        change.get("x_center"),
        change.get("center"),
        rf.key(arguments["seed"]),
        None,
        "relu",
        0.01,
        1.0,
        None,
        None,
    )
    with pytest.raises(error, match=message):
        ops.random_features_covariance_out(X, U, None, *rest, *out)
    assert all((t == 0).all() for t in out), "written before the error"

# SPDX-License-Identifier: BSD-3-Clause
"""torch.vmap of every op is a loop over the batch, for any batched arguments and along any axis."""

import pytest
import torch
from here import draw
from tolerance import REORDERED
from torch import Tensor
from torch.func import grad, vmap

import rainbow_fast as rf

F64, SIZE = torch.float64, 3


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return draw(SIZE, *shape, dtype=F64, seed=seed)


X, Y, MAPS = doubles(7, 3), doubles(7, 4, seed=1), doubles(2, 2, 5, 5)
KEYS, PAIRS = rf.key([5, 6, 7]), rf.key(range(6)).view(3, 2, 4)
L, A = doubles(3, 4), doubles(4, 5, seed=1)
U, S, G, P = doubles(5, 3, 2), doubles(5, 2, seed=1), doubles(6, 3, seed=2), doubles(2, 6, seed=3)
SIDE, M = doubles(5, 2, 2, seed=4), doubles(3, 5)
HOW = {"activation": "tanh", "scale": 0.5}
POOR = torch.stack([P[0], P[1]])  # an A for each of two seeds

CASES = {
    "gaussian": (lambda k: rf.gaussian(3, 4, seed=k), KEYS),
    "gaussian of pairs of seeds": (lambda k: rf.gaussian(3, 4, seed=k), PAIRS),
    "cross_covariance, x": (lambda x: rf.cross_covariance(x, Y[0], activation="relu", center=True), X),
    "cross_covariance, y": (lambda y: rf.cross_covariance(X[0], y), Y),
    "cross_covariance, both": (rf.cross_covariance, X, Y),
    "cross_covariance, self": (rf.cross_covariance, X),
    "cross_covariance, one of two sides": (lambda y: tuple(rf.cross_covariance(X[0], [y, Y[1]])), Y),
    "patch_covariance": (lambda x: rf.cross_covariance(x, patch=3), MAPS),
    "polar": (lambda M: rf.polar(M)[:3], M),
    "polar of a batch": (lambda M: rf.polar(torch.stack([M, 2 * M])).A, M),
    "sample_project_align, L": (lambda L: rf.sample_project_align(6, L, seed=1), L),
    "sample_project_align, L, two seeds": (lambda L: rf.sample_project_align(6, L, seed=[1, 2]), L),
    "sample_project_align, key": (lambda k: rf.sample_project_align(6, L[0], A[0], seed=k), KEYS),
    "sample_project_align, pairs": (lambda k: rf.sample_project_align(6, L[0], seed=k), PAIRS),
    "sample_project_align, all": (lambda L, A, k: rf.sample_project_align(6, L, A, seed=k), L, A, KEYS),
    "random_features, u": (lambda u: rf.random_features(u, 6, seed=1, **HOW), U),
    "random_features, u, two seeds": (lambda u: rf.random_features(u, 6, seed=[1, 2], **HOW), U),
    "random_features, u and shift": (lambda u, s: rf.random_features(u, 6, shift=s, seed=1, **HOW), U, S),
    "random_features, shift": (lambda s: rf.random_features(U[0], 6, shift=s, seed=1, **HOW), S),
    "random_features, key": (lambda k: rf.random_features(U[0], 6, seed=k, **HOW), KEYS),
    "random_features, pairs": (lambda k: rf.random_features(U[0], 6, seed=k, **HOW), PAIRS),
    "random_features, u and key": (lambda u, k: rf.random_features(u, 6, seed=k, **HOW), U, KEYS),
    "random_features, G": (lambda G: rf.random_features(U[0], 6, G=G, **HOW), G),
    "random_features, u and G": (lambda u, G: rf.random_features(u, 6, G=G, **HOW), U, G),
    "covariance, x": (lambda x: rf.random_features_covariance(x, U[0], 6, seed=1, **HOW), SIDE),
    "covariance, x, two seeds": (lambda x: rf.random_features_covariance(x, U[0], 6, seed=[1, 2], **HOW), SIDE),
    "covariance, u": (lambda u: rf.random_features_covariance(SIDE[0], u, 6, seed=1, **HOW), U),
    "covariance, key": (lambda k: rf.random_features_covariance(SIDE[0], U[0], 6, seed=k, **HOW), KEYS),
    "covariance, x, centers": (
        lambda x: rf.random_features_covariance(x, U[0], 6, x_center=P[0, :, 0], center=G[0, :, 0], seed=1, **HOW),
        SIDE,
    ),
    "covariance, a center": (
        lambda b: rf.random_features_covariance(SIDE[0], U[0], 6, center=b, seed=1, **HOW),
        G[:, :, 0],
    ),
    "covariance, key and a center of x": (
        lambda k: rf.random_features_covariance(SIDE[0], U[0], 6, x_center=P[0, :, 0], seed=k, **HOW),
        KEYS,
    ),
    "covariance, all": (lambda x, u, k: rf.random_features_covariance(x, u, 6, seed=k, **HOW), SIDE, U, KEYS),
    "projection, u": (lambda u: rf.random_features_projection(u, P[0], seed=1, **HOW), U),
    "projection, u and shift": (lambda u, s: rf.random_features_projection(u, P[0], shift=s, seed=1, **HOW), U, S),
    "projection, A": (lambda A: rf.random_features_projection(U[0], A, seed=1, **HOW), P),
    "projection, u and A": (lambda u, A: rf.random_features_projection(u, A, seed=1, **HOW), U, P),
    "projection, key": (lambda k: rf.random_features_projection(U[0], P[0], seed=k, **HOW), KEYS),
    "projection, pairs": (lambda k: rf.random_features_projection(U[0], POOR, seed=k, **HOW), PAIRS),
    "projection, key and A": (lambda k, A: rf.random_features_projection(U[0], A, seed=k, **HOW), KEYS, P),
    "projection, u, two A": (
        lambda u: tuple(rf.random_features_projection(u, [POOR, P[1][:, :4]], seed=[1, 2], **HOW)),
        U,
    ),
    "projection, one of two A": (
        lambda A: tuple(rf.random_features_projection(U[0], [A, P[1][:, :4]], seed=1, **HOW)),
        P,
    ),
    "wavelet_modulus": (lambda z: rf.wavelet_modulus(z, "b", skip=True).real, MAPS),
    "wavelet_modulus, its gradient": (
        lambda z: grad(lambda z: rf.wavelet_modulus(z, "a").square().sum())(z),
        MAPS,
    ),
}


def looped(function, *batches: Tensor):
    results = [function(*(t[i] for t in batches)) for i in range(SIZE)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rule_is_a_loop(case: tuple) -> None:
    function, *batches = case
    wanted = looped(function, *batches)
    for axis in (0, -1):  # at most, sums are in another order: of numbers of order 10 in float64
        moved = [t.movedim(0, axis) for t in batches]
        torch.testing.assert_close(vmap(function, in_dims=axis)(*moved), wanted, **REORDERED)


def test_of_nothing_batched_and_of_two_levels() -> None:
    """An op whose arguments are the same for all members, and a batch of batches."""
    got = vmap(lambda x: x + rf.gaussian(7, 3, seed=1, dtype=F64))(X)
    assert torch.equal(got, X + rf.gaussian(7, 3, seed=1, dtype=F64))
    twice = vmap(vmap(lambda u, k: rf.random_features(u, 6, seed=k, **HOW), (0, None)), (None, 0))(U, KEYS)
    wanted = torch.stack([torch.stack([rf.random_features(u, 6, seed=k, **HOW) for u in U]) for k in KEYS])
    torch.testing.assert_close(twice, wanted, **REORDERED)


def test_what_writes_into_given_memory_has_no_rule() -> None:
    for name, numbers in (("gaussian", rf.gaussian), ("uniform", rf.uniform)):
        with pytest.raises(RuntimeError, match=f"{name}_out"):
            vmap(lambda out, numbers=numbers: numbers(7, 3, seed=1, out=out))(X.clone())

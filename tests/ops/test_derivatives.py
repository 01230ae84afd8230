# SPDX-License-Identifier: BSD-3-Clause
"""Every differentiable op in both modes, once and twice: alone, under torch.func and inside torch.compile."""

import pytest
import torch
from here import draw
from parameters import slow_but_for
from tolerance import REORDERED
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import rainbow_fast as rf

F64 = torch.float64
# The difference of two ways to compute a derivative in float64, up to the third order. Each order is a longer sum;
# derivatives of polar are divided by sums of two singular values.
DERIVED = {"rtol": 1e-9, "atol": 1e-9}


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, dtype=F64, seed=seed)


X, Y, Z = doubles(7, 3), doubles(7, 4, seed=1), doubles(7, 2, seed=2)
MAPS, OTHER = doubles(2, 2, 4, 4), doubles(2, 1, 4, 4, seed=1)
L, A = doubles(3, 4), doubles(4, 5, seed=1)
U, SHIFT, ROWS, P = doubles(5, 3), doubles(5, seed=1), doubles(6, 3, seed=2), doubles(2, 6, seed=3)
SIDE, MANY = doubles(5, 2, seed=4), doubles(2, 2, 6, seed=5)
HOW = {"activation": "tanh", "scale": 0.7}

CASES = {
    "wavelet_modulus": (lambda z: rf.wavelet_modulus(z, "b"), (MAPS,)),
    "wavelet_modulus-skip": (lambda z: torch.view_as_real(rf.wavelet_modulus(z, skip=True)), (MAPS,)),
    "cross_covariance": (rf.cross_covariance, (X, Y)),
    "cross_covariance-self": (rf.cross_covariance, (X,)),
    "cross_covariance-sides": (
        lambda x, y, z: tuple(rf.cross_covariance(x, [y, z], activation="gelu", center=True)),
        (X, Y, Z),
    ),
    "patch_covariance": (lambda x, y: rf.cross_covariance(x, y, patch=3), (MAPS, OTHER)),
    "patch_covariance-self": (lambda x: rf.cross_covariance(x, patch=(2, 2, 1)), (MAPS,)),
    "sample_project_align": (lambda L, A: rf.sample_project_align(6, L, A, seed=3, scale=0.7), (L, A)),
    "sample_project_align-seeds": (lambda L: rf.sample_project_align(6, L, seed=[3, 4]), (L,)),
    "random_features": (lambda u, s: rf.random_features(u, 6, shift=s, seed=1, **HOW), (U, SHIFT)),
    "random_features-rows": (lambda u, s, G: rf.random_features(u, 6, shift=s, G=G, **HOW), (U, SHIFT, ROWS)),
    "random_features_covariance": (
        lambda x, u, s: rf.random_features_covariance(x, u, 6, shift=s, seed=1, **HOW),
        (SIDE, U, SHIFT),
    ),
    "random_features_covariance-seeds": (
        lambda x, u: rf.random_features_covariance(x, u, 6, seed=[1, 2], **HOW),
        (SIDE, U),
    ),
    "random_features_covariance-rows": (
        lambda x, u, G: rf.random_features_covariance(x, u, 6, G=G, **HOW),
        (SIDE, U, ROWS),
    ),
    "random_features_covariance-centers": (
        lambda x, u, a, b: rf.random_features_covariance(x, u, 6, x_center=a, center=b, seed=1, **HOW),
        (SIDE, U, SIDE[0], ROWS[:, 0]),
    ),
    "random_features_covariance-centers-seeds": (
        lambda x, u, b: rf.random_features_covariance(x, u, 6, center=b, seed=[1, 2], **HOW),
        (SIDE, U, ROWS[:, :2].T),
    ),
    "random_features_projection": (
        lambda u, A, s: rf.random_features_projection(u, A, shift=s, seed=1, **HOW),
        (U, P, SHIFT),
    ),
    "random_features_projection-seeds": (
        lambda u, A, B: tuple(rf.random_features_projection(u, [A, B], seed=[1, 2], **HOW)),
        (U, MANY, P[:, :4]),
    ),
    "random_features_projection-rows": (
        lambda u, A, G: rf.random_features_projection(u, A, G=G, **HOW),
        (U, P, ROWS),
    ),
    "polar-wide": (lambda M: rf.polar(M)[:2], (doubles(3, 5),)),
    "polar-tall": (lambda M: rf.polar(M)[:2], (doubles(5, 3),)),
    "polar-square": (lambda M: rf.polar(M, method="svd")[:2], (doubles(3, 3),)),
    "polar-batch": (lambda M: rf.polar(M)[:2], (doubles(2, 3, 4),)),
}


FAST = [name for name in CASES if not name.endswith(("-seeds", "-rows"))]  # one seed, and generated rows


@pytest.mark.parametrize(("function", "point"), slow_but_for(FAST, CASES))
def test_both_modes_once_and_twice(function, point: tuple[Tensor, ...]) -> None:
    inputs = [t.clone().requires_grad_() for t in point]
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def plain(u: Tensor) -> Tensor:
    """What `fused` computes, with torch's own ops."""
    return (torch.tanh(u @ rf.gaussian(6, 3, seed=1, dtype=F64).T) @ P.T).square().sum()


def fused(u: Tensor) -> Tensor:
    return rf.random_features_projection(u, P, seed=1, activation="tanh").square().sum()


TRANSFORMS = {
    "grad": grad,
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "third derivative": lambda f: jacfwd(jacrev(grad(f))),
    "vmap of grad": lambda f: lambda u: vmap(grad(f))(torch.stack([u, 2 * u])),
    "grad of vmap": lambda f: grad(lambda u: vmap(f)(torch.stack([u, 2 * u])).sum()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_nest(transform) -> None:
    torch.testing.assert_close(transform(fused)(U), transform(plain)(U), **DERIVED)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)], ids=str)
def test_polar_as_the_derivative_of_an_svd(shape: tuple[int, int]) -> None:
    """A is the gradient of the nuclear norm; torch differentiates its SVD."""
    M = doubles(*shape)

    def by_svd(M: Tensor) -> Tensor:
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        return U @ Vh

    wanted = jacrev(by_svd)(M)
    for jacobian in (jacrev(polar_factor)(M), jacfwd(polar_factor)(M), hessian(lambda M: rf.polar(M).nuclear_norm)(M)):
        torch.testing.assert_close(jacobian, wanted, **DERIVED)


def polar_factor(M: Tensor) -> Tensor:
    return rf.polar(M).A


@pytest.mark.parametrize("rank", ["partial", "complete"])
def test_polar_has_no_derivative_without_full_rank(rank: str) -> None:
    M = torch.ones(3, 4, dtype=F64)

    def factor(M: Tensor) -> Tensor:
        return rf.polar(M, rank=rank).A

    message = r"polar: M does not have full rank .*: its polar factor has no derivative there"
    with pytest.raises(RuntimeError, match=message):
        factor(M.clone().requires_grad_()).sum().backward()
    with pytest.raises(RuntimeError, match=message):
        jvp(factor, (M,), (M,))
    batch = torch.stack([doubles(3, 4), M]).requires_grad_()
    with pytest.raises(RuntimeError, match=message):
        factor(batch).sum().backward()


def test_polar_in_float32() -> None:
    """The derivative is computed in float64 and rounded once. A of float32 itself is right to 1e-7.

    1e-5: this error, divided by sums of singular values that are small compared with the largest."""
    M, D = draw(20, 30), draw(20, 30, seed=1)
    exact = jvp(polar_factor, (M.double(),), (D.double(),))[1]
    assert float((jvp(polar_factor, (M,), (D,))[1] - exact).norm() / exact.norm()) < 1e-5


OPTIONS = [{"method": "paper"}, {"method": "calibrated"}, {"method": "regression"}, {"rank": 4}]


def sampled(**options: object) -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 3)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*(layer.double() for layer in layers)).eval()
        for layer in network[::2]:
            layer.reset_parameters()
    x = doubles(300, 6)
    return rf.fit(network, x).sample(factor=3, **options)[0], x[:4]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_empirical_ntk_of_a_sampled_network(options: dict) -> None:
    """torch.func gives one row for each sample, the same as one backward pass for each output."""
    network, x = sampled(**options)
    parameters = dict(network.named_parameters())

    def one(parameters: dict, sample: Tensor) -> Tensor:
        return functional_call(network, parameters, (sample[None],))[0]

    jacobians = vmap(jacrev(one), (None, 0))(parameters, x)
    rows = torch.cat([j.flatten(2) for j in jacobians.values()], 2)
    network.requires_grad_(True)
    each = [
        torch.autograd.grad(network(x[i : i + 1])[0, k], list(network.parameters())) for i in range(4) for k in range(3)
    ]
    wanted = torch.stack([torch.cat([g.flatten() for g in grads]) for grads in each]).view(4, 3, -1)
    ntk = torch.einsum("akp,blp->abkl", rows, rows)
    torch.testing.assert_close(ntk, torch.einsum("akp,blp->abkl", wanted, wanted), **DERIVED)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_mode_of_a_sampled_network(options: dict) -> None:
    network, x = sampled(**options)
    v = doubles(*x.shape, seed=9)
    wanted = jvp(network.materialize(), (x,), (v,))[1]
    torch.testing.assert_close(jvp(network, (x,), (v,))[1], wanted, **DERIVED)


# --- inside torch.compile ---


def projection(u: Tensor) -> Tensor:
    return rf.random_features_projection(u, P, seed=1, activation="tanh")


COMPILED = {
    "wavelet_modulus": lambda u: jvp(lambda u: rf.wavelet_modulus(u.view(1, 1, 5, 3)), (u,), (u.cos(),))[1],
    "jvp": lambda u: jvp(projection, (u,), (2 * u,))[1],
    "grad": lambda u: grad(lambda u: projection(u).sum())(u),
    "vmap": lambda u: vmap(projection)(torch.stack([u, -u])),
    "polar": lambda u: jvp(polar_factor, (u,), (u.cos(),))[1],
    "cross_covariance": lambda u: jvp(rf.cross_covariance, (u,), (u.cos(),))[1],
    "sample_project_align": lambda u: jvp(lambda L: rf.sample_project_align(4, L, seed=1), (u,), (u.cos(),))[1],
}


@pytest.mark.parametrize("function", COMPILED.values(), ids=COMPILED)
def test_transforms_inside_of_a_compiled_function(function) -> None:
    torch._dynamo.reset()
    fast = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(U), function(U), **REORDERED)


def test_forward_mode_around_a_compiled_function_is_right_or_raises() -> None:
    torch._dynamo.reset()
    fast, v = torch.compile(projection, fullgraph=True, backend="aot_eager"), U.cos()
    wanted = jvp(projection, (U,), (v,))[1]
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(fast(forward_ad.make_dual(U, v))).tangent
        torch.testing.assert_close(tangent, wanted, **REORDERED)
    with pytest.raises(Exception, match="torch.func.jvp"):
        jvp(fast, (U,), (v,))

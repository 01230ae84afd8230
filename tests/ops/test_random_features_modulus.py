# SPDX-License-Identifier: BSD-3-Clause
"""Moduli of complex projections, ``|u G^T + shift|``, in random_features and its two fused passes."""

import pytest
import torch
from features import FAR, plainly, problem, three
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, level
from tolerance import REORDERED, assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import MODULUS

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def pairs(shape: tuple[int, ...], n: int, d: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, u, A, shift, with complex u and shift."""
    x, u, A, shift = problem(shape, n, d, dtype)
    u, shift = (torch.complex(t, draw(*t.shape, dtype=dtype, seed=4)) for t in (u, shift))
    return x, u, A, shift


def wanted(x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, G: Tensor) -> tuple[Tensor, ...]:
    """The five results in plain PyTorch."""
    parts = [None if t is None else torch.view_as_real(t) for t in (u, shift)]
    return plainly(x, parts[0], A, parts[1], G, MODULUS)


def check(x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, backend: str | None = None) -> None:
    dtype = x.dtype
    got = three(x, u, A, shift, activation=MODULUS, scale=0.7, backend=backend, **FAR)
    assert [t.dtype for t in got] == [dtype, *[torch.float64] * 3, dtype]
    G = rf.gaussian(A.shape[1], u.shape[1], backend="reference", **FAR).to(dtype)
    plain = wanted(x, u, A, shift, G)
    wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (x, u, A)]
    exact = wanted(*wide, None if shift is None else shift.to(torch.complex128), G.double())
    for a, b, c in zip(got, exact, plain, strict=True):
        # Sums of u G^T have r terms; sums of features have 256 before they are promoted to float64.
        assert_close_to_float64(a.to(dtype), b, c, terms=max(u.shape[1], 256))


SHAPES = {  # of u, then n
    "one": ((1, 1), 1),
    "no-samples": ((0, 3), 4),
    "no-neurons": ((7, 3), 0),
    "rank-zero": ((7, 0), 50),  # the moduli of the shift alone
    "one-more-than-tiles": ((241, 9), 241),  # 240 a chunk, 240 neurons a block
    "few-neurons-many-samples": ((5003, 3), 5),  # more parts of the sum than threads
    "rank-beyond-a-chunk": ((9, 1030), 50),
    "images-cut-by-chunks": ((7, 6, 11, 13), 253),
}


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "n"), SHAPES.values(), ids=SHAPES)
def test_matches_reference(shape: tuple[int, ...], n: int, backend: str) -> None:
    x, u, A, shift = pairs(shape, n)
    check(x, u, A, shift, backend)
    check(x, u, A, None, backend)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_every_dtype_on_every_level(dtype: torch.dtype, name: str) -> None:
    with level(name):
        check(*pairs((6, 35, 9, 11), 301, 53, dtype), "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    """Slices of channels and of images, positions apart, conjugates, and transposed maps."""
    x, u, A, shift = pairs((4, 10, 6, 8), 20)
    maps = {
        "slice": u[:, ::2],
        "images": u[::2],
        "channels-last": u.contiguous(memory_format=torch.channels_last),
        "positions": u[..., ::2],
        "conjugate": u.conj(),
        "transposed": u.mT,
    }
    for name, v in maps.items():
        space = v.shape[2:]
        x, own = draw(len(v), 5, *space), torch.complex(*draw(2, len(v), *space, seed=6))
        copy = v.resolve_conj().clone(memory_format=torch.contiguous_format)
        results = [three(x, t, A, own, activation=MODULUS, backend=backend, seed=1) for t in (v, copy)]
        for a, b in zip(*results, strict=True):
            assert a.shape == b.shape
            # The order of samples decides their sums: roundings of float32 sums of 192 terms
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_threads_and_blocks_change_no_bits() -> None:
    x, u, A, shift = pairs((9, 21, 17, 11), 260)
    v = u.clone().requires_grad_()

    def every() -> Tensor:
        results = [*three(x, u, A, shift, activation=MODULUS, seed=3)]
        out = rf.random_features_projection(v, A, shift=shift, activation=MODULUS, seed=3)
        results.append(torch.view_as_real(torch.autograd.grad(out, v, torch.ones_like(out))[0]))
        return torch.cat([t.double().flatten() for t in results])

    assert_same_for_threads(every)
    few, more = (rf.random_features(u, n, shift=shift, activation=MODULUS, seed=3) for n in (260, 500))
    assert differing_bits(more[:, :260].contiguous(), few) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("explicit", [False, True], ids=["generated", "explicit"])
def test_gradients(explicit: bool, backend: str) -> None:
    x, u, A, shift = (t.requires_grad_() for t in pairs((4, 3, 2), 6, 2, torch.float64))
    G = draw(6, 3, dtype=torch.float64, seed=9).requires_grad_()

    def call(x: Tensor, u: Tensor, A: Tensor, shift: Tensor, *G: Tensor) -> tuple[Tensor, ...]:
        source = {"G": G[0]} if G else FAR
        return three(x, u, A, shift, activation=MODULUS, scale=0.7, backend=backend, **source)

    inputs = (x, u, A, shift, G) if explicit else (x, u, A, shift)
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_second_derivatives_and_batches(backend: str) -> None:
    x, u, A, shift = pairs((3, 4, 5), 7, 2, torch.float64)
    how = {"activation": MODULUS, "seed": 5, "backend": backend}
    tangents = pairs((3, 4, 5), 7, 2, torch.float64)[1].conj().resolve_conj()

    def project(u: Tensor) -> Tensor:
        return rf.random_features_projection(u, A, shift=shift, **how)

    along = torch.view_as_real(tangents)
    as_real = lambda t: project(torch.view_as_complex(t))  # noqa: E731  # forward mode of torch.func is of real numbers
    _, moved = torch.func.jvp(as_real, (torch.view_as_real(u),), (along,))
    step = 1e-6  # differences of this step have errors of its square and of roundings, 1e-16 / step
    difference = (project(u + step * tangents) - project(u - step * tangents)) / (2 * step)
    torch.testing.assert_close(moved, difference, rtol=1e-7, atol=1e-7)
    assert torch.autograd.gradgradcheck(project, (u.clone().requires_grad_(),))
    batch = torch.stack([u, 2 * u])
    torch.testing.assert_close(torch.vmap(project)(batch), torch.stack([project(t) for t in batch]), **REORDERED)
    keys = rf.random_features(u, 7, activation=MODULUS, seed=[5, 6], backend=backend)
    assert differing_bits(keys[0].contiguous(), rf.random_features(u, 7, **how)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_modulus_of_zero_has_the_gradient_zero(backend: str) -> None:
    u = torch.complex(*draw(2, 3, 4))
    u[1] = 0
    u.requires_grad_()
    phi = rf.random_features(u, 6, activation=MODULUS, seed=1, backend=backend)
    assert not phi[1].any() and phi[0].all()
    (phi.sum() + phi.square().sum()).backward()
    assert u.grad is not None and u.grad.isfinite().all() and not u.grad[1].any() and u.grad[0].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_out_of_range(size: float, backend: str) -> None:
    u = torch.complex(*draw(2, 50, 4))
    phi, scaled = (rf.random_features(t, 40, activation=MODULUS, seed=1, backend=backend) for t in (u, size * u))
    # u and its multiple are rounded, and so is each sum of four terms
    torch.testing.assert_close(scaled / size, phi, rtol=3e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_stays(backend: str) -> None:
    u = torch.ones(4, 2, dtype=torch.complex64, device="cpu")
    u[1, 0], u[2, 0] = complex(float("nan"), 1), complex(1, float("nan"))
    u[3, 0] = complex(float("inf"), 1)
    phi = rf.random_features(u, 20, activation=MODULUS, seed=1, backend=backend)
    assert phi[1:3].isnan().all() and phi[0].isfinite().all() and phi[3].isinf().all()


def test_circular_rows_are_those_of_twice_the_columns() -> None:
    """Complex G = (a + i b) / sqrt 2: columns [a, b] on (u; i u) / sqrt 2."""
    u = torch.complex(*draw(2, 30, 6, dtype=torch.float64))
    rows = rf.gaussian(9, 12, seed=2, dtype=torch.float64)
    G = torch.complex(rows[:, :6], rows[:, 6:]) / 2**0.5
    phi = rf.random_features(torch.cat([u, 1j * u], 1) / 2**0.5, 9, activation=MODULUS, seed=2)
    torch.testing.assert_close(phi, (u @ G.T).abs(), **REORDERED)


def test_bad_input() -> None:
    real, u = draw(4, 3), torch.complex(*draw(2, 4, 3))
    how = {"seed": 1, "activation": MODULUS}
    with pytest.raises(TypeError, match=r"u is torch.float32: wanted complex numbers for activation='modulus'"):
        rf.random_features(real, 2, **how)
    with pytest.raises(TypeError, match="shift is torch.float32: wanted complex numbers for activation='modulus'"):
        rf.random_features_projection(u, draw(5, 2), shift=draw(4), **how)
    with pytest.raises(
        TypeError, match="u is torch.complex64: wanted .*torch.float64, or complex numbers for activation='modulus'"
    ):
        rf.random_features(u, 2, seed=1)
    with pytest.raises(ValueError, match=r"u has shape \(4,\): wanted \(N, r\) or \(N, r, \*space\)"):
        rf.random_features(u[:, 0], 2, **how)
    with pytest.raises(ValueError, match=r"shift has shape \(3,\): wanted \(4,\), u without its channels"):
        rf.random_features(u, 2, shift=u[0], **how)
    with pytest.raises(
        ValueError, match=r"x has shape \(3, 5\): wanted the N and the positions of u, of shape \(4, 3\)"
    ):
        rf.random_features_covariance(draw(3, 5), u, 2, **how)
    with pytest.raises(TypeError, match="x is torch.complex64: wanted the dtype of phi', torch.float32"):
        rf.random_features_covariance(u, u, 2, **how)
    with pytest.raises(TypeError, match="shift is torch.complex128: wanted the dtype of u, torch.complex64"):
        rf.random_features(u, 2, shift=u[:, 0].to(torch.complex128), **how)
    with pytest.raises(ValueError, match=r"u has shape \(4, 3\): wanted pairs, \(N, r, \*space, 2\)"):
        torch.ops.rainbow_fast.random_features(real, None, 2, rf.key(1), None, MODULUS, 0.0, 1.0, None, None)
    with pytest.raises(TypeError, match="A is torch.float64: wanted the dtype of phi', torch.float32"):
        rf.random_features_projection(u, draw(5, 2).double(), **how)
    with pytest.raises(ValueError, match="activation='modul': wanted one of identity, .*, cos, modulus"):
        rf.random_features(real, 2, seed=1, activation="modul")

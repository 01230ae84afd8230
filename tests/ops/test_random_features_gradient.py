# SPDX-License-Identifier: BSD-3-Clause
"""random_features: registration, compilation, and gradients, for which G is generated again."""

import pytest
import torch
from features import FAR, plainly, problem, three
from here import BACKENDS, LEVELS, assert_compiles_once, assert_same_for_threads, draw, level
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import ACTIVATIONS

ops = torch.ops.rainbow_fast


def arguments(explicit: bool, activation: str = "tanh") -> tuple[tuple, tuple]:
    """(x, u, A, shift), and the arguments after n in the schemas."""
    x, u, A, shift = (t.requires_grad_() for t in problem((4, 3, 2), 6, 2, torch.float64))
    G = draw(6, 3, dtype=torch.float64, seed=9).requires_grad_() if explicit else None
    return (x, u, A, shift), (None if explicit else rf.key(3, 2, 2**32 - 3, 1), G, activation, 0.01, 0.7)


@pytest.mark.parametrize("explicit", [False, True], ids=["generated", "explicit"])
def test_registration(explicit: bool) -> None:
    (x, u, A, shift), rest = arguments(explicit)
    torch.library.opcheck(ops.random_features.default, (u, shift, 6, *rest, "high", None))
    torch.library.opcheck(ops.random_features_covariance.default, (x, u, shift, None, None, 6, *rest, "high", None))
    torch.library.opcheck(ops.random_features_projection.default, (u, [A], shift, *rest, "high", None))
    torch.library.opcheck(ops.random_features_projection.default, (u, [A, A[:, :3]], shift, *rest, "high", None))
    x, u, A, shift = (t.detach() for t in (x, u, A, shift))
    rest = tuple(t.detach() if isinstance(t, Tensor) else t for t in rest)
    out, M, n = torch.zeros(4, 6, 2).double(), torch.zeros(2, 6).double(), torch.zeros(6).double()
    torch.library.opcheck(ops.random_features_out.default, (u, shift, *rest, "high", None, out))
    torch.library.opcheck(
        ops.random_features_covariance_out.default,
        (x, u, shift, x[0, :, 0], None, *rest, "high", None, M, n, n.clone()),
    )
    torch.library.opcheck(
        ops.random_features_projection_out.default, (u, [A], shift, *rest, "high", None, [out[:, :2].clone()])
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("explicit", [False, True], ids=["generated", "explicit"])
def test_gradients(explicit: bool, backend: str) -> None:
    inputs, (key, G, activation, *_) = arguments(explicit)

    def call(x: Tensor, u: Tensor, A: Tensor, shift: Tensor, *G: Tensor) -> tuple[Tensor, ...]:
        source = {"G": G[0]} if G else {"seed": key}
        return three(x, u, A, shift, activation=activation, scale=0.7, backend=backend, **source)

    assert torch.autograd.gradcheck(call, inputs if G is None else (*inputs, G))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_several_seeds_and_widths(backend: str) -> None:
    x, u, A, shift = arguments(False)[0]
    B = draw(2, 3, 4, dtype=torch.float64, seed=8).requires_grad_()  # one for each seed, for fewer neurons

    def call(x: Tensor, u: Tensor, A: Tensor, B: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        options = {"shift": shift, "activation": "tanh", "seed": [1, 2], "scale": 0.7, "backend": backend}
        sums = rf.random_features_covariance(x, u, [6, 2], **options)
        return (
            rf.random_features(u, 6, **options),
            *(t for of_width in sums for t in of_width),
            *rf.random_features_projection(u, [B, A], **options),
        )

    assert torch.autograd.gradcheck(call, (x, u, A, B, shift))
    # only one of two results: the other one has no gradient
    both = rf.random_features_projection(u, [B, A], seed=[1, 2], shift=shift, activation="tanh", backend=backend)
    alone = rf.random_features_projection(u, B, seed=[1, 2], shift=shift, activation="tanh", backend=backend)
    for got, wanted in zip(
        torch.autograd.grad(both[0].sum(), (u, B, shift)), torch.autograd.grad(alone.sum(), (u, B, shift)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)  # float64, sums in another order


def test_gradients_of_gradients() -> None:
    (x, u, A, shift), _ = arguments(False)
    call = lambda *inputs: three(*inputs, activation="tanh", seed=3)  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, u, A, shift))


LARGE = (66_000, 70)  # the reference takes 64 neurons at a time, then 6


@pytest.mark.parametrize(
    ("activation", "N", "n", "backend"),
    [*((a, 500, 250, None) for a in ACTIVATIONS), ("relu", *LARGE, "reference")],  # 250: chunks of 240
    ids=[*ACTIVATIONS, "blocks-of-the-reference"],
)
def test_gradients_by_regeneration_equal_autograd(activation: str, N: int, n: int, backend: str | None) -> None:
    inputs = [t.requires_grad_() for t in problem((N, 3), n, 2, torch.float64)]
    G = rf.gaussian(n, 3, **FAR).double()
    upstream = [draw(*shape, dtype=torch.float64, seed=7) for shape in ((N, n), (2, n), (n,), (n,), (N, 2))]
    results = []
    for outputs in (
        three(*inputs, activation=activation, scale=0.7, backend=backend, **FAR),
        plainly(*inputs, G, activation),
    ):
        total = sum((a * b).sum() for a, b in zip(outputs, upstream, strict=True))
        total = total + 0 * sum(t.sum() for t in inputs)  # step has no graph at all
        results.append(torch.autograd.grad(total, inputs))
    for got, wanted in zip(*results, strict=True):
        # 1e-11 of the largest: sums of up to 66,000 terms in float64, in another order
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()) + 1e-300)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", [(1003, 9), (5, 9, 6, 7)], ids=["samples", "maps"])
def test_float32_gradients_on_every_level(shape: tuple[int, ...], name: str) -> None:
    inputs = [t.requires_grad_() for t in problem(shape, 301)]
    G = rf.gaussian(301, 9, **FAR)

    def gradients(outputs: tuple[Tensor, ...], variables: list[Tensor]) -> tuple[Tensor, ...]:
        upstream = [draw(*t.shape, seed=7).to(t.dtype) for t in outputs]
        return torch.autograd.grad(outputs, variables, upstream)

    def ours() -> tuple[Tensor, ...]:
        return gradients(three(*inputs, activation="gelu", scale=0.7, **FAR), inputs)

    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = gradients(plainly(*wide, G.double(), "gelu"), wide)
    plain = gradients(plainly(*inputs, G, "gelu"), inputs)
    with level(name):
        for got, e, p in zip(ours(), exact, plain, strict=True):
            assert_close_to_float64(got, e, p, terms=301)
        assert_same_for_threads(ours)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(activation: str, name: str) -> None:
    far = torch.tensor([0.0, 1e-30, 13.1, 14.6, 90.0, 300.0, 1e6])
    s = torch.cat([torch.linspace(-15, 15, 20_001), far, -far])
    u = s.unsqueeze(1).requires_grad_()
    with level(name):
        rf.random_features(u, 1, G=torch.ones(1, 1), activation=activation).sum().backward()
    exact = ACTIVATIONS[activation][1](s.double(), 0.01)
    # 3e-7: 2.5 units in the last place of numbers between 1 and 2, like the largest values of the derivatives
    torch.testing.assert_close(u.grad[:, 0].double(), exact, rtol=0, atol=3e-7)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="plain PyTorch gives NaN for silu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("activation", "wanted"), [("tanh", (0, 0)), ("erf", (0, 0)), ("silu", (0, 1))])
def test_derivatives_at_infinity(activation: str, wanted: tuple[float, float], dtype: torch.dtype) -> None:
    u, shift = torch.zeros(2, 1, dtype=dtype), torch.tensor([-torch.inf, torch.inf], dtype=dtype).requires_grad_()
    rf.random_features(u, 1, G=torch.ones(1, 1, dtype=dtype), shift=shift, activation=activation).sum().backward()
    assert shift.grad.tolist() == list(wanted)


def test_gradient_of_one_output_and_of_rank_zero() -> None:
    x, u, _, shift = (t.requires_grad_() for t in problem((6, 3), 4))
    M, _, _ = rf.random_features_covariance(x, u, 4, shift=shift, seed=1)
    M.sum().backward()
    assert all(t.grad.dtype == t.dtype and t.grad.isfinite().all() for t in (x, u, shift))
    nothing = torch.zeros(6, 0, requires_grad=True)
    rf.random_features(nothing, 4, shift=shift, seed=1).sum().backward()
    assert nothing.grad.shape == (6, 0)


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_comes_from_above_may_be_one_number_expanded(backend: str) -> None:
    u = draw(9, 3, dtype=torch.float64).requires_grad_()
    options = {"seed": 1, "activation": "tanh", "backend": backend}
    for sums in rf.random_features_covariance(draw(9, 2, dtype=torch.float64, seed=1), u, 20, **options):
        above = torch.ones((), dtype=torch.float64).expand_as(sums)
        (got,), (wanted,) = (torch.autograd.grad(sums, u, t, retain_graph=True) for t in (above, above.contiguous()))
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)  # float64 sums of 40 terms of order one


def test_one_compilation_for_ten_seeds() -> None:
    x, u, A, shift = problem((4, 3, 2), 6, 2)

    def all_of_them(key: Tensor) -> Tensor:
        return torch.cat([t.double().flatten() for t in three(x, u, A, shift, seed=key)])

    assert_compiles_once(all_of_them, [(rf.key(seed),) for seed in range(10)])
    calls = [(seed, seed + 20) for seed in range(3, 13)]
    assert_compiles_once(lambda seed, n: rf.random_features(u, n, seed=seed), calls, dynamic=True)


@pytest.mark.parametrize("form", ["covariance", "projection"])
def test_more_channels_than_a_chunk_of_neurons(form: str) -> None:
    x, u, A, _ = problem((70, 9), 300, 517)
    upstream = draw(517, 300, dtype=torch.float64) if form == "covariance" else draw(70, 517)
    got, wanted = [], []
    for backend, kept in ((None, got), ("reference", wanted)):
        v = u.clone().requires_grad_()
        if form == "covariance":
            out = rf.random_features_covariance(x, v, 300, seed=1, activation="tanh", backend=backend)[0]
        else:
            out = rf.random_features_projection(v, A, seed=1, activation="tanh", backend=backend)
        kept += torch.autograd.grad(out, v, upstream)
    # 1e-5: float32 sums of 517 and of 300 terms in another order
    assert (got[0] - wanted[0]).norm() < 1e-5 * wanted[0].norm()

# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels of random_features, interpreted, against float64; run by tests/triton_kernels/test_triton.py.

Scales are powers of two, because the interpreter rounds every number that it is given to float32.
"""

import pytest
import torch
from here import differing_bits, draw, laid_out
from tolerance import assert_close_to_float64
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.triton_kernels.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.triton_kernels.random_features_gradient import random_features_gradient
from rainbow_fast.triton_kernels.samples import Blocks

SEED, SLOPE, SCALE = 2**40 + 5, 0.25, 0.5

# N, r, n, d, space, layout, dtype, activation, has a shift, G generated
CASES = {
    "rows": (70, 5, 67, 9, (), "contiguous", torch.float32, "relu", False, True),
    "nchw-long-rank": (3, 37, 70, 130, (5, 7), "contiguous", torch.float32, "gelu", True, False),
    "channels_last": (2, 33, 10, 17, (4, 9), "channels_last", torch.float32, "cos", True, True),
    "lines-apart": (2, 6, 35, 5, (6, 11), "transposed", torch.float32, "leaky_relu", True, True),
    "sliced": (3, 3, 33, 70, (21,), "sliced", torch.float64, "silu", True, True),
    "double-long-rank": (40, 21, 40, 66, (), "contiguous", torch.float64, "tanh", False, False),
    "one-of-each": (1, 1, 1, 1, (), "contiguous", torch.float64, "erf", True, True),
}
PARAMETERS = ("N", "r", "n", "d", "space", "layout", "dtype", "activation", "shifted", "generated")
CASES = {name: dict(zip(PARAMETERS, case, strict=True)) for name, case in CASES.items()}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Made:
    """The data of a case, and its features in float64 and by plain PyTorch in the dtype of the case."""

    def __init__(self, N, r, n, d, space, layout, dtype, activation, shifted, generated) -> None:
        where = [SEED, 3, 2**32 - 5, 0]
        G = torch.from_numpy(gaussian_reference(where, n, r)).to(dtype)
        self.rows = where if generated else G.T.contiguous().T
        self.u = laid_out(draw(N, r, *space, dtype=dtype, seed=1), layout)
        self.x = laid_out(draw(N, d, *space, dtype=dtype, seed=2), layout)
        self.shift = draw(N, *space, dtype=dtype, seed=3) if shifted else None
        self.A = draw(d, n, dtype=dtype, seed=4)
        self.grad_phi = laid_out(draw(N, n, *space, dtype=dtype, seed=5), layout)
        self.total, self.square = draw(2, n, dtype=dtype, seed=6)
        self.rest = (activation, SLOPE, SCALE, "highest")
        function, derivative = ACTIVATIONS[activation]
        self.phi, self.slopes, self.G = {}, {}, {}
        for kind in (torch.float64, dtype):
            self.G[kind] = G.to(kind)
            s = torch.einsum("nr...,mr->nm...", self.u.to(kind), self.G[kind])
            s = s if self.shift is None else s + self.shift.to(kind).unsqueeze(1)
            self.phi[kind], self.slopes[kind] = SCALE * function(s, SLOPE), SCALE * derivative(s, SLOPE)

    def each(self, compute) -> list[Tensor]:
        """compute(dtype) in float64, and in the dtype of the case."""
        return [compute(torch.float64), compute(self.u.dtype)]


def matrix(x: Tensor) -> Tensor:
    return x.flatten(2).movedim(1, -1).flatten(0, 1) if x.dim() > 2 else x


def lay_out(guarded, like: Tensor, case: dict) -> Tensor:
    """A poisoned output with the shape of `like` and the layout of the inputs, inside guard zones."""
    axes = list(range(like.dim()))
    order = {"channels_last": [0, *axes[2:], 1], "transposed": axes[::-1]}.get(case["layout"], axes)
    out = guarded(*(like.shape[axis] for axis in order), dtype=case["dtype"])
    return out.permute(*(order.index(axis) for axis in axes))


@cases
def test_features(guarded, case: dict) -> None:
    problem = Made(**case)
    out = lay_out(guarded, problem.phi[torch.float64], case)
    random_features(out, problem.u, problem.shift, problem.rows, *problem.rest)
    assert_close_to_float64(out, *problem.each(lambda kind: problem.phi[kind]), terms=case["r"])


@cases
@pytest.mark.parametrize("centers", [(False, False), (True, True)], ids=["plain", "centers"])
def test_covariance(guarded, case: dict, centers: tuple[bool, bool]) -> None:
    problem = Made(**case)
    n, d = case["n"], case["d"]
    x_center, center = (
        draw(size, dtype=case["dtype"], seed=7) if there else None for size, there in zip((d, n), centers, strict=True)
    )
    sums = [guarded(*shape, dtype=torch.float64).fill_(2) for shape in ((d, n), (n,), (n,))]
    random_features_covariance(
        *sums, problem.x, x_center, center, problem.u, problem.shift, problem.rows, *problem.rest
    )
    phi = {kind: matrix(problem.phi[kind]) - (0 if center is None else center.to(kind)) for kind in problem.phi}
    x = {kind: matrix(problem.x).to(kind) - (0 if x_center is None else x_center.to(kind)) for kind in problem.phi}
    count = len(x[torch.float64])
    for actual, wanted in (
        (sums[0], lambda kind: x[kind].T @ phi[kind]),
        (sums[1], lambda kind: phi[kind].sum(0)),
        (sums[2], lambda kind: (phi[kind] ** 2).sum(0)),
    ):
        exact, plain = problem.each(wanted)
        assert_close_to_float64(actual.to(case["dtype"]), exact + 2, plain + 2, terms=count)


@cases
def test_projection(guarded, case: dict) -> None:
    problem = Made(**case)
    exact, plain = problem.each(lambda kind: torch.einsum("nm...,dm->nd...", problem.phi[kind], problem.A.to(kind)))
    out = lay_out(guarded, exact, case)
    random_features_projection(out, problem.u, problem.A, problem.shift, problem.rows, *problem.rest)
    assert_close_to_float64(out, exact, plain, terms=case["n"])


@cases
def test_gradient(guarded, case: dict) -> None:
    """With all upstream gradients: two products, one of all neurons and one of the first half."""
    problem = Made(**case)
    half = -(-case["n"] // 2)
    B = problem.A[:, :half].flip(1)

    def upstream(kind: torch.dtype) -> Tensor:
        there = [t.to(kind).view(-1, *[1] * (problem.u.dim() - 2)) for t in (problem.total, problem.square)]
        up = problem.grad_phi.to(kind) + there[0] + 2 * there[1] * problem.phi[kind]
        up = up + torch.einsum("nd...,dm->nm...", problem.x.to(kind), problem.A.to(kind))
        up[:, :half] += torch.einsum("nd...,dm->nm...", problem.x.to(kind), B.to(kind))
        return up * problem.slopes[kind]

    exact, plain = problem.each(lambda kind: torch.einsum("nm...,mr->nr...", upstream(kind), problem.G[kind]))
    grad_u = lay_out(guarded, exact, case)
    grad_shift = guarded(*problem.u[:, 0].shape, dtype=case["dtype"])
    above = (problem.grad_phi, problem.total, problem.square, [problem.x, problem.x], [problem.A, B])
    random_features_gradient(
        grad_u, grad_shift, problem.u, problem.shift, problem.rows, case["n"], *problem.rest, *above
    )
    assert_close_to_float64(grad_u, exact, plain, terms=case["n"] * case["d"])
    assert_close_to_float64(grad_shift, *problem.each(lambda kind: upstream(kind).sum(1)), terms=case["n"] * case["d"])


def test_what_is_missing_from_above(guarded) -> None:
    """One upstream gradient at a time, compared with all together: gradients are linear in them."""
    case = CASES["rows"]
    problem = Made(**case)
    above = {"grad_phi": problem.grad_phi, "total": problem.total, "square": problem.square}
    parts = []
    for name in (*above, "product"):
        grad = guarded(70, 5)
        one = [above[key] if key == name else None for key in above]
        pairs = ([problem.x], [problem.A]) if name == "product" else ([], [])
        random_features_gradient(grad, None, problem.u, None, problem.rows, 67, *problem.rest, *one, *pairs)
        parts.append(grad)
    together = guarded(70, 5)
    everything = (*above.values(), [problem.x], [problem.A])
    random_features_gradient(together, None, problem.u, None, problem.rows, 67, *problem.rest, *everything)
    # float32 sums of four results of order ten
    torch.testing.assert_close(sum(parts), together, rtol=0, atol=2e-5)


@pytest.mark.parametrize("d", [5, 130], ids=["fused", "through-panels-of-features"])
def test_panels_parts_and_blocks(guarded, d: int) -> None:
    """The same results with G in two panels, sums in parts, samples in two blocks and several launches."""
    N, r, n, space = 2, 5, 140, (5, 13)
    problem = Made(N, r, n, d, space, "contiguous", torch.float32, "silu", True, True)

    def all_of_them(blocks: Blocks) -> list[Tensor]:
        out, x = guarded(N, n, *space), guarded(N, d, *space)
        grad_u, grad_shift = guarded(N, r, *space), guarded(N, *space)
        sums = [guarded(*shape, dtype=torch.float64).zero_() for shape in ((d, n), (n,), (n,))]
        inputs = (problem.u, problem.shift, problem.rows)
        random_features(out, *inputs, *problem.rest, blocks=blocks)
        centers = draw(d, seed=7), draw(n, seed=8)
        random_features_covariance(*sums, problem.x, *centers, *inputs, *problem.rest, blocks=blocks)
        random_features_projection(x, problem.u, problem.A, *inputs[1:], *problem.rest, blocks=blocks)
        above = (problem.grad_phi, problem.total, problem.square, [problem.x], [problem.A])
        random_features_gradient(grad_u, grad_shift, *inputs, n, *problem.rest, *above, blocks=blocks)
        return [out, *sums, x, grad_u, grad_shift]

    whole = all_of_them(Blocks(programs=1))
    divided = all_of_them(Blocks(panel=r * 128, tallest=128, sums=d * 128, flush=32))
    assert differing_bits(whole[0], divided[0]) == 0
    for a, b in zip(whole, divided, strict=True):
        # Other float32 partial sums, of at most 140 terms
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("r", [5, 70], ids=["short-rank", "long-rank"])
@pytest.mark.parametrize("d", [5, 130], ids=["fused", "through-panels-of-features"])
def test_precisions(guarded, d: int, r: int, precision: str) -> None:
    """Errors of at most 2^-14 and 2^-7 of the sums of magnitudes, and other numbers than in full."""
    N, n, bound = 70, 67, {"high": 2.0**-14, "medium": 2.0**-7}[precision]
    problem = Made(N, r, n, d, (), "contiguous", torch.float32, "identity", False, False)
    u, G, x, A, above = (t.double() for t in (problem.u, problem.rows, problem.x, problem.A, problem.grad_phi))
    results = []
    for each in ("highest", precision):
        inputs, rest = (problem.u, None, problem.rows), ("identity", SLOPE, SCALE, each)
        out, projected, grad = guarded(N, n), guarded(N, d), guarded(N, r)
        sums = [guarded(*shape, dtype=torch.float64).zero_() for shape in ((d, n), (n,), (n,))]
        random_features(out, *inputs, *rest)
        random_features_covariance(*sums, problem.x, None, None, *inputs, *rest)
        random_features_projection(projected, problem.u, problem.A, *inputs[1:], *rest)
        random_features_gradient(grad, None, *inputs, n, *rest, problem.grad_phi, None, None, [], [])
        results.append([out, sums[0], projected, grad])
    factors = [[u, G.T], [x.T, u, G.T], [u, G.T, A.T], [above, G]]
    for full, got, product in zip(*results, factors, strict=True):
        exact = SCALE * torch.linalg.multi_dot(product)
        size = SCALE * torch.linalg.multi_dot([factor.abs() for factor in product])
        assert ((got - exact).abs() <= bound * size).all() and not torch.equal(got, full)


EMPTY = {"no-samples": (0, 3, 4, 2), "no-rank": (5, 0, 4, 2), "no-neurons": (5, 3, 0, 2), "no-channels": (5, 3, 4, 0)}


@pytest.mark.parametrize(("N", "r", "n", "d"), EMPTY.values(), ids=EMPTY)
def test_empty(guarded, N: int, r: int, n: int, d: int) -> None:
    problem = Made(N, r, n, d, (), "contiguous", torch.float32, "cos", True, True)
    out, x, grad_u, grad_shift = guarded(N, n), guarded(N, d), guarded(N, r), guarded(N)
    sums = [guarded(*shape, dtype=torch.float64).zero_() for shape in ((d, n), (n,), (n,))]
    inputs = (problem.u, problem.shift, problem.rows)
    random_features(out, *inputs, *problem.rest)
    random_features_covariance(*sums, problem.x, None, None, *inputs, *problem.rest)
    random_features_projection(x, problem.u, problem.A, *inputs[1:], *problem.rest)
    random_features_gradient(
        grad_u, grad_shift, *inputs, n, *problem.rest, problem.grad_phi, None, None, [problem.x], [problem.A]
    )
    phi = problem.phi[torch.float32]
    up = (problem.grad_phi + problem.x @ problem.A) * problem.slopes[torch.float32]
    for actual, wanted in (
        (out, phi), (sums[0], problem.x.T @ phi), (sums[1], phi.sum(0)), (x, phi @ problem.A.T),
        (grad_u, up @ problem.G[torch.float32]), (grad_shift, up.sum(1)),
    ):  # fmt: skip
        # float32 sums of at most five terms of order ten
        torch.testing.assert_close(actual.float(), wanted.float(), rtol=0, atol=1e-5)

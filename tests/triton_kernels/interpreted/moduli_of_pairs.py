# SPDX-License-Identifier: BSD-3-Clause
"""Moduli of pairs in the Triton kernels of random_features, interpreted, against float64; run by test_triton.py."""

from dataclasses import dataclass

import pytest
import torch
from here import draw
from tolerance import assert_close_to_float64
from torch import Tensor

from rainbow_fast.ops.activations import MODULUS
from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.triton_kernels.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.triton_kernels.random_features_gradient import random_features_gradient
from rainbow_fast.triton_kernels.samples import Blocks

WHERE, SCALE = [2**40 + 5, 3, 2**32 - 5, 0], 0.5
REST = (MODULUS, 0.0, SCALE, "highest")
SMALL = Blocks(panel=5 * 128, tallest=128, sums=5 * 128, flush=32)


@dataclass
class Case:
    """Pairs u (N, r, H, W, 2), and the gradient of features from above."""

    N: int
    r: int
    n: int
    d: int
    space: tuple[int, int]
    dtype: torch.dtype
    shifted: bool
    blocks: Blocks

    def __post_init__(self) -> None:
        N, n, d, space, dtype = self.N, self.n, self.d, self.space, self.dtype
        self.u = draw(N, self.r, *space, 2, dtype=dtype, seed=1)
        self.u[0, :, 0, 0] = 0  # a modulus of 0, unless there is a shift
        self.shift = draw(N, *space, 2, dtype=dtype, seed=3) if self.shifted else None
        self.x, self.A = draw(N, d, *space, dtype=dtype, seed=2), draw(d, n, dtype=dtype, seed=4)
        self.grad_phi = draw(N, n, *space, dtype=dtype, seed=5)
        self.total, self.square = draw(2, n, dtype=dtype, seed=6)
        self.planes = None if self.shift is None else self.shift.movedim(-1, 0).contiguous()

    def features(self, kind: torch.dtype, u: Tensor, shift: Tensor | None) -> Tensor:
        """Of u and the shift, which are complex numbers of the precision `kind`."""
        G = torch.from_numpy(gaussian_reference(WHERE, self.n, self.r)).to(kind).to(u.dtype)
        s = torch.einsum("nrhw,mr->nmhw", u, G)
        return SCALE * (s if shift is None else s + shift.unsqueeze(1)).abs()

    def exact_and_plain(self, compute) -> list:
        """compute(phi, kind, inputs) in float64 and in the dtype of the case."""
        results = []
        for kind in (torch.float64, self.dtype):
            inputs = [torch.view_as_complex(t.to(kind)).requires_grad_() for t in (self.u, self.shift) if t is not None]
            phi = self.features(kind, *inputs, *([] if self.shifted else [None]))
            results.append(compute(phi, kind, inputs))
        return results


CASES = {
    "one-tile": Case(2, 5, 67, 9, (3, 7), torch.float32, True, Blocks()),
    "no-shift": Case(3, 37, 20, 130, (5, 1), torch.float32, False, Blocks()),
    "panels": Case(2, 5, 140, 5, (5, 13), torch.float64, True, SMALL),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cases
def test_features_and_sums(guarded, case: Case) -> None:
    n, d = case.n, case.d
    inputs = case.u, case.planes, WHERE
    out = guarded(case.N, n, *case.space, dtype=case.dtype)
    random_features(out, *inputs, *REST, blocks=case.blocks)
    assert_close_to_float64(out, *case.exact_and_plain(lambda phi, *_: phi.detach()), terms=case.r)

    projected = guarded(case.N, d, *case.space, dtype=case.dtype)
    random_features_projection(projected, case.u, case.A, *inputs[1:], *REST, blocks=case.blocks)
    wanted = case.exact_and_plain(lambda phi, kind, _: torch.einsum("nmhw,dm->ndhw", phi, case.A.to(kind)).detach())
    assert_close_to_float64(projected, *wanted, terms=n)

    center = draw(n, dtype=case.dtype, seed=7)
    sums = [guarded(*shape, dtype=torch.float64).zero_() for shape in ((d, n), (n,), (n,))]
    random_features_covariance(*sums, case.x, None, center, *inputs, *REST, blocks=case.blocks)

    def about(phi: Tensor, kind: torch.dtype, _: object) -> list[Tensor]:
        f = phi.detach().movedim(1, -1).flatten(0, 2) - center.to(kind)
        return [case.x.to(kind).movedim(1, -1).flatten(0, 2).T @ f, f.sum(0), f.square().sum(0)]

    for actual, exact, plain in zip(sums, *case.exact_and_plain(about), strict=True):
        assert_close_to_float64(actual.to(case.dtype), exact, plain, terms=case.N * case.space[0] * case.space[1])


@cases
def test_gradient(guarded, case: Case) -> None:
    """With all upstream gradients: two products, one of all neurons and one of the first half."""
    half = -(-case.n // 2)
    B = case.A[:, :half].flip(1)

    def gradients(phi: Tensor, kind: torch.dtype, inputs: list[Tensor]) -> list[Tensor]:
        x, A = case.x.to(kind), case.A.to(kind)
        size = [t.to(kind).view(-1, 1, 1) for t in (case.total, case.square)]
        loss = (phi * case.grad_phi.to(kind)).sum() + (size[0] * phi).sum() + (size[1] * phi.square()).sum()
        loss = loss + (torch.einsum("nmhw,dm->ndhw", phi, A) * x).sum()
        loss = loss + (torch.einsum("nmhw,dm->ndhw", phi[:, :half], B.to(kind)) * x).sum()
        return [torch.view_as_real(g).contiguous() for g in torch.autograd.grad(loss, inputs)]

    wanted = case.exact_and_plain(gradients)
    grads = [guarded(*t.shape, dtype=case.dtype) for t in (case.u, case.shift) if t is not None]
    above = (case.grad_phi, case.total, case.square, [case.x, case.x], [case.A, B])
    to = grads if case.shifted else [*grads, None]
    random_features_gradient(*to, case.u, case.planes, WHERE, case.n, *REST, *above, blocks=case.blocks)
    for actual, exact, plain in zip(grads, *wanted, strict=True):
        assert actual.isfinite().all()
        assert_close_to_float64(actual, exact, plain, terms=case.n * case.d)


def test_a_feature_that_is_no_number(guarded) -> None:
    u = torch.ones(1, 2, 1, 3, 2, device="cpu")
    u[0, 0, 0, 1, 1] = float("nan")
    out = guarded(1, 4, 1, 3)
    random_features(out, u, None, WHERE, *REST)
    assert out[..., 1].isnan().all() and out[..., ::2].isfinite().all()

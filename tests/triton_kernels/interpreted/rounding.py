# SPDX-License-Identifier: BSD-3-Clause
"""bfloat16 is rounded in the interpreter as in hardware; run by tests/triton_kernels/test_triton.py."""

import torch
import triton
import triton.language as tl
from here import differing_bits, draw

from rainbow_fast.triton_kernels.rounding import dot, multiply, rounded, split


@triton.jit
def round_kernel(x, y, N: tl.constexpr):
    j = tl.arange(0, N)
    tl.store(y + j, rounded(tl.load(x + j), y.dtype.element_ty))


def test_rounds_to_nearest_even(guarded) -> None:
    words = torch.arange(-(2**15), 2**15)[:, None] << 16 | torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    finite = words.int().view(torch.float32).flatten()  # every bfloat16, the ties above it and their neighbours
    finite = finite[finite.isfinite()]
    x = torch.full((triton.next_power_of_2(len(finite)),), torch.nan)
    x[: len(finite)], x[-1] = finite, -torch.inf
    y = guarded(len(x), dtype=torch.bfloat16)
    round_kernel[(1,)](x, y, len(x))
    numbers = ~x.isnan()
    assert differing_bits(y[numbers], x[numbers].bfloat16()) == 0 and y[~numbers].isnan().all()


@triton.jit
def product_kernel(a, b, c, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    first, second, third = split(tl.load(a + at), tl.bfloat16, 3)
    tl.store(c + at, first.to(tl.float32) + second.to(tl.float32) + third.to(tl.float32))
    tl.store(out + at, dot(first, tl.load(b + at), tl.zeros((N, N), tl.float32)))


def test_splits_and_multiplies(guarded) -> None:
    a, b, c, out = draw(16, 16), draw(16, 16).bfloat16(), guarded(16, 16), guarded(16, 16)
    product_kernel[(1,)](a, b, c, out, 16)
    assert torch.equal(c, a)
    torch.testing.assert_close(out, a.bfloat16().float() @ b.float())


@triton.jit
def precision_kernel(a, b, out, PRECISION: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, multiply(tl.load(a + at), tl.load(b + at), tl.zeros((N, N), tl.float32), PRECISION))


def test_products_of_terms(guarded) -> None:
    a, b = draw(16, 16), draw(16, 16, seed=1)
    (a1, a2), (b1, b2) = ((t.bfloat16().float(), (t - t.bfloat16().float()).bfloat16().float()) for t in (a, b))
    wanted = {"high": a2 @ b1 + a1 @ b2 + a1 @ b1, "medium": a1 @ b1, "ieee": a @ b}
    for precision, product in wanted.items():
        out = guarded(16, 16)
        precision_kernel[(1,)](a, b, out, precision, 16)
        torch.testing.assert_close(out, product)  # float32 sums of 16 terms
    assert (wanted["high"] - wanted["ieee"]).abs().max() > 1e-5  # more than that: the sum of the other terms

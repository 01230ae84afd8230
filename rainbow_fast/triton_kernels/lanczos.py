# SPDX-License-Identifier: BSD-3-Clause
"""The largest eigenvalues of a batch of positive definite matrices, by Lanczos' method.

Each step is a matrix product of torch and one kernel. Nothing is copied to the host.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.variant import Variant

STEP = {"STEPS": 32, "BLOCK": 128, "num_warps": 8}
RITZ = {"STEPS": 32, "LANES": 32, "num_warps": 1}


@triton.jit
def _orthogonal(source, target, basis, step, d, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """target = source minus its components along the basis vectors up to `step`; returns the components."""
    lane, at = tl.arange(0, STEPS), tl.arange(0, BLOCK).to(tl.int64)
    rows, valid = basis + lane[:, None].to(tl.int64) * d, (lane <= step)[:, None]
    shares = tl.zeros((STEPS,), tl.float64)
    for start in range(0, d, BLOCK):
        inside = start + at < d
        v = tl.load(rows + (start + at)[None, :], mask=valid & inside[None, :], other=0.0)
        shares += tl.sum(v * tl.load(source + start + at, mask=inside, other=0.0)[None, :], 1)
    for start in range(0, d, BLOCK):
        inside = start + at < d
        v = tl.load(rows + (start + at)[None, :], mask=valid & inside[None, :], other=0.0)
        w = tl.load(source + start + at, mask=inside, other=0.0)
        tl.store(target + start + at, w - tl.sum(v * shares[:, None], 0), mask=inside)
    tl.debug_barrier()  # other threads load `target` next
    return shares


@triton.jit(do_not_specialize=["step"])
def step_kernel(
    basis, product, diagonal, beside, d: tl.int64, step: tl.int32, STEPS: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute entry `step` of the tridiagonal matrix, and basis[step + 1], from product = R basis[step].

    The product is orthogonalised twice against all earlier vectors, so that they stay orthogonal. If nothing is left of
    it, the next vector is zero.
    """
    b = tl.program_id(0).to(tl.int64)
    basis += b * (STEPS + 1) * d
    product += b * d
    diagonal += b * STEPS
    beside += b * STEPS
    next = basis + (step + 1).to(tl.int64) * d
    shares = _orthogonal(product, next, basis, step, d, STEPS, BLOCK)
    shares += _orthogonal(next, product, basis, step, d, STEPS, BLOCK)
    at = tl.arange(0, BLOCK).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, d, BLOCK):
        w = tl.load(product + start + at, mask=start + at < d, other=0.0)
        squares += w * w
    left = tl.sqrt(tl.sum(squares, 0))
    lane = tl.arange(0, STEPS)
    here = tl.sum(tl.where(lane == step, shares, 0.0), 0)
    size = tl.max(tl.load(diagonal + lane, mask=lane < step, other=0.0) + left, 0) + here  # about the eigenvalue
    left = tl.where(left <= 1e-14 * size, 0.0, left)
    tl.store(diagonal + step, here)
    tl.store(beside + step, left)
    for start in range(0, d, BLOCK):
        w = tl.load(product + start + at, mask=start + at < d, other=0.0)
        tl.store(
            next + start + at, tl.where(left == 0.0, 0.0, w / tl.where(left == 0.0, 1.0, left)), mask=start + at < d
        )


@triton.jit
def ritz_kernel(out, diagonal, beside, steps: tl.int32, STEPS: tl.constexpr, LANES: tl.constexpr):
    """A lower bound of the largest eigenvalue of a tridiagonal matrix, by Sturm sequences at LANES points at a time."""
    b = tl.program_id(0)
    diagonal += b * STEPS
    beside += b * STEPS
    lane, point = tl.arange(0, STEPS), tl.arange(0, LANES)
    right = tl.load(beside + lane, mask=lane < steps, other=0.0)
    left = tl.load(beside + lane - 1, mask=(lane < steps) & (lane > 0), other=0.0)
    high = tl.max(tl.load(diagonal + lane, mask=lane < steps, other=0.0) + left + right, 0)  # Gershgorin
    low = 0.0 * high  # NaN if an entry is NaN
    for _ in range(6):  # 33^-6 is 1e-9
        width = (high - low) / (LANES + 1)
        x = low + width * (point + 1)
        pivot = tl.load(diagonal) - x
        above = pivot > 0.0
        for i in range(1, steps):
            next = tl.load(beside + i - 1)
            pivot = tl.load(diagonal + i) - x - next * next / tl.where(pivot == 0.0, -1e-300, pivot)
            above = above | (pivot > 0.0)
        low += width * tl.sum(above.to(tl.int32), 0)
        high = low + width
    tl.store(out + b, low)


def largest_eigenvalue(R: Tensor, start: Tensor) -> Tensor:
    """The largest eigenvalue of each R (b, d, d): a lower bound, for d > 32 too small by at most a few thousandths.

    The Krylov space begins with `start` (d,).
    """
    b, d = R.shape[:2]
    basis = R.new_zeros(b, STEP["STEPS"] + 1, d)
    basis[:, 0] = start / start.norm()
    diagonal, beside = R.new_zeros(2, b, STEP["STEPS"])
    steps = min(d, STEP["STEPS"])
    for step in range(steps):
        product = R @ basis[:, step, :, None]
        step_kernel[(b,)](basis, product, diagonal, beside, d, step, **STEP)
    out = R.new_empty(b)
    ritz_kernel[(b,)](out, diagonal, beside, steps, **RITZ)
    return out


def variants() -> Iterator[Variant]:
    for name, kernel, arguments, tile in (
        ("lanczos step", step_kernel, ("basis", "product", "diagonal", "beside"), STEP),
        ("lanczos ritz", ritz_kernel, ("out", "diagonal", "beside"), RITZ),
    ):
        constants = {k: v for k, v in tile.items() if k.isupper()}
        types = dict.fromkeys(arguments, "*fp64")
        yield Variant(name, kernel, types, constants, {"num_warps": tile["num_warps"]}, arguments)

# SPDX-License-Identifier: BSD-3-Clause
"""polar on a GPU: the stages of csrc/cpu/polar.cpp in float64, by matrix products of torch and small kernels.

A stage computes the Gram matrix R of X (which is M in the first stage), and multiplies X by a function of R that brings
the singular values near 1. The function is the composition of two Zolotarev functions, each a sum of (R + pole)^-1.
R does not resolve singular values of X below RESOLVED times SMALLEST. If there are any, the stage applies the first
function only, and the next stage computes a new Gram matrix.

Floating-point operations, in units of d^3: the last stage takes 4 n/d + 14 + 10/3 p with p <= 4 poles, and 4 n/d more
in float64; every other stage takes 4 n/d + 10. A square float32 matrix of 2048 takes a single stage and 28 units,
2.4e11: 4.4 ms on an H100 (55 TF), 13 ms on an A100 (18 TF), plus the latency of six factorisations. Memory besides M
and out: at most 10 d^2 + 3 d n float64 numbers for each matrix of a batch.

Everything runs asynchronously except one copy to the host in each stage: the condition decides the poles, the rank, and
whether another stage follows. One stage is enough up to a condition number of 8e3 (float32) or 2e3 (float64). Each
further stage adds a factor of a thousand.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.gaussian import gaussian
from rainbow_fast.triton_kernels.lanczos import largest_eigenvalue
from rainbow_fast.triton_kernels.variant import Variant
from rainbow_fast.triton_kernels.zolotarev import Rational, zolotarev

DONE, NULL, FAILED = 0.0, 2.0, 3.0  # enum Outcome of csrc/cpu/polar.cpp
SMALLEST = {torch.float32: 5e-4, torch.float64: 2e-3}  # lower end of the interval of the first function
RESOLVED = 0.25  # smallest singular value that a Gram matrix resolves, in units of SMALLEST
DEVIATION = 4e-8  # largest deviation of singular values from 1 after the last stage
MARGIN = 1.01  # safety factor for deciding the rank by an estimated condition
ABOVE = 1.01  # safety factor, because Lanczos' method gives a lower bound
STAGES, FIRST_POLES, MOST_POLES, PROBES = 6, 3, 4, 8
BATCHED = 256  # largest size of matrices that batched factorisations are used for; they are made for small matrices

COMBINE = {"BLOCK": 32, "num_warps": 4}


@triton.jit
def combine_kernel(
    out, inputs, coefficients, batch: tl.int64, d: tl.int64,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[o, b] = sum_i coefficients[b, o, i] sym(inputs[i, b]) + coefficients[b, o, INPUTS] 1, all d x d.

    A program computes a block and its mirror image, so the results are exactly symmetric.
    """
    b, down, across = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if down > across:
        return
    i, j = down.to(tl.int64) * BLOCK + tl.arange(0, BLOCK), across.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here, mirror = i[:, None] * d + j[None, :], j[:, None] * d + i[None, :]
    inside, inside_mirror = (i < d)[:, None] & (j < d)[None, :], (j < d)[:, None] & (i < d)[None, :]
    for o in tl.static_range(OUTPUTS):
        c = coefficients + (b * OUTPUTS + o) * (INPUTS + 1)
        value = tl.where(i[:, None] == j[None, :], tl.load(c + INPUTS), 0.0)
        for k in tl.static_range(INPUTS):
            source = inputs + (k * batch + b) * d * d
            above = tl.load(source + here, mask=inside, other=0.0)
            below = tl.load(source + mirror, mask=inside_mirror, other=0.0)
            value += tl.load(c + k) * 0.5 * (above + tl.trans(below))
        target = out + (o * batch + b) * d * d
        tl.store(target + here, value, mask=inside)
        tl.store(target + mirror, tl.trans(value), mask=inside_mirror)


def combine(out: Tensor, inputs: Tensor, coefficients: Tensor) -> Tensor:
    """Linear combinations (o, b, d, d) of inputs (i, b, d, d), symmetrised, and of the identity.

    `coefficients` are (b, o, i + 1); the last one is that of the identity.
    """
    count, b, d, _ = inputs.shape
    blocks = triton.cdiv(d, COMBINE["BLOCK"])
    combine_kernel[(b, blocks, blocks)](out, inputs, coefficients.contiguous(), b, d, count, len(out), **COMBINE)
    return out


def _combined(inputs: Tensor, coefficients: Tensor) -> Tensor:
    out = inputs.new_empty(coefficients.shape[1], *inputs.shape[1:])
    return combine(out, inputs, coefficients.to(out.device))


def _invert(squares: Tensor) -> Tensor:
    """Replace matrices (p, b, d, d) by their inverses; returns (b,): whether all p of them were positive definite."""
    p, b, d, _ = squares.shape
    together = d <= BATCHED
    right = []
    for R in [squares.view(-1, d, d)] if together else squares.view(-1, d, d).unbind():
        L, info = torch.linalg.cholesky_ex(R)
        inverse = torch.eye(d, dtype=R.dtype, device=R.device).expand_as(R)
        inverse = torch.linalg.solve_triangular(L, inverse, upper=False)
        torch.matmul(inverse.mT, inverse, out=R)
        right.append(info.view(-1) == 0)
    return torch.cat(right).view(p, b).all(0)


def _original(x: Tensor, scales: list[Tensor], first: Rational, smallest: float) -> Tensor:
    """The singular values of M, relative to the largest, from which the stages with these scales computed x."""
    for scale in reversed(scales):
        y, low, high = x * scale, torch.zeros_like(x), torch.full_like(x, smallest)
        for _ in range(60):
            middle = (low + high) / 2
            below = first.of(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        x = low
    return x


def _second(x: Tensor, first: Rational, smallest: float) -> Rational:
    """The function that brings the image of [x, 1] under the first function to 1, with enough poles for all x."""
    low = torch.minimum(first.of(0.9 * x), first.of(torch.full_like(x, smallest)))
    for count in range(1, MOST_POLES + 1):
        f = zolotarev(low, count)
        least = f.of(low)
        if ((1 - least) / 2 <= DEVIATION).all():
            break
    return f._replace(scale=f.scale * 2 / (1 + least))


def _finish(X: Tensor, Z: Tensor, RZ: Tensor, second: Rational, scale: Tensor, dtype: torch.dtype) -> tuple:
    """The polar factors of X, and for each whether its factorisations succeeded."""
    squares = _combined((RZ @ Z)[None], second.shifts(torch.ones_like(scale)))
    right = _invert(squares[1:])
    Q = _combined(squares, second.products()[:, :1])[0] @ Z
    A = (Q / scale[:, None, None]) @ X
    if dtype == torch.float64:  # a Newton-Schulz step squares the error of orthogonality
        one = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        A = torch.baddbmm(one, A, A.mT, beta=1.5, alpha=-0.5) @ A
    return A.to(dtype), right


def _certify(A: Tensor, M: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """|M - H A|_F / |M|_F with H = sym(M A^T), and |A A^T - 1|_F / sqrt d, estimated with Gaussian rows."""
    wm, wa = probe @ M, probe @ A
    wh = 0.5 * (wm @ A.mT + wa @ M.mT)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a - b, dim=(1, 2)) / len(probe) ** 0.5

    norm = torch.linalg.vector_norm(M, dim=(1, 2))
    return distance(wm, wh @ A) / norm, distance(wa @ A.mT, probe) / A.shape[1] ** 0.5


def polar(out: Tensor, M: Tensor, rtol: float, single: bool = False) -> Tensor:
    """Write the polar factors of float32 or float64 matrices M (b, rows, columns) into `out`, by the iteration.

    With `single`, float64 matrices are treated as float32 ones: fewer stages, and no Newton-Schulz step.

    Returns:
        (b, 6) float64, as from the CPU kernel: nuclear norm, rank, condition, residual, orthogonality, and the outcome,
        which is 0 (done), 2 (directions are or may be null at this rtol) or 3 (failed). The factor of a matrix whose
        outcome is not 0 is not written.
    """
    tall = M.shape[1] > M.shape[2]
    wide, target = (M.mT, out.mT) if tall else (M, out)
    b, d, _ = wide.shape
    statistics = M.new_full((b, 6), torch.nan, dtype=torch.float64)
    statistics[:, 5] = NULL
    if b == 0:
        return statistics
    precision = torch.float32 if single else M.dtype
    smallest = SMALLEST[precision]
    first = zolotarev(torch.tensor([smallest], dtype=torch.float64, device="cpu"), FIRST_POLES)
    probe = M.new_empty(PROBES, d, dtype=torch.float64)
    gaussian(probe, [0, 0, 0, 0])
    at = torch.arange(b, device="cpu")  # indices of the matrices that are not done; X and scales hold only these
    X = wide.double()
    scales: list[Tensor] = []

    def some(t: Tensor, which: Tensor) -> Tensor:
        return t if len(which) == len(t) else t[which.to(t.device)]

    for _ in range(STAGES):
        R = X @ X.mT
        bound = ABOVE * largest_eigenvalue(R, probe[0])
        squares = _combined(R[None], first.shifts(1 / bound))
        right = _invert(squares[1:])
        inverse = largest_eigenvalue(squares[1], probe[0])
        products = _combined(squares, first.products().expand(len(at), -1, -1))
        scale = bound.sqrt()
        host_scale, inverse, fine = torch.stack([scale, inverse, right]).cpu()  # the only copy to the host
        x = (1 / inverse - first.pole[0, 0]).clamp(min=0).sqrt()
        share = ABOVE**0.5 * _original(x, [*scales, host_scale][1:], first, smallest)
        failed = (fine == 0) | ~(host_scale > 0) | x.isnan()
        statistics[at[failed].to(M.device), 5] = FAILED
        left, resolved = ~failed & (share > MARGIN * rtol), x >= RESOLVED * smallest
        ends, goes_on = (left & resolved).nonzero()[:, 0], (left & ~resolved).nonzero()[:, 0]
        if len(ends):
            Z, RZ = (some(t, ends) for t in products)
            second = _second(x[ends], first, smallest)
            A, right = _finish(some(X, ends), Z, RZ, second, some(scale, ends), precision)
            rows = at[ends].to(M.device)
            target[rows] = A.to(M.dtype)
            A, matrices = A.double(), some(wide, at[ends]).double()
            condition = (1 / share[ends]).clamp(min=1).to(M.device)
            outcome = torch.where(right, DONE, FAILED)
            rank = torch.full_like(condition, d)
            values = ((A * matrices).sum((1, 2)), rank, condition, *_certify(A, matrices, probe), outcome)
            statistics[rows] = torch.stack(values, 1)
        if not len(goes_on):
            break
        X = (some(products[0], goes_on) / some(scale, goes_on)[:, None, None]) @ some(X, goes_on)
        at, scales = at[goes_on], [s[goes_on] for s in [*scales, host_scale]]
    return statistics


def variants() -> Iterator[Variant]:
    types = dict.fromkeys(("out", "inputs", "coefficients"), "*fp64")
    for name, count, outputs in (("shift", 1, 1 + FIRST_POLES), ("combine", 1 + FIRST_POLES, 2)):
        constants = {"INPUTS": count, "OUTPUTS": outputs, "BLOCK": COMBINE["BLOCK"]}
        yield Variant(
            f"polar {name}", combine_kernel, types, constants, {"num_warps": COMBINE["num_warps"]}, (*types, "d")
        )

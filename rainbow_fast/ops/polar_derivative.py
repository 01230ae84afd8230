# SPDX-License-Identifier: BSD-3-Clause
"""The derivative of polar, by a Sylvester equation in the polar factors of M.

Let M be wide (a tall M is transposed). Then M = H A with H = sym(M A^T) positive definite and A A^T = I. Along a
direction D of M

    dA = Omega A + H^-1 (D - (D A^T) A),    H Omega + Omega H = D A^T - A D^T

and ``d |M|_* = tr(A D^T)``. A is the gradient of the nuclear norm of M, and dA is its Hessian along D. The map from D
to dA is therefore symmetric, and one formula serves reverse and forward mode.

Source: Higham, "Functions of Matrices" (2008), section 8.3; Kenney and Laub, SIAM J. Matrix Anal. Appl. 12 (1991).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.ops.memory import check_device
from rainbow_fast.ops.registration import Derivative, functional


def along(M: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """The derivative dA along D, computed in float64; M, A, D and dA are (*batch, d, m).

    Raises:
        RuntimeError: up to rounding, M does not have full rank: its polar factor has no derivative.
    """
    if M.shape[-2] > M.shape[-1]:
        return along(M.mT, A.mT, D.mT).mT
    M, A, wide = M.double(), A.double(), D.double()
    H = M @ A.mT
    H = (H + H.mT) / 2
    P = wide @ A.mT
    tolerance = max(D.shape[-2:]) * torch.finfo(D.dtype).eps
    skew, rest = torch.ops.rainbow_fast.polar_sylvester(H, P - P.mT, wide - P @ A, tolerance)
    return (skew @ A + rest).to(D.dtype)


def solve(H: Tensor, C: Tensor, B: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """X and Y with ``H X + X H = C`` and ``H Y = B``, by the eigenvectors of a symmetric positive definite H.

    H and C are (*batch, d, d), B is (*batch, d, m); all are float64.

    Raises:
        TypeError, ValueError: the dtype is not float64, or shapes do not match.
        RuntimeError: an eigenvalue of H is at most `tolerance` times the largest.
    """
    for name, t in (("H", H), ("C", C), ("B", B)):
        if t.dtype != torch.float64:
            raise TypeError(f"{name} is {t.dtype}: wanted torch.float64")
        if t.dim() < 2 or t.shape[:-1] != H.shape[:-1] or (t is not B and t.shape[-1] != t.shape[-2]):
            raise ValueError(f"{name} has shape {tuple(t.shape)}: wanted the batch and the rows of H, a square matrix")
        check_device("H", H, **{name: t})
    values, U = torch.linalg.eigh(H)
    if H.numel() and bool((values[..., 0] <= tolerance * values[..., -1]).any()):
        raise RuntimeError(
            f"polar: M does not have full rank (smallest over largest singular value below {tolerance:.1e}): its polar "
            "factor has no derivative there"
        )
    X = U @ ((U.mT @ C @ U) / (values[..., :, None] + values[..., None, :])) @ U.mT
    return X, U @ ((U.mT @ B) / values[..., :, None])


def _solve_again(H: Tensor, C: Tensor, B: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    return torch.ops.rainbow_fast.polar_sylvester(H, C, B, tolerance)


def _sylvester_vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    """Both equations are self-adjoint: the gradients of C and B solve the same equations."""
    H, C, B, tolerance = inputs
    X, Y = outputs
    grad_X, grad_Y = (torch.zeros_like(t) if g is None else g for t, g in zip((X, Y), grads, strict=True))
    grad_C, grad_B = _solve_again(H, grad_X, grad_Y, tolerance)
    return -(grad_C @ X.mT + X.mT @ grad_C + grad_B @ Y.mT), grad_C, grad_B, None


def _sylvester_jvp(inputs: Any, outputs: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    H, C, B, tolerance = inputs
    X, Y = outputs
    dH, dC, dB = (torch.zeros_like(t) if d is None else d for t, d in zip((H, C, B), tangents[:3], strict=True))
    return _solve_again(H, dC - dH @ X - X @ dH, dB - dH @ Y, tolerance)


def _sylvester_vmap(info: Any, in_dims: Any, H: Tensor, C: Tensor, B: Tensor, tolerance: float) -> Any:
    def lead(t: Tensor, dim: int | None) -> Tensor:
        return t.unsqueeze(0) if dim is None else t.movedim(dim, 0)

    H, C, B = (lead(t, dim) for t, dim in zip((H, C, B), in_dims, strict=False))
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (H, C, B)), (info.batch_size, *[1] * (H.dim() - 3)))
    expanded = [t.expand(*batch, *t.shape[-2:]) for t in (H, C, B)]
    return torch.ops.rainbow_fast.polar_sylvester(*expanded, tolerance), (0, 0)


def sylvester_flops(C: Sequence[int], B: Sequence[int]) -> int:
    """``8 d^3 + 4 d^2 m`` flops for each C (d, d) and B (d, m) of the batch: six products.

    The eigenvectors of H count 0, as `torch.linalg.eigh` does in torch.
    """
    return 8 * math.prod(C) * C[-1] + 4 * math.prod(B) * C[-1]


functional(
    "polar_sylvester(Tensor H, Tensor C, Tensor B, float tolerance) -> (Tensor, Tensor)",
    solve,
    lambda H, C, B, tolerance: (torch.empty_like(C), torch.empty_like(B)),
    flops=sylvester_flops,
    captured=False,
    derivative=Derivative(_sylvester_vjp, _sylvester_jvp, keeps=True),
    vmap=_sylvester_vmap,
)


def _vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    M, (A, *_) = inputs[0], outputs
    parts = [] if grads[0] is None else [along(M, A, grads[0])]
    parts += [] if grads[1] is None else [(grads[1][..., None, None] * A.double()).to(M.dtype)]
    return sum(parts[1:], parts[0]), None, None, None, None, None


def _jvp(inputs: Any, outputs: Any, tangents: Any) -> list[Tensor | None]:
    M, D, A = inputs[0], tangents[0], outputs[0]
    return [along(M, A, D), (A.double() * D.double()).sum((-2, -1)), None, None, None]


DERIVATIVE = Derivative(_vjp, _jvp, keeps=True, fixed=(2, 3, 4))

# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of infinitely many moduli |<w, u>| of complex projections: by an integral over phases, or closed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rainbow_fast.arguments import flag, integer, tensor
from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.infinite_width.gaussian_pairs import Angles, Pairs, angles_of
from rainbow_fast.infinite_width.kernels import PAIRS, covariance_root

FEWEST, MOST = 16, 512  # phases of the integral
CHANGE = 1e-8  # largest change, relative to |u| |v|, when the number of phases is doubled the last time


@torch.no_grad()
def expected_modulus_kernel(
    u: Tensor,  # (N, r) complex
    v: Tensor | None = None,  # (N', r) complex
    *,
    circular: bool = False,
    cov: Tensor | None = None,  # (r, r)
    max_pairs: int = PAIRS,
) -> Tensor:  # (N, N') float64
    r"""The kernel of moduli of complex projections, ``k(u, v) = E[|<w, u>| |<w, v>|]``, float64 on the CPU.

    With real weights w of N(0, cov), the modulus is a mean over phases, ``|z| = pi/2 mean_t |Re e^{-it} z|``, and with
    the kernel of "abs" ::

        k(u, v) = pi^2/4 mean over t and t' of k_abs(Re e^{-it} u, Re e^{-it'} v)

    The phases start at the principal axis of u and are denser near its minor axis, where the integrand bends. Their
    number is doubled, from 16 to 512, until no entry changes by more than 1e-8 |u| |v|. On the diagonal k is |u|^2.

    With circular complex weights, ``E|w_i|^2 = 1``, it is closed: for ``r = |<u, v>| / (|u| |v|)`` and the complete
    elliptic integrals of parameter r^2 ::

        k(u, v) = |u| |v| (2 E(r^2) - (1 - r^2) K(r^2)) / 2

    Args:
        u, v: complex projections; v = None (default) takes u.
        circular: whether the weights are complex and circular; False by default.
        cov: covariance of the weights of a neuron, real and symmetric without negative eigenvalues; None (default) is
            the identity.
        max_pairs: as in `expected_kernel`; a pair of samples counts once for each pair of phases.

    Raises:
        ValueError: shapes do not match, u or v is real or not finite, `cov` is not symmetric or has a negative
            eigenvalue, `max_pairs` is below 1, or 512 phases are not enough.
        TypeError: u, v or cov is not a tensor, or `circular` is not a flag.
        ImportError: `circular` is set, and scipy is missing.

    Source: Mallat, Zhang and Rochette, "Phase harmonic correlations and convolutional neural networks" (2020), for the
    integral over phases.
    """
    flag("circular", circular)
    max_pairs = integer("max_pairs", max_pairs, 1)
    left = _complex("u", u, cov)
    right = left if v is None else _complex("v", v, cov)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"v has rank {right.shape[1]}: wanted that of u, {left.shape[1]}")
    if circular:
        return _circular(left, right, same=v is None)
    norms = [torch.linalg.vector_norm(side, dim=1) for side in (left, right)]
    scale = norms[0].unsqueeze(1) * norms[1]
    phases, before = FEWEST, torch.full_like(scale, math.inf)
    while True:
        kernel = _by_phases(left, right, phases, max_pairs)
        change = (kernel - before).abs()
        if v is None:
            kernel.diagonal().copy_(norms[0].square())
            change.fill_diagonal_(0)
        if bool((change <= CHANGE * scale).all()):
            return kernel
        if phases == MOST:
            raise ValueError(f"u: {MOST} phases leave a change of {float(change.max()):.1e}: wanted {CHANGE:g} |u| |v|")
        phases, before = 2 * phases, kernel


def _complex(name: str, u: Tensor, cov: Tensor | None) -> Tensor:
    if tensor(name, u).dim() != 2 or not u.is_complex():
        raise ValueError(f"{name} is {u.dtype} of shape {tuple(u.shape)}: wanted complex numbers (N, r)")
    x = u.detach().cpu().to(torch.complex128)
    if not bool(torch.view_as_real(x).isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return x if cov is None else x @ covariance_root(cov, x.shape[1]).to(x.dtype)


def _by_phases(left: Tensor, right: Tensor, phases: int, max_pairs: int) -> Tensor:
    """The integral over phases by this number of nodes on each side."""
    form = expectations("abs", 0.0).centred
    assert form is not None
    x = (torch.arange(phases, dtype=torch.float64, device="cpu") + 0.5) / phases
    nodes = math.pi * (x - torch.sin(2 * math.pi * x) / (2 * math.pi))  # dense at 0 and at pi
    weights = (1 - torch.cos(2 * math.pi * x)) / phases
    b = _turned(right, nodes).flatten(0, 1)  # (N' phases, r)
    norms = torch.linalg.vector_norm(b, dim=1)
    kernel = torch.empty(len(left), len(right), dtype=torch.float64, device="cpu")
    height = max(max_pairs // (max(len(right), 1) * phases**2), 1)
    for rows in torch.arange(len(left), device="cpu").split(height):
        a = _turned(left[rows], nodes).flatten(0, 1)
        s, t = torch.linalg.vector_norm(a, dim=1).unsqueeze(1), norms.unsqueeze(0)
        product = s * t
        angles: Angles = angles_of((a @ b.T / torch.where(product > 0, product, 1.0)).clamp(-1, 1))
        zero = torch.zeros_like(s[:1])
        values = form(Pairs(s, t, angles, zero, zero)).view(len(rows), phases, len(right), phases)
        kernel[rows] = torch.einsum("npmq,p,q->nm", values, weights, weights) * (math.pi**2 / 4)
    return kernel


def _turned(u: Tensor, nodes: Tensor) -> Tensor:
    """``Re e^{-it} u`` for phases t that start at the minor axis of each row u, (N, phases, r)."""
    minor = (u * u).sum(1).angle() / 2 + math.pi / 2
    t = minor.unsqueeze(1) + nodes
    return t.cos().unsqueeze(2) * u.real.unsqueeze(1) + t.sin().unsqueeze(2) * u.imag.unsqueeze(1)


def _circular(left: Tensor, right: Tensor, *, same: bool) -> Tensor:
    try:
        from scipy.special import ellipe, ellipkm1
    except ImportError as error:
        raise ImportError('circular=True needs scipy: pip install "rainbow_fast[analysis]"') from error
    scale = torch.linalg.vector_norm(left, dim=1).unsqueeze(1) * torch.linalg.vector_norm(right, dim=1)
    square = ((left.conj() @ right.T).abs() / torch.where(scale > 0, scale, 1.0)).square().clamp(max=1)
    if same:
        square.fill_diagonal_(1.0)
    rest = 1 - square
    integral = torch.where(rest > 0, rest * torch.from_numpy(ellipkm1(rest.clamp(min=1e-300).numpy())), 0.0)
    return scale * (2 * torch.from_numpy(ellipe(square.numpy())) - integral) / 2

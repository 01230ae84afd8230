# SPDX-License-Identifier: BSD-3-Clause
"""The spectrum of many random features: its limit when samples and features grow together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rainbow_fast.arguments import between, integer, tensor
from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.random_networks.fixed_point import resolvent_mean, solve
from rainbow_fast.random_networks.support import support

ROUNDING = 1e-10  # a negative eigenvalue up to this share of the largest one is taken for 0
ETA = 1e-8  # distance from the real line at which densities are computed, over the mean of the eigenvalues


class LimitingSpectrum:
    r"""The limit of the eigenvalues of ``K = phi phi^T / T``, phi (T, N) the features of N random neurons on T samples.

    In the letters of the talk, where samples are columns: H_0 is the input, T = batchsize, N = width, W has N(0, 1)
    entries, and ``H_1 = F(W H_0) / sqrt T``. K is H_1^T H_1. The empirical density of its eigenvalues is near a
    deterministic one, p(t), with Stieltjes transform m. With the kernel of one neuron,
    ``Phi = E_w[F(H_0^T w) F(w^T H_0)]``, and c = N / T, there is one delta(z) in the upper half plane with

        delta = tr(Phi M^-1) / T,      M = c Phi / (1 + delta) - z I,      m(z) = tr(M^-1) / T = int p(t) dt / (t - z).

    delta is the s(z) of the talk, M its M(s). Only the eigenvalues lambda of Phi enter, and m = (c delta / (1 + delta)
    - 1) / z.

    What is misprinted in the talk:

    - It takes the mean over i <= width of delta(lambda_i(H_1^T H_1)). This matrix has batchsize eigenvalues, and the
      mean is over them.
    - It defines S(z) = int p(t) dt / (z - t), but its formula is that of m(z) = int p(t) dt / (t - z) = -S(z).
    - It says G = E[H_1^T H_1], which is c Phi. With this G the factor width / batchsize in M must be dropped, and
      s = tr(G M^-1) / N. The formula with the factor holds for Phi, as above.

    Equivalent to::

        delta = 0
        for _ in range(many):  # this needs thousands of rounds where Im z is small
            delta = (lambda_ / (c * lambda_ / (1 + delta) - z)).mean()
        m = (c * delta / (1 + delta) - 1) / z

    but by Newton's method, from large Im z down to the wanted one.

    Args:
        eigenvalues: those of Phi, real (T,), none below 0 but by rounding (1e-10 of the largest, taken for 0).
        aspect: c = N / T, above 0.

    Attributes:
        eigenvalues: (T,) float64, on the CPU.
        aspect: c.

    Raises:
        TypeError: eigenvalues are not a real tensor, or aspect is no number.
        ValueError: eigenvalues are not (T,), T >= 1, are not finite, or are below 0; or aspect is not above 0 and
            finite.

    Source: Louart, Liao and Couillet, "A random matrix approach to neural networks" (Annals of Applied Probability
    2018), theorems 1 and 2; Daneshmand, Joudaki and Bach, "Representations in random deep neural networks" (2021).
    """

    def __init__(self, eigenvalues: Tensor, aspect: float) -> None:
        self.eigenvalues = _eigenvalues(eigenvalues)
        wanted = "a finite number above 0"
        self.aspect = float(between(0, math.inf, wanted, open_low=True, open_high=True)("aspect", aspect))

    @classmethod
    def of_features(
        cls, X: Tensor, n_features: int, *, activation: str = "relu", negative_slope: float = 0.01
    ) -> LimitingSpectrum:
        """The limit for `feature_spectrum` with the same arguments.

        Memory: about three matrices of T x T numbers of 8 bytes.

        Args:
            X: inputs (T, p), a sample a row.
            n_features: number N of neurons, at least 1.
            activation, negative_slope: as in `rainbow_fast.infinite_width.expected_kernel`, functions included.

        Raises:
            TypeError, ValueError: as `expected_kernel`; or X has no samples, or `n_features` is below 1.
        """
        n_features = integer("n_features", n_features, 1)
        if tensor("X", X).dim() != 2 or not len(X):
            raise ValueError(f"X has shape {tuple(X.shape)}: wanted (T, p) with T >= 1")
        Phi = expected_kernel(X, activation=activation, negative_slope=negative_slope)
        return cls(torch.linalg.eigvalsh(Phi), n_features / len(X))

    def delta(self, z: Tensor) -> Tensor:
        """delta(z), complex128 on the CPU in the shape of z; arguments and errors as in `stieltjes`."""
        flat, scaled, flipped = self._scaled(z)
        values, scale = self._units()
        delta = solve(values, self.aspect, scaled) if scale else torch.zeros_like(flat)
        return torch.where(flipped, delta.conj(), delta).resolve_conj().reshape(z.shape)

    def stieltjes(self, z: Tensor) -> Tensor:
        """``m(z) = int p(t) dt / (t - z)``, complex128 on the CPU in the shape of z.

        The equation is solved to 1e-12. Near an edge of the support, at distance e from it, the rounding of m is
        1e-16 / sqrt(e), in units of the eigenvalues.

        Args:
            z: complex numbers, or real ones; none on the half line [0, inf), where the spectrum is.

        Raises:
            TypeError: z is not a tensor.
            ValueError: an entry is not finite, or is on the half line.
            ArithmeticError: the equation is not solved.
        """
        flat, scaled, flipped = self._scaled(z)
        values, scale = self._units()
        if not scale:
            return (-1 / flat).reshape(z.shape)
        m = resolvent_mean(values, self.aspect, scaled, solve(values, self.aspect, scaled)) / scale
        return torch.where(flipped, m.conj(), m).resolve_conj().reshape(z.shape)

    def density(self, x: Tensor, *, eta: float | None = None) -> Tensor:
        """p(x), the density of the eigenvalues without the atom at 0, float64 on the CPU in the shape of x.

        It is ``Im m(x + i eta) / pi`` without the part of the atom. The bias is of the order of eta inside of the
        support and outside, and of its root at an edge. It integrates to 1 - `atom`. An eigenvalue of Phi that is far
        from the others has an interval of mass 1/T of its own, which a grid may miss.

        Args:
            x: where, above 0.
            eta: distance from the real line, above 0; None (default) is 1e-8 of the mean of the eigenvalues.

        Raises:
            TypeError: x is not a real tensor, or eta is no number.
            ValueError: an x is not finite or not above 0, or eta is not above 0 and finite.
            ArithmeticError: the equation is not solved.
        """
        if tensor("x", x).is_complex():
            raise TypeError(f"x is {x.dtype}: wanted real numbers")
        points = x.detach().cpu().double()
        right = points.isfinite() & (points > 0)
        if not bool(right.all()):
            raise ValueError(f"x has the entry {_first(points, right)}: wanted finite numbers above 0")
        scale = self._units()[1]
        wanted = "a finite number above 0"
        if eta is not None:
            eta = float(between(0, math.inf, wanted, open_low=True, open_high=True)("eta", eta))
        z = torch.complex(points, torch.full_like(points, ETA * (scale or 1.0) if eta is None else eta))
        return ((self.stieltjes(z) + self.atom / z).imag / math.pi).clamp(min=0)

    @property
    def atom(self) -> float:
        """The share of eigenvalues that are 0: ``max(0, 1 - c)``, or more if Phi has zeros."""
        positive = int((self._units()[0] > 0).sum()) / len(self.eigenvalues)
        return max(0.0, 1 - min(self.aspect, positive))

    def edges(self) -> Tensor:
        """The intervals of the support but for the atom, (k, 2) float64, from left to right; k = 0 if Phi is zero.

        They are exact to rounding, 1e-14 of the largest edge.

        Source: Silverstein and Choi, "Analysis of the limiting spectral distribution of large dimensional random
        matrices" (1995).
        """
        values, scale = self._units()
        if not scale:
            return torch.zeros(0, 2, dtype=torch.float64, device="cpu")
        return scale * support(values, self.aspect)

    def moments(self) -> tuple[float, float]:
        """The mean of the eigenvalues and the mean of their squares, atom included.

            M_1 = c mean(lambda),      M_2 = c^2 mean(lambda^2) + c mean(lambda)^2

        M_1 is exactly the mean of tr(K) / T for every T and N. M_2 is the limit; tr(K^2) / T differs by the order 1/T.
        """
        c, mean = self.aspect, float(self.eigenvalues.mean())
        return c * mean, c**2 * float(self.eigenvalues.square().mean()) + c * mean**2

    def _units(self) -> tuple[Tensor, float]:
        """The eigenvalues over their mean, with rounding of 0 taken for 0, and the mean."""
        scale = float(self.eigenvalues.mean())
        if not scale:
            return self.eigenvalues, 0.0
        values = self.eigenvalues / scale
        zero = len(values) * torch.finfo(torch.float64).eps * values.max()
        return torch.where(values > zero, values, 0.0), scale

    def _scaled(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (Z,), z over the mean eigenvalue in the upper half plane, and where it is a conjugate."""
        flat = tensor("z", z).detach().cpu().to(torch.complex128).reshape(-1)
        off = flat.isfinite() & ((flat.imag != 0) | (flat.real < 0))
        if not bool(off.all()):
            raise ValueError(f"z has the entry {_first(flat, off)}: wanted finite numbers off the half line [0, inf)")
        flipped = flat.imag < 0
        upper = torch.where(flipped, flat.conj(), flat).resolve_conj()
        return flat, upper / (self._units()[1] or 1.0), flipped


def _eigenvalues(eigenvalues: Tensor) -> Tensor:
    """Real numbers (T,) of at least 0, float64 on the CPU."""
    if tensor("eigenvalues", eigenvalues).is_complex():
        raise TypeError(f"eigenvalues is {eigenvalues.dtype}: wanted real numbers")
    if eigenvalues.dim() != 1 or not len(eigenvalues):
        raise ValueError(f"eigenvalues has shape {tuple(eigenvalues.shape)}: wanted (T,) with T >= 1")
    values = eigenvalues.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError("eigenvalues is not finite")
    if float(values.min()) < -ROUNDING * float(values.abs().max()):
        raise ValueError(f"eigenvalues has the entry {float(values.min()):.3g}: wanted none below 0")
    return values.clamp(min=0)


def _first(values: Tensor, right: Tensor) -> complex | float:
    """The first entry that is not right."""
    return values[~right][0].item()

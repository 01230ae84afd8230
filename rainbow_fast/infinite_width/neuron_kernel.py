# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of infinitely many random neurons whose rows are Gaussian, about one center or several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import between, tensor
from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.infinite_width.kernels import expected_kernel, expected_mean, expected_power

SMOOTHING = between(0, math.inf, "a finite number from 0", open_high=True)


@dataclass(frozen=True, eq=False)
class NeuronKernel:
    r"""``k(u, v) = mean over the centers c of E[sigma(<c + h w, u> + a) sigma(<c + h w, v> + b)]``, w from N(0, I).

    With the centers at the neurons of a trained layer, it is the kernel of infinitely many neurons of a smoothed
    bootstrap: K Gaussian kernels with shifted means, at K times the cost. Without smoothing (h = 0) it is the kernel of
    the K neurons themselves.

    u (N, r) and v (N', r) are converted to float64, and results are float64. a (N,) and b (N',) are one number for each
    sample, added for every neuron; None adds nothing.

    Attributes:
        activation, negative_slope: as in `expected_kernel`; relu by default.
        centers: (K, r) float64, K at least 1; None (default) is a single one at 0.
        smoothing: h, finite and at least 0; 1 by default.

    Raises:
        ValueError: the activation is unknown, centers have another shape, no row or an entry that is not finite, or
            the smoothing is negative or not finite.
        TypeError: the activation is neither a name nor a function, centers are no float64 tensor, or the smoothing is
            not a number.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 16.5.
    """

    activation: str | Callable[[Tensor], Tensor] = "relu"
    negative_slope: float = 0.01
    centers: Tensor | None = None
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        expectations(self.activation, self.negative_slope)
        SMOOTHING("smoothing", self.smoothing)
        if self.centers is None:
            return
        if tensor("centers", self.centers).dtype != torch.float64:
            raise TypeError(f"centers are {self.centers.dtype}: wanted torch.float64")
        if self.centers.dim() != 2 or len(self.centers) == 0:
            raise ValueError(f"centers have shape {tuple(self.centers.shape)}: wanted (K, r), K at least 1")
        if not bool(self.centers.isfinite().all()):
            raise ValueError("centers are not finite")

    def __call__(self, u: Tensor, v: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """k of u (N, r) with the shifts a (N,) and v (N', r) with the shifts b (N',), as (N, N') float64.

        Raises:
            ValueError, TypeError, ImportError: as `expected_kernel`; or u or v has not as many columns as the centers.
        """
        (u, a), (v, b) = self._samples("u", u, "a", a), self._samples("v", v, "b", b)
        if self.centers is None:
            return expected_kernel(self._wide(u), self._wide(v), shift=a, shift_v=b, **self._how)
        if self.smoothing == 0:
            return self._features(u, a) @ self._features(v, b).T / len(self.centers)
        total = u.new_zeros(len(u), len(v))
        for shift, shift_v in zip(self._shifts(u, a).T, self._shifts(v, b).T, strict=True):
            total += expected_kernel(self._wide(u), self._wide(v), shift=shift, shift_v=shift_v, **self._how)
        return total.div_(len(self.centers))

    def power(self, u: Tensor, a: Tensor | None = None) -> Tensor:
        """``k(u, u) = mean over c of E[sigma(<c + h w, u> + a)^2]`` of each row of u (N, r), as (N,) float64.

        Raises:
            ValueError, TypeError, ImportError: as for the kernel.
        """
        u, a = self._samples("u", u, "a", a)
        if self.centers is None:
            return expected_power(self._wide(u), shift=a, **self._how)
        if self.smoothing == 0:
            return self._features(u, a).square().mean(1)
        shifts = self._shifts(u, a).T
        return torch.stack([expected_power(self._wide(u), shift=one, **self._how) for one in shifts]).mean(0)

    def activity(self, u: Tensor, a: Tensor | None = None) -> Tensor:
        """``mean over c of P(<c + h w, u> + a > 0)``, the share of neurons with a positive pre-activation.

        For each row of u (N, r), as (N,) float64.

        Raises:
            ValueError, TypeError, ImportError: as for the kernel.
        """
        u, a = self._samples("u", u, "a", a)
        if self.centers is None:
            return expected_mean(self._wide(u), shift=a, activation="step")
        if self.smoothing == 0:
            return (self._shifts(u, a) > 0).double().mean(1)
        shifts = self._shifts(u, a).T
        return torch.stack([expected_mean(self._wide(u), shift=one, activation="step") for one in shifts]).mean(0)

    @property
    def _how(self) -> dict[str, Any]:
        return {"activation": self.activation, "negative_slope": self.negative_slope}

    def _samples(self, name: str, u: Tensor, shift_name: str, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Samples and their shifts in float64, after a check."""
        rank = "r" if self.centers is None else self.centers.shape[1]
        if tensor(name, u).dim() != 2 or rank not in ("r", u.shape[1]):
            raise ValueError(f"{name} has shape {tuple(u.shape)}: wanted (N, {rank})")
        if shift is not None and tensor(shift_name, shift).shape != u.shape[:1]:
            raise ValueError(f"{shift_name} has shape {tuple(shift.shape)}: wanted {tuple(u.shape[:1])}")
        for what, values in ((name, u), (shift_name, shift)):
            if values is not None and not bool(values.isfinite().all()):
                raise ValueError(f"{what} is not finite")
        return u.detach().double(), None if shift is None else shift.detach().double()

    def _wide(self, u: Tensor) -> Tensor:
        return u if self.smoothing == 1 else self.smoothing * u

    def _shifts(self, u: Tensor, a: Tensor | None) -> Tensor:
        """The mean of the pre-activation about each center, (N, K)."""
        assert self.centers is not None
        means = u @ self.centers.T
        return means if a is None else means + a.unsqueeze(1)

    def _features(self, u: Tensor, a: Tensor | None) -> Tensor:
        return expectations(self.activation, self.negative_slope).sigma(self._shifts(u, a))

# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of infinitely many random neurons whose rows are Gaussian, about one center or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.infinite_width.kernels import expected_kernel, expected_mean, expected_power


@dataclass(frozen=True, eq=False)
class NeuronKernel:
    r"""``k(u, v) = mean over the centers c of E[sigma(<c + h w, u> + a) sigma(<c + h w, v> + b)]``, w from N(0, I).

    With the centers at the neurons of a trained layer, it is the kernel of infinitely many neurons of a smoothed
    bootstrap: K Gaussian kernels with shifted means, at K times the cost. Without smoothing (h = 0) it is the kernel of
    the K neurons themselves.

    All numbers are float64.

    Attributes:
        activation, negative_slope: as in `expected_kernel`; relu by default.
        centers: (K, r) float64; None (default) is a single one at 0.
        smoothing: h, at least 0; 1 by default.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 16.5.
    """

    activation: str = "relu"
    negative_slope: float = 0.01
    centers: Tensor | None = None
    smoothing: float = 1.0

    def __call__(self, u: Tensor, v: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """k of u (N, r) with the shifts a (N,) and v (N', r) with the shifts b (N',), as (N, N'); None adds nothing.

        Raises:
            ValueError, TypeError, ImportError: as `expected_kernel`.
        """
        if self.centers is None:
            return expected_kernel(self._wide(u), self._wide(v), shift=a, shift_v=b, **self._how)
        if self.smoothing == 0:
            return self._features(u, a) @ self._features(v, b).T / len(self.centers)
        total = u.new_zeros(len(u), len(v))
        for shift, shift_v in zip(self._shifts(u, a).T, self._shifts(v, b).T, strict=True):
            total += expected_kernel(self._wide(u), self._wide(v), shift=shift, shift_v=shift_v, **self._how)
        return total.div_(len(self.centers))

    def power(self, u: Tensor, a: Tensor | None = None) -> Tensor:
        """``k(u, u)`` of each of N samples, (N,)."""
        if self.centers is None:
            return expected_power(self._wide(u), shift=a, **self._how)
        if self.smoothing == 0:
            return self._features(u, a).square().mean(1)
        shifts = self._shifts(u, a).T
        return torch.stack([expected_power(self._wide(u), shift=one, **self._how) for one in shifts]).mean(0)

    def activity(self, u: Tensor, a: Tensor | None = None) -> Tensor:
        """The share of neurons with a positive pre-activation, for each of N samples, (N,)."""
        if self.centers is None:
            return expected_mean(self._wide(u), shift=a, activation="step")
        if self.smoothing == 0:
            return (self._shifts(u, a) > 0).double().mean(1)
        shifts = self._shifts(u, a).T
        return torch.stack([expected_mean(self._wide(u), shift=one, activation="step") for one in shifts]).mean(0)

    @property
    def _how(self) -> dict[str, Any]:
        return {"activation": self.activation, "negative_slope": self.negative_slope}

    def _wide(self, u: Tensor) -> Tensor:
        return u if self.smoothing == 1 else self.smoothing * u

    def _shifts(self, u: Tensor, a: Tensor | None) -> Tensor:
        """The mean of the pre-activation about each center, (N, K)."""
        assert self.centers is not None
        means = u @ self.centers.T
        return means if a is None else means + a.unsqueeze(1)

    def _features(self, u: Tensor, a: Tensor | None) -> Tensor:
        return expectations(self.activation, self.negative_slope).sigma(self._shifts(u, a))

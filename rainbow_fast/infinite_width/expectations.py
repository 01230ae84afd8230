# SPDX-License-Identifier: BSD-3-Clause
"""E[sigma(x) sigma(y)] and E[sigma(x)] for Gaussian x and y in closed form: one object for each activation.

x = a + s X and y = b + t Y, where X and Y are standard normal with correlation cos(angle).

Sources: piecewise linear, step and squared_relu: Cho and Saul, "Kernel methods for deep learning" (2009), orders 1, 0
and 2; with a shift, see `infinite_width/truncated.py`; erf and normal_cdf: Williams, "Computation with infinite neural
networks" (1998); gelu: Tsuchida et al., "Avoiding kernel fixed points: computing with ELU and GELU infinite networks"
(2021), here by Stein's lemma; sin, cos and exp: the characteristic function; gaussian and square: moments of Gaussian
vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rainbow_fast.infinite_width.gaussian_pairs import Pairs
from rainbow_fast.infinite_width.hermite import Function
from rainbow_fast.infinite_width.truncated import (
    density,
    ndtr,
    product_moment,
    ratio,
    relu_mean,
    square_moment,
    truncated,
)
from rainbow_fast.ops.activations import ACTIVATIONS

OTHERS: dict[str, Function] = {  # activations that have a kernel here, beside those of `rainbow_fast.random_features`
    "sin": torch.sin,
    "exp": torch.exp,
    "gaussian": lambda x: torch.exp(-x.square() / 2),
    "square": torch.square,
    "squared_relu": lambda x: x.relu().square(),
    "normal_cdf": torch.special.ndtr,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
}
NAMES = (*ACTIVATIONS, *OTHERS)
SLOPES = {"relu": 0.0, "identity": 1.0, "abs": -1.0}  # slopes for x < 0; that of leaky_relu is an argument


@dataclass(frozen=True)
class Expectations:
    """An activation and its expectations in closed form. Where there is none (None), a Hermite series takes its place.

    Attributes:
        name: for messages.
        sigma: the function of float64 tensors.
        centred: E[sigma(x) sigma(y)] where all a and b are 0.
        shifted: the same for any a and b.
        mean: E[sigma(a + s X)] of s and a.
        smooth: whether sigma has no steps, so that the mean of its squared derivative is finite.
    """

    name: str
    sigma: Function
    centred: Callable[[Pairs], Tensor] | None = None
    shifted: Callable[[Pairs], Tensor] | None = None
    mean: Callable[[Tensor, Tensor], Tensor] | None = None
    smooth: bool = True


def expectations(activation: str | Function, negative_slope: float) -> Expectations:
    """The expectations of an activation, by its name or as a function.

    Raises:
        ValueError: the name is unknown.
        TypeError: neither a name nor a function.
    """
    if not isinstance(activation, str):
        if not callable(activation):
            raise TypeError(f"activation is {activation!r}: wanted a name or a function of tensors")
        return Expectations(getattr(activation, "__name__", type(activation).__name__), activation)
    if activation not in NAMES:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(NAMES)}, or a function of tensors")
    sigma = OTHERS.get(activation) or (lambda x: ACTIVATIONS[activation][0](x, negative_slope))
    slope = negative_slope if activation == "leaky_relu" else SLOPES.get(activation)
    if slope is not None:
        mean = partial(_piecewise_mean, slope)
        return Expectations(activation, sigma, partial(_piecewise, slope), partial(_piecewise_shifted, slope), mean)
    centred, shifted, mean = CLOSED.get(activation, (None, None, None))
    return Expectations(activation, sigma, centred, shifted, mean, smooth=activation not in ("step", "sign"))


def _piecewise(slope: float, p: Pairs) -> Tensor:
    """Slope 1 for x > 0, and `slope` for x < 0."""
    angle, complement = p.angles
    arcs = _arc(complement)
    if slope != 0:
        arcs = (1 + slope**2) * arcs - 2 * slope * _arc(angle)
    return p.s * p.t * arcs / (2 * math.pi)


def _piecewise_shifted(slope: float, p: Pairs) -> Tensor:
    positive = product_moment(p, truncated(p))
    if slope == 0:
        return positive
    a, b, c = p.a, p.b, p.covariance
    mixed = b * relu_mean(p.s, a) + a * relu_mean(p.t, b) + c * (ndtr(ratio(a, p.s)) + ndtr(ratio(b, p.t)))
    # mixed = E[x+ y] + E[x y+]
    return (1 - slope) ** 2 * positive + slope * (1 - slope) * mixed + slope**2 * (a * b + c)


def _piecewise_mean(slope: float, s: Tensor, a: Tensor) -> Tensor:
    return slope * a + (1 - slope) * relu_mean(s, a)


def _step(p: Pairs) -> Tensor:
    return p.angles.complement / (2 * math.pi) * ((p.s > 0) & (p.t > 0))  # 0 at 0


def _step_shifted(p: Pairs) -> Tensor:
    return truncated(p).both * _moves(p)


def _step_mean(s: Tensor, a: Tensor) -> Tensor:
    return ndtr(ratio(a, s)) * ((s > 0) | (a != 0))


def _sign(p: Pairs) -> Tensor:
    return (p.angles.complement - p.angles.angle) / math.pi * ((p.s > 0) & (p.t > 0))


def _sign_shifted(p: Pairs) -> Tensor:
    value = 4 * truncated(p).both - 2 * ndtr(ratio(p.a, p.s)) - 2 * ndtr(ratio(p.b, p.t)) + 1
    return value * _moves(p)


def _sign_mean(s: Tensor, a: Tensor) -> Tensor:
    return (2 * ndtr(ratio(a, s)) - 1) * ((s > 0) | (a != 0))


def _moves(p: Pairs) -> Tensor:
    """Where neither x nor y is always 0."""
    return ((p.s > 0) | (p.a != 0)) & ((p.t > 0) | (p.b != 0))


def _squared_relu(p: Pairs) -> Tensor:
    """``s^2 t^2 (3 sin cos + (pi - angle) (1 + 2 cos^2)) / (2 pi)``, by a series where this cancels."""
    double = 2 * p.angles.complement
    small = torch.zeros_like(double)
    for k in reversed(range(2, 11)):  # sum over k of (-1)^k (k - 1) / (2k + 1)! double^(2k + 1)
        small = small * double.square() + (-1) ** k * (k - 1) / math.factorial(2 * k + 1)
    exact = double / 2 * (2 + double.cos()) - 1.5 * double.sin()
    return (p.s * p.t).square() * torch.where(double < 1, small * double**5, exact) / (2 * math.pi)


def _squared_relu_shifted(p: Pairs) -> Tensor:
    return square_moment(p, truncated(p))


def _squared_relu_mean(s: Tensor, a: Tensor) -> Tensor:
    h = ratio(a, s)
    return (a.square() + s.square()) * ndtr(h) + a * s * density(h)


def _erf(p: Pairs) -> Tensor:
    """erf(x) is the mean of sign(x + noise), with noise of variance 1/2."""
    root = (0.25 + (p.s.square() + p.t.square()) / 2 + p.determinant).sqrt()
    return 2 / math.pi * torch.atan2(p.covariance, root)


def _normal_cdf(p: Pairs) -> Tensor:
    """The mean of step(x + noise), with noise of variance 1."""
    root = (1 + p.s.square() + p.t.square() + p.determinant).sqrt()
    return 0.25 + torch.atan2(p.covariance, root) / (2 * math.pi)


def _gelu(p: Pairs) -> Tensor:
    c, rest, q, r = p.covariance, p.determinant, p.s.square(), p.t.square()
    root = (1 + q + r + rest).sqrt()
    edges = (rest + c.square() * (1 / (1 + q) + 1 / (1 + r))) / root
    return (c * torch.atan2(root, -c) + edges) / (2 * math.pi)


def _gelu_mean(s: Tensor, a: Tensor) -> Tensor:
    scale = (1 + s.square()).sqrt()
    return a * ndtr(a / scale) + s.square() / scale * density(a / scale)


def _waves(p: Pairs) -> tuple[Tensor, Tensor]:
    """E[cos cos] and E[sin sin] of x - a and y - b: ``exp(-(s^2 + t^2) / 2)`` times cosh and sinh of the covariance."""
    near, far = p.variances
    decay, c = torch.exp(-torch.minimum(near, far) / 2), p.covariance
    return (torch.exp(-near / 2) + torch.exp(-far / 2)) / 2, -c.sign() * decay * torch.expm1(-2 * c.abs()) / 2


def _cos(p: Pairs) -> Tensor:
    even, odd = _waves(p)
    return even * p.a.cos() * p.b.cos() + odd * p.a.sin() * p.b.sin()


def _sin(p: Pairs) -> Tensor:
    even, odd = _waves(p)
    return even * p.a.sin() * p.b.sin() + odd * p.a.cos() * p.b.cos()


def _exp(p: Pairs) -> Tensor:
    return torch.exp(p.a + p.b + p.variances[1] / 2)


def _gaussian(p: Pairs) -> Tensor:
    a, b, s, t = p.a, p.b, p.s, p.t
    near, far = (4 * a * s * b * t * half for half in p.angles.half_sines)
    crossed = torch.where(a * b > 0, (a * t - b * s).square() + near, (a * t + b * s).square() - far)
    determinant = 1 + s.square() + t.square() + p.determinant
    return torch.exp(-(a.square() + b.square() + crossed) / (2 * determinant)) / determinant.sqrt()


def _square(p: Pairs) -> Tensor:
    a, b, c = p.a, p.b, p.covariance
    return (a.square() + p.s.square()) * (b.square() + p.t.square()) + 2 * c.square() + 4 * a * b * c


# The forms of `Expectations`, in their order: centred, shifted, mean.
CLOSED: dict[str, tuple] = {
    "step": (_step, _step_shifted, _step_mean),
    "sign": (_sign, _sign_shifted, _sign_mean),
    "squared_relu": (_squared_relu, _squared_relu_shifted, _squared_relu_mean),
    "erf": (_erf, lambda p: _sign_shifted(p.blurred(0.5)), lambda s, a: (a / (1 + 2 * s.square()).sqrt()).erf()),
    "normal_cdf": (_normal_cdf, lambda p: _step_shifted(p.blurred(1)), lambda s, a: ndtr(a / (1 + s.square()).sqrt())),
    "gelu": (_gelu, None, _gelu_mean),
    "cos": (_cos, _cos, lambda s, a: torch.exp(-s.square() / 2) * a.cos()),
    "sin": (_sin, _sin, lambda s, a: torch.exp(-s.square() / 2) * a.sin()),
    "exp": (_exp, _exp, lambda s, a: torch.exp(a + s.square() / 2)),
    "gaussian": (
        _gaussian,
        _gaussian,
        lambda s, a: torch.exp(-a.square() / (2 + 2 * s.square())) / (1 + s.square()).sqrt(),
    ),
    "square": (_square, _square, lambda s, a: a.square() + s.square()),
}


def _arc(x: Tensor) -> Tensor:
    """sin x - x cos x, with full relative accuracy also near 0."""
    value = x.sin() - x * x.cos()
    near = x < 0.3
    small = x[near]
    square, total = small.square(), torch.zeros_like(small)
    for j in reversed(range(1, 7)):
        total = (total * square) + (-1) ** (j + 1) * 2 * j / math.factorial(2 * j + 1)
    value[near] = total * square * small
    return value

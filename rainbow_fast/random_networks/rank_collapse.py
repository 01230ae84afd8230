# SPDX-License-Identifier: BSD-3-Clause
"""How fast deep linear networks forget the directions of their inputs: exact formulae for Gaussian weights.

All of them follow from the Lyapunov exponents lambda of `lyapunov_exponents`. None depends on the variance of the
weights.
"""

from __future__ import annotations

import math

from rainbow_fast.arguments import between, integer
from rainbow_fast.random_networks.lyapunov import lyapunov_exponents

angle_of = between(0, math.pi, "an angle above 0 and below pi", open_low=True, open_high=True)


def collapse_rate(d: int) -> float:
    """``lambda_1 - lambda_2``, near 1 / (2 d): what log|sin| of the angle of two samples loses in a layer on average.

    The ratio of the second to the first singular value of the product of l layers falls as exp(-l (lambda_1 -
    lambda_2)), and the network has forgotten directions after about 2 d layers.

    Args:
        d: width, at least 2.

    Raises:
        TypeError: d is not an integer.
        ValueError: d < 2.

    Source: Newman (1986), see `lyapunov_exponents`.
    """
    first, second = lyapunov_exponents(integer("d", d, 2), 2).tolist()
    return first - second


def log_sine_mean(d: int, layers: int, angle: float = math.pi / 2) -> float:
    """``E log|sin angle_l| = log|sin angle_0| - l (lambda_1 - lambda_2)`` of two samples after l layers, exactly.

    Args:
        d: width, at least 2.
        layers: number of layers l, at least 0.
        angle: of the samples at the input, in radians, above 0 and below pi; pi/2 by default.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is outside its range.

    Source: Newman (1986) for the exponents. The area of the parallelogram of two samples grows by two of them a layer,
    and the length of each sample by the first one.
    """
    return math.log(math.sin(angle_of("angle", angle))) - integer("layers", layers) * collapse_rate(d)


def log_determinant_mean(d: int, n: int, layers: int, start: float = 0.0) -> float:
    """``E log det C_l = log det C_0 + 2 l (sum of lambda_k over k <= n - n lambda_1)``, exactly.

    C_l (n, n) holds the cosines of n samples after l layers.

    Args:
        d: width, at least 1.
        n: number of samples, 1 to d.
        layers: number of layers l, at least 0.
        start: log det C_0, at most 0; 0 by default, for orthogonal samples.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is outside its range.

    Source: as `log_sine_mean`, with volumes for areas.
    """
    layers = integer("layers", layers)
    return between(-math.inf, 0, "a number up to 0", open_low=True)("start", start) - n * layers * isometry_rate(d, n)


def isometry_rate(d: int, n: int) -> float:
    """``2 (lambda_1 - mean of lambda_k over k <= n)``: what the isometry gap of n samples gains in a layer on average.

    This is exact for samples of equal lengths, as those of `coupled_chain`. For others the isometry gap over the number
    of layers tends to it.

    Args:
        d: width, at least 1.
        n: number of samples, 1 to d.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: a number is outside its range.

    Source: as `log_determinant_mean`.
    """
    d = integer("d", d, 1)
    exponents = lyapunov_exponents(d, integer("n", n, 1, d))
    return 2 * float(exponents[0] - exponents.mean())


def log_singular_value_ratio(d: int, layers: int) -> float:
    """``-l (lambda_1 - lambda_2)``: log of the second over the first singular value of l layers, to first order in l.

    Args:
        d: width, at least 2.
        layers: number of layers l, at least 0.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: a number is outside its range.

    Source: as `collapse_rate`.
    """
    return -integer("layers", layers) * collapse_rate(d)

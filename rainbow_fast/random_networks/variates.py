# SPDX-License-Identifier: BSD-3-Clause
"""Random numbers of other laws, made from uniform ones: each is a pure function of (seed, stream, i, j)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.ops.gaussian import Seed, as_key
from rainbow_fast.ops.uniform import uniform


def chi(
    degrees: int | Sequence[int],
    count: int,
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    r"""Independent chi variates, column j with ``k_j = degrees[j]`` degrees of freedom: (count, len(degrees)) float64.

    A chi variate of k degrees is the length of a vector of k independent standard normal numbers. Here it is the
    inverse distribution function at the float64 uniform number ``U[i, j]`` of `rainbow_fast.uniform`, so that ``X[i,
    j]`` is a pure function of (seed, stream, i, j, k_j):

        X[i, j] = sqrt(2 P^-1(k_j / 2, U[i, j])),   P(a, x) = (integral of t^(a - 1) e^-t over [0, x]) / Gamma(a).

    Equivalent to::

        U = rainbow_fast.uniform(count, len(degrees), seed=seed, stream=stream, dtype=torch.float64)
        scipy.stats.chi(degrees).ppf(U)

    with the upper half by the complement 1 - U, which is exact. The relative error is below 2e-14 for degrees up to
    10^5, in both tails, and 3e-12 at 10^6. The last bits depend on the version of SciPy, unlike those of U. The mean of
    ``log X`` is ``(log 2 + psi(k / 2)) / 2`` and its variance ``psi'(k / 2) / 4``. A number takes one to three
    microseconds. It needs SciPy.

    Args:
        degrees: one number k >= 1 for each column; an int for one column.
        count: number of rows, at least 0.
        seed, stream, row_offset, col_offset: the address, as in `rainbow_fast.key`; or a key as ``seed``. S seeds give
            S results. `uniform_weights` at the same address has the same uniform numbers.

    Returns:
        (count, cols) float64 tensor on the CPU, or (S, count, cols) for S seeds; positive.

    Raises:
        ImportError: SciPy is not installed.
        TypeError: a number is not an integer of Python or NumPy.
        ValueError: a number is outside its range.
    """
    need_scipy("chi")
    from scipy.special import gammainccinv, gammaincinv

    several = degrees if isinstance(degrees, list | tuple | range) else [degrees]
    half = np.array([integer("degrees", each, 1) for each in several], dtype=np.float64) / 2
    count = integer("count", count)
    key = as_key(seed, stream, row_offset, col_offset)
    u = uniform(count, len(half), seed=key, dtype=torch.float64, device="cpu").numpy()
    half, lower, x = np.broadcast_to(half, u.shape), u < 0.5, np.empty_like(u)
    x[lower] = gammaincinv(half[lower], u[lower])
    x[~lower] = gammainccinv(half[~lower], 1 - u[~lower])
    return torch.from_numpy(np.sqrt(2 * x))


def need_scipy(what: str, otherwise: str = "") -> None:
    """Raise ImportError if there is no SciPy, which the function `what` needs; `otherwise` ends the message."""
    if find_spec("scipy") is None:
        install = 'pip install "rainbow_fast[analysis]"'
        raise ImportError(f"rainbow_fast.random_networks.{what} needs scipy: {install}{otherwise}")


def uniform_weights(
    rows: int,
    cols: int,
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """``sqrt(3) (2 U - 1)``: independent weights, uniform on (-sqrt(3), sqrt(3)), with mean 0 and variance 1.

    U is the matrix of `rainbow_fast.uniform`. ``2 U - 1`` is exact; sqrt(3) and the product are rounded. In float32 and
    float64 the bits are the same on every backend. The law is exactly symmetric, and its variance is 1 up to rounding
    and to the square of the eps of dtype.

    Args:
        rows, cols: shape, each at least 0.
        seed, stream, row_offset, col_offset: the address, as in `rainbow_fast.key`; or a key as ``seed``.
        dtype: float32 (default), float64, bfloat16 or float16.
        device: device of the result; the CPU by default.

    Returns:
        (rows, cols) tensor, or (S, rows, cols) for S seeds.

    Raises:
        TypeError, ValueError: as `rainbow_fast.uniform`.
    """
    key = as_key(seed, stream, row_offset, col_offset)
    return uniform(rows, cols, seed=key, dtype=dtype, device=device).mul_(2).sub_(1).mul_(math.sqrt(3))

# SPDX-License-Identifier: BSD-3-Clause
"""Random lengths: the chi variates that the laws of products of Gaussian matrices need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.ops.gaussian import MOST


def chi(degrees: int | Sequence[int], count: int, *, seed: int, stream: int = 0) -> Tensor:
    r"""Independent chi variates: the length of a vector of m independent N(0, 1) numbers, for each m in `degrees`.

        E log chi_m = (log 2 + psi(m / 2)) / 2

    They are square roots of NumPy's chi-square variates, from its Philox4x64 generator with the key (seed, stream), and
    not from the generator of this package, which has no such variates yet. They will differ once it has. They are the
    same for the same address and the same version of NumPy. Of two calls that differ only in `count`, the shorter one
    gives the first rows of the longer one. The global random state is neither read nor written.

    Args:
        degrees: one number m >= 1 for each column; an int for one column.
        count: number of rows, at least 0.
        seed: 0 <= seed < 2^63.
        stream: 0 <= stream < 2^32; 0 by default.

    Returns:
        float64 tensor (count, len(degrees)) on the CPU.

    Raises:
        TypeError: a number is not an integer of Python or NumPy.
        ValueError: a number is outside its range.
    """
    several = degrees if isinstance(degrees, list | tuple | range) else [degrees]
    columns = [integer("degrees", each, 1) for each in several]
    count = integer("count", count)
    key = [integer("seed", seed, 0, MOST["seed"]), integer("stream", stream, 0, MOST["stream"])]
    source = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    squares = source.chisquare(np.array(columns, dtype=np.float64), size=(count, len(columns)))
    return torch.from_numpy(np.sqrt(squares))

# SPDX-License-Identifier: BSD-3-Clause
"""The distance between two outputs of a network, and the largest distance that rounding may cause."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

BOUND = 1e-5  # relative to the largest output; 84 times the eps of float32
# Each half-precision layer rounds its output. After L layers the random error is sqrt(L) / 2 units: 8 for 256 layers.
HALF_UNITS = 8
OF_BFLOAT16 = torch.finfo(torch.bfloat16).eps
UNITS = {"highest": 0.0, "high": OF_BFLOAT16**2, "medium": OF_BFLOAT16}  # of the factors of products, by precision


def bound(*dtypes: torch.dtype, precision: str = "highest") -> float:
    """The largest difference that rounding may cause, relative to the largest output.

    It is 1e-5, or 8 times the eps of the half-precision dtype if there is one (0.0078 for float16, 0.063 for bfloat16),
    or 8 times the unit of the precision of float32 products (0.00049 for "high", 0.063 for "medium").
    """
    units = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point and dtype.itemsize == 2]
    return max([BOUND, *(HALF_UNITS * unit for unit in [*units, UNITS[precision]])])


def limit_of(outputs: Any, x: Tensor, precision: str = "highest") -> float:
    """`bound` for the dtypes of an input x and of the outputs that a network gives for x."""
    return bound(x.dtype, *(t.dtype for t in tensors(outputs)), precision=precision)


def tensors(outputs: Any) -> Iterator[Tensor]:
    """All tensors of an output, which may be nested lists, tuples and mappings, or an object with attributes."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from tensors(value)
    elif hasattr(outputs, "__dict__"):
        for value in vars(outputs).values():
            if isinstance(value, Tensor | Mapping | list | tuple):
                yield from tensors(value)


def distances(a: Any, b: Any) -> float:
    """The largest `distance` between the tensors of two outputs; infinite if one has more tensors."""
    mine, others = list(tensors(a)), list(tensors(b))
    if len(mine) != len(others):
        return math.inf
    return max((distance(x, y) for x, y in zip(mine, others, strict=True)), default=0.0)


def distance(x: Tensor, wanted: Tensor, among: Tensor | None = None) -> float:
    """``max |x - wanted| / max |among|``, with `wanted` as `among` by default. Infinite if shapes or NaN differ."""
    if x.shape != wanted.shape:
        return math.inf
    if x.dtype == wanted.dtype and torch.equal(x, wanted):
        return 0.0
    kind = torch.complex128 if x.is_complex() or wanted.is_complex() else torch.float64
    x, wanted = x.detach().to(kind), wanted.detach().to(kind)
    finite = x.isfinite() & wanted.isfinite()
    if not ((x == wanted) | (x.isnan() & wanted.isnan()) | finite).all():
        return math.inf
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    difference = torch.where(finite, (x - wanted).abs(), zero).max()
    size = (wanted if among is None else among.detach().to(kind)).abs()
    largest = torch.where(size.isfinite(), size, zero).max()
    return float(difference / largest) if difference > 0 else 0.0


def of_middle(outputs: Tensor, single: Tensor, samples: int) -> Tensor | None:
    """The part of `outputs` that belongs to sample number ``samples // 2``.

    `single` is the output for one sample, and the result has its shape. The axis of the samples (or of samples times
    positions) is the one that is `samples` times as long as in `single`. An output without this axis is the same for
    all samples and is returned whole. None if the axis cannot be determined.
    """
    if outputs.shape == single.shape:
        return outputs if samples not in outputs.shape[:1] else None
    if outputs.dim() != single.dim():
        return None
    axes = [axis for axis, (N, n) in enumerate(zip(outputs.shape, single.shape, strict=True)) if N != n]
    if len(axes) != 1 or outputs.shape[axes[0]] != samples * single.shape[axes[0]]:
        return None
    length = single.shape[axes[0]]
    return outputs.narrow(axes[0], samples // 2 * length, length)

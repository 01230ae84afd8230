# SPDX-License-Identifier: BSD-3-Clause
"""The precision of float32 products: the argument ``precision`` of the ops, and torch's own setting.

With S the sum of the absolute values of the products that an entry of the result is summed from, a precision is one of

- ``"highest"``: float32 numbers are multiplied in full, and the error is that of a float32 sum;
- ``"high"``: each factor is the sum of two bfloat16 numbers, and the product of both second ones is left out. The error
  is at most 2^-14 S;
- ``"medium"``: each factor is rounded to one bfloat16 number. The error is at most 2^-7 S.

Sums are computed as with "highest". A kernel may be more exact than is asked for. Other dtypes have no precision.
"""

from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("highest", "high", "medium")  # in the order of enum Precision of csrc/kernels.h
CODE = {name: code for code, name in enumerate(PRECISIONS)}


def in_force(device: torch.device) -> str:
    """The precision that torch's settings ask of float32 products on a device.

    It is set by `torch.set_float32_matmul_precision`, or by one of ``torch.backends.*.fp32_precision``. After the
    latter, `torch.get_float32_matmul_precision` raises an error. What torch's own products obey is read here; it has
    every change of both. TF32 counts as "high", bfloat16 as "medium".
    """
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return {"tf32": "high", "bf16": "medium"}.get(backend.matmul.fp32_precision, "highest")


def check_precision(precision: Any, *more: str) -> None:
    """Raise ValueError unless `precision` is None, one of `PRECISIONS`, or one of `more`."""
    names = (*PRECISIONS, *more)
    if precision is not None and precision not in names:
        raise ValueError(f"precision={precision!r}: wanted None or one of {', '.join(names)}")


def precision_of(precision: str | None, x: Tensor) -> str:
    """The precision of products of x: the given one, or the one in force if it is None; "highest" if x is not float32.

    Raises:
        ValueError: there is no such precision.
    """
    check_precision(precision)
    if x.dtype != torch.float32:
        return "highest"
    return in_force(x.device) if precision is None else precision

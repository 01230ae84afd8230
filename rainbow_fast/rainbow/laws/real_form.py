# SPDX-License-Identifier: BSD-3-Clause
"""Complex matrices as real ones, for sites with complex weights."""

from __future__ import annotations

import torch
from torch import Tensor


def real_form(C: Tensor) -> Tensor:
    """``[[Re C, Im C], [-Im C, Re C]]`` (2 n, 2 m) of complex C (n, m); real C itself, contiguous.

    The form of a product is the product of the forms, and that of C^H is the transpose. The first n rows
    (Re C, Im C) act on (z, i z) as C on z.
    """
    if not C.is_complex():
        return C.contiguous()
    return torch.cat([torch.cat([C.real, C.imag], 1), torch.cat([-C.imag, C.real], 1)])


def complex_of(R: Tensor) -> Tensor:
    """The complex matrix C (n, m) of its rows R = (Re C, Im C), (n, 2 m)."""
    return torch.complex(*R.chunk(2, 1))

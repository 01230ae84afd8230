# SPDX-License-Identifier: BSD-3-Clause
"""Converts samples and labels of any dtype: pixels, numbers and classes."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100  # the label of a position that does not count, as in torch.nn.functional.cross_entropy
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def as_numbers(x: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Samples as input of a network with this device and dtype.

    uint8 counts as pixels: the result is ``x / 255``, computed in float32 and converted to `dtype`. The values of all
    other dtypes, also other integers and booleans, are converted unchanged. If `dtype` is an integer, the samples are
    indices, and uint8 is converted unchanged, too. Tensors that already have the device and dtype are not copied.
    """
    if x.dtype == torch.uint8 and dtype.is_floating_point:
        return x.to(device, torch.float32).div_(255).to(dtype)
    return x.to(device, dtype)


def described(value: Tensor) -> str:
    """The dtype and the shape of a tensor, for messages."""
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def as_labels(y: Tensor, name: str) -> Tensor:
    """Labels (N, ...): integers as int64; booleans, and floats that are all 0 or 1, as they are.

    Raises:
        TypeError: the labels are other numbers.
        ValueError: a label is above 2^63 - 1. Messages begin with `name`.
    """
    if y.dtype in INTEGERS:
        classes = y.to(torch.int64)
        if y.dtype == torch.uint64 and len(above := (classes < 0).nonzero()):
            first = tuple(map(int, above[0]))
            what = f"label {int(classes[first]) + 2**64} of sample {first[0]}, wanted at most 2^63 - 1"
            raise ValueError(f"{name}: {what}; pass x without y if y is not the class")
        return classes
    if y.is_complex() or (y.dtype != torch.bool and bool(((y != 0) & (y != 1)).any())):
        raise TypeError(
            f"{name}: labels y are {described(y)}, wanted integers, the class of each sample or position, or zeros and "
            "ones; pass x without y if y is not the class, or metric= for labels of your own"
        )
    return y

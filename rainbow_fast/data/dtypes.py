# SPDX-License-Identifier: BSD-3-Clause
"""Converts samples and labels of any dtype: pixels, numbers and classes."""

from __future__ import annotations

import torch
from torch import Tensor

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


def as_classes(y: Tensor, name: str) -> Tensor:
    """Integer labels (N,) as int64.

    Raises:
        TypeError: the labels are not integers (bool does not count as an integer).
        ValueError: the labels have another shape, or one is above 2^63 - 1. Messages begin with `name`.
    """
    if y.dtype in INTEGERS and y.dim() == 1:
        classes = y.to(torch.int64)
        if y.dtype == torch.uint64 and len(above := (classes < 0).nonzero()):
            first = int(above[0])
            what = f"label {int(classes[first]) + 2**64} of sample {first}, wanted at most 2^63 - 1"
            raise ValueError(f"{name}: {what}; pass x without y if y is not the class")
        return classes
    error = ValueError if y.dtype in INTEGERS else TypeError
    raise error(
        f"{name}: labels y are {str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}, wanted integers of "
        "shape (N,), the class of each sample; pass x without y if y is not a class"
    )


def check_classes(y: Tensor, outputs: object, name: str) -> None:
    """Check that labels (N,) int64 are classes of a network. `outputs` are outputs of the network for some samples.

    Raises:
        ValueError: the outputs are not (N, K) with K >= 2, or a label is outside of 0 to K - 1. The message begins with
            `name`.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] < 2:
        what = (
            f"outputs of shape (N{''.join(f', {n}' for n in outputs.shape[1:])})"
            if isinstance(outputs, Tensor)
            else (f"a {type(outputs).__name__}")
        )
        raise ValueError(
            f"{name}: labels y are given, but the network gives {what}: wanted outputs (N, K) for K >= 2 classes; "
            "pass x without y if y is not the class"
        )
    K = outputs.shape[1]
    outside = ((y < 0) | (y >= K)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{name}: label {int(y[first])} of sample {first}, wanted 0 to {K - 1}, because the network has {K} "
            "outputs; pass x without y if y is not the class"
        )

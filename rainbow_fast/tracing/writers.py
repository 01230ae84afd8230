# SPDX-License-Identifier: BSD-3-Clause
"""The weight matrix W of the linear layer that writes z at a site, and its row covariance W W^T."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def writer_rows(writer: nn.Linear | _ConvNd) -> Tensor:
    """The weights W with one row for each neuron: ``(groups, d / groups, columns)`` float64, one matrix for each group.
    Complex weights are complex128.

    The columns are the inputs of the group times the taps of the kernel. The weight of a transposed convolution is
    stored as (in, d / groups, *kernel) and is rearranged. If it has strides, a row holds all taps of the kernel, of
    which each position of the output sees one in ``prod(stride)``.
    """
    weight = writer.weight.detach()
    weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    if isinstance(writer, nn.Linear):
        return weight.unsqueeze(0)
    groups = weight.unflatten(0, (writer.groups, -1))
    if writer.transposed:
        groups = groups.transpose(1, 2)
    return groups.flatten(2)


def writer_covariance(writer: nn.Linear | _ConvNd) -> Tensor:
    r"""``C = W W^T``, the covariance of the outputs of a linear layer when its input is white: (d, d) float64. With
    complex weights it is ``W W^H``, complex128.

        C[c, c'] = sum_{i, k} W[c, i, k] W[c', i, k]    if c and c' are in the same group, else 0

    For a convolution, this is the covariance at every position away from the borders. For a transposed convolution with
    stride > 1, different positions see different taps of the kernel, and C is the mean over positions: the sum over all
    taps divided by ``prod(stride)``.
    """
    rows = writer_rows(writer)
    C = torch.block_diag(*(rows @ rows.mH))
    return C / math.prod(writer.stride) if isinstance(writer, _ConvNd) and writer.transposed else C

# SPDX-License-Identifier: BSD-3-Clause
"""What the weights of the linear layer that writes z say of it: the matrix W, and W W^T."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def writer_rows(writer: nn.Linear | _ConvNd) -> Tensor:
    """The weights W as rows of the neurons: ``(groups, d / groups, columns)`` float64, a neuron reads its group alone.

    Columns are inputs times taps of the kernel. A transposed convolution has its weight as (in, d / groups, *kernel);
    with strides it has all taps in its rows, of which a position sees one in ``prod(stride)``.
    """
    weight = writer.weight.detach().double()
    if isinstance(writer, nn.Linear):
        return weight.unsqueeze(0)
    groups = weight.unflatten(0, (writer.groups, -1))
    if writer.transposed:
        groups = groups.transpose(1, 2)
    return groups.flatten(2)


def writer_covariance(writer: nn.Linear | _ConvNd) -> Tensor:
    r"""``W W^T``, the covariance of what a linear layer makes of white input: (d, d) float64.

        C[c, c'] = sum_{i, k} W[c, i, k] W[c', i, k]    in one group, 0 between two

    Away from borders all positions of a convolution have it. Those of a transposed one of stride > 1 see different taps
    of the kernel: C is the mean over positions, the sum over all taps over ``prod(stride)``.
    """
    rows = writer_rows(writer)
    C = torch.block_diag(*(rows @ rows.transpose(1, 2)))
    return C / math.prod(writer.stride) if isinstance(writer, _ConvNd) and writer.transposed else C

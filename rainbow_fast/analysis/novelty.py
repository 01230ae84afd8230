# SPDX-License-Identifier: BSD-3-Clause
"""Measures how far sampled neurons are from the neurons of the reference."""

from __future__ import annotations

import torch
from torch import Tensor


def novelty(rows: Tensor, C: Tensor) -> float:
    r"""Mean distance of sampled neurons to the nearest reference neuron, over that between reference neurons.

        sum_i min_k |g_i - e_k| / n    over    sum_k min_(l != k) |e_l - e_k| / d,    |v|^2 = v^T C v

    With ``C = E[z z^T]``, the distance of two neurons is the root mean square of the difference of their
    pre-activations over images and positions. The novelty is 0 if every sampled neuron equals a neuron of the
    reference. It is 1 if sampled neurons are as far from the reference as its neurons are from each other. Unlike a
    distance of weights, it is also defined if a residual sum writes z.

    Args:
        rows: G_eff, (n, d): the sampled neurons are linear combinations ``z' = G_eff z`` of the reference neurons z.
        C: second moment ``E[z z^T]`` of the pre-activations, (d, d).

    Raises:
        ValueError: shapes do not match, there are fewer than two reference neurons, or all reference neurons are equal.
    """
    d = len(C)
    if rows.dim() != 2 or C.shape != (d, d) or rows.shape[1] != d or d < 2:
        raise ValueError(f"rows, C: wanted (n, d) and (d, d), d at least 2; got {tuple(rows.shape)}, {tuple(C.shape)}")
    rows, C = rows.double(), C.double()
    own = C.diagonal()
    products = rows @ C
    to_reference = (products * rows).sum(1, keepdim=True) - 2 * products + own
    between = own.unsqueeze(1) - 2 * C + own
    between.fill_diagonal_(torch.inf)
    nearest, scale = (squares.clamp(min=0).amin(1).sqrt().mean() for squares in (to_reference, between))
    if scale == 0:
        raise ValueError("C: reference neurons are all alike, wanted some that differ")
    return float(nearest / scale)

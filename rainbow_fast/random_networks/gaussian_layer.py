# SPDX-License-Identifier: BSD-3-Clause
"""gaussian_layer: batches through linear layers with white Gaussian weights, which are not stored at large widths."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.arguments import integer, number, tensor
from rainbow_fast.ops.gaussian import MOST, gaussian
from rainbow_fast.ops.sample_project_align import sample_project_align_

LAYER_BITS = 20  # of a stream; the upper bits count the runs
LAYERS, RUNS = 2**LAYER_BITS, 2 ** (32 - LAYER_BITS)
STORED = 2**14  # weights of at most so many entries are stored: for small ones a call for each run takes longer


def gaussian_layer(
    H: Tensor, width: int, *, seed: int, layer: int = 0, first_row: int = 0, scale: float = 1.0
) -> Tensor:
    r"""``scale H W^T`` for each run, with independent weights W (width, d) of independent N(0, 1) entries.

    Equivalent to::

        for run in range(runs):
            W = rainbow_fast.gaussian(width, d, seed=seed, stream=run << 20 | layer, row_offset=first_row)
            out[run] = scale * H[run] @ W.T

    W is generated inside the product by `rainbow_fast.sample_project_align`, except at widths up to about 128.

    Args:
        H: (runs, n, d), float32 or float64; n samples of d units for each of at most 2^12 runs.
        width: number of units of the result, at least 1.
        seed: 0 <= seed < 2^63.
        layer: 0 <= layer < 2^20; 0 by default.
        first_row: 0 <= first_row < 2^56; 0 by default. Layers whose rows do not overlap are independent.
        scale: factor of the result; 1 by default.

    Returns:
        (runs, n, width), in the dtype and on the device of H. It is the transpose of a contiguous tensor.

    Raises:
        TypeError: an argument has the wrong type, or H is not float32 or float64.
        ValueError: H has another shape, or a number is outside its range.

    Source: Daneshmand, Joudaki and Bach (NeurIPS 2021), section 2, for layers without an activation.
    """
    if tensor("H", H).dtype not in (torch.float32, torch.float64):
        raise TypeError(f"H is {H.dtype}: wanted torch.float32 or torch.float64")
    if H.dim() != 3 or 0 in H.shape or len(H) > RUNS:
        raise ValueError(f"H has shape {tuple(H.shape)}: wanted (runs, n, d), none of them 0, and at most {RUNS} runs")
    width, scale = integer("width", width, 1), number("scale", scale)
    runs, n, d = H.shape
    keys = layer_keys(runs, seed, layer, first_row)
    if width * d <= STORED:
        W = gaussian(width, d, seed=keys, dtype=H.dtype, device=H.device)
        return (scale * (W @ H.mT)).mT
    out = torch.empty(runs, width, n, dtype=H.dtype, device=H.device)
    for samples, key, target in zip(H, keys, out, strict=True):
        sample_project_align_(target, samples.mT, seed=key, scale=scale)
    return out.mT


def layer_keys(runs: int, seed: int, layer: int, first_row: int = 0) -> Tensor:
    """The keys of the weights of a layer of each run, (runs, 4)."""
    seed, layer = integer("seed", seed, 0, MOST["seed"]), integer("layer", layer, 0, LAYERS - 1)
    first_row = integer("first_row", first_row, 0, MOST["row_offset"])
    streams = [run << LAYER_BITS | layer for run in range(runs)]
    return torch.tensor([[seed, stream, first_row, 0] for stream in streams], dtype=torch.int64, device="cpu")

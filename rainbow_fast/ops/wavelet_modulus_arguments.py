# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of wavelet_modulus and of its gradient: checked, and as the kernels take them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.memory import Samples
from rainbow_fast.ops.wavelet_bank import PADDING, WaveletBank, matrices, padded

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST = 32  # side of the maps that the Triton kernels take: those of a tile

Bank = tuple[int, int, int, bool, float]  # struct Bank of csrc/kernels.h


def checked_maps(z: Tensor, constants: Sequence[float], stride: int, taps: int) -> WaveletBank:
    """The bank of a call of the op, whose z is checked.

    Raises:
        TypeError, ValueError: as in `wavelet_modulus`.
    """
    if len(constants) != 3:
        raise ValueError(f"constants={list(constants)}: wanted phi_sigma, psi_sigma and xi")
    if z.dtype not in DTYPES:
        raise TypeError(f"z is {z.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if z.dim() not in (4, 5) or min(z.shape[2:4]) < 2 or (z.dim() == 5 and z.shape[4] != 2):
        raise ValueError(
            f"z has shape {tuple(z.shape)}: wanted (N, c, H, W), or (N, c, H, W, 2) for complex numbers, with sides of "
            "at least 2"
        )
    return _bank(*map(float, constants), int(stride), int(taps))  # which may be symbolic


@functools.lru_cache(maxsize=64)
def _bank(phi_sigma: float, psi_sigma: float, xi: float, stride: int, taps: int) -> WaveletBank:
    return WaveletBank(phi_sigma, psi_sigma, xi, stride, taps)


def output_of(z: Tensor, bank: WaveletBank, skip: bool) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype of the output."""
    N, c, *space = z.shape[:4]
    pairs = skip or z.dim() == 5
    sides = [(padded(side) - 2 * PADDING) // bank.stride for side in space]
    dtype = torch.promote_types(z.dtype, torch.float32) if pairs else z.dtype
    return (N, (10 if skip else 5) * c, *sides, *([2] if pairs else [])), dtype


@functools.lru_cache(maxsize=64)
def packed(bank: WaveletBank) -> tuple[np.ndarray, Bank]:
    """The taps from the middle on, (reach + 1, 6), and struct Bank, which has their address."""
    filters, reach = bank.filters(), (bank.taps - 1) // 2
    taps = np.stack([filters[name][reach:] for name in "g c hc s hs phi".split()], 1)
    return taps, (taps.ctypes.data, reach, bank.stride, bank.phi_sigma != bank.psi_sigma, bank.beta[1])


def lacking(z: Tensor, backend: str | None) -> tuple[str, ...]:
    """The backends that the op does not have for these maps.

    Raises:
        ValueError: `backend` is "triton", and the maps are too large for it.
    """
    if max(z.shape[2:4]) <= LARGEST:
        return ()
    if backend == "triton":
        raise ValueError(
            f"z has shape {tuple(z.shape)}: backend='triton' takes maps of at most {LARGEST} x {LARGEST} pixels; "
            "larger ones are computed by backend='reference'"
        )
    return ("triton",)


@functools.lru_cache(maxsize=256)
def in_tiles(bank: WaveletBank, H: int, W: int, dtype: torch.dtype, device: torch.device) -> Any:
    """`Filters` of rainbow_fast/triton_kernels/wavelet_modulus.py, as a tuple, for maps (H, W)."""
    name = str(dtype).removeprefix("torch.")
    rows, down = _tile(matrices(bank, H, name), 16)
    columns, across = _tile(matrices(bank, W, name), LARGEST)
    size = len(matrices(bank, H, name)["g"]), len(matrices(bank, W, name)["g"])
    left = torch.as_tensor(rows, device=device)
    right = torch.as_tensor(columns.swapaxes(1, 2).copy(), device=device)
    beta = torch.as_tensor(np.array([bank.beta[1]], rows.dtype), device=device)
    return left, right, (down, across), size, beta, bank.phi_sigma != bank.psi_sigma


def _tile(filters: dict[str, np.ndarray], least: int) -> tuple[np.ndarray, int]:
    """Matrices (7, tile of the output, tile of the input) with a block for each map of a tile; and the number of maps.

    The sides of tiles are `least` if that is enough, else 32.
    """
    after, before = filters["g"].shape
    tile = least if before <= least else LARGEST
    count = tile // before
    result = np.zeros((7, least if count * after <= least else LARGEST, tile), filters["g"].dtype)
    blocks = [*(filters[name] for name in "g c s hc hs phi".split()), np.ones_like(filters["g"])]
    for matrix, block in zip(result, blocks, strict=True):
        matrix[: count * after, : count * before] = np.kron(np.eye(count), block)
    return result, count


def described(z: Tensor) -> tuple[Tensor, Samples, int]:
    """z (with the two numbers of a pair beside each other), the description of its memory, and the numbers a pixel."""
    z = z.detach()
    if z.dim() == 5 and z.stride(4) != 1:
        z = z.contiguous()
    return z, (z.data_ptr(), _backend.CODE[z.dtype], tuple(z.shape[:4]), tuple(z.stride()[:4])), z.dim() - 3


def wavelet_modulus_flops(z: Sequence[int], constants: Sequence[float], stride: int, taps: int) -> int:
    """``2 N c taps h (5 W + 9 w)`` for outputs (h, w): five filters along columns, then nine along rows.

    If phi has a width of its own, there is one more each. A complex z takes twice as many. The kernels share products
    between taps, and need half of them.
    """
    N, c, H, W, *pair = z
    h, w = ((padded(side) - 2 * PADDING) // stride for side in (H, W))
    more = int(constants[0] != constants[1])
    return 2 * N * c * (2 if pair else 1) * taps * h * ((5 + more) * W + (9 + more) * w)

# SPDX-License-Identifier: BSD-3-Clause
"""The wavelet step in plain torch, in four ways: a function for a bank, a number of channels and a side of the maps.

The whole filters are in `by_fft` alone; the other ways have those with fewer taps, as the op has. Moduli are computed
by `hypot`, which takes less time than the absolute value of complex numbers, except in the published way.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.ops.wavelet_bank import PADDING, matrices, padded

WAVELETS = 4
WHOLE = 41  # taps
DENSE_PIXELS = 256  # for larger maps, the matrix has 38 MB, or twice to four times as many, and is slower

Way = Callable[[Tensor], Tensor]
Filter = Callable[[str, str], np.ndarray]


def combined(product: Filter, beta: float) -> np.ndarray:
    """The low-pass, then the real and the imaginary parts of the wavelets: sums of products of two 1-D filters."""
    cc, ss, cs, sc = product("hc", "hc"), product("hs", "hs"), product("hc", "hs"), product("hs", "hc")
    mean = cc - beta * product("g", "g")
    real = [mean - ss, product("c", "g"), mean + ss, product("g", "c")]
    return np.stack([product("phi", "phi"), *real, sc + cs, product("s", "g"), sc - cs, -product("g", "s")])


def filters(bank: rf.WaveletBank) -> np.ndarray:
    """The nine real filters (9, taps, taps), in float64."""
    taps = bank.filters()
    return combined(lambda rows, columns: np.outer(taps[rows], taps[columns]), bank.beta[1])


def in_channels(low: Tensor, moduli: Tensor, c: int) -> Tensor:
    """(N c, 1, h, w) and (N c, 4, h, w) -> (N, 5 c, h, w)."""
    return torch.cat([part.unflatten(0, (-1, c)).flatten(1, 2) for part in (low, moduli)], 1)


def with_moduli(maps: Tensor, c: int) -> Tensor:
    """(N c, 9, h, w) -> (N, 5 c, h, w)."""
    low, real, imaginary = maps.split([1, WAVELETS, WAVELETS], 1)
    return in_channels(low, torch.hypot(real, imaginary), c)


def direct(bank: rf.WaveletBank, c: int, side: int) -> Way:
    weight = torch.from_numpy(filters(bank)[:, ::-1, ::-1].copy()).float().unsqueeze(1)
    beyond = bank.taps // 2 - PADDING

    def way(z: Tensor) -> Tensor:
        reflected = F.pad(z.flatten(0, 1).unsqueeze(1), [PADDING] * 4, mode="reflect")
        return with_moduli(F.conv2d(F.pad(reflected, [beyond] * 4, mode="circular"), weight, stride=bank.stride), c)

    return way


def by_fft(bank: rf.WaveletBank, c: int, side: int) -> Way:
    """In the precision of z."""
    size, stride, reach = padded(side), bank.stride, WHOLE // 2
    periodic = np.zeros((9, size, size))
    places = np.arange(-reach, reach + 1) % size
    np.add.at(periodic, (slice(None), places[:, None], places), filters(replace(bank, taps=WHOLE)))
    low, real, imaginary = np.split(periodic, [1, 1 + WAVELETS])
    spectra = torch.from_numpy(np.fft.fft2(np.concatenate([low, real + 1j * imaginary])))
    spectrum = {torch.float32: spectra.to(torch.complex64), torch.float64: spectra}

    def way(z: Tensor) -> Tensor:
        maps = torch.fft.fft2(F.pad(z.flatten(0, 1).unsqueeze(1), [PADDING] * 4, mode="reflect"))
        folded = (maps * spectrum[z.dtype]).unflatten(3, (stride, -1)).unflatten(2, (stride, -1)).mean((2, 4))
        edge = PADDING // stride
        kept = torch.fft.ifft2(folded)[..., edge:-edge, edge:-edge]
        return in_channels(kept[:, :1].real, kept[:, 1:].abs(), c)

    return way


def separable(bank: rf.WaveletBank, c: int, side: int) -> Way:
    along = {name: torch.from_numpy(matrix) for name, matrix in matrices(bank, side, "float32").items()}
    beta, own_low = bank.beta[1], bank.phi_sigma != bank.psi_sigma
    row_groups = [["g"], ["c", "s"], ["hc", "hs"], *[["phi"]] * own_low]
    column_groups = [["g", "c", "s"], ["g"], ["hc", "hs"], *[["phi"]] * own_low]
    left = [torch.cat([along[name] for name in group]) for group in row_groups]
    right = [torch.cat([along[name] for name in group]).T.contiguous() for group in column_groups]

    def way(z: Tensor) -> Tensor:
        maps = z.flatten(0, 1)
        parts = [
            ((a @ maps).flatten(0, 1) @ b).view(len(maps), len(rows), -1, len(columns), b.shape[1] // len(columns))
            for a, b, rows, columns in zip(left, right, row_groups, column_groups, strict=True)
        ]
        gg, gc, gs = parts[0][:, 0].unbind(2)
        cg, sg = parts[1][:, :, :, 0].unbind(1)
        (cc, cs), (sc, ss) = (part.unbind(2) for part in parts[2].unbind(1))
        low, mean = parts[3][:, 0, :, 0] if own_low else gg, cc - beta * gg
        real = torch.stack([mean - ss, cg, mean + ss, gc], 1)
        return in_channels(low.unsqueeze(1), torch.hypot(real, torch.stack([sc + cs, sg, sc - cs, -gs], 1)), c)

    return way


def dense(bank: rf.WaveletBank, c: int, side: int) -> Way:
    along, outputs = matrices(bank, side, "float64"), bank.side(side)
    whole = combined(lambda rows, columns: np.kron(along[rows], along[columns]), bank.beta[1])
    matrix = torch.from_numpy(whole).float().flatten(0, 1).T.contiguous()

    def way(z: Tensor) -> Tensor:
        maps = z.flatten(0, 1).flatten(1) @ matrix
        return with_moduli(maps.unflatten(1, (9, outputs, outputs)), c)

    return way

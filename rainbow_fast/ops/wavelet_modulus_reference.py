# SPDX-License-Identifier: BSD-3-Clause
"""wavelet_modulus in plain PyTorch: products with small matrices that include the border."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.ops.wavelet_bank import WaveletBank, matrices

DENSE_PIXELS = 64  # up to this size of a map, one product by all filters is faster than products along rows and columns
WAVELETS = 4

Maps = tuple[Tensor, Tensor, Tensor]  # of the low-pass filter (n, h, w), of the wavelets: real, imaginary (n, 4, h, w)


def wavelet_modulus_reference(z: Tensor, bank: WaveletBank, skip: bool) -> Tensor:
    """The op: z (N, c, H, W), or (N, c, H, W, 2) if it is complex; the output is real, or pairs of real numbers."""
    compute = z.to(torch.promote_types(z.dtype, torch.float32))
    if z.dim() == 5:
        parts = _convolved(torch.cat([compute[..., 0], compute[..., 1]]), bank)
        (low, low_i), (re, re_i), (im, im_i) = (part.unflatten(0, (2, z.shape[0])) for part in parts)
        re, im = re - im_i, im + re_i
    else:
        low, re, im = _convolved(compute, bank)
        low_i = torch.zeros_like(low)
    modulus = _modulus(re, im)
    if not skip and z.dim() == 4:
        return torch.cat([low, modulus], 1).to(z.dtype)
    if not skip:
        return torch.stack([torch.cat([low, modulus], 1), torch.cat([low_i, torch.zeros_like(modulus)], 1)], -1)
    low_modulus = _modulus(low, low_i) if z.dim() == 5 else low.abs()
    moduli = torch.cat([low_modulus, modulus], 1)
    return torch.stack([torch.cat([low, re, moduli], 1), torch.cat([low_i, im, torch.zeros_like(moduli)], 1)], -1)


def wavelet_modulus_gradient_reference(z: Tensor, grad: Tensor, bank: WaveletBank, skip: bool) -> Tensor:
    """The gradient of z, for the gradient of the output."""
    _, pull_back = torch.func.vjp(lambda maps: wavelet_modulus_reference(maps, bank, skip), z)  # type: ignore[misc]
    return pull_back(grad)[0]


def _convolved(z: Tensor, bank: WaveletBank) -> Maps:
    """The low-pass channels (N, c, h, w), and the real and imaginary parts of the wavelet channels (N, 4 c, h, w)."""
    N, c, H, W = z.shape
    maps, size = _on_device(bank, int(H), int(W), z.dtype, z.device)  # sizes may be symbolic
    flat = z.flatten(0, 1)
    low, re, im = _dense(flat, maps, size) if "all" in maps else _separable(flat, maps, size, bank.beta[1])
    return low.unflatten(0, (N, c)), *(part.unflatten(0, (N, c)).flatten(1, 2) for part in (re, im))


def _dense(z: Tensor, maps: dict[str, Tensor], size: tuple[int, int]) -> Maps:
    """One product of each map (n, H, W) by all filters."""
    filtered = (z.flatten(1) @ maps["all"]).unflatten(1, (1 + 2 * WAVELETS, *size))
    return filtered[:, 0], filtered[:, 1 : 1 + WAVELETS], filtered[:, 1 + WAVELETS :]


def _separable(z: Tensor, maps: dict[str, Tensor], size: tuple[int, int], beta: float) -> Maps:
    """Products along columns, then along rows, of each map (n, H, W), and their sums."""
    n, (h, w) = z.shape[0], size

    def product(rows: str, columns: str) -> Tensor:
        """(n, row filters, column filters, h, w), a view."""
        left = (maps["rows " + rows] @ z).flatten(0, 1)
        shape = n, rows.count(" ") + 1, h, columns.count(" ") + 1, w
        return (left @ maps["columns " + columns]).view(shape).transpose(2, 3)

    gg, gc, gs = product("g", "g c s")[:, 0].unbind(1)
    cg, sg = product("c s", "g")[:, :, 0].unbind(1)
    (cc, cs), (sc, ss) = (part.unbind(1) for part in product("hc hs", "hc hs").unbind(1))
    low = product("phi", "phi")[:, 0, 0] if "rows phi" in maps else gg
    mean = cc - beta * gg
    return low, torch.stack([mean - ss, cg, mean + ss, gc], 1), torch.stack([sc + cs, sg, sc - cs, -gs], 1)


def _on_device(bank: WaveletBank, H: int, W: int, dtype: torch.dtype, device: torch.device) -> Any:
    """`_loaded`, which keeps plain tensors only: not those of a transform of torch.func or of a dispatch mode."""
    special = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    return (_loaded.__wrapped__ if special else _loaded)(bank, H, W, dtype, device)


@functools.lru_cache(maxsize=256)
def _loaded(bank: WaveletBank, H: int, W: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The matrices of `_dense` or `_separable` for maps (H, W), by name; and the size of the output."""
    name = str(dtype).removeprefix("torch.")
    rows, columns = matrices(bank, H, name), matrices(bank, W, name)
    size = len(rows["g"]), len(columns["g"])
    if H * W <= DENSE_PIXELS:
        arrays = {"all": _all_filters(rows, columns, bank.beta[1])}
    else:
        groups = ["g", "c s", "hc hs"] if bank.phi_sigma == bank.psi_sigma else ["g", "c s", "hc hs", "phi"]
        arrays = {f"rows {group}": np.concatenate([rows[f] for f in group.split()]) for group in groups}
        groups = ["g c s" if group == "g" else "g" if group == "c s" else group for group in groups]
        arrays |= {f"columns {group}": np.concatenate([columns[f] for f in group.split()]).T for group in groups}
    with torch.inference_mode(False):  # tensors of inference mode could not be saved for a backward pass
        return {key: torch.as_tensor(array, device=device) for key, array in arrays.items()}, size


def _all_filters(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray], beta: float) -> np.ndarray:
    """The matrix (H W, 9 h w) of the low-pass, and of the real and the imaginary parts of the wavelets."""
    gg, cg, sg, gc, gs, cc, ss, cs, sc, low = (
        np.kron(rows[a], columns[b])
        for a, b in [
            *[("g", "g"), ("c", "g"), ("s", "g"), ("g", "c"), ("g", "s")],
            *[("hc", "hc"), ("hs", "hs"), ("hc", "hs"), ("hs", "hc"), ("phi", "phi")],
        ]
    )
    mean = cc - beta * gg
    return np.concatenate([low, mean - ss, cg, mean + ss, gc, sc + cs, sg, sc - cs, -gs]).T.copy()


def _modulus(re: Tensor, im: Tensor) -> Tensor:
    """sqrt(re^2 + im^2), without overflow. All its derivatives at 0 are 0."""
    zero = (re == 0) & (im == 0)
    return torch.hypot(re.masked_fill(zero, 1), im).masked_fill(zero, 0)

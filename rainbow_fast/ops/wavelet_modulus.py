# SPDX-License-Identifier: BSD-3-Clause
"""The wavelet step of learned scattering networks: one low-pass filter, four wavelets, and the modulus."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import flag, tensor
from rainbow_fast.ops.registration import autocast_is_on, without_autocast
from rainbow_fast.ops.wavelet_bank import WaveletBank, matrices

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
DENSE_PIXELS = 64  # up to this size of a map, one product by all filters is faster than products along rows and columns
WAVELETS = 4

Maps = tuple[Tensor, Tensor, Tensor]  # of the low-pass filter (n, h, w), of the wavelets: real, imaginary (n, 4, h, w)


def wavelet_modulus(z: Tensor, bank: str | WaveletBank = "standard", *, skip: bool = False) -> Tensor:
    """Convolve each channel with a low-pass filter phi and four wavelets psi_t, and take the moduli of the wavelets.

        out = [z * phi, |z * psi_t|]                                 without `skip`
        out = [z * phi, z * psi_t, |z * phi|, |z * psi_t|]           with `skip`

    The map is reflected by 2 pixels on each side (1 before and 2 after an odd side); `*` is the convolution that
    is periodic on this padded map, sampled every `bank.stride` pixels from the first one on (the second, for an odd
    side). The modulus has no epsilon: it is exact, so that out(s z) = s out(z) for s > 0, and its gradient at 0
    is 0.

    Args:
        z: maps (N, c, H, W) with sides of at least 2, real or complex, in any memory format. A complex z is convolved
            by linearity: its real and imaginary parts alike.
        bank: "standard", "a", "b", or a `WaveletBank` of your own.
        skip: whether the output also has the wavelets without modulus, and the modulus of the low-pass.

    Returns:
        Maps (N, 5 c, H', W'), with `skip` (N, 10 c, H', W'), contiguous; a side M becomes M' = `bank.side(M)`. They
        are c low-pass channels, then 4 c channels of wavelets: those of channel 0 at 45, 0, -45 and -90 degrees, those
        of channel 1, and so on; with `skip`, these 5 c twice, without and with modulus. The output is complex if `skip`
        is set or z is complex; moduli then have imaginary part 0. Half precision is computed in float32; real outputs
        are rounded to the dtype of z, complex ones are complex64. Autocast changes nothing. NaN is passed on.

    The filters are cut to `bank.taps` taps on each axis. This changes the output, relative to its l2 norm, for white
    noise on maps of 32 pixels (on maps of a few pixels up to three times as much; both are tested), by

    | taps | "standard" | "a" | "b" |
    | --- | --- | --- | --- |
    | 7 | 7e-6 | 5e-6 | 2.5e-4 |
    | 9 | 5.5e-9 (default) | 4e-9 (default) | 2e-6 |
    | 11 | 1e-12 | 1e-12 | 8e-9 (default) |

    Raises:
        TypeError: z is not a tensor of float32, float64, bfloat16, float16, complex64 or complex128; bank is neither a
            string nor a `WaveletBank`; or skip is not a bool.
        ValueError: z is not (N, c, H, W), a side is below 2, or there is no bank of this name.

    Source: Guth, Menard, Rochette, Mallat (2024), appendix D, with the border of kymatio's scattering transform, which
    their code has.
    """
    bank = checked_bank(bank)
    skip = flag("skip", skip)
    if tensor("z", z).dtype not in DTYPES:
        raise TypeError(f"z is {z.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if z.dim() != 4 or min(z.shape[2:]) < 2:
        raise ValueError(f"z has shape {tuple(z.shape)}: wanted maps (N, c, H, W) with sides of at least 2")
    with without_autocast() if autocast_is_on(z) else nullcontext():
        return _reference(z, bank, skip)


def checked_bank(bank: Any) -> WaveletBank:
    """The bank of the argument `bank`.

    Raises:
        TypeError, ValueError: as in `wavelet_modulus`.
    """
    if isinstance(bank, str):
        return WaveletBank.named(bank)
    if not isinstance(bank, WaveletBank):
        raise TypeError(f"bank={bank!r}: wanted a string or a WaveletBank, got {type(bank).__name__}")
    return bank


def _reference(z: Tensor, bank: WaveletBank, skip: bool) -> Tensor:
    """The op in plain PyTorch."""
    if z.is_complex():
        parts = _convolved(torch.cat([z.real, z.imag]), bank)
        (low, low_i), (re, re_i), (im, im_i) = (part.unflatten(0, (2, len(z))) for part in parts)
        re, im = re - im_i, im + re_i
    else:
        low, re, im = _convolved(z.to(torch.promote_types(z.dtype, torch.float32)), bank)
        low_i = torch.zeros_like(low)
    modulus = _Modulus.apply(re, im)
    if not skip and not z.is_complex():
        return torch.cat([low, modulus], 1).to(z.dtype)
    if not skip:
        return torch.complex(torch.cat([low, modulus], 1), torch.cat([low_i, torch.zeros_like(modulus)], 1))
    low_modulus = _Modulus.apply(low, low_i) if z.is_complex() else low.abs()
    moduli = torch.cat([low_modulus, modulus], 1)
    return torch.complex(torch.cat([low, re, moduli], 1), torch.cat([low_i, im, torch.zeros_like(moduli)], 1))


def _convolved(z: Tensor, bank: WaveletBank) -> Maps:
    """The low-pass channels (N, c, h, w), and the real and imaginary parts of the wavelet channels (N, 4 c, h, w)."""
    N, c, H, W = z.shape
    maps, size = _on_device(bank, H, W, z.dtype, z.device)
    flat = z.flatten(0, 1)
    low, re, im = _dense(flat, maps, size) if "all" in maps else _separable(flat, maps, size, bank.beta[1])
    return low.unflatten(0, (N, c)), *(part.unflatten(0, (N, c)).flatten(1, 2) for part in (re, im))


def _dense(z: Tensor, maps: dict[str, Tensor], size: tuple[int, int]) -> Maps:
    """One product of each map (n, H, W) by all filters."""
    filtered = (z.flatten(1) @ maps["all"]).unflatten(1, (1 + 2 * WAVELETS, *size))
    return filtered[:, 0], filtered[:, 1 : 1 + WAVELETS], filtered[:, 1 + WAVELETS :]


def _separable(z: Tensor, maps: dict[str, Tensor], size: tuple[int, int], beta: float) -> Maps:
    """Products along columns, then along rows, of each map (n, H, W), and their sums."""
    n, (h, w) = len(z), size

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


@torch.compiler.disable
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


class _Modulus(torch.autograd.Function):
    """sqrt(re^2 + im^2), without overflow. Its gradient is 0 at 0, and differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(re: Tensor, im: Tensor) -> Tensor:
        return torch.hypot(re, im)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        re, im, modulus = ctx.saved_tensors
        divisor = modulus.masked_fill(modulus == 0, 1)
        return grad * (re / divisor), grad * (im / divisor)

    @staticmethod
    def jvp(ctx: Any, re_tangent: Tensor, im_tangent: Tensor) -> Tensor:
        re, im, modulus = ctx.saved_tensors
        divisor = modulus.masked_fill(modulus == 0, 1)
        return re_tangent * (re / divisor) + im_tangent * (im / divisor)

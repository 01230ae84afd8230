# SPDX-License-Identifier: BSD-3-Clause
"""The wavelet step of learned scattering networks: one low-pass filter, four wavelets, and the modulus.

The registered op is real. A complex number is a pair of real ones, on a last axis of length 2: in z if it is complex,
and in the output if z is complex or `skip` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import flag, tensor
from rainbow_fast.ops.registration import Derivative, functional
from rainbow_fast.ops.wavelet_bank import WaveletBank
from rainbow_fast.ops.wavelet_modulus_arguments import (
    DTYPES,
    checked_maps,
    described,
    in_tiles,
    lacking,
    output_of,
    packed,
    wavelet_modulus_flops,
)
from rainbow_fast.ops.wavelet_modulus_gradient import wavelet_modulus_vjp  # this also registers the op of reverse mode
from rainbow_fast.ops.wavelet_modulus_reference import wavelet_modulus_reference

COMPLEX = (torch.complex64, torch.complex128)


def wavelet_modulus(
    z: Tensor,  # (N, c, H, W)
    bank: str | WaveletBank = "standard",
    *,
    skip: bool = False,
    backend: str | None = None,
) -> Tensor:  # (N, 5 c, H', W'), with skip (N, 10 c, H', W')
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
        backend: ``"cpu"``, ``"triton"`` (maps of at most 32 x 32 pixels) or ``"reference"`` (plain PyTorch, on any
            device); None (default) takes the best one available. There are no CUDA kernels. A CUDA graph can be
            captured after a first call for maps of the same size, dtype and bank, which copies the filters to the GPU.

    Returns:
        Maps (N, 5 c, H', W'), with `skip` (N, 10 c, H', W'), contiguous; a side M becomes M' = `bank.side(M)`. They
        are c low-pass channels, then 4 c channels of wavelets: those of channel 0 at 45, 0, -45 and -90 degrees, those
        of channel 1, and so on; with `skip`, these 5 c twice, without and with modulus. The output is complex if `skip`
        is set or z is complex; moduli then have imaginary part 0. Half precision is computed in float32; real outputs
        are rounded to the dtype of z, complex ones are complex64. Autocast changes nothing. NaN is passed on;
        with ``"triton"``, a number that is not finite turns the outputs of its map, and no others, into NaN.

    Equivalent to convolutions with nine real 2-D filters, of which each is a sum of products of 1-D filters. These are
    applied one after the other, along columns and along rows. No map is stored but z and the output; the backward pass
    computes the wavelets again.

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
        ValueError: z is not (N, c, H, W), a side is below 2, there is no bank of this name, or the backend is not
            available, or not for maps of this size.

    Source: Guth, Menard, Rochette, Mallat (2024), appendix D, with the border of kymatio's scattering transform, which
    their code has.
    """
    bank = checked_bank(bank)
    skip = flag("skip", skip)
    if tensor("z", z).dtype not in (*DTYPES, *COMPLEX):
        raise TypeError(f"z is {z.dtype}: wanted one of {', '.join(map(str, (*DTYPES, *COMPLEX)))}")
    if z.dim() != 4 or min(z.shape[2:]) < 2:
        raise ValueError(f"z has shape {tuple(z.shape)}: wanted maps (N, c, H, W) with sides of at least 2")
    real = torch.view_as_real(z.resolve_conj()) if z.is_complex() else z
    constants = [bank.phi_sigma, bank.psi_sigma, bank.xi]
    out = torch.ops.rainbow_fast.wavelet_modulus(real, constants, bank.stride, bank.taps, skip, backend)
    return torch.view_as_complex(out) if skip or z.is_complex() else out


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


def _wavelet_modulus(
    z: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None
) -> Tensor:
    bank = checked_maps(z, constants, stride, taps)
    chosen = _backend.choose(backend, z.device, z.dtype, DTYPES, "wavelet_modulus", lacking(z, backend), called="z")
    if chosen == "reference":
        return wavelet_modulus_reference(z, bank, skip).contiguous()
    out = _backend.empty(*output_of(z, bank, skip), z.device)
    if out.numel() == 0:
        return out
    z, memory, parts = described(z)
    if chosen == "triton":
        tiles = in_tiles(bank, *z.shape[2:4], torch.promote_types(z.dtype, torch.float32), z.device)
        _backend.run_triton("wavelet_modulus", z.device, out, z, skip, tiles)
        return out
    kept, filters = packed(bank)
    target = (memory, parts, skip, out.data_ptr(), _backend.CODE[out.dtype])
    _backend.kernels().wavelet_modulus(target, filters, torch.get_num_threads())
    return out


def _fake(z: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None) -> Tensor:
    shape, dtype = output_of(z, checked_maps(z, constants, stride, taps), skip)
    return z.new_empty(shape, dtype=dtype)


def _plain(z: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None) -> Tensor:
    return wavelet_modulus_reference(z, checked_maps(z, constants, stride, taps), skip)


def _vmap(info: Any, in_dims: Any, z: Tensor, *how: Any) -> tuple[Tensor, int]:
    """A batch of batches of images is a batch of images."""
    images = z.movedim(in_dims[0], 0)
    out = torch.ops.rainbow_fast.wavelet_modulus(images.flatten(0, 1), *how)
    return out.unflatten(0, images.shape[:2]), 0


functional(
    "wavelet_modulus(Tensor z, float[] constants, int stride, int taps, bool skip, str? backend) -> Tensor",
    _wavelet_modulus,
    _fake,
    flops=wavelet_modulus_flops,
    captured=False,
    derivative=Derivative(wavelet_modulus_vjp, None, composite=_plain),
    vmap=_vmap,
)

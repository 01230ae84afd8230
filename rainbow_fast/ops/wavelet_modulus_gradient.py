# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of wavelet_modulus. The wavelets are computed again; its own derivatives are those of its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.memory import check_device
from rainbow_fast.ops.registration import Args, Derivative, functional
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
from rainbow_fast.ops.wavelet_modulus_reference import wavelet_modulus_gradient_reference


def wavelet_modulus_vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    """The gradient of each argument of wavelet_modulus."""
    z, *how = inputs
    return torch.ops.rainbow_fast.wavelet_modulus_gradient(z, grads[0], *how), None, None, None, None, None


def _check(z: Tensor, grad: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool) -> WaveletBank:
    bank = checked_maps(z, constants, stride, taps)
    shape, dtype = output_of(z, bank, skip)
    if tuple(grad.shape) != tuple(shape):
        raise ValueError(f"grad has shape {tuple(grad.shape)}: wanted that of the output, {tuple(shape)}")
    if grad.dtype != dtype:
        raise TypeError(f"grad is {grad.dtype}: wanted the dtype of the output, {dtype}")
    check_device("z", z, grad=grad)
    return bank


def _wavelet_modulus_gradient(
    z: Tensor, grad: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None
) -> Tensor:
    bank = _check(z, grad, constants, stride, taps, skip)
    chosen = _backend.choose(backend, z.device, z.dtype, DTYPES, "wavelet_modulus", lacking(z, backend), called="z")
    if chosen == "reference":
        return wavelet_modulus_gradient_reference(z, grad, bank, skip).contiguous()
    out = _backend.empty(z.shape, z.dtype, z.device)
    if out.numel() == 0:
        return out
    z, memory, parts = described(z)
    grad = grad.detach().contiguous()
    if chosen == "triton":
        tiles = in_tiles(bank, *z.shape[2:4], torch.promote_types(z.dtype, torch.float32), z.device)
        _backend.run_triton("wavelet_modulus.wavelet_modulus_gradient", z.device, out, z, grad, skip, tiles)
        return out
    kept, filters = packed(bank)
    source = (memory, parts, skip, grad.data_ptr(), _backend.CODE[grad.dtype])
    _backend.kernels().wavelet_modulus_gradient(out.data_ptr(), source, filters, torch.get_num_threads())
    return out


def _fake(
    z: Tensor, grad: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None
) -> Tensor:
    _check(z, grad, constants, stride, taps, skip)
    return z.new_empty(z.shape)


def _plain(
    z: Tensor, grad: Tensor, constants: Sequence[float], stride: int, taps: int, skip: bool, backend: str | None
) -> Tensor:
    return wavelet_modulus_gradient_reference(z, grad, _check(z, grad, constants, stride, taps, skip), skip)


def _vjp(inputs: Args, outputs: Any, grads: Any, needs: Args) -> tuple:
    z, grad, *how = inputs
    _, pull_back = torch.func.vjp(lambda *tensors: _plain(*tensors, *how), z, grad)  # type: ignore[misc]
    return *pull_back(grads[0]), None, None, None, None, None


def _vmap(info: Any, in_dims: Any, z: Tensor, grad: Tensor, *how: Any) -> tuple[Tensor, int]:
    """A batch of batches of images is a batch of images."""
    batches = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((z, grad), in_dims[:2], strict=True)
    ]
    out = torch.ops.rainbow_fast.wavelet_modulus_gradient(*(t.flatten(0, 1) for t in batches), *how)
    return out.unflatten(0, batches[0].shape[:2]), 0


def wavelet_modulus_gradient_flops(z: Sequence[int], constants: Sequence[float], stride: int, taps: int) -> int:
    """The filters once more, and their transposes: twice as many as for the output."""
    return 2 * wavelet_modulus_flops(z, constants, stride, taps)


functional(
    "wavelet_modulus_gradient(Tensor z, Tensor grad, float[] constants, int stride, int taps, bool skip, "
    "str? backend) -> Tensor",
    _wavelet_modulus_gradient,
    _fake,
    flops=wavelet_modulus_gradient_flops,
    captured=False,
    derivative=Derivative(_vjp, None, composite=_plain),
    vmap=_vmap,
)

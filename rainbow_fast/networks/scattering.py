# SPDX-License-Identifier: BSD-3-Clause
"""Learned scattering networks: fixed wavelets along space, learned 1x1 convolutions along channels."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rainbow_fast.arguments import between, flag, integer
from rainbow_fast.networks.mlp import check_positive, seeded
from rainbow_fast.ops.wavelet_bank import WaveletBank
from rainbow_fast.ops.wavelet_modulus import checked_bank, wavelet_modulus

EPS, MOMENTUM = 1e-5, 0.1  # of all standardisations

_factor = between(0, math.inf, "a number above 0", open_low=True, open_high=True)


class _Architecture(NamedTuple):
    widths: tuple[int, ...]  # channels after each block, at width 1
    banks: tuple[str, ...]
    image_size: int


ARCHITECTURES = {
    3: _Architecture((64, 128, 256, 512), ("standard",) * 4, 32),
    7: _Architecture((64, 128, 256, *(512,) * 5), ("a", "b") * 4, 32),
    10: _Architecture((32, 64, 64, 128, 256, *(512,) * 5, 256), ("standard", *("a", "b") * 5), 224),
}


def scattering(
    J: int = 7,
    width: float = 1.0,
    *,
    scale_last: bool = False,
    skip: bool = False,
    norm: bool = True,
    complex: bool = False,
    image_channels: int = 3,
    image_size: int | None = None,
    classes: int = 10,
    seed: int | None = None,
) -> nn.Sequential:
    """A learned scattering network with J hidden layers: J + 1 blocks of wavelets and a 1x1 convolution, a classifier.

        z_j = N(L_j Std(phi_j)),    phi_j = wavelet_modulus(z_{j-1}, bank_j),    z_0 = x
        logits = W BN(z_{J+1}).flatten(1)

    L_j is a 1x1 convolution without bias. Std and BN standardise each channel, without parameters; N divides by the l2
    norm over the channels at each position.

    | J | images | channels of z_j at width 1 | banks | side of the map after each block |
    | --- | --- | --- | --- | --- |
    | 3 | 32 | 64 128 256 512 | standard | 16 8 4 2 |
    | 7 | 32 | 64 128 256 512 512 512 512 512 | a b a b a b a b | 32 16 16 8 8 4 4 2 |
    | 10 | 224 | 32 64 64 128 256 512 512 512 512 512 256 | standard, 5 times a b | 112 112 56 56 28 28 14 14 7 6 3 |

    Args:
        J: number of hidden layers: 3 or 7 (for CIFAR-10), or 10 (for ImageNet).
        width: multiplies the numbers of channels, which are rounded down.
        scale_last: whether `width` multiplies the last number of channels of J = 3, too. In the published series of
            widths it stays 512 (`False`, the default). J = 7 and 10 scale it in any case.
        skip: whether phi_j also has the wavelets without modulus, as in `wavelet_modulus`. All z_j are then complex.
        norm: whether there is N; True by default.
        complex: whether the weights of L_j are complex; `module.double()` then leaves them as they are. If not, they
            act on the real and the imaginary part alike.
        image_channels: 3 for colour, 1 for grey images.
        image_size: side of the square images in pixels; 32 (J = 3 and 7) or 224 (J = 10) by default.
        classes: number of logits.
        seed: as in `mlp`. Real weights are uniform on +-1/sqrt(fan-in), as torch has them; complex ones are random
            unitary: rows of a unitary matrix, or columns if L_j has more outputs than inputs.

    Returns:
        A module on torch's default device (the CPU), in torch's default dtype, from real images (N, `image_channels`,
        `image_size`, `image_size`) to (N, `classes`) logits. It raises a ValueError for complex images, for another
        number of channels, and for maps too small for a block. NaN is passed on.

        Its submodules are `block1`, `block2`, ..., each with `wavelets`, `std`, `linear` and, with `norm`, `norm`; then
        `split` (if z is complex: into real and imaginary parts, alternating), `bn`, `flatten` and `fc`. `bn` has no
        parameters and `fc` no bias for J = 3 and 7; for J = 10 they have.

    Raises:
        TypeError: J, `image_channels`, `image_size` or `classes` is not an integer, `width` is not a number, or another
            argument is not a bool.
        ValueError: J is not 3, 7 or 10, a number is below 1, `width` is not above 0 or leaves a block without channels,
            `image_size` leaves a map of side 1 to a block, or the seed is outside 0 .. 2^63 - 1.

    Source: Guth, Menard, Rochette, Mallat (2024), appendix D and table 1, and their code. Figure 9 has J = 7 with
    `skip`; figures 2, 3, 6, 7 and 8 without; figure 10 has J = 7 without `norm`, figure 4 J = 3 without `norm`, and
    figure 5 J = 10 with `skip`, `complex`, without `norm`.
    """
    if integer("J", J) not in ARCHITECTURES:
        raise ValueError(f"J={J}: wanted 3, 7 or 10")
    width = _factor("width", width)
    for name, value in (("scale_last", scale_last), ("skip", skip), ("norm", norm), ("complex", complex)):
        flag(name, value)
    plan = ARCHITECTURES[J]
    image_size = plan.image_size if image_size is None else image_size
    check_positive(image_channels=image_channels, image_size=image_size, classes=classes)
    widths = [int(each * width) for each in plan.widths]
    if J == 3 and not scale_last:
        widths[-1] = plan.widths[-1]
    if min(widths) < 1:
        raise ValueError(f"width={width}: leaves {min(widths)} channels to a block, wanted at least 1")
    side = _last_side(plan, image_size)
    parts: dict[str, nn.Module] = {}
    before = image_channels
    with seeded(seed):
        for number, (after, bank) in enumerate(zip(widths, plan.banks, strict=True), start=1):
            complex_z = (skip or complex) and number > 1
            parts[f"block{number}"] = _block(before, after, bank, skip, norm, complex, complex_z)
            before = after
        if skip or complex:
            parts["split"] = Split()
            before *= 2
        published = J != 10  # no parameters beside the weights
        parts["bn"] = nn.BatchNorm2d(before, eps=EPS, momentum=MOMENTUM, affine=not published)
        parts["flatten"] = nn.Flatten()
        parts["fc"] = nn.Linear(before * side**2, classes, bias=not published)
    return nn.Sequential(OrderedDict(parts))


class Wavelets(nn.Module):
    """`wavelet_modulus`: (N, c, H, W) -> (N, 5 c, H', W'), with `skip` (N, 10 c, H', W'), complex.

    Args:
        bank, skip: as in `wavelet_modulus`.
        channels: the number c that is wanted; None (default) for any.
        real: whether complex maps are refused; they are not by default.
    """

    def __init__(
        self,
        bank: str | WaveletBank = "standard",
        skip: bool = False,
        *,
        channels: int | None = None,
        real: bool = False,
    ):
        super().__init__()
        self.bank, self.skip = checked_bank(bank), flag("skip", skip)
        self.channels, self.real = channels, flag("real", real)

    def forward(self, z: Tensor) -> Tensor:
        wrong = self.channels is not None and (z.dim() != 4 or z.shape[1] != self.channels)
        if wrong or (self.real and z.is_complex()):
            kind = "real maps" if self.real else "maps"
            channels = "c" if self.channels is None else self.channels
            raise ValueError(f"z is {z.dtype} {tuple(z.shape)}: wanted {kind} (N, {channels}, H, W)")
        return wavelet_modulus(z, self.bank, skip=self.skip)

    def extra_repr(self) -> str:
        return f"{self.bank}, skip={self.skip}"


class ComplexBatchNorm2d(nn.Module):
    """(z - E z) / sqrt(E|z - E z|^2 + eps) for each channel of complex maps (N, c, H, W), without parameters.

    As in `nn.BatchNorm2d`, the moments are those of the batch in training, and running averages in evaluation; the
    running variance is the unbiased one. `running_mean` (c, 2) has the real and the imaginary parts: real buffers take
    part in `module.double()`.
    """

    eps = EPS
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int):
        super().__init__()
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        self.channels = channels
        self.register_buffer("running_mean", torch.zeros(channels, 2, dtype=dtype, device=device))
        self.register_buffer("running_var", torch.ones(channels, dtype=dtype, device=device))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 4 or z.shape[1] != self.channels or not z.is_complex():
            raise ValueError(
                f"z is {z.dtype} {tuple(z.shape)}: wanted complex maps (N, {self.channels}, H, W) to standardise"
            )
        mean, variance = self.running_mean, self.running_var
        if self.training:
            count = z.numel() // self.channels
            if count < 2:
                raise ValueError(f"z has {count} values in each channel: wanted more than one in training")
            # first over contiguous numbers of all images, which is much faster
            mean = torch.view_as_real(z).flatten(2, 3).sum(0).sum(1) / count
        # complex differences: torch is slow at tensors that are broadcast along a last axis of length 2
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))  # there are no complex numbers of bfloat16
        centred = torch.view_as_real(z - torch.view_as_complex(mean)[:, None, None])
        if self.training:
            variance = centred.square().sum(0).flatten(1).sum(1) / count
            self._keep(mean.detach(), variance.detach() * (count / (count - 1)))
        return torch.view_as_complex(centred * (variance + EPS).rsqrt()[:, None, None, None])

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running averages towards the moments of a batch."""
        dtype = self.running_var.dtype
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(dtype), MOMENTUM)
        self.running_var.lerp_(variance.to(dtype), MOMENTUM)

    def extra_repr(self) -> str:
        return str(self.channels)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution without bias, of real maps.

    On CPUs, where maps have many pixels, it is computed as a product of matrices for each image: this is up to eight
    times faster than torch's convolution, with its gradient. The gradient of the weights is then first one of each
    image; so this is done only if these are not more numbers than the maps.
    """

    def forward(self, input: Tensor) -> Tensor:
        d, D = self.weight.shape[:2]
        pixels = input.shape[-2] * input.shape[-1]
        if input.device.type == "cpu" and input.is_contiguous() and d * D <= (d + D) * pixels:
            # len(input) would fix the number of images in an exported graph
            weights = self.weight.flatten(1).expand(input.shape[0], d, D)
            return torch.bmm(weights, input.flatten(2)).unflatten(2, input.shape[2:])
        return super().forward(input)


class RealConv2d(PointwiseConv2d):
    """A 1x1 convolution with real weights of complex maps: their real and imaginary parts are positions of one map."""

    def forward(self, input: Tensor) -> Tensor:
        positions = torch.view_as_real(input).flatten(-2)
        return torch.view_as_complex(super().forward(positions).unflatten(-1, (-1, 2)).contiguous())


class ComplexConv2d(nn.Conv2d):
    """A convolution with complex weights, of real or complex maps."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class UnitNorm(nn.Module):
    """Divides maps (N, c, H, W) by their l2 norm over the channels at each position; where it is 0, they stay 0.

    There is no epsilon. Where the norm is 0, the gradient is 0.
    """

    def forward(self, z: Tensor) -> Tensor:
        wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        parts = torch.view_as_real(wide) if z.is_complex() else wide.unsqueeze(-1)
        square = parts.square().sum(1, keepdim=True).sum(-1, keepdim=True)
        zero = square == 0
        factor = square.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)
        # not broadcast along the last axis, at which torch is slow
        out = parts * factor.expand(parts[:, :1].shape).contiguous()
        return torch.view_as_complex(out) if z.is_complex() else out.squeeze(-1).to(z.dtype)


class Split(nn.Module):
    """Complex maps (N, c, H, W) as real ones (N, 2 c, H, W): the real part of channel 0, its imaginary part, ..."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real(z).movedim(-1, 2).flatten(1, 2)


LAYERS = (Wavelets, ComplexBatchNorm2d, PointwiseConv2d, ComplexConv2d, UnitNorm, Split)  # each is one call in a graph


def _block(
    before: int, after: int, bank: str, skip: bool, norm: bool, complex_weights: bool, complex_z: bool
) -> nn.Sequential:
    """Wavelets, Std, L and N. `complex_z` says whether the block before gives complex maps."""
    channels, complex_maps = before * (10 if skip else 5), skip or complex_z
    wavelets = Wavelets(bank, skip, channels=before, real=not complex_z)
    std = ComplexBatchNorm2d(channels) if complex_maps else nn.BatchNorm2d(channels, EPS, MOMENTUM, affine=False)
    linear: nn.Conv2d
    if complex_weights:
        dtype = torch.get_default_dtype().to_complex()
        device = torch.get_default_device()
        linear = nn.utils.skip_init(ComplexConv2d, channels, after, 1, bias=False, device=device, dtype=dtype)
        _init_unitary(linear.weight)
    else:
        linear = (RealConv2d if complex_maps else PointwiseConv2d)(channels, after, 1, bias=False)
    parts: dict[str, nn.Module] = {"wavelets": wavelets, "std": std, "linear": linear}
    if norm:
        parts["norm"] = UnitNorm()
    return nn.Sequential(OrderedDict(parts))


@torch.no_grad()
def _init_unitary(weight: Tensor) -> None:
    """Fill weights (d, D, 1, 1) with a Haar random matrix with orthonormal rows, or columns if d > D."""
    d, D = weight.shape[:2]
    gaussian = torch.randn(max(d, D), min(d, D), dtype=weight.dtype, device=weight.device)
    q, r = torch.linalg.qr(gaussian)
    q = q * r.diagonal().sgn()
    weight.copy_((q if d > D else q.mH)[:, :, None, None])


def _last_side(plan: _Architecture, image_size: int) -> int:
    """The side of the last map."""
    side = image_size
    for number, bank in enumerate(plan.banks, start=1):
        if side < 2:
            raise ValueError(
                f"image_size={image_size}: leaves a map of side {side} to block {number}, wanted 2 or more"
            )
        side = WaveletBank.named(bank).side(side)
    return side

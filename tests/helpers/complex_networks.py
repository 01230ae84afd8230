# SPDX-License-Identifier: BSD-3-Clause
"""Scattering networks with complex weights, their images, and the maps before their sites."""

import torch
from here import draw
from torch import Tensor, nn

from rainbow_fast.networks import scattering
from rainbow_fast.tracing.trace import trace

IMAGES = 40
VARIANTS = {
    "plain": {},
    "no-norm": {"norm": False},
    "skip": {"skip": True},
    "skip-no-norm": {"skip": True, "norm": False},
}


def network(dtype: torch.dtype = torch.float64, **options: object) -> nn.Sequential:
    """As if trained: the running averages are those of other images."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # complex weights keep the dtype that they were built with
    try:
        net = scattering(3, 1 / 16, scale_last=True, image_size=16, complex=True, seed=0, **options)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        net.train()(images(60, seed=1).to(dtype))
    return net.eval()


def images(number: int = IMAGES, seed: int = 0) -> Tensor:
    return draw(number, 3, 16, 16, seed=seed).double()


def maps(net: nn.Module, x: Tensor) -> list[Tensor]:
    """z of each site, as `RainbowActivation` takes it."""
    inputs = []
    traced = trace(net, x[:1])
    state: tuple = (x,)
    for place, site in enumerate(traced.sites):
        state = traced.advance(place, state, [])
        inputs.append(state[0])
        state = (site.reference(state[0]), *state[1:])
    return inputs


def unitary(d: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(torch.view_as_complex(draw(d, d, 2, seed=seed).double())).Q


@torch.no_grad()
def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())

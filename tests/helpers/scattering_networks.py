# SPDX-License-Identifier: BSD-3-Clause
"""Small scattering networks, their images, the maps before their sites, and sampled ones without this package."""

import math
from collections import OrderedDict

import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf
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
    """As if trained: the running averages are those of other images. Weights are complex with `complex=True`."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # complex weights keep the dtype that they were built with
    try:
        net = scattering(3, 1 / 16, scale_last=True, image_size=16, seed=0, **options)
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


@torch.no_grad()
def wide_logits(
    net: nn.Sequential, sampled: rf.RainbowNetwork, x: Tensor, blocks: str, statistics: str
) -> tuple[Tensor, list[int]]:
    """The logits of a wide network with the rows of `sampled`, and the rank of M at each site.

    It filters n channels, aligns by torch's own SVD, and applies the reference's next layer.
    """
    phi = phih = net.block1.std(net.block1.wavelets(x))
    ranks = []
    for number in (1, 2, 3):
        block, following = (net.get_submodule(f"block{i}") for i in (number, number + 1))
        z, zh = block.linear(phi), block.linear(phih)
        G = sampled.site(f"block{number + 1}.wavelets").effective_rows()
        wide = torch.einsum("nd,bdhw->bnhw", G.to(zh.dtype), zh)
        if "norm" in dict(block.named_children()):
            z, wide = (t / t.abs().square().sum(1, keepdim=True).sqrt() for t in (z, wide))
        bank, skip = following.wavelets.bank, following.wavelets.skip
        phi, features = following.std(rf.wavelet_modulus(z, bank, skip=skip)), rf.wavelet_modulus(wide, bank, skip=skip)
        real = not G.is_complex()
        phih, rank = _aligned(phi, features, len(z[0]), following.std, blocks, statistics, real)
        ranks.append(rank)
    z = net.block4.linear(phih)
    z = net.block4.norm(z) if "norm" in dict(net.block4.named_children()) else z
    rest = nn.Sequential(OrderedDict((k, v) for k, v in net.named_children() if not k.startswith("block")))
    return rest(z), ranks


def _aligned(
    phi: Tensor, features: Tensor, d: int, std: nn.Module, blocks: str, statistics: str, real: bool
) -> tuple[Tensor, int]:
    """``phih = D A s D'^-1 (phi' - mu') + mu`` in the order of `Wavelets`, and the rank of M."""
    x, y = (t.movedim(1, -1).reshape(-1, t.shape[1]).T for t in (phi, features))
    mu, mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    D = ((x - mu).abs().square().mean(1) + std.eps / (std.running_var + std.eps)).sqrt()[:, None]
    D1 = ((y - mean).abs().square().mean(1) + std.eps).sqrt()[:, None]
    if statistics == "running":
        D, mu = torch.ones_like(D), torch.zeros_like(mu)
    white = (y - mean) / D1
    M = ((x - mu) / D) @ white.mH / x.shape[1]
    M = M.real if real else M
    F = len(x) // d
    rows, columns = _filter_of(d, F), _filter_of(len(y) // F, F)
    if blocks == "full":
        A, rank = _polar(M)
    else:
        A = torch.zeros_like(M)
        each = [M[rows == f][:, columns == f] for f in range(F)]
        parts = [_polar(sum(each))] * F if blocks == "shared" else [_polar(block) for block in each]
        for f, (part, _) in enumerate(parts):
            A[(rows == f).nonzero(), (columns == f).nonzero().T] = part
        rank = sum(rank for _, rank in parts[: 1 if blocks == "shared" else F])
    phih = D * (math.sqrt(len(x) / len(y)) * A.to(white.dtype) @ white) + mu
    return phih.T.reshape(len(phi), *phi.shape[2:], len(x)).movedim(-1, 1), rank


def _filter_of(channels: int, features: int) -> Tensor:
    """The filter of each channel of `Wavelets`: low-pass, then the four angles of each channel; twice with skip."""
    half = [0] * channels + [1, 2, 3, 4] * channels
    return torch.tensor(half + [5 + f for f in half] if features == 10 else half)


def _polar(M: Tensor) -> tuple[Tensor, int]:
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    kept = S > 1e-10 * S[0]
    return U[:, kept] @ Vh[kept], int(kept.sum())

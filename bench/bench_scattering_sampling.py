# SPDX-License-Identifier: BSD-3-Clause
"""Sampling a rainbow network from a learned scattering network with skip-connections, at four times its width.

Plain torch does what a user writes from the definition: it computes the n neurons of each layer, normalises them, and
filters each of them. Images go through in chunks, which bounds its memory. Ours filters the d channels of the
reference. Each filter has an alignment of its own, with the statistics of both sides. The error is that of the logits
of 100 images, against the same algorithm in float64 with the same G.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch
from bench_sampling import draw
from floor import Floor
from race import OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor, nn
from wavelet_ways import combined

import rainbow_fast as rf
from rainbow_fast.networks import scattering
from rainbow_fast.ops.wavelet_bank import matrices
from rainbow_fast.tracing.wavelet_maps import ByChannel, ByFilter

CHUNK, FEATURES, EPS, SIDE = 100, 10, 1e-5, 32
J, FACTOR = 3, 4


def wavelets(net: nn.Sequential, block: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function that filters pairs (N, n, H, W, 2): (N, n F, H', W', 2), as one product with a matrix."""
    side, bank = SIDE >> (block - 1), net.get_submodule(f"block{block}").wavelets.bank
    along, outputs = matrices(bank, side, "float64"), bank.side(side)
    whole = combined(lambda rows, columns: np.kron(along[rows], along[columns]), bank.beta[1])
    matrix = torch.from_numpy(whole).to(dtype).flatten(0, 1).T.contiguous()

    def way(z: Tensor) -> Tensor:
        a, b = ((part.flatten(2) @ matrix).unflatten(2, (9, -1)) for part in z.unbind(-1))
        real = torch.cat([a[:, :, :1], a[:, :, 1:5] - b[:, :, 5:]], 2)
        imaginary = torch.cat([b[:, :, :1], b[:, :, 1:5] + a[:, :, 5:]], 2)
        size = torch.hypot(real, imaginary)
        maps = torch.stack([torch.cat([real, size], 2), torch.cat([imaginary, torch.zeros_like(size)], 2)], -1)
        return maps.flatten(1, 2).unflatten(2, (outputs, outputs))

    return way


class Moments:
    """Sums of pairs (N, c, H, W, 2)."""

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        self.count += x[:, 0, ..., 0].numel()
        self.total = self.total + x.sum((0, 2, 3)).double()
        self.square = self.square + x.square().sum((0, 2, 3, 4)).double()

    def mean(self) -> Tensor:
        return self.total / self.count

    def deviation(self, eps: Tensor | float) -> Tensor:
        return (self.square / self.count - self.mean().square().sum(1) + eps).sqrt()


class Layer:
    """A layer of the reference, whose neurons are replaced by those that G combines."""

    def __init__(self, net: nn.Sequential, number: int, G: Tensor):
        self.before, self.block = (net.get_submodule(f"block{k}") for k in (number - 1, number))
        self.G = G
        self.way = wavelets(net, number, G.dtype)

    def reference(self, maps: Tensor) -> Tensor:
        return self.block.std(self.block.wavelets(self.before.norm(self.before.linear(maps))))

    def features(self, maps: Tensor) -> Tensor:
        wide = torch.einsum("nd,bd...->bn...", self.G, torch.view_as_real(self.before.linear(maps).contiguous()))
        return self.way(wide / wide.square().sum((1, -1), keepdim=True).sqrt())

    def sampled(self, maps: Sequence[Tensor], sampled_maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of the sampled network after the layer, from those of both networks before it."""
        own, new, M = Moments(), Moments(), torch.zeros((), dtype=torch.float64)
        for phi, z in zip(maps, sampled_maps, strict=True):
            a, b = ByChannel(FEATURES)(self.reference(phi)), self.features(z)
            own.update(a)
            new.update(b)
            x, y = (by_filter(t.movedim(0, 1)).flatten(2) for t in (a, b))
            M = M + (x @ y.mT).double()
        running = self.block.std.running_var.double()
        eps = ByChannel(FEATURES)((EPS / (running + EPS)).view(1, -1, 1, 1)).flatten()
        D, D_new, mu, mu_new = own.deviation(eps), new.deviation(EPS), own.mean(), new.mean()
        M = M / own.count - by_filter(mu) @ by_filter(mu_new).mT
        M = M / by_filter(D).unsqueeze(2) / by_filter(D_new).unsqueeze(1)
        U, _, Vh = torch.linalg.svd(M.to(self.G.dtype), full_matrices=False)
        A = U @ Vh * math.sqrt(M.shape[1] / M.shape[2])

        def of(z: Tensor) -> Tensor:
            phi = by_filter(((self.features(z) - each(mu_new, z)) / each(D_new, z)).movedim(0, 1))
            aligned = torch.einsum("fdn,fn...->df...", A, phi).flatten(0, 1).movedim(0, 1)
            return ByFilter(FEATURES)(each(D, z) * aligned + each(mu, z))

        return [of(z) for z in sampled_maps]


def by_filter(t: Tensor) -> Tensor:
    """(n F, ...) as (F, n, ...)."""
    return t.unflatten(0, (-1, FEATURES)).transpose(0, 1)


def each(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of channels (c,) or (c, 2), for pairs (N, c, H, W, 2)."""
    return values.to(like.real.dtype).view(1, len(values), 1, 1, -1)


def by_definition(net: nn.Sequential, x: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """The logits of the first images, of the network that is sampled from all images."""
    maps = [net.block1.std(net.block1.wavelets(chunk)) for chunk in x.split(CHUNK)]
    sampled = maps
    for number, G in enumerate(draws, start=2):
        layer = Layer(net, number, G)
        sampled = layer.sampled(maps, sampled)
        maps = [layer.reference(phi) for phi in maps]
    return nn.Sequential(*list(net)[J + 1 :])(net.block4.norm(net.block4.linear(sampled[0])))


def scattering_sampling(N: int, width: float, threads: int) -> Race:
    x = torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.5
    net = scattering(J, width, scale_last=True, skip=True, seed=0)
    with torch.no_grad():
        net.train()(x[:500])  # for the running averages
    net.eval()
    sizes = [net.get_submodule(f"block{number}").linear.out_channels for number in range(1, J + 1)]

    def generated() -> list[Tensor]:
        return [rf.gaussian(FACTOR * d, d, seed=1, stream=k) / math.sqrt(d) for k, d in enumerate(sizes)]

    def drawn() -> list[Tensor]:
        return [G / math.sqrt(G.shape[1]) for G in draw([(FACTOR * d, d) for d in sizes])]

    @functools.cache
    def exact(draws: Callable[[], list[Tensor]]) -> Tensor:
        return by_definition(copy.deepcopy(net).double(), x.double(), [G.double() for G in draws()])

    how = {"holdout": 0, "factor": FACTOR, "alignment_blocks": "filter", "seed": 1}
    candidates = {
        OURS: Candidate(lambda: rf.sample(net, x, **how)[0], lambda wide: relative(wide(x[:CHUNK]), exact(generated))),
        PLAIN: Candidate(lambda: by_definition(net, x, drawn()), lambda out: relative(out, exact(drawn))),
    }
    return Race(
        f"sampling of scattering J={J}, skip, width {Fraction(width)}, x {FACTOR}, N {N}",
        candidates,
        Floor({}),
        threads=threads,
        variant=threads == 1,
        rounds=2,
        slack=1e-5,  # moduli near 0 magnify roundings, which three polar factors pass on
    )


bench_scattering_sampling = entries(scattering_sampling, [(2000, 1 / 4, n) for n in (2, 1)], (OURS, PLAIN))

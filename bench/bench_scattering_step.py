# SPDX-License-Identifier: BSD-3-Clause
"""A training step of learned scattering networks at an eighth of the width, on a batch of 128 images of 32 pixels.

A step is the forward pass, the cross-entropy, the backward pass, and stochastic gradient descent with momentum and
weight decay. All candidates are the same network but for the wavelets, which are those of `wavelet_ways.py`: plain
torch convolves with nine 2-D filters; the published way has FFT; the best plain torch multiplies maps of at most 256
pixels by one matrix, and larger ones along columns and rows. The learning rate is 0, so that all steps begin with the
same weights. The error is that of the gradient of all weights, against the network in float64 with the whole filters.
An epoch of 50,000 images takes 390.6 times as long as a step, and the time of the augmentation.
"""

from collections.abc import Callable

import torch
from floor import Floor
from race import BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from wavelet_ways import DENSE_PIXELS, Way, by_fft, dense, direct, separable

import rainbow_fast as rf
from rainbow_fast.networks import scattering

IMAGES, WIDTH = 128, 1 / 8

Build = Callable[[rf.WaveletBank, int, int], Way]


class Wavelets(nn.Module):
    """A way as a module."""

    def __init__(self, way: Way):
        super().__init__()
        self.way = way

    def forward(self, z: Tensor) -> Tensor:
        return self.way(z)


def fastest(bank: rf.WaveletBank, c: int, side: int) -> Way:
    return (dense if side**2 <= DENSE_PIXELS else separable)(bank, c, side)


def network(J: int, build: Build | None = None) -> nn.Sequential:
    """The network, with the wavelets that `build` makes for a bank, a number of channels and a side."""
    net = scattering(J, WIDTH, scale_last=True, seed=0)
    side = 32
    for name, block in net.named_children():
        if name.startswith("block"):
            bank, channels = block.wavelets.bank, block.wavelets.channels
            if build is not None:
                block.wavelets = Wavelets(build(bank, channels, side))
            side = bank.side(side)
    return net


def step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """A function that trains for a step, and returns the gradient of all weights."""
    sgd = torch.optim.SGD(net.parameters(), lr=0, momentum=0.9, weight_decay=1e-4)

    def run() -> Tensor:
        with torch.enable_grad():
            loss = cross_entropy(net(x), y)
            sgd.zero_grad()
            loss.backward()
        sgd.step()
        return torch.cat([value.grad.flatten() for value in net.parameters()])

    return run


def training_step(J: int, threads: int) -> Race:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=source)
    y = torch.randint(10, (IMAGES,), generator=source)
    exact = step(network(J, by_fft).double(), x.double(), y)()
    ways: dict[str, Build | None] = {OURS: None, PLAIN: direct, BEST: fastest, PUBLISHED: by_fft}
    runs = {name: step(network(J, build), x, y) for name, build in ways.items()}
    return Race(
        f"training step of scattering J={J}, width 1/8",
        {name: Candidate(run, lambda got: relative(got, exact)) for name, run in runs.items()},
        Floor({}),
        threads=threads,
        variant=threads == 1,
        slack=1e-4,  # moduli near 0 magnify roundings of 1e-7, in each way by others
    )


bench_steps = entries(training_step, [(J, n) for J in (3, 7) for n in (2, 1)], (OURS, PLAIN, BEST, PUBLISHED))

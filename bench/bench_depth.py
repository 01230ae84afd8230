# SPDX-License-Identifier: BSD-3-Clause
"""Sampling convolutional networks of growing depth: linear time for ours, quadratic for the published loop.

The networks have 3 x 3 convolutions of 64 channels on maps of 16 x 16. The data is CIFAR-10 if it is found, else images
of its shape and spectrum: 320 to align on and 64 to test with. Every candidate runs all of them through both networks.
Ours and plain torch compute the error of every alignment on the test images. The published codes evaluate both networks
on them after every layer.

Plain torch keeps the activations of the last layer. The best plain torch keeps them in the layout channels_last, in
which torch's convolutions are faster and channels are the last axis of a matrix, without a copy. The published codes
run both networks in full for every layer. Errors in the table are those of `bench_sampling`.
"""

import functools
from itertools import pairwise

import torch
from bench_sampling import polar
from floor import Floor
from inputs import maps, training_images
from race import BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf

CHANNELS, SIDE, BATCH, ALIGN, TEST = 64, 16, 128, 320, 64


def images() -> tuple[Tensor, str]:
    """Training images of CIFAR-10 or maps like them, and the name of what they are."""
    photographs = training_images(ALIGN + TEST)
    return (maps(ALIGN + TEST), "maps") if photographs is None else (photographs, "CIFAR-10")


def network(depth: int) -> nn.Sequential:
    """A convolutional network whose weights keep the power of activations."""
    torch.manual_seed(0)
    sizes = [3] + [CHANNELS] * depth
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes)):
        conv = nn.Conv2d(before, after, 3, padding=1, stride=1 + (number == 0), bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()


def layer(weights: list[Tensor], number: int, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, weights[number], padding=1, stride=1 + (number == 0)))


def head(weights: list[Tensor], bias: Tensor, x: Tensor) -> Tensor:
    return F.linear(x.mean((2, 3)), weights[-1], bias)


def drawn(W: Tensor, G: Tensor, A: Tensor | None) -> Tensor:
    """W' = G W A / sqrt(d), where A acts on the input channels."""
    projected = torch.einsum("nd,dcij->ncij", G, W) / W.shape[0] ** 0.5
    return projected if A is None else torch.einsum("ndij,dc->ncij", projected, A)


def covariance(x: Tensor, y: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1) @ y.transpose(0, 1).flatten(1).T


def held_out_error(A: Tensor, x: Tensor, y: Tensor) -> float:
    """|A y - x|^2 / |x|^2 on test images."""
    return float((torch.einsum("dn,bnij->bdij", A, y) - x).square().sum() / x.square().sum())


@torch.no_grad()
def site_by_site(weights: list[Tensor], images: Tensor, draws: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """The sampled weights, and the error of every alignment on the images from `ALIGN` on."""
    x, y, A, sampled, errors = images, images, None, [], []
    for number, G in enumerate(draws):
        sampled.append(drawn(weights[number], G, A))
        x, y = layer(weights, number, x), layer(sampled, number, y)
        A = polar(covariance(x[:ALIGN], y[:ALIGN]))
        errors.append(held_out_error(A, x[ALIGN:], y[ALIGN:]))
    return [*sampled, weights[-1] @ A], errors


@torch.no_grad()
def channels_last(weights: list[Tensor], images: Tensor, draws: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """The same in the layout channels_last, with relu in place."""

    def samples(maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(-1, CHANNELS)

    def advanced(W: Tensor, number: int, maps: Tensor) -> Tensor:
        last = W.to(memory_format=torch.channels_last)
        return F.conv2d(maps, last, padding=1, stride=1 + (number == 0)).relu_()

    x = y = images.to(memory_format=torch.channels_last)
    A, sampled, errors = None, [], []
    for number, G in enumerate(draws):
        sampled.append(drawn(weights[number], G, A))
        x, y = advanced(weights[number], number, x), advanced(sampled[number], number, y)
        A = polar(samples(x[:ALIGN]).T @ samples(y[:ALIGN]))
        of_x, of_y = samples(x[ALIGN:]), samples(y[ALIGN:])
        errors.append(float((of_y @ A.T).sub_(of_x).square_().sum() / of_x.norm() ** 2))
    return [*sampled, weights[-1] @ A], errors


@torch.no_grad()
def layer_by_layer(weights: list[Tensor], bias: Tensor, x: Tensor, test: Tensor, draws: list[Tensor]) -> list[Tensor]:
    """As published: for every layer, two forward passes over the data and two over the test images."""

    def activations(net: list[Tensor], batch: Tensor) -> list[Tensor]:
        kept = []
        for number in range(len(draws)):
            batch = layer(net, number, batch)
            kept.append(batch)
        return [*kept, head(net, bias, batch)]

    sampled, A = list(weights), None
    for number, G in enumerate(draws):
        sampled[number] = drawn(weights[number], G, A)
        M = torch.zeros(CHANNELS, CHANNELS)
        for batch in x.split(BATCH):
            M += covariance(activations(weights, batch)[number], activations(sampled, batch)[number])
        A = polar(M / len(x))
        last = number + 1 == len(draws)
        following = weights[-1] @ A if last else torch.einsum("ndij,dc->ncij", weights[number + 1], A)
        sampled[-1 if last else number + 1] = following
        for batch in test.split(BATCH):
            activations(weights, batch), activations(sampled, batch)
    return sampled


@torch.no_grad()
def logits(weights: list[Tensor], bias: Tensor, x: Tensor) -> Tensor:
    for number in range(len(weights) - 1):
        x = layer(weights, number, x)
    return head(weights, bias, x)


def sampling(depth: int) -> Race:
    reference = network(depth)
    weights = [m.weight.detach() for m in reference if isinstance(m, nn.Conv2d | nn.Linear)]
    bias = reference[-1].bias.detach()
    data, what = images()
    x, test = data[:ALIGN], data[ALIGN:]
    source = torch.Generator()

    def draw() -> list[Tensor]:
        source.manual_seed(1)
        return [torch.randn(CHANNELS, CHANNELS, generator=source) for _ in range(depth)]

    @functools.cache
    def exact(generated: bool) -> Tensor:
        draws = [rf.gaussian(CHANNELS, CHANNELS, seed=1, stream=k) for k in range(depth)] if generated else draw()
        wide, _ = site_by_site([W.double() for W in weights], data.double(), [G.double() for G in draws])
        return logits(wide, bias.double(), test.double())

    def error_of_weights(sampled: list[Tensor]) -> float:
        return relative(logits(sampled, bias, test), exact(generated=False))

    candidates = {
        OURS: Candidate(
            lambda: rf.sample(reference, x, holdout=test, seed=1, max_samples=2**31),
            lambda sampled: relative(sampled[0](test), exact(generated=True)),
        ),
        PLAIN: Candidate(lambda: site_by_site(weights, data, draw()), lambda result: error_of_weights(result[0])),
        BEST: Candidate(lambda: channels_last(weights, data, draw()), lambda result: error_of_weights(result[0])),
        PUBLISHED: Candidate(lambda: layer_by_layer(weights, bias, x, test, draw()), error_of_weights),
    }
    # The layers of both networks over all images, the covariances, and the projection of the held-out images.
    positions = (ALIGN + TEST) * SIDE**2
    flops = depth * positions * 2.0 * CHANNELS**2 * (2 * 9 + 1)
    return Race(f"sampling on {what}, depth {depth}", candidates, Floor({"f32": flops}), rounds=2, slack=1e-4)


bench_depth = entries(sampling, [(8,), (16,)], (OURS, PLAIN, BEST, PUBLISHED))

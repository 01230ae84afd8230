# SPDX-License-Identifier: BSD-3-Clause
"""Multi-layer perceptrons as `torch.nn.Sequential`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from rainbow_fast.arguments import integer

BatchNorm = Literal["before", "after"]


def mlp(
    sizes: Sequence[int] = (1024, 512, 256, 10),
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = False,
    batch_norm: BatchNorm | None = None,
    seed: int | None = None,
) -> nn.Sequential:
    """A multi-layer perceptron: `Flatten, Linear, activation, Linear, activation, ..., Linear`.

        phi_0 = x.flatten(1),    phi_j = sigma(W_j phi_{j-1}),    logits = W_J phi_{J-1}

    Args:
        sizes: input width, hidden widths, number of classes. The default is the network of the published tutorial for
            32 x 32 grey images.
        activation: a function that returns a new activation module; called once for each hidden layer. ReLU by default.
        bias: whether the linear layers have biases; False by default.
        batch_norm: `"before"` puts an affine `BatchNorm1d` before each non-linearity; `"after"` puts one without
            parameters (`affine=False`) after it; `None` (default) uses none.
        seed: seed of the initial weights; the global random state is then left unchanged. `None` (default) uses the
            global random state of torch. The distribution is torch's default, uniform on +-1/sqrt(fan-in).

    Returns:
        A module on the CPU, in torch's default dtype, from (N, ...) with `sizes[0]` numbers in each sample to
        (N, `sizes[-1]`) logits.

    Raises:
        TypeError: a number is not an integer.
        ValueError: there are fewer than two sizes, a size is below 1, `batch_norm` is unknown, or the seed is outside
            0 .. 2^63 - 1.

    Source: the default is the perceptron in the tutorial of Guth, Menard, Rochette, Mallat (2024).
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes: wanted at least an input width and a number of classes, got {tuple(sizes)}")
    check_positive(sizes=sizes)
    check_batch_norm(batch_norm)
    with seeded(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise(sizes[:-1]):
            layers.append(nn.Linear(before, width, bias=bias))
            layers += nonlinearity(width, activation, batch_norm, nn.BatchNorm1d)
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=bias))
    return nn.Sequential(*layers)


def nonlinearity(
    width: int,
    activation: Callable[[], nn.Module],
    batch_norm: BatchNorm | None,
    norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d],
) -> list[nn.Module]:
    """The activation module of one hidden layer, and its batch norm if there is one, in order."""
    if batch_norm == "before":
        return [norm(width), activation()]
    if batch_norm == "after":
        return [activation(), norm(width, affine=False)]
    return [activation()]


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """A context in which torch draws random numbers from `seed`, on the CPU and on `device` if it is given.

    On exit, the global random state is restored. `seed=None` changes nothing.
    """
    if seed is None:
        yield
        return
    seed = integer("seed", seed, 0, 2**63 - 1)
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed all other devices
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def check_positive(**values: int | Sequence[int]) -> None:
    """Raise an error that names the argument unless each is an integer of at least 1, or a sequence of them."""
    for name, value in values.items():
        for each in value if isinstance(value, Sequence) else [value]:
            integer(name, each, 1)


def check_batch_norm(batch_norm: str | None) -> None:
    """Raise ValueError unless `batch_norm` is None, "before" or "after"."""
    if batch_norm not in (None, "before", "after"):
        raise ValueError(f'batch_norm: wanted None, "before" or "after", got {batch_norm!r}')

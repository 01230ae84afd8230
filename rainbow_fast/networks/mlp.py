# SPDX-License-Identifier: BSD-3-Clause
"""Multi-layer perceptrons as plain `torch.nn.Sequential`."""

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
    """A perceptron: `Flatten, Linear, activation, Linear, activation, ..., Linear`.

        phi_0 = x.flatten(1),    phi_j = sigma(W_j phi_{j-1}),    logits = W_J phi_{J-1}

    Args:
        sizes: input width, hidden widths, number of classes. The default is the published tutorial's network on
            32 x 32 grey images.
        activation: makes the non-linearity, one module per hidden layer.
        bias: whether the linear layers have biases.
        batch_norm: `"before"` puts an affine `BatchNorm1d` before each non-linearity, `"after"` one without
            parameters (`affine=False`) after it, `None` none.
        seed: initialises the weights from this seed and leaves the global random state alone. `None` draws them
            from torch's global random state. The law is torch's default: uniform on +-1/sqrt(fan-in).

    Returns:
        A module on the CPU, float32 unless torch's default dtype is another, from (N, ...) with `sizes[0]` numbers
        an image to (N, `sizes[-1]`) logits.

    Raises:
        ValueError: fewer than two sizes, a size below 1, an unknown `batch_norm`, a seed outside 0 .. 2^63 - 1.

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
    """The non-linearity of one hidden layer, with its batch norm if it has one."""
    if batch_norm == "before":
        return [norm(width), activation()]
    if batch_norm == "after":
        return [activation(), norm(width, affine=False)]
    return [activation()]


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch draws from `seed` on the CPU and on `device` (default the CPU alone); afterwards the global
    random state is what it was. `seed=None` changes nothing."""
    if seed is None:
        yield
        return
    seed = integer("seed", seed, 0, 2**63 - 1)
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every other device
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def check_positive(**values: int | Sequence[int]) -> None:
    """Every one is an integer of at least 1, or a sequence of such, or an error names the argument."""
    for name, value in values.items():
        for each in value if isinstance(value, Sequence) else [value]:
            integer(name, each, 1)


def check_batch_norm(batch_norm: str | None) -> None:
    """`batch_norm` one of the known places, or a ValueError."""
    if batch_norm not in (None, "before", "after"):
        raise ValueError(f'batch_norm: wanted None, "before" or "after", got {batch_norm!r}')

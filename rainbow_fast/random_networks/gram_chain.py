# SPDX-License-Identifier: BSD-3-Clause
"""gram_chain: the exact law of random chains with Gaussian weights, without any weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.progress import Progress
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chains import WIDE, ChainPlan, ChainResult, Record, factor, triangular
from rainbow_fast.random_networks.gaussian_layer import layer_keys

NUMBERS = 1 << 18  # random numbers of one call: 2 MiB, which stay in a cache until they are used


@torch.no_grad()
def gram_chain(
    H: Tensor,  # (n, d), (B, n, d) or (runs, B, n, d)
    depth: int,
    *,
    width: int | Sequence[int],
    layer: RandomLayer | None = None,
    runs: int = 1,
    seed: int = 0,
    every: int = 1,
    progress: Progress | bool | None = None,
) -> ChainResult:
    r"""Random chains with fresh Gaussian weights in every layer, by the law of the batch alone.

    Let X (n, d_in) be a batch, and W (d, d_in) have independent entries N(0, gain^2 / d_in). The units of X W^T are
    then independent, each N(0, gain^2 X X^T / d_in). So X W^T has the law of ``gain / sqrt(d_in) S Z``, with S (n, n),
    ``S S^T = X X^T``, and Z (n, d) white. A layer takes n d random numbers and about 2 n^2 d multiplications; explicit
    weights take d^2 and n d^2. All runs of a width are one batch of matrices.

    A linear layer (identity, no skip) keeps the factor S alone: a norm multiplies Z by a diagonal D from the right, and
    ``S L`` with ``L L^T = Z D D Z^T`` is the next factor. A product of factors keeps all its digits, however nearly
    dependent the samples are. Other layers keep the batch, and find S by Cholesky's method, or by a QR decomposition
    where the samples are nearly dependent.

    All numbers are float64. The random numbers of a run are a pure function of seed, layer, width and run.

    Args:
        H: the first batch, n samples of any number of units; as in `weight_chain`, with B batches and runs.
        depth, width, layer, runs, seed, every, progress: as in `weight_chain`.

    Raises:
        ValueError, TypeError, RuntimeError: as `weight_chain`.

    Source: the rows of a product with a Gaussian matrix are Gaussian given the other factor.
    """
    plan = ChainPlan.of(H, depth, width, layer, runs, seed, every, WIDE)
    batches, n = plan.start.shape[1:3]

    def chain(d: int, record: Record) -> None:
        by_factors = plan.layer.is_linear and batches == 1 and n <= d
        (_keep_factors if by_factors else _keep_batches)(plan, d, record)

    return plan.run(chain, "gaussian", progress)


def _keep_factors(plan: ChainPlan, d: int, record: Record) -> None:
    """One batch, and a linear layer: the state is a factor S (runs, n, k) of the Gram matrix."""
    units = plan.start.shape[-1]
    H = plan.start[:, 0].double()
    S = triangular(H) if H.shape[-2] <= units else H
    for number, Z in enumerate(_white(plan, d, S.shape[-1], range(plan.depth))):
        scale = plan.layer.gain / math.sqrt(d if number else units)
        left, right = plan.layer.normalise(scale * S, Z)
        assert left is not None
        S = plan.rescaled(left @ triangular(right))
        record(number + 1, S[:, None])


def _keep_batches(plan: ChainPlan, d: int, record: Record) -> None:
    """Any layer: the state is the batches (runs, B, n, d)."""
    _, batches, n, units = plan.start.shape
    first = _white(plan, d, min(batches * n, units), range(1))
    later = _white(plan, d, min(batches * n, d), range(1, plan.depth))
    state = plan.start.double()
    for number, Z in enumerate(itertools.chain(first, later)):

        def linear(H: Tensor, Z: Tensor = Z) -> Tensor:
            scale = plan.layer.gain / math.sqrt(H.shape[-1])
            return (scale * factor(H.flatten(1, 2)) @ Z).view(*H.shape[:-1], d)

        state = plan.rescaled(plan.layer(state, linear))
        record(number + 1, state)


def _white(plan: ChainPlan, d: int, k: int, layers: range) -> Iterator[Tensor]:
    """White numbers (runs, k, d) of layer after layer. Some layers at a time are drawn in one call."""
    runs = len(plan.start)
    together = max(1, NUMBERS // (k * runs * d))
    for some in (layers[start : start + together] for start in range(0, len(layers), together)):
        keys = torch.cat([layer_keys(1, plan.seed, number, plan.first_row(d)) for number in some])
        for G in gaussian(k, runs * d, seed=keys, dtype=torch.float64, device=plan.start.device):
            yield G.view(k, runs, d).transpose(0, 1)

# SPDX-License-Identifier: BSD-3-Clause
"""A control experiment: a second trained network instead of a sampled network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.compare import compare
from rainbow_fast.tracing.trace import State, trace

Labelled = tuple[Tensor, Tensor]


@torch.no_grad()
def another_network(
    reference: nn.Module, other: nn.Module, align: Tensor, test: Labelled
) -> tuple[float, list[dict[str, Any]]]:
    """Align each site of a second trained network with the reference: phih_j = sqrt(d / n) A phi_j.

    Returns:
        The accuracy of the classifier of the reference on the aligned activations of the last site, and a record of
        each site.
    """
    comparison = compare(reference, other, align, holdout=test)
    records = [
        {"index": index, "site": site.site, "d": site.d, "n": site.n}
        | {"alignment_error": site.error, "error": site.held_out_error}
        for index, site in enumerate(comparison.sites)
    ]
    last, A = comparison.sites[-1], comparison.alignments[-1]
    aligned = math.sqrt(last.d / last.n) * A.to(align.dtype)
    answers = []
    for x in test[0].split(500):
        phih = torch.einsum("nm...,dm->nd...", _last_phi(other, x), aligned)
        chain = trace(reference)
        answers.append(chain.finish(len(chain.sites), (phih,), []).argmax(1))
    return float((torch.cat(answers) == test[1]).double().mean()), records


def _last_phi(network: nn.Module, x: Tensor) -> Tensor:
    """The activations of the last site of a chain."""
    chain = trace(network)
    state: State = (x,)
    for place, site in enumerate(chain.sites):
        state = (site.reference(chain.advance(place, state, [])[0]),)
    return state[0]

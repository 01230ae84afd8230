# SPDX-License-Identifier: BSD-3-Clause
"""All layers after the last site, trained again behind the sampled sites by stochastic gradient descent."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast.tracing.tail import Tail

EPOCHS, BATCH = 15, 128
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4  # the rate is divided by 10 after each third of the epochs


def retrained_tail(tail: Tail, phi: Tensor, labels: Tensor) -> Tail:
    r"""The tail whose weights theta decrease the mean cross-entropy of ``last(between(phi; theta); theta)``.

    They start from the trained weights. Each of `EPOCHS` epochs visits all samples in batches of at least `BATCH`, in
    random orders that are always the same: ``v <- m v + g + w theta``, ``theta <- theta - r v``, with momentum m,
    weight decay w and rate r. Batch norms use the statistics of the batch and update their running averages.

    Source: the rainbow paper, Figure 9, "classifier retraining", which in the official code trains L_{J+1} too. Rate,
    momentum, decay and batch are those that the networks are trained with there, in 150 epochs on augmented images.

    Args:
        tail: of the reference. It is not changed.
        phi: (N, d, *space), aligned activations phih of the last site, float32 or float64.
        labels: (N,) int64.

    Returns:
        A tail of copies, in eval mode, in the dtype of phi.
    """
    between, last = copy.deepcopy(tail.between), copy.deepcopy(tail.last)
    layers = [last, *(between.get_submodule(name) for name in tail.trainable)]
    parameters = list({id(p): p for layer in layers for p in layer.parameters()}.values())
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for layer in layers:
            layer.train()
        optimizer = torch.optim.SGD(parameters, RATE, MOMENTUM, weight_decay=DECAY)
        for epoch in range(EPOCHS):
            for group in optimizer.param_groups:
                group["lr"] = RATE / 10 ** (3 * epoch // EPOCHS)
            order = torch.randperm(len(phi), generator=generator, device="cpu").to(phi.device)
            for batch in order.tensor_split(max(1, len(phi) // BATCH)):
                optimizer.zero_grad()
                F.cross_entropy(last(between(phi[batch])), labels[batch]).backward()
                optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return replace(tail, between=between.eval(), last=last.eval())

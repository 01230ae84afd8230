# SPDX-License-Identifier: BSD-3-Clause
"""The control experiment: with the reference's own neurons, a sampled network gives the reference's outputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import rainbow_fast as rf
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tracing.agreement import distances
from rainbow_fast.tracing.trace import trace
from studies.breadth.libraries import Architecture, build, samples

LIMITS = {"float32": 5e-5, "float64": 1e-8}  # of the largest output
MEASURED = 16  # samples that batch norms are measured on
LOW, HIGH = 0.25, 0.75
# Odd numbers of samples: if a site has as many samples as channels, the smallest singular values of M are far smaller.
SAMPLES, OF_LARGE_IMAGES, OF_TRANSFORMERS, LARGE_IMAGE = 5, 3, 16, 100
SMALL = 3 * 10**7  # most parameters of networks that Gaussian neurons are drawn for
LARGE, EACH = 5 * 10**8, 8  # above so many parameters, float64 samples every eighth site: 24 GB hold no more


def identity(architecture: Architecture) -> Record:
    """How far networks of this architecture are from their reference, relative to the largest output.

    Keys: "float32" and "float64", with the reference's own neurons, in these dtypes; "gaussian", with Gaussian neurons,
    in float32, for small networks; "rounding", of the reference itself in float32, if each weight changes by one unit
    in the last place; "of", the number of sites that float64 samples if not all. An architecture that is refused has
    the key "error" instead.
    """
    count = OF_LARGE_IMAGES if architecture.shape[-1] > LARGE_IMAGE else SAMPLES
    if architecture.library == "transformers":  # small networks
        count = OF_TRANSFORMERS
    try:
        x = samples(architecture._replace(shape=(MEASURED, *architecture.shape[1:])))
        network = as_trained(build(architecture), x)
        return measured(network, x[:count])
    except Exception as error:  # libraries and networks may raise anything
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


@torch.no_grad()
def measured(network: nn.Module, x: Tensor) -> Record:
    """The distances of `identity` for one network, which becomes float64."""
    _normalise_sites(network, x)
    wanted = network(x)
    result: Record = {
        "float32": _distance(network, x, wanted, "identity"),
        "rounding": _rounded(distances(_next_to(network)(x), wanted)),
    }
    options: dict[str, Any] = {}
    size = sum(weight.numel() for weight in network.parameters())
    if size <= SMALL:
        with suppress(ValueError):  # at a site of few neurons, all Gaussian ones may be 0
            result["gaussian"] = _distance(network, x, wanted, "gaussian")
    if size > LARGE:
        options["sites"] = [site.name for site in rf.sites(network, x) if site.kept is None][::EACH]
        result["of"] = len(options["sites"])
    network, x = network.double(), x.double() if x.is_floating_point() else x
    _normalise_sites(network, x)
    return result | {"float64": _distance(network, x, network(x), "identity", **options)}


@torch.no_grad()
def as_trained(network: nn.Module, x: Tensor) -> nn.Module:
    """Give all layers a share in the outputs, and activations a size of one, as training does. In place.

    Weights that begin constant, such as the scales of layers, which are often 0 or 1e-6, become random between 1/4 and
    3/4. A batch norm gets the mean squares of its inputs as variances, and means of 0. With means subtracted, deep
    networks of random weights would amplify rounding.
    """
    source = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.is_floating_point() and not name.endswith("bias") and bool((weight == weight.flatten()[0]).all()):
            weight.uniform_(LOW, HIGH, generator=source)
    with _before_batch_norms(network, _measure):
        network(x)
    return network


def _measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    (z,) = inputs
    if norm.running_var is not None:
        norm.running_mean.zero_()
        norm.running_var.copy_(z.square().mean([axis for axis in range(z.dim()) if axis != 1]))


def _normalise_sites(network: nn.Module, x: Tensor) -> None:
    """Give the batch norms that are parts of sites the mean and the variance of their inputs, as sampling does."""
    names = {site.modules[-1] for site in trace(network, x[:1]).sites if site.norm is not None and site.modules}
    with _before_batch_norms(network, _measure_both, names):
        network(x)


def _measure_both(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    (z,) = inputs
    others = [axis for axis in range(z.dim()) if axis != 1]
    norm.running_mean.copy_(z.mean(others))
    norm.running_var.copy_(z.var(others, correction=0))


@contextmanager
def _before_batch_norms(
    network: nn.Module, hook: Callable[[Any, tuple[Tensor, ...]], None], names: Collection[str] | None = None
) -> Iterator[None]:
    """Call the hook before the batch norms of these names; None stands for all."""
    handles = [
        norm.register_forward_pre_hook(hook)
        for name, norm in network.named_modules()
        if isinstance(norm, _BatchNorm) and (names is None or name in names)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _next_to(network: nn.Module) -> nn.Module:
    """A copy in which each weight is changed by one unit in the last place, up or down, or not at all."""
    moved, source = copy.deepcopy(network), torch.Generator().manual_seed(1)
    for weight in moved.parameters():
        if weight.is_floating_point():
            steps = torch.randint(-1, 2, weight.shape, generator=source)
            weight.mul_(1 + torch.finfo(weight.dtype).eps * steps.to(weight.dtype))
    return moved


def _distance(network: nn.Module, x: Tensor, wanted: Any, law: str, **options: Any) -> float:
    """With a centred alignment, so that no direction is lost because the mean is far larger."""
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # few samples over-fit, as they should here
        sampled, _ = rf.sample(network, x, law=law, center=True, offset=True, holdout=0, **options)
    return _rounded(distances(sampled(x), wanted))


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")

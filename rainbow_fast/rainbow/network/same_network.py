# SPDX-License-Identifier: BSD-3-Clause
"""Checks of a sampled network: it is deterministic, and equals what its run computed and its plain wide module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.maps import channels_first
from rainbow_fast.ops.precision import PRECISIONS
from rainbow_fast.rainbow.inputs import as_float64, probes_for
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.materialize import materialize
from rainbow_fast.tracing.agreement import bound, distance, distances, limit_of
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.tail import Tail
from rainbow_fast.tracing.trace import State, Trace
from rainbow_fast.tracing.wavelet_maps import ByChannel

FEW = 8  # number of samples, at most: every call generates G again
AMPLIFIED = 8  # how much larger the error of one order of sums may be than that of another
WRITTEN = 4  # number of samples for a plain wide module, whose cost grows with the square of its widths

Calls = dict[str, tuple[Tensor, Tensor]]  # input and output of each site


@torch.no_grad()
def check_network(
    body: nn.Module,
    sites: Mapping[str, RainbowActivation],
    trace: Trace,
    x: Tensor,
    *,
    head: nn.Module | None = None,
    refit: bool = False,
    tail: Tail | None = None,
) -> None:
    """Call a sampled network twice, and compare it with the chain of layers and sites that it was sampled along.

    Args:
        body: of the network; contains the sites under their names.
        sites: the sampled sites in order, by name.
        trace: the chain.
        x: a few samples.
        head: the new classifier that was fitted to phih, or None.
        refit: whether the last site contains a new classifier.
        tail: the layers after the last site, if they were trained again.

    Raises:
        RuntimeError: two calls give different bits, or the network differs from the chain by more than `bound`. The
            message names the first site that differs.
    """
    with untouched(x.device):
        parts = {name: body.get_submodule(name) for name in sites}
        outputs, calls = _called(body, parts, x)
        again, repeated_calls = _called(body, parts, x)
        if distances(again, outputs) > 0:
            raise RuntimeError(
                f"network: called twice on {len(x)} samples it gives two outputs, {distances(again, outputs):.1e} of "
                f"the largest apart, first {_first(calls, repeated_calls, 0.0)}: wanted the same to the bit"
            )
        wanted, of_chain = _along(trace, sites, x, head, refit, tail)
        limit = limit_of(outputs, x, _precision(sites))
        if (apart := distances(outputs, wanted)) > limit:
            raise RuntimeError(
                f"network: it differs from what its sites and the reference's layers give on {len(x)} samples by "
                f"{apart:.1e} of the largest output, first {_first(of_chain, calls, limit)}, wanted at most {limit:.1e}"
            )


@torch.no_grad()
def check_run(network: nn.Module, x: Tensor, computed: Any, last: str, precision: str = "highest") -> None:
    """Compare a network with the outputs that its sampling run computed for a chunk x.

    A few samples are compared first, then the whole chunk. If outputs differ by more than `bound`, rounding may have
    been amplified, because the run computes features in another order than the network (`sampling.route`). So the error
    of the network is measured, against its copy in float64.

    Args:
        computed: the outputs of the run.
        last: name of the last site, for the message.
        precision: of the float32 products of the sites.

    Raises:
        RuntimeError: the outputs differ by more than `bound`, and by more than `AMPLIFIED` times the network's error.
    """
    limit, few, apart = limit_of(computed, x, precision), x[:FEW], float("inf")
    if isinstance(computed, Tensor) and len(computed) == len(x):
        apart = distance(network(few.clone()), computed[:FEW], computed)
    if apart > limit and (apart := distances(network(x.clone()), computed)) > limit:
        limit = max(limit, AMPLIFIED * _rounding_error(network, x))
    if apart > limit:
        raise RuntimeError(
            f"network: after its last site {last!r} it differs from what its run computed by {apart:.1e} of the "
            f"largest output, wanted at most {limit:.1e}"
        )


@torch.no_grad()
def written_out(body: nn.Module, shape: tuple[int, ...], probes: Tensor | None = None) -> nn.Module:
    """`materialize` a sampled network, and compare the result with it on a few inputs.

    The two must agree within `bound`. If they do not, they are compared again in float64, as the network may amplify
    rounding.

    Args:
        shape: of one input.
        probes: the inputs; None for `probes_for` a network of inputs of this shape.

    Raises:
        RuntimeError: the two differ. The message names the first site that differs.
    """
    device = next(p.device for p in body.parameters())
    x = probes_for(body, WRITTEN, shape) if probes is None else probes.to(device)
    module, features = materialize(body, x[:2])
    training = [part for part in body.modules() if part.training]
    body.eval()
    try:
        with untouched(x.device):
            sites = {name: part for name, part in body.named_modules() if isinstance(part, RainbowActivation)}
            wanted, own = _called(body, sites, x)
            outputs, wide = _called(module, features, x)
            limit, apart = limit_of(wanted, x, _precision(sites)), distances(outputs, wanted)
            if apart > limit and not _equal_in_float64(body, as_float64(x)):
                own = {name: (z, _wide(sites[name], z)) for name, (z, _) in own.items()}
                wide = {name: (z, _neurons(sites[name], phi)) for name, (z, phi) in wide.items()}
                raise RuntimeError(
                    f"materialize: the module written out differs from the network by {apart:.1e} of the largest "
                    f"output on {len(x)} inputs, first {_first(own, wide, limit)}, wanted at most {limit:.1e}"
                )
    finally:
        for part in training:
            part.training = True
    return module


def _precision(sites: Mapping[str, RainbowActivation]) -> str:
    """The lowest precision of sampled sites."""
    return max((site.precision for site in sites.values()), key=PRECISIONS.index, default="highest")


def _equal_in_float64(body: nn.Module, x: Tensor) -> bool:
    try:
        exact = copy.deepcopy(body).double()
        return distances(materialize(exact, x[:2])[0](x.clone()), exact(x.clone())) <= bound()
    except (RuntimeError, TypeError, ValueError):  # the user's network may support only its own dtype
        return False


def _rounding_error(network: nn.Module, x: Tensor) -> float:
    """The distance between the outputs of a network and those of its copy in float64; 0 if it supports only its own."""
    try:
        return distances(copy.deepcopy(network).double()(as_float64(x)), network(x.clone()))
    except (RuntimeError, TypeError, ValueError):
        return 0.0


def _wide(site: RainbowActivation, z: Tensor) -> Tensor:
    """The wide features phi' of a site, (N, n, *space)."""
    return site.features(channels_first(z, site.axis, True) if site.flattened else z)


def _neurons(site: RainbowActivation, phi: Tensor) -> Tensor:
    """phi' of the written layer, without the neuron for the offset that it may have in addition."""
    if site.kind.features > 1:
        return ByChannel(site.kind.features)(phi)
    return channels_first(phi, site.axis, site.flattened)[:, : site.n]


def _along(
    trace: Trace,
    sites: Mapping[str, RainbowActivation],
    x: Tensor,
    head: nn.Module | None,
    refit: bool,
    tail: Tail | None,
) -> tuple[Any, Calls]:
    """The outputs of the chain with these sites, computed as in the sampling run, and the calls of the sites."""
    state: State = (x.clone(),)
    done: list[nn.Module] = []
    calls: Calls = {}
    for place, site in enumerate(trace.sites):
        z, *rest = trace.advance(place, state, done)
        done.append(sites.get(site.name, site.reference))
        state = (done[-1](z), *rest)
        if site.name in sites:
            calls[site.name] = z, state[0]
    if tail is not None:
        return tail.last(tail.between(state[0])), calls
    if head is not None:
        return head(trace.tail().between(state[0])), calls
    if refit:
        flattened = isinstance(done[-1], RainbowActivation) and done[-1].flattened
        return state[0] if flattened else trace.tail().between(state[0]), calls
    return trace.advance(len(trace.sites), state, done)[0], calls


def _called(network: nn.Module, parts: Mapping[str, nn.Module], x: Tensor) -> tuple[Any, Calls]:
    """The outputs for x, and the input and output of each of these parts, in order of execution."""
    calls: Calls = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, result: calls.update({name: (args[0].clone(), result.clone())})

    with ExitStack() as handles:
        for name, part in parts.items():
            handles.callback(part.register_forward_hook(note(name)).remove)
        return network(x.clone()), calls


def _first(wanted: Calls, calls: Calls, limit: float) -> str:
    """Names the first site, in order, whose outputs differ by more than the limit."""
    for name, (_, phi) in wanted.items():
        if name not in calls or distance(calls[name][1], phi) > limit:
            return f"at site {name!r}"
    return "after the last site"

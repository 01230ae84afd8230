# SPDX-License-Identifier: BSD-3-Clause
"""Cuts a network into sites, which can be sampled, and the segments between them."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.io import fingerprint
from rainbow_fast.tracing import modules, tail
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.find import Found, Left, find_sites
from rainbow_fast.tracing.graph import CannotTrace, capture
from rainbow_fast.tracing.nonlinearities import NORMS
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.site import Site

State = tuple[Any, ...]  # all values that later segments read: phi first, then other tensors (and sometimes sizes)


@dataclass(frozen=True, eq=False)
class Trace:
    """A chain ``segments[0], sites[0], segments[1], ..., sites[-1], segments[-1]`` that computes the reference.

    The reference is the trained network. Segment i takes the state after site i - 1 (for i = 0, the input) and returns
    ``(z_i, *rest)``, where `rest` are the values that later segments read. The state after site i is
    ``(phi_i, *rest)``. The last segment returns the outputs only.

    Attributes:
        reference: a copy of the network in eval mode. Segments and sites share its parameters.
        sites: in order of execution.
        graph: the graph of the network, in which each site is one call of a module with the name of the site; None if
            torch.fx cannot trace the network.
        segments: the modules between the sites, one more than there are sites.
        swappable: whether replacing a module of the network has the same effect as replacing its node in the graph.
        references: how many networks the chain computes; more than one only in `tracing.joined.Joined`.
        left: the non-linearities that are no sites.
        example: the sample that it was made with, if it was.
        sizes: for each site, the shapes of z and phi of one sample, and how many numbers later layers read besides z;
            None if they are not known.
    """

    reference: nn.Module
    sites: tuple[Site, ...]
    graph: fx.GraphModule | None
    segments: tuple[nn.Module, ...]
    swappable: bool
    references: int = 1
    left: tuple[Left, ...] = ()
    example: Tensor | None = None
    sizes: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, dtypes, shapes and values of all parameters and buffers of the reference."""
        return fingerprint(self.reference.state_dict())

    def advance(self, place: int, state: State, activations: Sequence[nn.Module]) -> State:
        """Run segment number `place` on the state after the site before it.

        Returns ``(z, *rest)`` for the site number `place`; after the last site, ``(outputs,)``.

        `activations` are the modules that stand at the sites before `place`. Only a network without a graph uses them:
        it runs from its input again.
        """
        segment = self.segments[place]
        if isinstance(segment, modules.UpTo):
            return segment.run(state, activations)
        return segment(*state)

    def finish(self, place: int, state: State, activations: Sequence[nn.Module]) -> Tensor:
        """The outputs, from the state after the site before `place`; from there on all sites are the reference's."""
        done = list(activations[:place])
        for site, number in zip(self.sites[place:], range(place, len(self.sites)), strict=True):
            z, *rest = self.advance(number, state, done)
            state = (site.reference(z), *rest)
            done.append(site.reference)
        return self.advance(len(self.sites), state, done)[0]

    def tail(self) -> tail.Tail:
        """The layers between the last site and the classifier, and the classifier; see `tail.of`."""
        return tail.of(self.graph, self.sites)

    def with_weights(self, weights: Mapping[str, Tensor], pointwise_modules: Iterable[type[nn.Module]] = ()) -> Trace:
        """The trace of the same network with other weights in the layers that write the sites named in `weights`.

        Args:
            weights: maps the name of a site to the weight of its writer: (rows, in) or (rows, in, *kernel), with any
                number of rows.
            pointwise_modules: the argument `pointwise_modules` that `trace` was called with.

        Raises:
            ValueError: the network has no graph, or a site has no writer, or its writer also writes a site that is not
                named.
        """
        if self.graph is None:
            raise ValueError("reference: torch.fx cannot trace it, so the weights of its layers cannot be replaced")
        network = copy.deepcopy(self.reference)
        for site in self.sites:
            others = [other.name for other in self.sites if other.writer is site.writer and other.name not in weights]
            if site.name in weights and (site.writer is None or others):
                raise ValueError(f"site {site.name!r}: wanted a layer without bias that writes only this site")
            if site.name in weights and site.writer is not None:
                network.set_submodule(self.writer_name(site), _layer(site.writer, weights[site.name]))
                if site.expansion is not None:
                    network.set_submodule(site.name, site.expansion.of_rank(len(weights[site.name])))
        axes = {site.name: site.axis for site in self.sites if site.axis is not None}
        return trace(network, self.example, pointwise_modules, channel_axes=axes)

    def writer_name(self, site: Site) -> str:
        """The dotted name of the module that writes a site."""
        return next(name for name, module in self.reference.named_modules() if module is site.writer)

    def rebuild(self, replacements: Mapping[str, nn.Module], *, ends_at: str | None = None) -> nn.Module:
        """A copy of the reference with some sites replaced.

        If every replaced site is a module that is called once, the result is a copy of the user's network with these
        submodules exchanged. Otherwise it is a copy of the graph. Shared weights stay shared.

        Args:
            replacements: maps the name of a site, or of another module, to the module that takes its place.
            ends_at: name of the site whose output the network returns; later layers are left out. None keeps them all.
        """
        sites = [site for site in self.sites if site.name in replacements]
        if ends_at is None and self.swappable and all(site.modules is not None for site in sites):
            network = copy.deepcopy(self.reference)
            for site in sites:
                for name in site.modules or ():
                    network.set_submodule(name, nn.Identity())
                if site.following is not None and site.modules is not None:
                    network.set_submodule(site.modules[-1], copy.deepcopy(site.following))
            for name, module in replacements.items():
                network.set_submodule(name, module)
            return network.eval()
        assert self.graph is not None
        body = copy.deepcopy(self.graph)
        for name, module in replacements.items():
            body.add_submodule(name, module)
        if ends_at is not None:
            _end(body, ends_at)
        return body.eval()


def trace(
    reference: nn.Module,
    example: Tensor | None = None,
    pointwise_modules: Iterable[type[nn.Module]] = (),
    name: str = "reference",
    channel_axes: Mapping[str, int] | None = None,
) -> Trace:
    """Cut a network into its sites and the segments between them.

    The sites are the pointwise non-linearities in the `torch.fx` graph of the network: modules, functions and methods
    of torch, in place or not, and formulas of them. If torch.fx cannot trace the network, its sites are the activation
    modules that are called once; they are found by running it. All other non-linearities are in `Trace.left`, with the
    reason. The network is copied, and the random state is left unchanged.

    Args:
        reference: the network.
        example: one sample, (1, ...), to find sizes and channel axes. Without it, a network that needs sizes as numbers
            cannot be traced, and channel axes are known only directly after layers.
        pointwise_modules: the user's own classes of modules that apply one function to every number.
        name: what error messages call the network.
        channel_axes: the channel axis of z for sites by name, 1 or -1, in the place of the one that is found.

    Raises:
        TypeError: `reference` is not an nn.Module, or a scripted one, or `pointwise_modules` holds something that is
            not a class of modules.
        ValueError: a batch norm without running statistics; `channel_axes` names no site, or an axis that is neither
            the second nor the last; torch.fx cannot trace the network, and there is no example, or no activation module
            that is called once. The message names the module, or the line that torch.fx cannot trace.
    """
    reference = checked(reference, name)
    declared = tuple(pointwise_modules)
    for kind in declared:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"pointwise_modules: wanted classes of nn.Module, got {kind!r}")
    _check_norms(reference, name)
    network = copied(reference)
    with untouched(next((p.device for p in network.parameters()), torch.device("cpu"))):
        try:
            graph, overwrites = capture(network, declared, example)
        except CannotTrace as reason:
            sites, runs, others = modules.find_modules(
                network, example, declared, f"{name}: torch.fx cannot trace it ({reason})"
            )
            return Trace(network, sites, None, runs, swappable=True, left=others, example=example)
        places, left, shapes = find_sites(graph, declared, example, channel_axes)
    ends: dict[fx.Node, fx.Node] = {}
    for each in places:
        _join(graph, each, ends)
    graph.graph.lint()
    graph.recompile()
    sites = tuple(each.site for each in places)
    shapes |= {end: shapes[last] for last, end in ends.items() if last in shapes}
    segments, sizes = tuple(_segments(graph, sites)), []
    for each, (_, rest) in zip(places, segments, strict=False):
        if each.z in shapes:
            alive = sum(math.prod(shapes[node]) for node in rest if node in shapes)
            pair = (2,) * each.site.paired
            sizes.append((shapes[each.z][1:] + pair, shapes[each.nodes[-1]][1:] + pair, alive))
    return Trace(
        network,
        sites,
        graph,
        tuple(segment for segment, _ in segments),
        swappable=not overwrites,
        left=tuple(left),
        example=example,
        sizes=tuple(sizes) if len(sizes) == len(sites) else None,
    )


def checked(reference: object, name: str) -> nn.Module:
    """A network that can be traced: `reference` itself, or the module that torch.compile has wrapped.

    Raises:
        TypeError: `reference` is not an nn.Module, or a scripted one.
    """
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # torch.compile has imported it; it takes seconds
    if compiled is not None and isinstance(reference, compiled.OptimizedModule):
        return reference._orig_mod
    if isinstance(reference, torch.jit.ScriptModule):
        raise TypeError(
            f"{name}: a module of TorchScript ({type(reference).__name__}), whose code cannot be traced: wanted the "
            "nn.Module that it was made from"
        )
    if not isinstance(reference, nn.Module):
        raise TypeError(f"{name}: wanted an nn.Module, got {type(reference).__name__}")
    return reference


def _layer(like: nn.Linear | _ConvNd, weight: Tensor) -> nn.Module:
    """A copy of a bias-free layer with another weight, which may have another number of rows."""
    layer = copy.deepcopy(like)
    layer.weight = nn.Parameter(weight.to(like.weight), requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(weight)
    else:
        layer.out_channels = len(weight)
    return layer


def _check_norms(reference: nn.Module, argument: str) -> None:
    for name, module in reference.named_modules():
        if isinstance(module, NORMS) and module.running_mean is None:
            raise ValueError(
                f"{argument}: module {name!r} ({type(module).__name__}) has no running statistics: wanted "
                "track_running_stats=True"
            )


def _join(owner: fx.GraphModule, place: Found, ends: dict[fx.Node, fx.Node]) -> None:
    """Replace the nodes of a site by one call of the site, followed by a call of the layer `following` if it has one.

    `ends` maps the last nodes of the sites before to the calls that replace them; this site is added.
    """
    site, z, last = place.site, ends.get(place.z, place.z), place.nodes[-1]
    owner.add_submodule(site.name, site.reference)
    with owner.graph.inserting_before(last):
        z = owner.graph.call_function(torch.view_as_real, (z,)) if site.paired else z
        joined = end = owner.graph.call_module(site.name, (z,))
        if site.following is not None:
            following = f"{site.name}_following"
            owner.add_submodule(following, site.following)
            end = owner.graph.call_module(following, (joined,))
    last.replace_all_uses_with(end)
    ends[last] = end
    for node in reversed(place.nodes):
        if not node.users:  # sizes and constants may have other readers
            owner.graph.erase_node(node)


def _segments(owner: fx.GraphModule, sites: tuple[Site, ...]) -> Iterable[tuple[fx.GraphModule, list[fx.Node]]]:
    """One graph before each site and one after the last, with the nodes besides z that later segments read.

    Each computes the values that z of its site needs and that no earlier segment has computed.
    """
    nodes = list(owner.graph.nodes)
    places = [next(n for n in nodes if n.op == "call_module" and n.target == site.name) for site in sites]
    output = nodes[-1]
    source = next(node for node in nodes if node.op == "placeholder")
    computed, state = {source}, [source]  # all nodes computed so far; the inputs of the next segment
    for number, place in enumerate([*places, output]):
        z = place.all_input_nodes[0] if place is not output else None
        wanted = [z] if z is not None else list(output.all_input_nodes)
        inside = _missing(wanted, computed)
        computed |= inside
        rest = [] if z is None else [n for n in nodes if n in computed and _read_later(n, computed, places[number:])]
        results = output.args[0] if z is None else [z, *rest]
        yield _subgraph(owner, state, [n for n in nodes if n in inside], results), rest
        if z is not None:
            computed.add(place)
            state = [place, *rest]


def _missing(wanted: list[fx.Node], computed: set[fx.Node]) -> set[fx.Node]:
    """The nodes that still have to be computed for `wanted`, without parameters: each segment reads those itself."""
    missing: set[fx.Node] = set()
    waiting = [node for node in wanted if node not in computed]
    while waiting:
        node = waiting.pop()
        if node not in missing:
            missing.add(node)
            waiting += [source for source in node.all_input_nodes if source not in computed]
    return {node for node in missing if node.op != "get_attr"}


def _read_later(node: fx.Node, computed: set[fx.Node], coming: list[fx.Node]) -> bool:
    """Whether a node that is not computed yet reads this value, other than the next site, `coming[0]`."""
    return any(user not in computed and user is not coming[0] for user in node.users)


def _subgraph(owner: fx.GraphModule, state: list[fx.Node], inside: list[fx.Node], results: Any) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in state}

    def read(node: fx.Node) -> fx.Node:
        if node not in copies:
            assert node.op == "get_attr"
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in inside:
        copies[node] = graph.node_copy(node, read)
    wanted = tuple(results) if isinstance(results, list) else (results,)
    graph.output(fx.map_arg(wanted, read))
    return fx.GraphModule(owner, graph).eval()


def _end(body: fx.GraphModule, site: str) -> None:
    """Let the network return the output of a site, and remove all later layers."""
    output = next(iter(body.graph.find_nodes(op="output")))
    place = next(iter(body.graph.find_nodes(op="call_module", target=site)))
    output.args = (place,)
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    body.recompile()

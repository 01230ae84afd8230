# SPDX-License-Identifier: BSD-3-Clause
"""Finds what becomes narrow when activations become random features: from z back to the layers that write it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from rainbow_fast.arguments import integer, number
from rainbow_fast.rainbow.resizing import NORMS, WRITERS
from rainbow_fast.tracing.channel_axis import POOLING, named
from rainbow_fast.tracing.find import Found
from rainbow_fast.tracing.graph import is_changed, module_of, scope
from rainbow_fast.tracing.operations import name_of, of_input
from rainbow_fast.tracing.site import is_linear

RANK = 0.25  # of the channels of z
Rank = int | float
KEEPING_MODULES = (
    *(nn.Identity, nn.Upsample, _DropoutNd),
    *(_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd),
    *(_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd),
)
KEEPING = POOLING | frozenset("dropout dropout1d dropout2d dropout3d interpolate pad contiguous clone neg".split())
SUMS, SCALINGS = ("add", "sub"), ("mul", "div")


@dataclass(eq=False)
class Region:
    """Tensors that have the same few channels r, because they are added or are z of the same sites.

    Attributes:
        nodes: their nodes in the graph: layers that write them, and operations that keep channels.
        sites: the sites that read them.
        axis: the channel axis, 1 or -1.
        channels: d, the number of channels in the traced network.
        rank: r, the number of channels that they get; 0 before `set_ranks` sets it.
    """

    nodes: set[fx.Node]
    sites: list[Found]
    axis: int
    channels: int
    rank: int = 0

    @property
    def names(self) -> str:
        """The names of the sites."""
        return ", ".join(repr(each.site.name) for each in self.sites)


@dataclass(frozen=True)
class Skip:
    """An operand of a sum, which a projection gives the channels of the sum.

    Attributes:
        total: the sum.
        operand: the operand.
        axis: the channel axis, 1 or -1.
        region: the region of the sum; None if the sum keeps the channels that it has in the traced network.
        channels: their number in the traced network.
    """

    total: fx.Node
    operand: fx.Node
    axis: int
    region: Region | None
    channels: int


def core(place: Found) -> list[fx.Node]:
    """The nodes that random features replace: the non-linearity of a site and the pooling after it."""
    site = place.site
    return place.nodes[site.before is not None : len(place.nodes) - (site.norm is not None)]


def input_of(place: Found) -> fx.Node:
    """What the non-linearity of a site is applied to."""
    return place.z if place.site.before is None else place.nodes[0]


class Narrowing:
    """The regions of chosen sites.

    Args:
        owner: the graph.
        chosen: the sites whose activation becomes random features.
        others: all other sites.
        shapes, axes: of the tensors of the graph, as `channel_axis.Numbered` has them.

    Attributes:
        regions: the regions, each with its sites.
        skips: the operands of sums that do not have the channels of the sum.

    Raises:
        ValueError: a site cannot be a rainbow layer; the message names it.
    """

    def __init__(
        self,
        owner: fx.GraphModule,
        chosen: Sequence[Found],
        others: Iterable[Found],
        shapes: Mapping[fx.Node, tuple[int, ...]],
        axes: Mapping[fx.Node, int],
    ) -> None:
        self.owner, self.shapes, self.axes = owner, shapes, axes
        self._data = of_input(owner.graph)
        self._narrow: set[fx.Node] = set()  # everything that a layer writes, whether it belongs to a chosen site or not
        for node in owner.graph.nodes:
            if self._writes(node) or any(source in self._narrow for source in self._kept(node)):
                self._narrow.add(node)
        self.regions: list[Region] = []
        for place in chosen:
            self._add(place)
        self._join_shared()
        for region in self.regions:
            region.sites.sort(key=lambda each: each.site.index)
        for place in others:
            shared = self.region_of(input_of(place))
            if shared is not None:
                raise ValueError(
                    f"sites: {place.site.name!r} reads the same channels as {shared.names}: wanted all of them or none"
                )
        self.skips = self._find_skips({core(place)[-1] for place in chosen})

    def region_of(self, node: fx.Node) -> Region | None:
        """The region that a node belongs to; None if its channels stay."""
        return next((region for region in self.regions if node in region.nodes), None)

    def set_ranks(self, rank: Rank | Mapping[str, Rank]) -> None:
        """Set the rank of every region.

        Raises:
            TypeError, ValueError: as `rainbowize`.
        """
        for region in self.regions:
            name, one = _wanted(rank, region)
            writers = (module_of(node, self.owner) for node in region.nodes)
            inputs = max(m.weight[0].numel() for m in writers if isinstance(m, WRITERS))
            if isinstance(one, float):
                region.rank = min(max(round(one * region.channels), 1), inputs)
            elif one > inputs:
                raise ValueError(f"{name}={one}: wanted at most {inputs}, the inputs of a neuron of {region.names}")
            else:
                region.rank = one

    def _add(self, place: Found) -> None:
        site, z = place.site, input_of(place)
        if site.expansion is not None:
            raise ValueError(f"site {site.name!r}: it is a rainbow layer already, wanted `sites` without it")
        if site.activation is None:
            raise ValueError(
                f"site {site.name!r}: no kernel computes {type(site.sigma).__name__} as it is here: wanted one of "
                "relu, leaky_relu, tanh, gelu and silu, or `sites` without it"
            )
        if z not in self._narrow:
            self._refuse(place)
        axis = -1 if len(self.shapes[z]) == 2 or site.axis is None else site.axis
        region = Region({z}, [place], axis, self.shapes[z][axis])
        waiting = [z]
        while waiting:
            node = waiting.pop()
            for source in () if self._writes(node) else self._kept(node):
                if source in self._narrow and source not in region.nodes:
                    region.nodes.add(source)
                    waiting.append(source)
        self._merge(region)

    def _merge(self, region: Region) -> None:
        """Add a region, which takes in those that it shares nodes with."""
        for other in [other for other in self.regions if other.nodes & region.nodes]:
            region.nodes |= other.nodes
            region.sites = other.sites + region.sites
            self.regions.remove(other)
        self.regions.append(region)

    def _join_shared(self) -> None:
        """Let all calls of a layer belong to one region."""
        calls = Counter(str(node.target) for node in self.owner.graph.nodes if node.op == "call_module")
        for target in (target for target, count in calls.items() if count > 1):
            nodes = set(self.owner.graph.find_nodes(op="call_module", target=target))
            inside = [region for region in self.regions if region.nodes & nodes]
            if not inside or not isinstance(self.owner.get_submodule(target), WRITERS + NORMS):
                continue
            outside = nodes - {node for region in inside for node in region.nodes}
            if outside:
                raise ValueError(
                    f"layer {target!r} is called {len(nodes)} times, {len(nodes - outside)} of them before "
                    f"{inside[0].names}: wanted all of them, or `sites` without these"
                )
            self._merge(Region(nodes, [], inside[0].axis, inside[0].channels))

    def _writes(self, node: fx.Node) -> bool:
        module = module_of(node, self.owner)
        return module is not None and _reason(module) is None and node in self.axes

    def _kept(self, node: fx.Node) -> list[fx.Node]:
        """The operands whose channels, one by one, are those of the result of a node."""
        module, name = module_of(node, self.owner), name_of(node)
        sources = node.all_input_nodes
        if name in SCALINGS:
            numbers = [source for source in sources if math.prod(self.shapes.get(source, (1,))) == 1]
            sources = [source for source in sources if source not in numbers]
            if len(sources) > 1:
                return []
        elif module is not None:
            sources = sources[:1] if isinstance(module, KEEPING_MODULES + NORMS) else []
        elif name in KEEPING:
            sources = sources[:1]
        elif name not in SUMS:
            return []
        return [source for source in sources if self._channels(source) == self._channels(node) is not None]

    def _channels(self, node: fx.Node) -> tuple[int, int] | None:
        """The channel axis of a tensor, and how many channels it has."""
        axis = self.axes.get(node)
        return None if axis is None else (axis, self.shapes[node][axis])

    def _find_skips(self, features: set[fx.Node]) -> list[Skip]:
        """The operands of sums that do not have the channels of the sum; `features` are phi of the chosen sites."""
        skips: list[Skip] = []
        widths: dict[fx.Node, object] = {}  # tensors with other channels than before; equal values, equal channels
        for node in self.owner.graph.nodes:
            region, sources = self.region_of(node), [each for each in node.all_input_nodes if each in widths]
            if region is not None:
                widths[node] = region
                if name_of(node) in SUMS:
                    skips += [
                        Skip(node, each, region.axis, region, region.channels) for each in self._alien(node, region)
                    ]
            elif node in features:
                widths[node] = self._channels(node) or node
            elif name_of(node) in SUMS and self._channels(node) is not None:
                kept = {widths.get(each) for each in self._kept(node)}
                if len(kept) == 1:
                    if sources:
                        widths[node] = kept.pop()
                else:
                    skips += self._outside(node, sources)
            elif sources and not is_linear(node, self.owner):
                one = widths[sources[0]]
                widths[node] = one if self._kept(node) == sources[:1] else node
        return skips

    def _outside(self, node: fx.Node, sources: Sequence[fx.Node]) -> list[Skip]:
        """Projections to the channels that a sum had, of the operands that have others now."""
        axis, channels = self.axes[node], self.shapes[node][self.axes[node]]
        place = named(axis, len(self.shapes[node]))
        return [] if place is None else [Skip(node, each, place, None, channels) for each in sources]

    def _alien(self, node: fx.Node, region: Region) -> list[fx.Node]:
        """The operands of a sum in a region that do not have its channels, and are not broadcast along them."""
        operands, result = [], self.shapes[node]
        axis = region.axis % len(result)
        for source in node.all_input_nodes:
            shape = self.shapes.get(source, ())
            alike = len(shape) == len(result)
            if source in region.nodes or math.prod(shape) == 1 or (alike and shape[axis] == 1):
                continue
            if source not in self._data or not alike or self.axes.get(source, axis) != axis:
                raise ValueError(
                    f"{described(node, self.owner)}: it adds a tensor of shape {shape}, whose channels cannot become "
                    f"those of {region.names}: wanted the output of layers with channels on axis {region.axis}, or "
                    "`sites` without these"
                )
            operands.append(source)
        return operands

    def _refuse(self, place: Found) -> NoReturn:
        """Raise the error that says why z of a site cannot have other channels."""
        node, name = input_of(place), place.site.name
        while len(self._kept(node)) == 1:
            node = self._kept(node)[0]
        module = module_of(node, self.owner)
        reason = None if module is None else _reason(module)
        what = "the input" if node.op == "placeholder" else described(node, self.owner)
        raise ValueError(
            f"site {name!r}: z comes from {what}{f', {reason}' if reason else ''}: wanted a Linear or a "
            "convolution with groups=1, or `sites` without it"
        )


def _wanted(rank: Rank | Mapping[str, Rank], region: Region) -> tuple[str, Rank]:
    """The rank that is asked for in a region, and what it is called."""
    if not isinstance(rank, Mapping):
        return "rank", rank
    entries = {each.site.name: rank[each.site.name] for each in region.sites if each.site.name in rank}
    if len(set(entries.values())) > 1:
        raise ValueError(f"rank={entries}: wanted one rank for sites that share their channels")
    name, one = next(iter(entries.items()), (None, RANK))
    return "rank" if name is None else f"rank[{name!r}]", one


def checked_rank(rank: object, names: Sequence[str]) -> Rank | dict[str, Rank]:
    """The argument `rank` of `rainbowize`: an int, a float, or a dict of them by site.

    Raises:
        TypeError, ValueError: it is something else, is outside its range, or names a site that is not one of `names`.
    """
    if not isinstance(rank, Mapping):
        return _checked("rank", rank)
    for name in rank:
        if name not in names:
            raise ValueError(f"rank: {name!r} is not a chosen site: wanted some of {', '.join(names)}")
    return {name: _checked(f"rank[{name!r}]", one) for name, one in rank.items()}


def _checked(name: str, rank: object) -> Rank:
    one = number(name, rank)
    if isinstance(one, int):
        return integer(name, one, 1)
    if not 0 < one < math.inf:
        raise ValueError(f"{name}={one}: wanted a finite fraction of the channels above 0")
    return one


def _reason(module: nn.Module) -> str | None:
    """Why a module is no layer that can write other channels; None if it is one."""
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if type(module) not in WRITERS:
        return "of a class of its own" if isinstance(module, nn.Linear | _ConvNd) else ""
    if isinstance(module, _ConvNd) and module.groups > 1:
        return f"with groups={module.groups}"
    if is_changed(module):
        return "with hooks or a forward of its own"
    return None


def described(node: fx.Node, owner: fx.GraphModule) -> str:
    """What a node calls, for messages."""
    module = module_of(node, owner)
    if module is not None:
        return f"layer {str(node.target)!r} ({type(module).__name__})"
    return f"{name_of(node) or node.op!s} in module {scope(node) or 'module'!r} (node {node.name!r})"

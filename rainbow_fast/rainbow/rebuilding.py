# SPDX-License-Identifier: BSD-3-Clause
"""Writes the graph of a network with rainbow layers, and builds its modules for the channels that they receive."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.nn.layers import RainbowConv2d, RainbowLinear, initialise_
from rainbow_fast.rainbow.narrowing import Narrowing, Region, Skip, core, described, input_of
from rainbow_fast.rainbow.resizing import CONVOLUTIONS, WRITERS, geometry, resized
from rainbow_fast.tracing.channel_axis import Numbered
from rainbow_fast.tracing.find import Found
from rainbow_fast.tracing.graph import module_of, scope

PAIRS = (nn.Linear, nn.Conv2d)  # with an activation directly behind, they become one rainbow layer


def unused(owner: fx.GraphModule, name: str) -> str:
    """The name, with a number if the graph has a module of this name."""
    names = {each for each, _ in owner.named_modules()}
    return next(each for each in (name, *(f"{name}_{i}" for i in range(1, len(names) + 2))) if each not in names)


class Plan:
    """A graph, and what its modules will be.

    Attributes:
        owner: the graph.
        narrowing: the regions.
        numbered: shapes and channel axes of the module as it was.
        neurons: n, by site.
        pairs: the sites whose layer and activation become one, by the name of the layer.
        features: the sites that become random features of their own, by name.
        skips: the projections, by name.
        was: the nodes of the module as it was, for nodes in their place.
    """

    def __init__(
        self, owner: fx.GraphModule, narrowing: Narrowing, numbered: Numbered, neurons: dict[str, int], seed: int
    ) -> None:
        self.owner, self.narrowing, self.numbered, self.neurons, self.seed = owner, narrowing, numbered, neurons, seed
        self.pairs: dict[str, Found] = {}
        self.features: dict[str, Found] = {}
        self.skips: dict[str, Skip] = {}
        self.was: dict[fx.Node, fx.Node] = {}
        self._calls = Counter(str(node.target) for node in owner.graph.nodes if node.op == "call_module")

    def rewrite(self) -> None:
        """Put the new calls into the graph; their modules are not built yet."""
        for skip in self.narrowing.skips:
            self._project(skip)
        regions = self.narrowing.regions
        replaced = {node for region in regions for place in region.sites for node in core(place)}
        for region in regions:
            for place in region.sites:
                self._expand(place, region, replaced)

    def _project(self, skip: Skip) -> None:
        """Let a sum read a projection of an operand."""
        name = unused(self.owner, f"{scope(skip.total)}.skip".lstrip("."))
        self.owner.add_submodule(name, nn.Identity())
        with self.owner.graph.inserting_before(skip.total):
            called = self.owner.graph.call_module(name, (self._without_zeros(skip.operand),))
        skip.total.replace_input_with(skip.operand, called)
        self.skips[name] = skip
        self._remove([skip.operand])

    def _without_zeros(self, node: fx.Node) -> fx.Node:
        """What a node only adds channels of zeros to, such as the shortcut of a residual network; else the node."""
        if node.target is not F.pad:
            return node
        bound = inspect.signature(F.pad).bind(*node.args, **node.kwargs)
        source, how = bound.arguments["input"], (bound.arguments.get("mode", "constant"), bound.arguments.get("value"))
        shapes = [list(self.numbered.shapes.get(each, ())) for each in (source, node)]
        axis = self.numbered.axes.get(source)
        if how not in (("constant", None), ("constant", 0)) or axis is None or self.numbered.axes.get(node) != axis:
            return node
        for shape in shapes:
            shape[axis] = 0
        return source if shapes[0] == shapes[1] else node

    def _expand(self, place: Found, region: Region, replaced: set[fx.Node]) -> None:
        """Put one call in the place of a non-linearity; `replaced` are the nodes of all chosen ones."""
        nodes, z, name = core(place), input_of(place), place.site.name
        last = nodes[-1]
        if self._is_pair(z, nodes, region):
            self.pairs[str(z.target)] = place
            called = z
        else:
            if set(self.owner.graph.find_nodes(op="call_module", target=name)) - replaced:
                name = unused(self.owner, name)
            self.owner.add_submodule(name, nn.Identity())
            with self.owner.graph.inserting_after(last):
                called = self.owner.graph.call_module(name, (z,))
            self.features[name] = place
        last.replace_all_uses_with(called, delete_user_cb=lambda user: user not in nodes)
        self.was[called] = last
        self._remove(nodes)

    def _is_pair(self, z: fx.Node, nodes: Sequence[fx.Node], region: Region) -> bool:
        return (
            region.nodes == {z}
            and set(z.users) <= set(nodes)
            and type(module_of(z, self.owner)) in PAIRS
            and self._calls[str(z.target)] == 1
        )

    def _remove(self, nodes: Sequence[fx.Node]) -> None:
        for node in reversed(nodes):
            if not node.users:
                self.owner.graph.erase_node(node)


class Building(fx.Interpreter):
    """Runs a planned graph on an example, and builds each module with the channels that it receives.

    Args:
        plan: the graph; the modules are put into it.
        example: one sample, (1, ...).

    Raises:
        ValueError: a part cannot run with its channels, or does not give the shape that follows from them.
    """

    def __init__(self, plan: Plan, example: Tensor) -> None:
        super().__init__(plan.owner)
        self.plan = plan
        self._built: set[str] = set()
        self._owners = self._owners_of_parameters()
        self.args_iter = iter([example])
        with torch.no_grad():
            for node in plan.owner.graph.nodes:  # `run` would start a thread, for a bar of progress
                self.env[node] = self.run_node(node)
                for read in self.user_to_last_uses.get(node, []):
                    del self.env[read]

    def run_node(self, n: fx.Node) -> Any:
        what = described(n, self.plan.owner)
        if n.op == "call_module" and str(n.target) not in self._built:
            self._built.add(str(n.target))
            try:
                self._build(n)
            except ValueError as error:
                raise ValueError(f"{what}: {error}, or `sites` without those before it") from error
        try:
            result = super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"{what}: it does not run on the new numbers of channels ({error}): wanted sizes that follow them, "
                "such as view(N, -1) or flatten(1), and calls with equal inputs, or `sites` without those before it"
            ) from error
        if n.op == "output":
            for source in n.all_input_nodes:
                self._check_output(source)
        elif isinstance(result, Tensor):
            self._check(n, result, what)
        return result

    def _build(self, n: fx.Node) -> None:
        """Build the module that a node calls, or initialise it again."""
        plan, name = self.plan, str(n.target)
        x = self.env[n.all_input_nodes[0]]
        old: Any = plan.owner.get_submodule(name)
        if name in plan.pairs:
            new: nn.Module | None = self._pair(plan.pairs[name], old, x)
        elif name in plan.features:
            place = plan.features[name]
            region = plan.narrowing.region_of(input_of(place))
            assert region is not None
            new = RandomFeatures(region.rank, **self._expansion(place), axis=region.axis)
        elif name in plan.skips:
            new = self._skip(plan.skips[name], x)
        else:
            region = plan.narrowing.region_of(n)
            new = resized(old, x, None if region is None else region.rank)
            if region is not None and isinstance(old, WRITERS):
                new = _reset(old) if new is None else new
                self._initialise(new, region)
        if new is None:
            _reset(old)
            return
        shared = [other for p in old.parameters() for other in self._owners[id(p)] if other != name]
        if shared and new is not old:
            raise ValueError(f"its weight is also that of {shared[0]!r}: wanted weights that are not tied")
        plan.owner.add_submodule(name, new.eval())

    def _pair(self, place: Found, old: Any, x: Tensor) -> nn.Module:
        region = self.plan.narrowing.region_of(input_of(place))
        assert region is not None
        how = self._expansion(place)
        n = how.pop("n")
        how |= {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
        if isinstance(old, nn.Linear):
            return RainbowLinear(x.shape[-1], n, region.rank, **how)
        return RainbowConv2d(x.shape[1], n, rank=region.rank, **how, **geometry(old))

    def _expansion(self, place: Found) -> dict[str, Any]:
        """What random features of a site are made with, besides their rank."""
        site = place.site
        pool = {} if site.after is None else {"pool": site.after}
        return {
            **pool,
            "n": self.plan.neurons[site.name],
            "seed": self.plan.seed,
            "stream": site.index,
            "activation": site.activation,
            "negative_slope": site.negative_slope,
        }

    def _skip(self, skip: Skip, x: Tensor) -> nn.Module:
        how: dict[str, Any] = {"bias": False, "device": x.device, "dtype": x.dtype}
        channels = skip.channels if skip.region is None else skip.region.rank
        if skip.axis == -1:
            new: nn.Module = nn.Linear(x.shape[-1], channels, **how)
        else:
            new = CONVOLUTIONS[x.dim()](x.shape[1], channels, 1, **how)
        self._initialise(new, skip.region)
        return new

    def _initialise(self, layer: Any, region: Region | None) -> None:
        """The initial weights of a layer that writes z of a region, or of one that nothing follows."""
        how = (
            ("identity",) if region is None else (region.sites[0].site.activation, region.sites[0].site.negative_slope)
        )
        initialise_(layer.weight, *how)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def _owners_of_parameters(self) -> dict[int, list[str]]:
        owners: dict[int, list[str]] = {}
        for name, module in self.plan.owner.named_modules():
            for p in module.parameters(recurse=False):
                owners.setdefault(id(p), []).append(name)
        return owners

    def _check(self, n: fx.Node, result: Tensor, what: str) -> None:
        """Raise an error unless the shape is the one that it was, or differs along the channels."""
        was = self.plan.was.get(n, n)
        before, after = self.plan.numbered.shapes.get(was), tuple(result.shape)
        if before is None or before == after:
            return
        axis = self.plan.numbered.axes.get(was, 1 if len(before) == 2 else None)  # rows have no other channels
        if axis is None or len(before) != len(after) or _without(before, axis) != _without(after, axis):
            raise ValueError(
                f"{what}: it gives {after}, where the module gives {before}: wanted sizes that follow the number of "
                "channels, such as view(N, -1) or flatten(1), or `sites` without those before it"
            )

    def _check_output(self, source: fx.Node) -> None:
        value, before = self.env.get(source), self.plan.numbered.shapes.get(self.plan.was.get(source, source))
        if isinstance(value, Tensor) and before is not None and tuple(value.shape) != before:
            raise ValueError(
                f"an output has shape {tuple(value.shape)}, that of the module {before}: wanted a layer after the last "
                "site, or `sites` without it"
            )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _reset(module: nn.Module) -> nn.Module:
    """Initialise a module and its parts again, the parts first."""
    for part in reversed(list(module.modules())):
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    return module

# SPDX-License-Identifier: BSD-3-Clause
"""Pointwise functions that a network writes as several operations on the numbers of one tensor.

An operation is elementwise if each number of its result depends on the numbers at the same place of its operands. The
root of a node is the tensor that it is an elementwise function of. Where an operation joins two functions of the same
root, such as ``z * sigmoid(z)``, the result is a pointwise function of z.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from rainbow_fast.tracing.graph import is_call, passes_on
from rainbow_fast.tracing.nonlinearities import is_nonlinearity
from rainbow_fast.tracing.operations import AFFINE, CONVERSIONS, name_of, of_input, operands

# Elementwise functions that are parts of activations, but also of normalisations and attention: no sites alone.
PARTS = frozenset("pow square exp exp2 expm1 log log1p log2 sqrt rsqrt reciprocal float_power".split())
# Elementwise functions that are activations, if their other operands are constants.
ACTIVATIONS = frozenset(
    "abs absolute sin cos atan arctan erf erfc sinh sign asinh arcsinh sinc logit clamp clamp_min clamp_max clip "
    "threshold maximum minimum max min rrelu".split()
)
ACTIVATION_MODULES = (nn.Threshold, nn.RReLU)
BINARY = frozenset("maximum minimum max min".split())  # these have two operands, or they reduce
VIEWS = frozenset(
    "view reshape view_as reshape_as flatten unflatten permute transpose swapaxes movedim moveaxis squeeze unsqueeze "
    "expand expand_as repeat broadcast_to getitem interpolate".split()
)
NAMED = (  # modules that a function is compared with
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.ReLU6, nn.Mish, nn.Softplus),
    *(nn.ELU, nn.SELU, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid),
)
GRID = torch.tensor([*(step / 100 for step in range(-1200, 1201)), -60.0, 60.0], dtype=torch.float64, device="cpu")
SAME = 1e-12  # largest distance of two equal functions on the grid, relative to 1 + |value|


class Formula(nn.Module):
    """A pointwise function, as a graph with one input."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, z: Tensor) -> Tensor:
        return self.graph(z)


@dataclass(frozen=True)
class Pointwise:
    """A pointwise function in a graph.

    Attributes:
        sigma: the function, as a module; None if it is no activation.
        z: its input.
        nodes: the nodes that compute it, the last one its result.
        reason: why it is no activation; empty if it is one.
    """

    sigma: nn.Module | None
    z: fx.Node
    nodes: tuple[fx.Node, ...]
    reason: str = ""


def find_formulas(
    owner: fx.GraphModule,
    shapes: Mapping[fx.Node, tuple[int, ...]],
    declared: tuple[type[nn.Module], ...],
) -> list[Pointwise]:
    """The pointwise functions in a graph that are written as formulas, and the simple ones of `ACTIVATIONS`.

    Args:
        owner: the graph.
        shapes: of results of nodes; empty if they are not known.
        declared: the user's own classes of pointwise modules.
    """
    data, taken = of_input(owner.graph), set[fx.Node]()
    functions: list[Pointwise] = []
    roots = _roots(owner, data, shapes, declared)
    for node in reversed(list(owner.graph.nodes)):
        if node in taken or node not in data:
            continue
        if roots[node] is not node and len([n for n in operands(node) if n in data]) > 1:
            z = roots[node]
        elif _is_activation(node, owner):
            sources = [n for n in operands(node) if n in data]
            if len(sources) != 1:
                continue
            z = sources[0]
        else:
            continue
        nodes = _between(z, node, data)
        if nodes is None:
            continue
        function = _function(owner, z, nodes)
        if function is not None and not _bends(function):
            continue
        taken.update(nodes)
        if function is None:
            functions.append(Pointwise(None, z, tuple(nodes), "it has parameters by channel"))
        elif not any(_is_activation(n, owner) or is_nonlinearity(n, owner, declared) for n in nodes):
            functions.append(Pointwise(None, z, tuple(nodes), "products and powers alone, as in normalisations"))
        else:
            functions.append(Pointwise(_named(function), z, tuple(nodes)))
    return functions[::-1]


def _roots(
    owner: fx.GraphModule,
    data: set[fx.Node],
    shapes: Mapping[fx.Node, tuple[int, ...]],
    declared: tuple[type[nn.Module], ...],
) -> dict[fx.Node, fx.Node]:
    """The root of every node that depends on the input."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in owner.graph.nodes:
        if node not in data:
            continue
        above = {roots[source] for source in node.all_input_nodes if source in data}
        root = next(iter(above)) if len(above) == 1 and _is_elementwise(node, owner, declared) else node
        roots[node] = root if shapes.get(root) == shapes.get(node) else node
    return roots


def _is_elementwise(node: fx.Node, owner: fx.GraphModule, declared: tuple[type[nn.Module], ...]) -> bool:
    if passes_on(node, owner) or _is_activation(node, owner) or is_nonlinearity(node, owner, declared):
        return True
    return name_of(node) in AFFINE | PARTS | CONVERSIONS


def _is_activation(node: fx.Node, owner: fx.GraphModule) -> bool:
    name = name_of(node)
    if name in BINARY and (len(node.args) != 2 or not all(isinstance(each, fx.Node) for each in node.args)):
        return False
    return name in ACTIVATIONS or is_call(node, owner, ACTIVATION_MODULES)


def _between(z: fx.Node, last: fx.Node, data: set[fx.Node]) -> list[fx.Node] | None:
    """The nodes that compute `last` from z, in order; None if they read other nodes, or if others read them."""
    inside, waiting = set[fx.Node](), [last]
    while waiting:
        node = waiting.pop()
        if node is z or node in inside:
            continue
        if node.op in ("placeholder", "output"):
            return None
        inside.add(node)
        waiting += node.all_input_nodes
    values = [node for node in inside if node in data and node is not last]
    if any(user not in inside for node in values for user in node.users):
        return None
    return [node for node in last.graph.nodes if node in inside]


def _function(owner: fx.GraphModule, z: fx.Node, nodes: list[fx.Node]) -> nn.Module | None:
    """The function that nodes compute from z; None if it has parameters of more than one number."""
    for node in nodes:
        if node.op == "get_attr":
            value = owner
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, Tensor) or value.numel() != 1:
                return None
        elif node.op == "call_module" and any(
            p.numel() > 1 for p in owner.get_submodule(str(node.target)).parameters()
        ):
            return None
    if len(nodes) == 1 and nodes[0].op == "call_module":
        return copy.deepcopy(owner.get_submodule(str(nodes[0].target)))
    graph = fx.Graph()
    copies = {z: graph.placeholder("z")}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[nodes[-1]])
    return copy.deepcopy(Formula(fx.GraphModule(owner, graph))).eval()


@torch.no_grad()
def _values(function: nn.Module) -> Tensor | None:
    """The values of a function on the grid, in float64; None if it does not run on it."""
    try:
        values = copy.deepcopy(function).double()(GRID.view(1, -1).clone())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return values.view(-1) if isinstance(values, Tensor) and values.numel() == GRID.numel() else None


def _bends(function: nn.Module) -> bool:
    """Whether a function is not affine."""
    values = _values(function)
    if values is None:
        return True
    line = values[:-2]
    bend = (line[2:] - 2 * line[1:-1] + line[:-2]).abs()
    return not bool((bend <= SAME * (1 + line[1:-1].abs())).all())


def _named(function: nn.Module) -> nn.Module:
    """The module of torch that computes the same function, or the function itself."""
    values = _values(function)
    if values is not None and values.isfinite().all():
        for kind in NAMED:
            module = kind()
            wanted = module(GRID.clone())
            if bool(((values - wanted).abs() <= SAME * (1 + wanted.abs())).all()):
                return module
    return function


def is_factor(phi: fx.Node, owner: fx.GraphModule, data: set[fx.Node]) -> list[fx.Node] | None:
    """The scalings between phi and a product with another activation, if there is one; None if there is none.

    Views, copies and scalings by constants on the way are allowed.
    """
    waiting: list[tuple[fx.Node, list[fx.Node]]] = [(phi, [])]
    seen = {phi}
    while waiting:
        node, path = waiting.pop()
        for user in node.users:
            name, others = name_of(user), [n for n in operands(user) if n in data and n is not node]
            if name == "mul" and others:
                return path
            if user in seen:
                continue
            seen.add(user)
            if name in AFFINE and not others:
                waiting.append((user, [*path, user]))
            elif name in VIEWS or name in CONVERSIONS or passes_on(user, owner):
                waiting.append((user, path))
    return None


@torch.no_grad()
def in_unit_interval(function: nn.Module, scalings: list[fx.Node]) -> bool:
    """Whether a function lies between 0 and 1 on the grid, after scalings by numbers."""
    values = _values(function)
    if values is None or not values.isfinite().all():
        return False
    graph = fx.Graph()
    last = graph.placeholder("x")
    for node in scalings:
        if any(each.op == "get_attr" for each in node.all_input_nodes) or len(node.all_input_nodes) > 1:
            return False  # a scaling by a parameter
        above = last
        last = graph.node_copy(node, lambda _: above)  # noqa: B023  called at once
    graph.output(last)
    scaled = fx.GraphModule({}, graph)(values)
    return bool((scaled >= -SAME).all() and (scaled <= 1 + SAME).all())

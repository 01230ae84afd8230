# SPDX-License-Identifier: BSD-3-Clause
"""What the operations of a graph do: names, whether they read values of the input, whether they are elementwise."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

SIZES = frozenset(
    "size dim ndimension numel nelement stride is_contiguous is_floating_point get_device zeros_like ones_like "
    "full_like empty_like new_zeros new_ones new_full new_empty len is_tensor".split()
)
ATTRIBUTES = frozenset("shape ndim dtype device layout is_cuda requires_grad itemsize".split())
AFFINE = frozenset("add sub rsub mul div neg negative pos".split())
CONVERSIONS = frozenset("to type_as float double half bfloat16 contiguous clone".split())


OTHER_NAMES = {"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "imul": "mul", "iadd": "add"}


def name_of(node: fx.Node) -> str:
    """The name of the method or function that a node calls; "" for other nodes."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if isinstance(node.target, OpOverload):  # in exported graphs
        name = node.target.overloadpacket.__name__
    name = str(name).strip("_") if node.op in ("call_method", "call_function") else ""
    return OTHER_NAMES.get(name, name)


def reads_values(node: fx.Node) -> bool:
    """Whether the result of a node depends on the values of its operands, and not only on their sizes."""
    if name_of(node) == "getattr":
        return node.args[1] not in ATTRIBUTES
    return name_of(node) not in SIZES


def of_input(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a graph that depend on the values of its input."""
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (reads_values(node) and any(source in nodes for source in node.all_input_nodes)):
            nodes.add(node)
    return nodes


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of a node, as often as they are there."""
    nodes: list[fx.Node] = []

    def note(operand: fx.Node) -> fx.Node:
        nodes.append(operand)
        return operand

    fx.map_arg((node.args, node.kwargs), note)
    return nodes

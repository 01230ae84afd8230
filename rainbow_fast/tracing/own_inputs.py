# SPDX-License-Identifier: BSD-3-Clause
"""Networks that take several inputs again, made from those that take rows of bytes (`joint_inputs`)."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import fx, nn

from rainbow_fast.joint_inputs import SPLIT, JointInputs, layout_of, without_joint_inputs
from rainbow_fast.tracing.graph import TRACED_SIZES, SameSizes


def with_own_inputs(network: nn.Module) -> nn.Module:
    """The network that `with_joint_inputs`, or the graph of such a network, was made from, with the same parameters.

    Inputs of a graph are parameters of these names, or are called `input_0`, `input_1`, ... A network that does not
    take rows is returned as it is.
    """
    layout = layout_of(network)
    if layout is None:
        return network
    if isinstance(network, fx.GraphModule):
        return _graph_with_own_inputs(network, layout)
    return without_joint_inputs(network)


def _graph_with_own_inputs(network: fx.GraphModule, layout: JointInputs) -> fx.GraphModule:
    """A copy of a graph that takes rows, with a placeholder for each input.

    If the graph refuses rows of other sizes, it then refuses inputs of other sizes.
    """
    network = copy.deepcopy(network)
    graph = network.graph
    rows = next(iter(graph.find_nodes(op="placeholder")))
    split = next(iter(graph.find_nodes(op="call_module", target=SPLIT)))
    names = [each.name if isinstance(each.name, str) else f"input_{each.name}" for each in layout.inputs]
    with graph.inserting_before(rows):
        inputs = [graph.placeholder(name) for name in names]
    if hasattr(network, TRACED_SIZES):
        network.delete_submodule(TRACED_SIZES)
        with graph.inserting_before(split):
            for place, (name, each) in enumerate(zip(names, layout.inputs, strict=True)):
                network.add_submodule(f"{TRACED_SIZES}.{name}", SameSizes(each.shape, name))
                inputs[place] = graph.call_module(f"{TRACED_SIZES}.{name}", (inputs[place],))
    for node in list(split.users):
        part: Any = node.args[1]
        assert node.target is operator.getitem
        node.replace_all_uses_with(inputs[part])
        graph.erase_node(node)
    for node in [split, *([split.all_input_nodes[0]] if split.all_input_nodes[0] is not rows else []), rows]:
        graph.erase_node(node)
    network.delete_submodule(SPLIT)
    network.recompile()
    return network

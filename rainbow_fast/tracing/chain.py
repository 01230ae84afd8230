# SPDX-License-Identifier: BSD-3-Clause
"""Segments of a trace that are one linear layer, with or without batch norms around it."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.tracing.graph import is_changed, passes_on
from rainbow_fast.tracing.nonlinearities import NORMS
from rainbow_fast.tracing.site import is_flatten

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_chain(segment: nn.Module, *, flatten: bool = False) -> list[nn.Module] | None:
    """The modules of a segment that maps the output of a site to the input of the next one by one linear layer.

    Args:
        flatten: whether modules that flatten each sample into one row are allowed, too.

    Returns:
        One linear layer or ungrouped convolution with zero padding, and any number of batch norms in eval mode, in the
        order of execution. None if the segment computes anything else, if later layers read the site's output too, or
        if a module has hooks or a forward of its own.
    """
    if not isinstance(segment, fx.GraphModule):
        return None
    value, *nodes, output = segment.graph.nodes
    if value.op != "placeholder" or output.args[0] != (output.all_input_nodes[0],):
        return None
    chain: list[nn.Module] = []
    for node in nodes:
        if node.all_input_nodes != [value]:
            return None
        value = node
        if passes_on(node, segment):
            continue
        module = segment.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or is_changed(module):
            return None
        if not (_is_linear(module) or isinstance(module, NORMS) or (flatten and is_flatten(node, segment))):
            return None
        chain.append(module)
    return chain if output.args[0] == (value,) and sum(map(_is_linear, chain)) == 1 else None


def _is_linear(module: nn.Module) -> bool:
    if type(module) not in LINEAR:
        return False
    return not isinstance(module, _ConvNd) or (module.groups == 1 and module.padding_mode == "zeros")

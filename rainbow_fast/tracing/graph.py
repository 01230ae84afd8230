# SPDX-License-Identifier: BSD-3-Clause
"""The torch.fx graph of a module, with every operation in place replaced by one that returns a new tensor."""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rainbow_fast.tracing.concrete import ShapeTracer
from rainbow_fast.tracing.tracer import OneInput

TRACED_SIZES = "traced_sizes"  # name of the module that refuses inputs of other sizes
LOGICAL = (operator.and_, operator.or_, operator.not_, operator.is_)  # with names like those of operations in place
NOTHING_TO_DO = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # identities in eval mode


class CannotTrace(Exception):
    """torch.fx cannot trace a module; the message gives the reason and the line of code."""


def capture(
    module: nn.Module, leaves: tuple[type[nn.Module], ...] = (), example: Tensor | None = None
) -> tuple[fx.GraphModule, bool]:
    """The graph of a module in eval mode. It shares the parameters of the module, and no operation in it is in place.

    A graph for inputs of any size is tried first. If the forward needs sizes as numbers, the graph is that for inputs
    of the size of `example`, and any number of samples; it refuses other sizes.

    Args:
        module: the module to trace.
        leaves: classes of modules that are kept as one call each, in addition to the modules of torch itself.
        example: one sample, (1, ...); without it, only a graph for all sizes is made.

    Returns:
        The graph, and a bool: whether a later operation reads a tensor that an operation in place has overwritten. If
        so, replacing an activation inside the module is not the same as replacing it in the graph.

    Raises:
        CannotTrace: the forward depends on values, or needs several inputs.
    """
    required = [
        name
        for name, p in inspect.signature(module.forward).parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise CannotTrace(f"its forward reads {required[1]!r} besides {required[0]!r}: wanted one input")
    sizes = None
    try:
        traced = OneInput(leaves).trace(module)
    except Exception as error:  # the module's own code may raise anything when it is called with a proxy
        if example is None:
            raise CannotTrace(f"{_line_of(error)}: {error}") from error
        traced, sizes = _for_sizes(module, leaves, example), tuple(example.shape[1:])
    graph_module = fx.GraphModule(module, traced)
    in_place = {name: m for name, m in graph_module.named_modules() if getattr(m, "inplace", False)}
    shared = [_functional(node, graph_module, in_place) for node in list(traced.nodes)]
    for name, m in in_place.items():
        plain = copy.deepcopy(m)
        plain.inplace = False
        graph_module.add_submodule(name, plain)
    traced.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    if sizes is not None:
        _refuse_others(graph_module, sizes)
    graph_module.recompile()
    return graph_module.eval(), any(shared)


def _for_sizes(module: nn.Module, leaves: tuple[type[nn.Module], ...], example: Tensor) -> fx.Graph:
    """The graph for inputs of the size of an example."""
    try:
        return ShapeTracer(leaves, example).trace(module)
    except (Exception, SystemExit) as error:
        raise CannotTrace(f"{_line_of(error)}: {error}") from error


class SameSizes(nn.Module):
    """Returns its input if each sample has the shape that a graph was made for.

    Raises:
        ValueError: it has another shape.
    """

    def __init__(self, shape: tuple[int, ...], name: str = "input") -> None:
        super().__init__()
        self.shape, self.name = shape, name

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            got, wanted = ("".join(f", {size}" for size in shape) for shape in (x.shape[1:], self.shape))
            raise ValueError(f"{self.name} of shape (N{got}), wanted (N{wanted}): the network was traced at this size")
        return x


def _refuse_others(owner: fx.GraphModule, sizes: tuple[int, ...]) -> None:
    """Let a graph refuse inputs of other sizes."""
    source = next(iter(owner.graph.find_nodes(op="placeholder")))
    owner.add_submodule(TRACED_SIZES, SameSizes(sizes, str(source.target)))
    with owner.graph.inserting_after(source):
        checked = owner.graph.call_module(TRACED_SIZES, (source,))
    source.replace_all_uses_with(checked)
    checked.args = (source,)


def with_written(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x with ``x[index] = value``."""
    x = x.clone()
    x[index] = value
    return x


def _line_of(error: BaseException) -> str:
    """The last line outside of torch and of this package in the traceback of an error."""
    skipped = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(skipped)]
    if not frames:
        return "forward"
    return f"line {frames[-1].lineno} of {frames[-1].filename}, `{frames[-1].line}`"


def _functional(node: fx.Node, owner: fx.GraphModule, in_place: Mapping[str, nn.Module]) -> bool:
    """Replace an operation in place by the one that returns a new tensor, which later operations then read.

    Returns whether a later operation read the overwritten tensor. Other nodes are left as they are (False).
    """
    target: Any = node.target
    if node.op == "call_module":
        if target not in in_place:
            return False
    elif node.op == "call_method" and _in_place_name(target):
        if not hasattr(Tensor, target[:-1]):
            raise CannotTrace(f"{_where(node)}: it calls {target}, which exists only in place")
        node.target = target[:-1]
    elif node.op == "call_function" and target is operator.setitem:
        node.target = with_written
    elif node.op == "call_function" and _in_place_name(target.__name__) and target not in LOGICAL:
        plain = next((p for m in (torch, F) if (p := getattr(m, target.__name__[:-1], None)) is not None), None)
        if plain is None:
            raise CannotTrace(f"{_where(node)}: it calls {target.__name__}, which exists only in place")
        node.target = plain
    elif not (node.op == "call_function" and _in_place_argument(node)):
        return False
    written = node.args[0]
    return isinstance(written, fx.Node) and _replace_later(written, node, owner)


def _in_place_argument(node: fx.Node) -> bool:
    """Whether a function is called with ``inplace=True``. If it is, the argument is set to False."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin function: none of them has the argument `inplace`
        return False
    if not bound.arguments.get("inplace"):
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _replace_later(written: fx.Node, node: fx.Node, owner: fx.GraphModule) -> bool:
    """Let every later node that reads `written` read `node` instead; returns whether there is one.

    If `written` only returns its own input unchanged, then the later readers of that input are changed too.
    """
    order = {n: place for place, n in enumerate(node.graph.nodes)}
    replaced = False
    while True:
        for user in list(written.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(written, node)
                replaced = True
        if not passes_on(written, owner):
            return replaced
        written = written.all_input_nodes[0]


def passes_on(node: fx.Node, owner: fx.GraphModule) -> bool:
    """Whether a node returns its input unchanged."""
    if node.op == "call_module":
        return isinstance(owner.get_submodule(str(node.target)), NOTHING_TO_DO)
    return node.op == "call_function" and node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def _where(node: fx.Node) -> str:
    return f"module {scope(node) or 'reference'!r}"


def scope(node: fx.Node) -> str:
    """The dotted name of the module whose forward makes the call; "" for the traced module itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if node.op == "call_module":
        stack = stack[:-1]
    return stack[-1][0] if stack else ""


def is_changed(module: nn.Module) -> bool:
    """Whether a module may compute something else than its class does: it has hooks, or a forward of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def module_of(node: fx.Node, owner: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls; None if it calls none."""
    return owner.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_call(node: object, owner: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a node calls a module of one of these classes; subclasses do not count."""
    return (
        isinstance(node, fx.Node) and node.op == "call_module" and type(owner.get_submodule(str(node.target))) in kinds
    )


def is_function(node: object, names: tuple[str, ...], functions: tuple[Callable, ...]) -> bool:
    """Whether a node calls a tensor method of one of these names, or one of these functions."""
    if not isinstance(node, fx.Node):
        return False
    return (node.op == "call_method" and node.target in names) or (
        node.op == "call_function" and node.target in functions
    )

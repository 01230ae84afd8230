# SPDX-License-Identifier: BSD-3-Clause
"""A torch.fx tracer that runs the network on examples, so that a forward may depend on sizes and on its own state.

Two examples of different numbers of samples run together. A size, or any other number, that is the same for both is a
constant of the graph; one that differs belongs to the batch and stays a node of the graph. A forward may branch on
what is the same for both, unless it depends on the values of the input.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_leaves

from rainbow_fast.tracing.operations import reads_values
from rainbow_fast.tracing.tracer import OneInput

SAMPLES = (2, 3)  # in the two examples
CONSTANTS = (
    bool,
    int,
    float,
    str,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.Size,
    torch.memory_format,
)
# Functions that make tensors from sizes, and methods of tensors with sizes. They accept no nodes, so they are replaced
# during the trace.
FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
METHODS = ("expand", "view", "reshape", "repeat", "tile", "narrow", "new_empty", "new_full", "new_ones", "new_zeros")
VALUE = "rainbow_fast_value"  # key of `Node.meta`: the results for both examples
READS = "rainbow_fast_reads"  # key of `Node.meta`: whether the results depend on the values of the input, not its sizes


class DependsOnValues(Exception):
    """A forward needs a number that depends on the values or on the number of the samples."""


class Shape(tuple):
    """The shape of a traced tensor: constants, and nodes for sizes that belong to the batch."""

    __slots__ = ()

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return Shape(part) if isinstance(index, slice) else part


class Traced(fx.Proxy):
    """A value in a trace, which knows its results for both examples."""

    tracer: ShapeTracer

    @property
    def results(self) -> tuple[Any, Any]:
        return self.node.meta[VALUE]

    @property
    def constant(self) -> bool:
        """Whether the value is a plain number that is the same for both examples and depends on sizes only."""
        a, b = self.results
        return type(a) is type(b) and isinstance(a, CONSTANTS) and a == b and not self.node.meta[READS]

    @property
    def shape(self) -> Shape:
        return Shape(self.size(axis) for axis in range(self.dim()))

    def size(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        a, b = (value.size(dim) for value in self.results)
        return a if a == b else self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def dim(self) -> int:
        return self.results[0].dim()

    ndimension = dim

    def __getattr__(self, name: str) -> Any:
        a, b = (getattr(value, name) for value in self.results)
        if type(a) is type(b) and isinstance(a, CONSTANTS) and a == b:  # no attribute of a tensor reads its values
            return a
        return TracedAttribute(self, name)

    def __len__(self) -> int:
        a, b = (len(value) for value in self.results)
        if a != b:
            raise DependsOnValues("it needs the number of samples as a number of Python")
        return a

    def __index__(self) -> int:
        if self.constant:
            return operator.index(self.results[0])
        raise DependsOnValues("it needs a number of Python that depends on values or on the number of samples")

    __int__ = __index__

    def __float__(self) -> float:
        if self.constant:
            return float(self.results[0])
        raise DependsOnValues("it needs a number of Python that depends on values or on the number of samples")

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class TracedAttribute(Attribute):
    """An attribute of a traced value: a method that is called next, or a tensor."""

    @property
    def results(self) -> tuple[Any, Any]:
        return self.node.meta[VALUE]


class ShapeTracer(OneInput):
    """Traces a module and runs it on examples, see the text of this file.

    Args:
        leaves: as in `OneInput`.
        example: one sample, (1, ...).
    """

    def __init__(self, leaves: tuple[type[nn.Module], ...], example: Tensor) -> None:
        super().__init__(leaves)
        self.example, self.running = example, False
        self.lengths: list[dict[str, Any]] = []  # namespaces of functions in which `len` has been replaced

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with torch.no_grad(), _replaced_functions(self):
            try:
                self._replace_len(root)
                graph = super().trace(root, concrete_args)
                for node in graph.nodes:
                    node.meta.pop(VALUE, None)  # the activations of the examples
                return graph
            finally:
                for names in self.lengths:
                    del names["len"]

    def proxy(self, node: fx.Node) -> Traced:
        return Traced(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.run(proxy.node)
        return proxy.results[0] if isinstance(proxy, Traced) and proxy.constant else proxy

    def run(self, node: fx.Node) -> None:
        """Compute the results of a node for both examples, if it has none."""
        if VALUE not in node.meta:
            for source in node.all_input_nodes:
                self.run(source)
            node.meta[VALUE] = tuple(self._result(node, number) for number in range(len(SAMPLES)))
            node.meta[READS] = self._reads(node)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        self._replace_len(m)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        (a, b), reads = obj.node.meta[VALUE], obj.node.meta[READS]
        if reads or bool(a) != bool(b):
            raise DependsOnValues("it branches on values of the input, or on the number of samples")
        return bool(a)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        a, b = (len(value) for value in obj.node.meta[VALUE])
        if a != b:
            raise DependsOnValues("it iterates over the samples")
        return iter([operator.getitem(obj, place) for place in range(a)])

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Shape):
            a = tuple(a)
        if is_dataclass(a) and not isinstance(a, type):  # outputs that are objects are made again, field by field
            values = {field.name: getattr(a, field.name) for field in fields(a) if field.init}
            return self.create_node("call_function", type(a), (), {k: self.create_arg(v) for k, v in values.items()})
        return super().create_arg(a)

    def _replace_len(self, module: nn.Module) -> None:
        """Let ``len(x)`` in the forward of a module be a node if it belongs to the batch; Python wants a number."""
        names = getattr(module.forward, "__globals__", {})
        if "len" not in names:
            names["len"] = self._length
            self.lengths.append(names)

    def _length(self, value: Any) -> Any:
        if isinstance(value, Traced) and isinstance(value.results[0], Tensor):
            return value.size(0)
        return len(value)

    def _result(self, node: fx.Node, number: int) -> Any:
        """The result of a node for one of the examples."""

        def read(value: fx.Node) -> Any:
            return value.meta[VALUE][number]

        args, kwargs = fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)
        target: Any = node.target
        self.running = True
        try:
            if node.op == "placeholder":
                return self.example.repeat(SAMPLES[number], *[1] * (self.example.dim() - 1))
            if node.op == "get_attr":
                return _inside(self.root, target)
            if node.op == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs) if node.op == "call_function" else None
        finally:
            self.running = False

    def _reads(self, node: fx.Node) -> bool:
        """Whether the result of a node depends on the values of the input."""
        if node.op == "placeholder":
            return True
        return reads_values(node) and any(source.meta[READS] for source in node.all_input_nodes)


def _inside(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


@contextmanager
def _replaced_functions(tracer: ShapeTracer) -> Iterator[None]:
    """Let functions that make tensors, and methods of tensors that are no nodes, accept nodes as sizes."""

    def accepting(kind: str, target: Any, plain: Callable) -> Callable:
        def called(*args: Any, **kwargs: Any) -> Any:
            sizes = args[1:] if kind == "call_method" else args
            if any(isinstance(value, fx.Proxy) for value in tree_leaves((sizes, kwargs))):
                return tracer.create_proxy(kind, target, args, kwargs)
            return plain(*args, **kwargs)

        return called

    factories = {name: getattr(torch, name) for name in FACTORIES}
    for name, function in factories.items():
        setattr(torch, name, accepting("call_function", function, function))
    own = {name: vars(Tensor)[name] for name in METHODS if name in vars(Tensor)}  # the others are inherited
    for name in METHODS:
        setattr(Tensor, name, accepting("call_method", name, getattr(Tensor, name)))
    try:
        yield
    finally:
        for name, function in factories.items():
            setattr(torch, name, function)
        for name in METHODS:
            if name in own:
                setattr(Tensor, name, own[name])
            else:
                delattr(Tensor, name)

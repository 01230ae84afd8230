# SPDX-License-Identifier: BSD-3-Clause
"""Watches the calls of torch functions in a module, to find the first call that differs between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from rainbow_fast.tracing.agreement import tensors
from rainbow_fast.tracing.graph import scope

Visit = Callable[[str, str, Tensor], None]  # called with the dotted name of the module, the function, and a result


def run(module: nn.Module, x: Tensor, visit: Visit) -> None:
    """Call a module, and call `visit` with the result of each torch function that it calls, in order."""
    with _scopes(module) as stack, _Watch(stack, visit):
        module(x)


def first_difference(runs: tuple[Callable[[Visit], None], Callable[[Visit], None]], equal: Any) -> str | None:
    """The first call whose result differs in the second run, as ``module 'a.b', relu``; None if all agree.

    Calls are matched by module, function and count: the third ``relu`` of a module in one run and in the other. A call
    that only one run makes is ignored.

    Args:
        runs: two functions that run a network and call their argument with each result.
        equal: ``equal(first, second)`` says whether two results count as equal.
    """
    results: dict[tuple[str, str, int], Tensor] = {}
    differences: list[str] = []

    def keep(counts: dict[tuple[str, str], int], scope: str, function: str) -> tuple[str, str, int]:
        counts[scope, function] = number = counts.get((scope, function), 0) + 1
        return scope, function, number

    first: dict[tuple[str, str], int] = {}
    second: dict[tuple[str, str], int] = {}

    def note(scope: str, function: str, result: Tensor) -> None:
        results[keep(first, scope, function)] = result.detach().clone()

    def compare(scope: str, function: str, result: Tensor) -> None:
        expected = results.pop(keep(second, scope, function), None)
        if not differences and expected is not None and not equal(expected, result.detach()):
            differences.append(f"module {scope or 'reference'!r}, {function}")

    for call, visit in zip(runs, (note, compare), strict=True):
        call(visit)
    return differences[0] if differences else None


class Interpreter(fx.Interpreter):
    """Runs a graph, and calls `visit` with the result of each torch function in it, in order."""

    def __init__(self, graph: fx.GraphModule, visit: Visit) -> None:
        super().__init__(graph)
        self.visit, self.stack = visit, [""]

    def run_node(self, n: fx.Node) -> Any:
        self.stack[-1] = scope(n)
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner = self.fetch_attr(str(target))
        with _scopes(owner, str(target)) as stack, _Watch(stack, self.visit):
            return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _Watch(self.stack, self.visit):
            return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _Watch(self.stack, self.visit):
            return super().call_method(target, args, kwargs)


class _Watch(TorchFunctionMode):
    def __init__(self, stack: list[str], visit: Visit) -> None:
        super().__init__()
        self.stack, self.visit = stack, visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in tensors(result):
            self.visit(self.stack[-1], _plain_name(func), part)
        return result


def _plain_name(function: Any) -> str:
    """A name without marks of operations in place: "relu" for relu_ and Tensor.relu_, "add" for Tensor.__iadd__."""
    name = str(getattr(function, "__name__", function)).strip("_")
    return IN_PLACE.get(name, name)


IN_PLACE = {
    f"{prefix}{name}": name for name in ("add", "sub", "mul", "div", "truediv", "matmul", "pow") for prefix in "ir"
}


@contextmanager
def _scopes(module: nn.Module, prefix: str = "") -> Iterator[list[str]]:
    """A list of the dotted names of the modules that are running, the innermost last, kept up to date by hooks."""
    stack = [prefix]

    def enter(name: str) -> Any:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    with ExitStack() as handles:
        for name, part in module.named_modules(prefix=prefix):
            handles.callback(part.register_forward_pre_hook(enter(name), prepend=True).remove)
            handles.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield stack

# SPDX-License-Identifier: BSD-3-Clause
"""Finds the sites of a network that torch.fx cannot trace: its activation modules, each of which is called once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.tracing.calls import run as watched
from rainbow_fast.tracing.find import Left, by_channel
from rainbow_fast.tracing.formulas import ACTIVATIONS
from rainbow_fast.tracing.nonlinearities import FUNCTIONS, METHODS, MODULES
from rainbow_fast.tracing.site import Site, make

FUNCTION_NAMES = {each.__name__ for each in FUNCTIONS} | set(METHODS) | (ACTIVATIONS - {"max", "min", "sign"})


class _Reached(Exception):
    """Ends a forward pass at the wanted site."""


class UpTo(nn.Module):
    """The part of a network up to one of its sites, which starts from the input in every run.

    The state after a site is ``(phi, input)``; the state at the beginning is ``(input,)``.

    Args:
        network: the network.
        before: dotted names of the activation modules before the site, in order.
        stop: dotted name of the activation module at which the run ends; None runs to the outputs.
    """

    def __init__(self, network: nn.Module, before: Sequence[str], stop: str | None) -> None:
        super().__init__()
        self.network, self.before, self.stop = network, tuple(before), stop

    def run(self, state: tuple[Any, ...], activations: Sequence[nn.Module]) -> tuple[Any, ...]:
        """Run from the input, with `activations` in place of the earlier sites: ``(z, input)``, or ``(outputs,)``."""
        x = state[-1]
        z: list[Tensor] = []

        def replace(activation: nn.Module) -> Any:
            return lambda module, args, result: activation(args[0])

        def reach(module: nn.Module, args: tuple) -> None:
            z.append(args[0])
            raise _Reached

        handles: list[RemovableHandle] = []
        for name, activation in zip(self.before, activations, strict=False):
            handles.append(self.network.get_submodule(name).register_forward_hook(replace(activation)))
        if self.stop is not None:
            handles.append(self.network.get_submodule(self.stop).register_forward_pre_hook(reach))
        try:
            outputs = self.network(x)
        except _Reached:
            return z[0], x
        finally:
            for handle in handles:
                handle.remove()
        return (outputs,)


def find_modules(
    network: nn.Module, example: Tensor | None, declared: tuple[type[nn.Module], ...], why: str
) -> tuple[tuple[Site, ...], tuple[UpTo, ...], tuple[Left, ...]]:
    """The sites of a network, found by running it on an example, and the parts of it that run up to each site.

    Args:
        network: the network, in eval mode; the sites and parts keep it, so it must be a copy.
        example: a batch of inputs.
        declared: the user's own classes of pointwise modules.
        why: why the network has no graph; every error message begins with it.

    Returns:
        The sites; one `UpTo` for each site, with one more that runs to the outputs; and the activations that are no
        sites: functions, and modules that are called more than once.

    Raises:
        ValueError: no example, or no activation module that is called once.
    """
    if example is None:
        raise ValueError(f"{why}, and its activation modules can be found only with an example input")
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # z is still read after phi is computed
    calls, functions = _run(network, example, (*MODULES, RandomFeatures, *declared))
    counts = Counter(call.name for call in calls)
    called = [call for call in calls if counts[call.name] == 1 and not by_channel(network.get_submodule(call.name))]
    if not called:
        raise ValueError(f"{why}, and it calls no activation module once")
    left = [
        Left(name, type(network.get_submodule(name)).__name__, _reason(network.get_submodule(name), count), len(called))
        for name, count in counts.items()
        if name not in {call.name for call in called}
    ]
    left += [Left(name, name.rpartition(".")[2], FUNCTION, len(called)) for name in functions]
    sites = [
        make(
            index,
            call.name,
            copy.deepcopy(network.get_submodule(call.name)),
            axis=call.axis,
            writer=call.writer,
            output=call.output,
            modules=(call.name,),
        )
        for index, call in enumerate(called)
    ]
    names = [call.name for call in called]
    stops: list[str | None] = [*names, None]
    runs = tuple(UpTo(network, names[:number], stop) for number, stop in enumerate(stops))
    return tuple(sites), runs, tuple(left)


FUNCTION = "a function in a network that torch.fx cannot trace, in which only modules can be sampled"


def _reason(module: nn.Module, count: int) -> str:
    if count == 1:
        return str(by_channel(module))
    return f"a module that is called {count} times, in a network that torch.fx cannot trace"


class _Call(NamedTuple):
    name: str
    axis: int | None
    writer: nn.Linear | _ConvNd | None
    output: bool


@torch.no_grad()
def _run(
    network: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...]
) -> tuple[list[_Call], dict[str, None]]:
    """All calls of activation modules in one forward pass, in order, and the activations that are called as functions.

    Functions are named like sites: by the module that calls them, a dot, and their name.
    """
    results: list[tuple[Tensor, nn.Module]] = []  # references keep torch from reusing the memory of a result
    called: list[_Call] = []

    def watch(name: str) -> Any:
        def note(module: nn.Module, args: tuple, result: Any) -> None:
            if isinstance(module, nn.Linear | _ConvNd | RandomFeatures):
                called[:] = [call._replace(output=False) for call in called]
            if type(module) in kinds:
                source = next((m for t, m in results if t is args[0]), None)
                axis = -1 if isinstance(source, nn.Linear) else 1 if isinstance(source, _ConvNd | _BatchNorm) else None
                axis = module.axis if isinstance(module, RandomFeatures) else axis
                writer = source if isinstance(source, nn.Linear | _ConvNd) and source.bias is None else None
                called.append(_Call(name, axis, writer, True))
            if isinstance(result, Tensor) and not list(module.children()):
                results.append((result, module))

        return note

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    functions: dict[str, None] = {}

    def visit(module: str, function: str, _: Tensor) -> None:
        inside = bool(module) and type(network.get_submodule(module)) in kinds
        if function in FUNCTION_NAMES and not inside:
            functions[f"{module}.{function}".lstrip(".")] = None

    try:
        watched(network, example.clone(), visit)  # the network may write into its input
    finally:
        for handle in handles:
            handle.remove()
    return called, functions

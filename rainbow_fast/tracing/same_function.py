# SPDX-License-Identifier: BSD-3-Clause
"""Checks by value that a network is a function of its input, and that its trace computes the same function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.tracing import calls
from rainbow_fast.tracing.agreement import bound, distance, distances, limit_of, of_middle, tensors
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.graph import CannotTrace, capture
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.trace import Trace, trace

Run = Callable[[calls.Visit], Any]

COMPARED = 16  # samples in the repeated forward passes; a whole batch would take as long as a small run
FEW = 8  # samples with which the first differing call is searched for


@torch.no_grad()
def check(
    reference: nn.Module,
    traced: Trace,
    x: Tensor,
    pointwise_modules: tuple[type[nn.Module], ...] = (),
    name: str = "reference",
    counts: Callable[[Any], Any] | None = None,
) -> Any:
    """Check that a network f is a function of its input and that its trace computes the same function.

    With x (N, ...) the samples, y the `COMPARED` samples in the middle of x, and x_i the middle sample alone:

        f(y) = f(y), f(x_i) = f(x_i)             bit for bit, for two copies of f, one of which was called before
        f(x)_i = f(x_i)                          within `bound` times the largest output
        trace(y) = f(y), trace(x_i) = f(x_i)     within `bound` times the largest output

    If one of the last two comparisons fails, it is repeated in float64, because a network may amplify rounding beyond
    the bound. A call must not change parameters or buffers. If the network has no graph, a call must not change its
    input either, because then the network itself runs on the data. NaN counts as equal to NaN. The network is copied,
    and the random state is left unchanged.

    Args:
        reference: the network f.
        traced: its trace.
        x: the samples.
        pointwise_modules: the argument `pointwise_modules` that `trace` was called with.
        name: what error messages call the network.
        counts: takes the output that must not depend on the other samples of a batch from the outputs; None for all.

    Returns:
        f(x).

    Raises:
        ValueError: a comparison fails. The message begins with `name` and names the first module and function whose
            results differ.
    """
    with untouched(x.device):
        module = copied(reference)
        before, inputs = _state(module), x.clone()
        returned = module(inputs)
        outputs = _owned(returned)
        if traced.graph is None and distance(inputs, x) > 0:
            raise ValueError(f"{name}: a call changes its input, and torch.fx cannot trace it: wanted a new tensor")
        for key, value in _state(module).items():
            if key in before and distance(value, before[key]) > 0:
                raise ValueError(
                    f"{name}: a call changes its parameter or buffer {key!r}: wanted a network that leaves parameters "
                    "and buffers unchanged"
                )
        y = _few(x, COMPARED)
        compared = outputs if len(y) == len(x) else _called(copied(reference), y, name)
        single = _check_repeats(reference, y, compared, name)
        if len(x) > 1:
            pair = outputs, single
            if counts is not None:
                pair = _owned(counts(returned)), _owned(counts(copied(reference)(_middle(x).clone())))
            _check_single(reference, x, *pair, counts, name)
        for some, wanted in ((y, compared), (_middle(x), single)):
            _check_trace(reference, traced, some, wanted, pointwise_modules, name)
    return returned


def _check_repeats(reference: nn.Module, x: Tensor, outputs: Any, name: str) -> Any:
    """Check that repeated calls give the same bits; returns the output for the middle sample alone."""
    module, alone = copied(reference), _middle(x)
    single = _called(module, alone, name)
    again = _called(module, x, name)
    apart = distances(again, outputs)
    if apart == 0:
        apart = distances(_called(module, alone, name), single)
    if apart > 0:
        where = None
        for some in (_few(x), x):
            where = where or _where((_run(reference, some), _run(reference, some, before=alone)), torch.equal)
        raise ValueError(
            f"{name}: two calls with the same input differ by {apart:.1e} of the largest output, first in "
            f"{where or 'code outside of torch'}: wanted outputs that depend only on the input, bit for bit"
        )
    return single


def _check_single(
    reference: nn.Module, x: Tensor, outputs: Any, single: Any, counts: Callable[[Any], Any] | None, name: str
) -> None:
    limit, apart = limit_of(outputs, x), _of_middle_apart(outputs, single, len(x))
    if apart <= limit or _equal_in_float64(reference, x, None, counts):
        return
    where = None
    for some in (_few(x), x):

        def alike(alone: Tensor, batched: Tensor, samples: int = len(some)) -> bool:
            mine = of_middle(batched, alone, samples)
            return mine is None or distance(mine, alone, batched) <= limit

        where = where or _where((_run(reference, _middle(x)), _run(reference, some)), alike)
    shapes = [[tuple(t.shape) for t in tensors(each)] for each in (outputs, single)]
    raise ValueError(
        f"{name}: the output for a sample depends on the other samples of the batch{_in(where)}: {shapes[0]} for "
        f"{len(x)} samples and {shapes[1]} for one of them alone differ by {apart:.1e} of the largest output, "
        f"wanted at most {limit:.1e}"
    )


def _check_trace(
    reference: nn.Module,
    traced: Trace,
    x: Tensor,
    outputs: Any,
    pointwise_modules: tuple[type[nn.Module], ...],
    name: str,
) -> None:
    results, limit = traced.finish(0, (x.clone(),), []), limit_of(outputs, x)
    apart = distances(results, outputs)
    if apart <= limit or _equal_in_float64(reference, x, pointwise_modules):
        return
    where = None
    for some in (_few(x), x):
        where = where or _in_trace(reference, traced, some, pointwise_modules, limit)
    raise ValueError(
        f"{name}: its trace computes something else{_in(where or _bypassed(reference))}: for {len(x)} samples they "
        f"differ by {apart:.1e} of the largest output, wanted at most {limit:.1e}"
    )


def _in_trace(
    reference: nn.Module, traced: Trace, x: Tensor, pointwise_modules: tuple[type[nn.Module], ...], limit: float
) -> str | None:
    """The first call in which the graph of the module differs from the module.

    If the module has no graph, the copy of the network in the trace is compared instead.
    """
    try:
        graph, _ = capture(copied(reference), pointwise_modules, x[:1])
        traced_run: Run = lambda visit: calls.Interpreter(graph, visit).run(x.clone())  # noqa: E731
    except CannotTrace:
        traced_run = _run(traced.reference, x)
    return _where((_run(reference, x), traced_run), lambda a, b: distance(b, a) <= limit)


def _bypassed(reference: nn.Module) -> str | None:
    """The part of the outermost module that torch.fx does not see: its hooks or an overridden forward; None if none."""
    if reference._forward_hooks or reference._forward_pre_hooks:
        return "module 'reference', its forward hooks"
    return "module 'reference', the forward of this instance" if "forward" in vars(reference) else None


def _equal_in_float64(
    reference: nn.Module,
    x: Tensor,
    pointwise_modules: tuple[type[nn.Module], ...] | None,
    counts: Callable[[Any], Any] | None = None,
) -> bool:
    """Whether the comparison holds in float64, so that the difference was rounding.

    `pointwise_modules` None repeats the comparison of the batch with one sample alone; otherwise that with the trace.
    """
    try:
        module, x = copied(reference).double(), x.double() if x.is_floating_point() else x
        chosen = counts or (lambda outputs: outputs)
        outputs = _owned(chosen(module(x.clone())))
        if not all(t.dtype == torch.float64 for t in tensors(outputs) if t.is_floating_point()):
            return False
        if pointwise_modules is None:
            return _of_middle_apart(outputs, chosen(module(_middle(x).clone())), len(x)) <= bound()
        return distances(trace(module, x[:1], pointwise_modules).finish(0, (x.clone(),), []), outputs) <= bound()
    except Exception:  # the user's code may work in its own dtype only
        return False


def _middle(x: Tensor) -> Tensor:
    """The middle sample, contiguous; the samples may have another memory format."""
    return x[len(x) // 2 :][:1].contiguous()


def _few(x: Tensor, most: int = FEW) -> Tensor:
    """At most `most` samples around the middle of x; the middle sample stays the same."""
    at = len(x) // 2
    return x[max(at - most // 2, 0) : at + most // 2] if len(x) > most else x


def _of_middle_apart(outputs: Any, single: Any, samples: int) -> float:
    """The distance between the output for the middle sample of a batch of `samples` and its output when alone."""
    mine, singles = list(tensors(outputs)), list(tensors(single))
    apart = 0.0 if len(mine) == len(singles) else math.inf
    for t, alone in zip(mine, singles, strict=False):
        part = of_middle(t, alone, samples)
        apart = max(apart, math.inf if part is None else distance(part, alone, t))
    return apart


def _called(module: nn.Module, x: Tensor, name: str) -> Any:
    """The outputs of a call; a ValueError if the network raises an error for this number of samples."""
    try:
        return _owned(module(x.clone()))
    except Exception as error:  # the user's own code
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: a second call, with a batch of {len(x)}, raises {type(error).__name__} ({first}): wanted a "
            "network that can be called again, with any number of samples"
        ) from error


def _owned(outputs: Any) -> Any:
    """A copy of the output tensors, because a module may later write into the tensors that it has returned."""
    return outputs.detach().clone() if isinstance(outputs, Tensor) else [t.detach().clone() for t in tensors(outputs)]


def _state(module: nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {key: value.detach().clone() for key, value in named}


def _run(reference: nn.Module, x: Tensor, before: Tensor | None = None) -> Run:
    """A function that runs a copy of a network on x and visits all calls; first on `before`, if it is given."""

    def run(visit: calls.Visit) -> None:
        module = copied(reference)
        if before is not None:
            module(before.clone())
        calls.run(module, x.clone(), visit)

    return run


def _where(runs: tuple[Run, Run], equal: Callable[[Tensor, Tensor], bool]) -> str | None:
    """The first call that differs; None if none does or if a run raises, as the caller then reports without it."""
    try:
        return calls.first_difference(runs, equal)
    except Exception:
        return None


def _in(where: str | None) -> str:
    return "" if where is None else f", first in {where}"

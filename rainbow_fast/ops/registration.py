# SPDX-License-Identifier: BSD-3-Clause
"""Registers an op as ``torch.ops.rainbow_fast.X``: kernel, shapes, flops, derivatives, vmap and autocast, in one call.

`functional` registers an op that allocates its results; `writing` registers an op that writes into given tensors. The
ops behave as torch's own operators do: in eager mode and under ``torch.compile``, reverse mode, forward mode,
``torch.func`` and ``torch.vmap`` give correct numbers or raise an error. An op that writes increases the version of the
tensors that it has written, so that autograd notices when a saved tensor was overwritten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils.flop_counter import register_flop_formula

LIBRARY = torch.library.Library("rainbow_fast", "DEF")
AUTOCAST = ("cpu", "cuda")  # devices with autocast rules
HALVES = (torch.bfloat16, torch.float16)

Args = tuple[Any, ...]  # arguments of an op in the order of its schema: tensors, lists of tensors, None, numbers, words


class Derivative(NamedTuple):
    """The derivatives of an op in reverse and forward mode, computed by ops that are differentiable themselves.

    Attributes:
        vjp: ``vjp(inputs, outputs, grads, needs)`` returns the gradient of each argument: a tensor, a list of tensors
            for a list, or None. `grads` are the gradients of the outputs, None if an output has none. `needs` has the
            form of `inputs`, with True for each tensor whose gradient is wanted. `outputs` is empty unless `keeps`.
        jvp: ``jvp(inputs, outputs, tangents)`` returns the tangent of each output, or None if it has none. `tangents`
            has the form of `inputs`, with None for inputs without a tangent.
        keeps: whether the formulas read the values of the outputs.
        fixed: the indices of outputs that have no derivative.
        composite: used instead of `jvp`: the op in plain PyTorch, which is run on tensors with tangents.
    """

    vjp: Callable[[Args, Sequence[Tensor], Sequence[Tensor | None], Args], Sequence[Any]]
    jvp: Callable[[Args, Sequence[Tensor], Args], Sequence[Tensor | None]] | None
    keeps: bool = False
    fixed: tuple[int, ...] = ()
    composite: Callable | None = None


def functional(
    schema: str,
    run: Callable,
    fake: Callable,
    *,
    flops: Callable[..., int],
    derivative: Derivative | None = None,
    vmap: Callable | None = None,
    autocast: str = "float32",
    takes_half: bool = True,
    captured: bool = True,
) -> None:
    """Register an op that allocates its results.

    Args:
        schema: ``name(arguments) -> results``.
        run: the implementation for all devices; it gets plain tensors, and autograd does not record it.
        fake: returns empty results of the right shape, dtype and device, computed from those of the arguments.
        flops: returns the flops of a call, 2 for each multiply-add of a product, as torch counts them. It takes some of
            the arguments, by their names in the schema; for a tensor, its shape. `FlopCounterMode` counts with it.
        derivative: the derivatives; None for an op without floating-point inputs.
        vmap: a rule in the form of `torch.library.register_vmap`; by default a loop over the batch.
        autocast: ``"float32"`` gives the same results under autocast as without it. ``"lower"`` rounds them to the
            autocast dtype, unless they are float64. In both cases, sums are computed as without autocast.
        takes_half: whether the op supports half precision; if not, autocast widens half-precision inputs to float32.
        captured: whether `torch.compile` may put the op into a CUDA graph, see `_define`.
    """
    op = _define(schema, fake, flops, captured)
    LIBRARY.impl(op._opname, run, "CompositeExplicitAutograd")
    if derivative is not None:
        LIBRARY.impl(op._opname, _differentiable(op, derivative), "Autograd", with_keyset=True)
    torch.library.register_vmap(op.name().split(".")[0], vmap or loop(op), lib=LIBRARY)
    for device in AUTOCAST:
        LIBRARY.impl(op._opname, _autocast(op, device, autocast == "lower", takes_half), f"Autocast{device.upper()}")


def writing(
    schema: str,
    run: Callable,
    *,
    check: Callable,
    flops: Callable[..., int],
    called: str,
    fake: Callable = lambda *args: None,
    captured: bool = True,
) -> None:
    """Register an op that writes into the arguments that its schema marks with ``(a!)``. It has no derivative.

    Args:
        schema: ``name(arguments) -> results``.
        run: the implementation for all devices.
        check: called before `run`, and also for fake and meta tensors; it raises an error if arguments do not fit.
        flops: as in `functional`.
        called: what error messages call the op.
        fake: as in `functional`, for an op that also returns results.
        captured: as in `functional`.

    The registered op raises:
        RuntimeError: the gradient or tangent of an argument would be lost (the message begins with `called`), or an
            inference tensor would be written outside of inference mode.
    """

    def shapes(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    op = _define(schema, shapes, flops, captured)
    kernels = _Writing(op, run, check, called)
    LIBRARY.impl(op._opname, kernels.below_autograd(refuses=True), "Autograd", with_keyset=True)
    LIBRARY.impl(op._opname, kernels.below_autograd(refuses=False), "ADInplaceOrView", with_keyset=True)
    for key in ("Negative", "Conjugate"):
        LIBRARY.impl(op._opname, kernels.resolved, key)
    LIBRARY.impl(op._opname, kernels.implementation, "CompositeExplicitAutograd")
    for device in AUTOCAST:
        LIBRARY.impl(op._opname, _autocast(op, device, False, True), f"Autocast{device.upper()}")


class _Writing:
    """The kernels of an op that writes into its arguments, one for each dispatch key."""

    def __init__(self, op: Any, run: Callable, check: Callable, called: str) -> None:
        self.op, self.run, self.check, self.called = op, run, check, called
        arguments = enumerate(op._schema.arguments)
        self.written = [place for place, a in arguments if a.alias_info and a.alias_info.is_write]

    def targets(self, args: Sequence[Any]) -> list[Tensor]:
        """The arguments that are written into."""
        tensors: list[Tensor] = []
        for place in self.written:
            tensors += [args[place]] if isinstance(args[place], Tensor) else args[place]
        return tensors

    def below_autograd(self, *, refuses: bool) -> Callable:
        """A kernel that calls the op and increases the version of the tensors it writes.

        With `refuses`, it raises an error if a derivative would be lost.
        """

        def kernel(keyset: Any, *args: Any) -> Any:
            if refuses:
                refuse_derivatives(self.called, args)
            with _C._AutoDispatchBelowADInplaceOrView():
                result = self.op.redispatch(keyset & _C._after_ADInplaceOrView_keyset, *args)
            torch.autograd.graph.increment_version(self.targets(args))
            return result

        return kernel

    def implementation(self, *args: Any) -> Any:
        for t in self.targets(args):
            if t.is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"{self.called} writes into a tensor of inference mode: clone it, or stay in that mode"
                )
        self.check(*args)
        return self.run(*args)

    def resolved(self, *args: Any) -> Any:
        """The op for tensors with a negative or conjugate bit: it writes into a copy, which is then copied back."""
        copies = filled(args, (t.resolve_conj().resolve_neg() for t in tensors_of(args)))
        result = self.op(*copies)
        for t, copied in zip(self.targets(args), self.targets(copies), strict=True):
            if copied is not t:
                t.copy_(copied)
        return result


def refuse_derivatives(called: str, args: Args) -> None:
    """Raise RuntimeError if an op without a derivative would lose a gradient or a tangent."""
    if torch.is_grad_enabled() and _C._any_requires_grad(*args):
        raise RuntimeError(
            f"{called} writes into given memory and has no gradient: detach its inputs or use torch.no_grad()"
        )
    if _duals(args) is not None:
        raise RuntimeError(f"{called} writes into given memory and has no forward-mode derivative")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Turn autocast off for all devices: products are computed in the dtypes of the tensors."""
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def autocast_is_on(like: Tensor) -> bool:
    """Whether autocast is enabled for the device of a tensor."""
    device = like.device.type
    return device in AUTOCAST and torch.is_autocast_enabled(device)


def widened(args: Args) -> Args:
    """The arguments with half-precision tensors converted to float32."""
    return filled(args, iter([t.float() if t.dtype in HALVES else t for t in tensors_of(args)]))


def _define(schema: str, fake: Callable, flops: Callable[..., int], captured: bool) -> torch._ops.OpOverload:
    """Define an op. One with a key is never captured by `torch.compile`: its graph would not follow another key."""
    outside = not captured or "Tensor key" in schema.replace("?", "")
    name = LIBRARY.define(schema, tags=(torch.Tag.cudagraph_unsafe,) if outside else ())
    torch.library.register_fake(f"rainbow_fast::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.rainbow_fast, name)
    arguments = [argument.name for argument in packet.default._schema.arguments]
    wanted = list(inspect.signature(flops).parameters)

    @register_flop_formula(packet)
    def formula(*args: Any, out_shape: Any = None, **named: Any) -> int:
        shapes = dict(zip(arguments, args, strict=False)) | named
        return flops(**{argument: shapes[argument] for argument in wanted})

    return packet.default


def tensors_of(args: Sequence[Any]) -> Iterator[Tensor]:
    """All tensors among the arguments, including those in lists."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, list | tuple):
            yield from (t for t in a if isinstance(t, Tensor))


def filled(args: Sequence[Any], values: Iterator[Any], other: Callable[[Any], Any] = lambda a: a) -> Args:
    """The arguments with their tensors replaced by `values`, in order, and `other` applied to the rest."""

    def fill(a: Any) -> Any:
        if isinstance(a, Tensor):
            return next(values)
        if isinstance(a, list | tuple) and any(isinstance(t, Tensor) for t in a):
            return [next(values) if isinstance(t, Tensor) else t for t in a]
        return other(a)

    return tuple(map(fill, args))


def _flat(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def _like(results: Any, flat: Sequence[Tensor]) -> Any:
    return flat[0] if isinstance(results, Tensor) else type(results)(flat)


_PLACE = torch.empty(0, device="cpu")  # replaces the tensors in the arguments that a call keeps


class _Call:
    """One call of an op. It is kept by the node of the autograd graph."""

    def __init__(self, op: Any, keyset: Any, rule: Derivative, args: Args) -> None:
        self.op, self.keyset, self.rule, self.args = op, keyset, rule, args
        self.results: Any = None

    def run(self) -> Any:
        with _C._AutoDispatchBelowAutograd():
            self.results = self.op.redispatch(self.keyset & _C._after_autograd_keyset, *self.args)
        return self.results

    def forget(self) -> None:
        """Drop the results and the tensors among the arguments; the node saves those tensors itself."""
        self.args = filled(self.args, iter([_PLACE] * len(list(tensors_of(self.args)))))
        self.results = None


class _Node(_SingleLevelFunction):
    """A node of the autograd graph. It handles one level of `torch.func`, as the nodes of torch's own operators do."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Any:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):  # outer transforms need both modes
            outputs = _flat(call.run())
        ctx.call = call
        ctx.save_for_backward(*tensors, *(outputs if call.rule.keeps else ()))
        ctx.mark_non_differentiable(*(outputs[place] for place in call.rule.fixed))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        """Forward mode for tensors that require grad; the tangents can be differentiated in reverse mode."""
        call = ctx.call
        primals = filled(call.args, (_unpacked(t)[0] for t in tensors_of(call.args)))
        outputs = _flat(call.op(*primals) if call.rule.keeps else call.results)
        moved = call.rule.jvp(primals, outputs, filled(call.args, iter(tangents), lambda a: None))
        return tuple(moved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        needs, saved, rule, args = ctx.needs_input_grad[1:], ctx.saved_tensors, ctx.call.rule, ctx.call.args
        if all(g is None for g in grads):
            return (None,) * (1 + len(needs))
        inputs, wanted = filled(args, iter(saved)), filled(args, iter(needs), lambda a: None)
        with without_autocast():
            gradients = rule.vjp(inputs, saved[len(needs) :], grads, wanted)
        flat: list[Tensor | None] = []
        for a, g in zip(args, gradients, strict=True):
            if isinstance(a, Tensor):
                flat.append(g)
            elif isinstance(a, list) and any(isinstance(t, Tensor) for t in a):
                flat += [None] * len(a) if g is None else list(g)
        return None, *(g if need else None for g, need in zip(flat, needs, strict=True))


def _differentiable(op: Any, rule: Derivative) -> Callable:
    def kernel(keyset: Any, *args: Any) -> Any:
        reverse = torch.is_grad_enabled() and _C._any_requires_grad(*args)
        duals = _duals(args)
        if duals is not None and rule.composite is not None:
            return rule.composite(*args)
        if duals is not None and not reverse:
            return _forward_mode(op, rule, args, duals)
        if not reverse:
            with _C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & _C._after_autograd_keyset, *args)
        call = _Call(op, keyset, rule, args)
        with enable_single_level_autograd_function():
            outputs = _Node.apply(call, *tensors_of(args))  # type: ignore[attr-defined]  # it comes from C++
        results = _like(call.results, outputs)
        call.forget()
        return results

    return kernel


def _duals(args: Args) -> list[tuple[Tensor, Tensor | None]] | None:
    """The pairs (primal, tangent) of all tensors among the arguments; None if no tensor has a tangent.

    torch.compile traces forward mode without entering it in Python. Under tracing, each tensor is therefore checked.
    """
    traced = _C._are_functorch_transforms_active() or TracingContext.try_get() is not None
    if forward_ad._current_level < 0 and not traced:
        return None
    with disable_proxy_modes_tracing():  # the question itself is no op of a graph
        moved = any(_unpacked(t)[1] is not None for t in tensors_of(args))
    return [_unpacked(t) for t in tensors_of(args)] if moved else None


def _unpacked(t: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch._VF._unpack_dual(t, level=0) if t.is_floating_point() else (t, None)


def _forward_mode(op: Any, rule: Derivative, args: Args, duals: Sequence[Any]) -> Any:
    primals = filled(args, iter([primal for primal, _ in duals]))
    tangents = filled(args, iter([tangent for _, tangent in duals]), lambda a: None)
    results = op(*primals)
    outputs = _flat(results)
    assert rule.jvp is not None
    with without_autocast():
        moved = rule.jvp(primals, outputs, tangents)
    with_tangents = [
        y if t is None else torch._VF._make_dual(y, t, level=0) for y, t in zip(outputs, moved, strict=True)
    ]
    return _like(results, with_tangents)


def loop(op: Any) -> Callable:
    """The default rule of vmap: one call for each element of the batch."""

    def pick(a: Any, dim: Any, i: int) -> Any:
        if isinstance(a, list | tuple) and isinstance(dim, list | tuple):
            return [pick(t, d, i) for t, d in zip(a, dim, strict=True)]
        return a if dim is None else a.select(dim, i)

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        results = [op(*(pick(a, dim, i) for a, dim in zip(args, in_dims, strict=True))) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    return rule


def _autocast(op: Any, device: str, lower: bool, takes_half: bool) -> Callable:
    def kernel(*args: Any) -> Any:
        with without_autocast():
            if not takes_half or len({t.dtype for t in tensors_of(args) if t.is_floating_point()}) > 1:
                args = widened(args)
            results = op(*args)
            if not lower:
                return results
            dtype = torch.get_autocast_dtype(device)
            return _like(results, [y if y.dtype == torch.float64 else y.to(dtype) for y in _flat(results)])

    return kernel

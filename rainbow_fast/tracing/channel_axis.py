# SPDX-License-Identifier: BSD-3-Clause
"""Finds the axis of the channels of every tensor of a graph, by numbering channels and following the numbers.

A layer that mixes channels numbers its outputs. Operations that move numbers are applied to the numbers of channels as
they are: views, permutations, slices, splits, concatenations, padding, unfolding. Other operations keep the numbers of
the operand that has the shape of their result. The channel axis of a tensor is the only axis along which the numbers of
its channels change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.tracing.operations import name_of, of_input

NUMBERS = torch.float64  # exact for numbers of channels, and accepted by padding and pooling
LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)  # write the last axis
FIRST = (_ConvNd,)  # write axis 1
FIRST_KEPT = (
    *(_NormBase, nn.GroupNorm, nn.Upsample),
    *(_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd),
)
SHUFFLING = (nn.PixelShuffle, nn.PixelUnshuffle)  # numbers of new channels, which are axis 1
MOVING_MODULES = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle),
    *(_DropoutNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, nn.ZeroPad2d, nn.CircularPad2d),
)
# Names of functions and methods.
LAST_FUNCTIONS = frozenset(("linear", "embedding", "addmm", "baddbmm"))
FIRST_FUNCTIONS = frozenset(f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3))
POOLING = frozenset(f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3))
MIXING = frozenset(("matmul", "bmm", "mm"))
MOVING = frozenset(
    "view reshape view_as reshape_as flatten unflatten permute transpose swapaxes swapdims swapaxis movedim moveaxis t "
    "squeeze unsqueeze expand expand_as repeat repeat_interleave tile roll flip rot90 chunk split tensor_split hsplit "
    "vsplit dsplit unbind select narrow index_select gather take_along_dim getitem contiguous clone detach pad unfold "
    "channel_shuffle T mT H mH adjoint ravel diagonal as_strided view_copy "
    "broadcast_to atleast_1d atleast_2d atleast_3d dropout dropout1d dropout2d dropout3d alpha_dropout getattr "
    "rearrange reduce".split()
)
REDUCING = frozenset("mean sum amax amin max min prod std var logsumexp norm median nanmean".split())
JOINING = frozenset("cat concat concatenate stack hstack vstack dstack".split())


class Numbered(fx.Interpreter):
    """Runs a graph on an example, and finds the channel axis of every tensor.

    Args:
        owner: the graph.
        example: one sample, (1, ...).

    Attributes:
        axes: the channel axis of each node whose result is a tensor with one channel axis; negative ones are not used.
        shapes: the shape of each node whose result is a tensor.
    """

    def __init__(self, owner: fx.GraphModule, example: Tensor) -> None:
        super().__init__(owner)
        self.axes: dict[fx.Node, int] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._numbers: dict[fx.Node, Any] = {}
        self._of_input = of_input(owner.graph)
        self.args_iter = iter([example])
        with torch.no_grad():
            for node in owner.graph.nodes:  # `run` would start a thread, for a bar of progress
                self.env[node] = self.run_node(node)
                for read in self.user_to_last_uses.get(node, []):
                    del self.env[read]
        self._numbers.clear()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        numbers = self._number(n, result)
        if numbers is not None:
            self._numbers[n] = numbers
            axis = varying(numbers)
            if axis is not None:
                self.axes[n] = axis
        return result

    def _number(self, n: fx.Node, result: Any) -> Any:
        """The numbers of the channels of a result, in its structure; None if they are not known."""
        if n.op in ("placeholder", "get_attr", "output"):
            return None
        if n.op == "call_module":
            return self._of_module(self.fetch_attr(str(n.target)), n, result)
        name = name_of(n)
        rule = next((rule for names, rule in RULES if name in names), Numbered._alike)
        return rule(self, n, result)

    def _last(self, n: fx.Node, result: Any) -> Any:
        return _counted(result, -1)

    def _first(self, n: fx.Node, result: Any) -> Any:
        return _counted(result, 1)

    def _attended(self, n: fx.Node, result: Any) -> Any:
        return _mixed(None, self._of(n.args[2] if len(n.args) > 2 else n.kwargs.get("value")), result)

    def _multiplied(self, n: fx.Node, result: Any) -> Any:
        """Of a product with a matrix of parameters, which writes the last axis, or with other activations."""
        if len(n.args) < 2:
            return None
        if n.args[1] not in self._of_input:
            return _counted(result, -1)
        return _mixed(self._of(n.args[0]), self._of(n.args[1]), result)

    def _summed(self, n: fx.Node, result: Any) -> Any:
        """Of ``einsum("...->...", a, b)``: channels of an operand that the result keeps, or that parameters write."""
        equation, operands = n.args[0], n.args[1:]
        if not isinstance(equation, str) or "->" not in equation or "." in equation or not isinstance(result, Tensor):
            return None
        inputs, _, output = equation.replace(" ", "").partition("->")
        pairs = list(zip(inputs.split(","), operands, strict=False))
        kept = {letters[self.axes[x]] for letters, x in pairs if isinstance(x, fx.Node) and x in self.axes}
        if not kept & set(output):
            of_data = {letter for letters, x in pairs if x in self._of_input for letter in letters}
            kept = {letter for letters, _ in pairs for letter in letters} - of_data
        letters = kept & set(output)
        return _counted(result, output.index(letters.pop())) if len(letters) == 1 else None

    def _of_module(self, module: nn.Module, n: fx.Node, result: Any) -> Any:
        if isinstance(module, LAST):
            return _counted(result, -1)
        if isinstance(module, FIRST):
            return _counted(result, 1)
        if isinstance(module, RandomFeatures):
            return _counted(result, module.axis)
        if isinstance(module, FIRST_KEPT + SHUFFLING):
            return self._kept_first(n, result)
        if isinstance(module, MOVING_MODULES) or type(module).__module__.startswith("einops."):
            return self._moved(n, result, module)
        return self._alike(n, result)

    def _arguments(self, n: fx.Node) -> tuple[tuple, dict[str, Any]]:
        """The values of the arguments of a node but the first."""
        values: Any = self.map_nodes_to_values((n.args[1:], n.kwargs), n)
        return values[0], dict(values[1])

    def _of(self, node: Any) -> Any:
        return self._numbers.get(node) if isinstance(node, fx.Node) else None

    def _kept_first(self, n: fx.Node, result: Any) -> Any:
        """Of an operation on each of the channels, which are axis 1: a normalisation, or pooling over positions."""
        source = n.all_input_nodes[0] if n.all_input_nodes else None
        if isinstance(self._of(source), Tensor) and source in self.axes and self.axes[source] != 1:
            return None
        return _counted(result, 1)

    def _moved(self, n: fx.Node, result: Any, function: Callable | None = None) -> Any:
        """The operation itself, applied to the numbers of channels in the place of its first operand."""
        first = n.args[0] if n.args else None
        numbers = self._of(first)
        if numbers is None:
            return None
        args, kwargs = self._arguments(n)
        if function is None and n.op == "call_method":
            function = getattr(type(numbers), str(n.target)) if isinstance(numbers, Tensor) else None
        elif function is None:
            function = n.target  # type: ignore[assignment]
        try:
            return None if function is None else function(numbers, *args, **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
            return None

    def _joined(self, n: fx.Node, result: Any) -> Any:
        parts = n.args[0] if n.args else n.kwargs.get("tensors")
        numbers = [self._of(part) for part in parts] if isinstance(parts, list | tuple) else []
        tensors = [each for each in numbers if isinstance(each, Tensor)]
        if not tensors or len(tensors) < len(numbers):
            return None
        shifted, count = [], 0.0
        for each in tensors:
            shifted.append(each + count)
            count += float(each.max()) + 1 if each.numel() else 0
        args, kwargs = self._arguments(n)
        kwargs.pop("tensors", None)
        joined: Callable = n.target  # type: ignore[assignment]
        whole = joined(shifted, *args, **kwargs)
        if varying(whole) is None:  # not along the channels: the parts have the same channels
            return joined(tensors, *args, **kwargs)
        return whole

    def _reduced(self, n: fx.Node, result: Any) -> Any:
        numbers = self._of(n.args[0]) if n.args else None
        if not (isinstance(numbers, Tensor) and isinstance(result, Tensor)):
            return None
        dim = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", n.kwargs.get("axis"))
        keep = result.dim() == numbers.dim()
        if not isinstance(dim, int | tuple | list):
            return self._alike(n, result)
        return numbers.amax(tuple(dim) if isinstance(dim, tuple | list) else dim, keepdim=keep)

    def _alike(self, n: fx.Node, result: Any) -> Any:
        """The numbers of the operands, which are broadcast to the result; None if operands disagree about the axis."""
        if not isinstance(result, Tensor):
            return None
        if len(n.all_input_nodes) == 1 and self.shapes.get(n.all_input_nodes[0]) == result.shape:
            return self._of(n.all_input_nodes[0])
        numbered: Tensor | None = None
        for source in n.all_input_nodes:
            numbers = self._of(source)
            if not isinstance(numbers, Tensor) or numbers.dim() > result.dim():
                continue
            try:
                wide = numbers.broadcast_to(result.shape)
            except RuntimeError:
                continue
            if (
                numbered is not None
                and varying(numbered) != varying(wide)
                and None not in (varying(numbered), varying(wide))
            ):
                return None
            numbered = wide if numbered is None or varying(numbered) is None else numbered
        return numbered


RULES: tuple[tuple[frozenset[str], Callable[[Numbered, fx.Node, Any], Any]], ...] = (
    (LAST_FUNCTIONS, Numbered._last),
    (FIRST_FUNCTIONS, Numbered._first),
    (frozenset(("scaled_dot_product_attention",)), Numbered._attended),
    (MIXING, Numbered._multiplied),
    (frozenset(("einsum",)), Numbered._summed),
    (POOLING | {"interpolate", "pixel_shuffle", "pixel_unshuffle"}, Numbered._kept_first),
    (MOVING, Numbered._moved),
    (JOINING, Numbered._joined),
    (REDUCING, Numbered._reduced),
)


def varying(numbers: Any) -> int | None:
    """The only axis along which numbers of channels change; None if there is none, or more than one."""
    if not isinstance(numbers, Tensor) or numbers.numel() == 0:
        return None
    spread = [axis for axis in range(numbers.dim()) if numbers.shape[axis] > 1 and numbers.stride(axis) != 0]
    numbers = numbers[tuple(slice(None) if axis in spread else 0 for axis in range(numbers.dim()))]
    axes = [
        axis
        for place, axis in enumerate(spread)
        if not torch.equal(numbers.narrow(place, 0, 1).expand_as(numbers), numbers)
    ]
    return axes[0] if len(axes) == 1 else None


def _counted(result: Any, axis: int) -> Any:
    """Numbers for the channels of a result, which are this axis of its first tensor."""
    if isinstance(result, tuple | list):
        return type(result)([_counted(result[0], axis), *[None] * (len(result) - 1)]) if result else None
    if not isinstance(result, Tensor) or result.dim() < 2:
        return None
    count = torch.arange(result.shape[axis], dtype=NUMBERS, device=result.device)
    shape = [1] * result.dim()
    shape[axis] = -1
    return count.view(shape).expand(result.shape)


def _mixed(a: Any, b: Any, result: Any) -> Any:
    """Of a product of matrices a and b: the channels of the rows of a, and those of the columns of b."""
    if not isinstance(result, Tensor):
        return None
    total: Tensor | None = None
    for numbers, axis in ((a, -1), (b, -2)):  # the axis that the product sums over
        if isinstance(numbers, Tensor) and numbers.dim() == result.dim():
            values, places = numbers.select(axis, 0).unsqueeze(axis).unique(return_inverse=True)
            part = places.to(NUMBERS)
            total = part if total is None else total * len(values) + part
    return None if total is None else total.expand(result.shape)


def named(axis: int, dims: int) -> int | None:
    """The axis as sites name it: 1, or -1 for the last one; None for any other."""
    return -1 if axis == dims - 1 else 1 if axis == 1 else None

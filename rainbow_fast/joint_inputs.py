# SPDX-License-Identifier: BSD-3-Clause
"""Several inputs of a network as one: a row of bytes for each sample, which a copy of the network takes apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

Name = str | int  # of an input: that of a parameter of `forward`, or its place among them
Named = Mapping[Name, Tensor]
SPLIT = "joint_inputs"  # name of the module that takes rows apart
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)}  # fmt: skip
MASKS = ("attention_mask", "padding_mask")  # ends of their names


class Input(NamedTuple):
    """One input: its name, its dtype (a key of `DTYPES`) and the shape of one sample."""

    name: Name
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} (N{''.join(f', {n}' for n in self.shape)})"


@dataclass(frozen=True)
class JointInputs:
    """How the inputs of a network lie in a row of bytes, one after the other."""

    inputs: tuple[Input, ...]

    @classmethod
    def of(cls, tensors: Named) -> JointInputs:
        """The layout for these tensors, (N, ...) each."""
        kinds = {dtype: name for name, dtype in DTYPES.items()}
        return cls(tuple(Input(name, kinds[t.dtype], tuple(t.shape[1:])) for name, t in tensors.items()))

    @property
    def size(self) -> int:
        """Bytes of one row."""
        return sum(each.size for each in self.inputs)

    def join(self, tensors: Named) -> Tensor:
        """The rows (N, size) uint8 of tensors that have this layout."""
        parts = [tensors[each.name].contiguous() for each in self.inputs]
        rows = torch.empty(len(parts[0]), self.size, dtype=torch.uint8, device=parts[0].device)
        start = 0
        for each, part in zip(self.inputs, parts, strict=True):
            rows[:, start : start + each.size] = part.view(len(part), -1).view(torch.uint8)
            start += each.size
        return rows

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors in rows (N, size) uint8, in their own dtypes."""
        return tuple(self.part(rows, each) for each in self.inputs)

    def part(self, rows: Tensor, one: Input) -> Tensor:
        """One of the tensors in rows."""
        start = sum(each.size for each in self.inputs[: self.inputs.index(one)])
        part = rows[:, start : start + one.size]
        if len(self.inputs) > 1 or not rows.is_contiguous():
            part = part.clone(memory_format=torch.contiguous_format)
        return part.view(DTYPES[one.dtype]).view(len(rows), *one.shape)

    def named(self, rows: Tensor) -> dict[Name, Tensor]:
        """The tensors in rows by name."""
        return {each.name: part for each, part in zip(self.inputs, self.split(rows), strict=True)}

    @property
    def masks(self) -> tuple[Input, ...]:
        """The inputs (N, T) that say which positions count: they are named `...attention_mask` or `...padding_mask`.

        An attention mask is 1 at positions that count, a padding mask is true at positions that do not.
        """
        return tuple(
            each
            for each in self.inputs
            if str(each.name).endswith(MASKS) and len(each.shape) == 1 and not DTYPES[each.dtype].is_floating_point
        )

    def attended(self, rows: Tensor, mask: Input) -> Tensor:
        """Where the positions of a mask count, (N, T) bool."""
        return (self.part(rows, mask) != 0) != str(mask.name).endswith(MASKS[1])

    def wider(self, other: JointInputs) -> JointInputs | None:
        """The layout for samples of both, which are padded to the longer ones; None if they differ in more than that.

        Samples are only padded along their first axis, and only if there is a mask.
        """
        mine, others = ({each.name: each for each in layout.inputs} for layout in (self, other))
        if mine.keys() != others.keys():
            return None
        wide = []
        for name, one in mine.items():
            two = others[name]
            if one.dtype != two.dtype or one.shape[1:] != two.shape[1:] or len(one.shape) != len(two.shape):
                return None
            wide.append(one._replace(shape=max(one.shape, two.shape)))
        same = frozenset(mine.values()) == frozenset(others.values())
        return JointInputs(tuple(wide)) if same or self.masks else None

    def padded(self, tensors: Named) -> dict[Name, Tensor]:
        """Tensors as long as those of this layout: with zeros behind, which masks do not count."""
        return {
            each.name: padded(tensors[each.name], each.shape, int(str(each.name).endswith(MASKS[1])))
            for each in self.inputs
        }

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))


class SplitInputs(nn.Module):
    """Takes rows apart. Numbers with a fraction are converted to the dtype of the network."""

    like: Tensor

    def __init__(self, layout: JointInputs, like: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("like", like.detach().new_empty(0), persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts = self.layout.split(rows)
        return tuple(part.to(self.like.dtype) if part.is_floating_point() else part for part in parts)


def with_joint_inputs(network: nn.Module, layout: JointInputs) -> nn.Module:
    """A network that takes rows. It shares its parts with the network; its class is a subclass of its own.

    Args:
        network: the network.
        layout: its inputs. A name is that of a parameter of `forward`; a place is that of a parameter.

    Raises:
        TypeError: the network is a graph, whose class cannot be changed.
        ValueError: `forward` has no such parameter, or has others without a default.
    """
    if isinstance(network, fx.GraphModule):
        raise TypeError("a torch.fx graph of several inputs: wanted the module that it was traced from")
    names, kind = [each.name for each in layout.inputs], type(network)
    _check_names(names, network)

    def forward(self: nn.Module, rows: Tensor) -> Any:
        parts = self.get_submodule(SPLIT)(rows)
        values = {name: parts[place] for place, name in enumerate(names)}
        by_place = [values[name] for name in names if isinstance(name, int)]
        return kind.forward(self, *by_place, **{name: v for name, v in values.items() if isinstance(name, str)})

    def reduced(self: nn.Module) -> tuple:  # for copies and pickles, as no name leads to the class
        return with_joint_inputs, (without_joint_inputs(self), layout)

    joint = _apart(network, vars(network)["_modules"])
    own = {"forward": forward, "__reduce__": reduced, "__module__": kind.__module__}
    joint.__class__ = type(kind.__name__, (kind,), own)
    joint.add_module(SPLIT, SplitInputs(layout, next(network.parameters())))
    return joint


def without_joint_inputs(network: nn.Module) -> nn.Module:
    """The network that `with_joint_inputs` made this one from, with its present parts."""
    own = _apart(network, {name: part for name, part in vars(network)["_modules"].items() if name != SPLIT})
    own.__class__ = type(network).__mro__[1]
    return own


def is_plain(layout: JointInputs, network: nn.Module) -> bool:
    """Whether the only input is the first parameter of `forward`, so that it can be given as it is."""
    return len(layout.inputs) == 1 and layout.inputs[0].name in (0, first_parameter(network))


def first_parameter(network: nn.Module) -> str | None:
    """The name of the first parameter of `forward`."""
    return next(iter(inspect.signature(network.forward).parameters), None)


def padded(t: Tensor, shape: tuple[int, ...], value: int = 0) -> Tensor:
    """t (N, T, ...) with `value` behind, so that each sample has this shape, which is longer along its first axis."""
    if tuple(t.shape[1:]) == shape:
        return t
    wide = t.new_full((len(t), *shape), value)
    wide[:, : t.shape[1]] = t
    return wide


def by_positions(masks: Named, called: str = "data") -> dict[int, Tensor]:
    """By number of positions, which of them count, (N, positions) bool; without masks of which all count.

    Args:
        masks: by the names of inputs, bool tensors (N, positions).
        called: what error messages call the data.

    Raises:
        ValueError: two masks have the same number of positions, and differ.
    """
    first: dict[int, tuple[Name, Tensor]] = {}
    for name, mask in masks.items():
        other, before = first.setdefault(mask.shape[1], (name, mask))
        if not torch.equal(before, mask):
            raise ValueError(
                f"{called}: inputs {other!r} and {name!r} disagree about which of {mask.shape[1]} positions count: "
                "wanted one of another length"
            )
    return {positions: mask for positions, (_, mask) in first.items() if not bool(mask.all())}


def layout_of(network: nn.Module) -> JointInputs | None:
    """The inputs of a network that takes rows; None for other networks."""
    split = getattr(network, SPLIT, None)
    return split.layout if isinstance(split, SplitInputs) else None


def _apart(network: nn.Module, modules: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module with these parts, and everything else as a network has it."""
    other = object.__new__(type(network))
    other.__dict__ = dict(vars(network), _modules=dict(modules))
    return other


def arguments(layout: JointInputs, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Tensor:
    """The rows for a call with these arguments.

    Raises:
        TypeError, ValueError: an argument is missing, unknown, no tensor, or of another shape or dtype.
    """
    names = [each.name for each in layout.inputs]
    unnamed: Iterable[Name] = [name for name in names if name not in kwargs]
    values: dict[Any, Any] = dict(zip(unnamed, args, strict=False)) | dict(kwargs)
    if len(args) > len(names) or set(values) != set(names):
        raise TypeError(f"inputs: got {len(args)} by place and {', '.join(kwargs) or 'none'} by name: wanted {layout}")
    for each in layout.inputs:
        value = values[each.name]
        if not isinstance(value, Tensor):
            raise TypeError(f"{each.name}: got {type(value).__name__}, wanted a tensor {each}")
        value = values[each.name] = value.to(device, _dtype_for(value, DTYPES[each.dtype]))
        if value.dtype != DTYPES[each.dtype] or tuple(value.shape[1:]) != each.shape or value.dim() == 0:
            raise ValueError(f"{each.name}: got {str(value.dtype)[6:]} {tuple(value.shape)}, wanted {each}")
    lengths = {len(value) for value in values.values()}
    if len(lengths) > 1:
        raise ValueError(f"inputs: got batches of {sorted(lengths)} samples, wanted one number")
    return layout.join(values)


def _dtype_for(value: Tensor, wanted: torch.dtype) -> torch.dtype:
    """`wanted` if it is of the same kind, numbers or integers, as the dtype of the value; otherwise its own."""
    return wanted if value.is_floating_point() == wanted.is_floating_point else value.dtype


def _check_names(names: Sequence[Name], network: nn.Module) -> None:
    parameters = inspect.signature(network.forward).parameters.values()
    own = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    any_place = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    for name in names:
        if (name >= len(own) and not any_place) if isinstance(name, int) else (name not in own and not any_name):
            raise ValueError(f"input {name!r}: the network takes {', '.join(own)}")
    missing = [p.name for place, p in enumerate(parameters) if p.default is p.empty and p.name in own
               and p.name not in names and place not in names]  # fmt: skip
    if missing:
        raise ValueError(f"input {missing[0]!r} is missing: the network takes {', '.join(own)}")

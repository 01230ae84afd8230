# SPDX-License-Identifier: BSD-3-Clause
"""Which output of a network counts, and how right it is: accuracy against labels, or the user's own metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.data.dtypes import IGNORED

LOGITS = "logits"  # the name of the output that counts, if there is one and no other is asked for
WANTED = (
    "integers (N,) for outputs (N, K) of K >= 2 classes; integers (N, *positions) for outputs (N, K, *positions) or "
    "(N, *positions, K); 0 and 1 for one logit, (N,) or (N, 1); or metric="
)
UNLABELLED = "pass x without y if y is not the class"

Metric = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Score:
    """Compares outputs with labels.

    The accuracy is the share of samples, or of positions, whose largest output is that of their label. For a single
    logit, it is the share where ``(logit > 0) == y``.

    Attributes:
        output: the output that counts: its name, or its place in a tuple. None for a network that gives one tensor, or
            several of which one is named "logits".
        metric: a function of all outputs and labels, in the place of the accuracy; it returns a number.
    """

    output: str | int | None = None
    metric: Metric | None = None

    @property
    def name(self) -> str:
        """What the numbers are."""
        return "accuracy" if self.metric is None else getattr(self.metric, "__name__", type(self.metric).__name__)

    def of(self, outputs: Any) -> Tensor:
        """The output that counts.

        Raises:
            ValueError: there is no such output, or several and none is asked for. The message lists those there are.
        """
        if isinstance(outputs, Tensor) and self.output is None:
            return outputs
        parts = parts_of(outputs)
        tensors = {name: value for name, value in parts.items() if isinstance(value, Tensor)}
        wanted: Any = self.output
        if wanted is None:
            wanted = LOGITS if LOGITS in tensors else next(iter(tensors), None) if len(tensors) == 1 else None
        elif isinstance(wanted, int) and wanted not in parts and 0 <= wanted < len(parts):
            wanted = list(parts)[wanted]
        if wanted not in tensors:
            there = ", ".join(f"{name!r} {_shape(value)}" for name, value in tensors.items()) or "no tensors"
            raise ValueError(f"output={self.output!r}: the network gives {there}: wanted the name of one of them")
        return tensors[wanted]

    def check(self, y: Tensor, outputs: Any, name: str) -> None:
        """Check that labels can be compared with outputs. `outputs` are those of a network for some samples.

        Raises:
            TypeError, ValueError: they cannot. The message begins with `name`.
        """
        chosen = self.of(outputs)
        if self.metric is not None:
            return
        axis = _class_axis(y, chosen)
        if axis is None:
            raise (ValueError if y.dtype == torch.int64 else TypeError)(
                f"{name}: labels y are {str(y.dtype).removeprefix('torch.')} {_shape(y)}, and the network gives "
                f"outputs {_shape(chosen)}: wanted {WANTED}; {UNLABELLED}"
            )
        K = chosen.shape[axis] if axis else 2
        counts = y != IGNORED if y.dim() > 1 else torch.ones_like(y, dtype=torch.bool)
        outside = (((y < 0) | (y >= K)) & counts).nonzero()
        if len(outside):
            first = tuple(map(int, outside[0]))
            where = f"sample {first[0]}" + (f", position {first[1:]}" if first[1:] else "")
            many = f"{K} outputs" if axis else "a single logit"
            raise ValueError(
                f"{name}: label {int(y[first])} of {where}, wanted 0 to {K - 1}, because the network has {many}; "
                f"{UNLABELLED}"
            )

    def __call__(self, pairs: Iterable[tuple[Any, Tensor]]) -> float:
        """The accuracy over pairs of outputs and labels; with a metric, its value for all of them together.

        Raises:
            TypeError: the metric does not return a number.
        """
        if self.metric is not None:
            outputs, labels = zip(*((self.of(outputs), y) for outputs, y in pairs), strict=True)
            value = self.metric(torch.cat(outputs), torch.cat(labels))
            try:
                return float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"metric: {self.name} returned {type(value).__name__}, wanted a number") from error
        right = counted = 0
        for outputs, y in pairs:
            good, counts = _right(self.of(outputs), y)
            right, counted = right + good, counted + counts
        return right / counted if counted else math.nan


def parts_of(outputs: Any) -> dict[str | int, Any]:
    """The outputs of a network by name: the items of a mapping, the attributes of an object, or places in a tuple."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, list | tuple):
        return dict(zip(getattr(outputs, "_fields", range(len(outputs))), outputs, strict=True))
    return dict(vars(outputs)) if hasattr(outputs, "__dict__") and not isinstance(outputs, Tensor) else {}


def _class_axis(y: Tensor, outputs: Tensor) -> int | None:
    """The axis of the classes in outputs; 0 for a single logit; None if labels cannot be compared with them.

    If the classes may be the second and the last axis, it is not known which.
    """
    labels, shape = tuple(y.shape[1:]), tuple(outputs.shape[1:])
    if y.dtype == torch.int64 and outputs.dim() == y.dim() + 1:
        axes = {
            axis
            for axis, rest in ((1, shape[1:]), (outputs.dim() - 1, shape[:-1]))
            if rest == labels and outputs.shape[axis] >= 2
        }
        if axes:
            return axes.pop() if len(axes) == 1 else None
    without = {tuple(n for place, n in enumerate(s) if place != 0 or n != 1) for s in (labels, shape)}
    return 0 if len(without) == 1 and (labels in ((), (1,)) or y.dim() > 2) and _zero_or_one(y) else None


def _zero_or_one(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1) | (y == IGNORED)).all())


def _right(outputs: Tensor, y: Tensor) -> tuple[int, int]:
    """How many labels are right, and how many count."""
    axis = _class_axis(y, outputs)
    assert axis is not None
    predicted = outputs.argmax(axis) if axis else outputs.reshape(y.shape) > 0
    counts = y != IGNORED if y.dim() > 1 else torch.ones_like(y, dtype=torch.bool)
    return int(((predicted == y) & counts).sum()), int(counts.sum())


def _shape(value: Tensor) -> str:
    return f"(N{''.join(f', {n}' for n in value.shape[1:])})"

# SPDX-License-Identifier: BSD-3-Clause
"""Turns tensors, pairs, dicts and data loaders into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.joint_inputs import DTYPES, Name

Batch = tuple[Tensor, Tensor | None]
Inputs = Tensor | dict[Name, Tensor]  # of a network: one, or several by name or place
LABELS = ("labels", "label")  # keys of a dict whose tensor is y


def batches(data: object, *, batch_size: int = 1000, name: str = "data") -> Iterable[tuple[Inputs, Tensor | None]]:
    """Batches `(x, y)` of the given data, without copies. `y` is None if there are no labels.

    Args:
        data: a tensor `x` (N, ...); a tuple `(x, y)` of tensors with the same number of rows; or a `DataLoader` or
            another iterable over batches that can be iterated several times. Each of its batches is `x`, or a tuple or
            list `(x,)`, `(x, y)`, `(x, None)` or `(x, y, index)`, whose integers `index` (N,) are not used. A list
            `[x, y]` of two tensors is one batch if y is of integers (N,), the labels of x. For a network of several
            inputs, x is a tuple or a list of at least two tensors, or a dict of tensors by name. A dict may stand
            alone: y is then its item "labels" or "label", if it has one. Items that are no tensors are not used.
        batch_size: rows in each batch if `data` is a tensor or a tuple; a loader keeps its own batches.
        name: what error messages call the data.

    Returns:
        An iterable that can be iterated several times. `operator.length_hint` gives the number of batches, or 0 if it
        is unknown. Several inputs are a dict by name, or by place in the tuple.

    Raises:
        TypeError: `data` or one of its batches is none of these (for example a generator, which can be iterated only
            once), the samples are complex, or `batch_size` is not an integer.
        ValueError: there are no samples, the labels do not match the samples, only some batches have labels, or
            `batch_size` is below 1.

    Errors in a batch of a loader are raised when the iteration reaches this batch.
    """
    batch_size = integer("batch_size", batch_size, 1)
    if isinstance(data, Tensor | Mapping) or _is_tuple_of_tensors(data) or _is_batch(data):
        x, y = _batch(data, name)
        return _Batches(lambda: _slices(x, y, batch_size), -(-count_of(x) // batch_size))
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name}: wanted data that can be iterated several times; got {type(data).__name__}, which can be "
            "iterated only once (a list of the batches or a DataLoader can be used)"
        )
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise TypeError(
            f"{name}: wanted a tensor, a tuple (x, y) of tensors, a dict of tensors, a DataLoader or another iterable "
            f"over batches; got {type(data).__name__}"
        )
    loader: Iterable[object] = data
    return _Batches(lambda: _checked(loader, name), length_hint(loader))


@dataclass(frozen=True)
class _Batches:
    """An iterable made from a function that starts a new iteration, and the number of batches, 0 if it is unknown."""

    start: Callable[[], Iterator[tuple[Inputs, Tensor | None]]]
    number: int

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor | None]]:
        return self.start()

    def __length_hint__(self) -> int:
        return self.number


def _slices(x: Inputs, y: Tensor | None, batch_size: int) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Views of consecutive rows."""
    for i in range(0, count_of(x), batch_size):
        yield rows_of(x, i, i + batch_size), None if y is None else y[i : i + batch_size]


def count_of(x: Inputs) -> int:
    """The number of samples."""
    return len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))


def rows_of(x: Inputs, start: int, stop: int) -> Inputs:
    """Views of the samples start..stop."""
    return x[start:stop] if isinstance(x, Tensor) else {name: each[start:stop] for name, each in x.items()}


def _checked(loader: Iterable[object], name: str) -> Iterator[tuple[Inputs, Tensor | None]]:
    """The batches of a loader; each is checked when it is reached."""
    labelled: bool | None = None
    for index, item in enumerate(loader):
        x, y = _batch(item, f"{name}: batch {index}")
        if labelled is None:
            labelled = y is not None
        elif labelled != (y is not None):
            raise ValueError(f"{name}: batch {index} is {'un' if labelled else ''}labelled, those before it are not")
        yield x, y
    if labelled is None:
        raise ValueError(f"{name}: {type(loader).__name__} yields no batch")


def _batch(item: object, name: str) -> tuple[Inputs, Tensor | None]:
    """A checked pair from one item of a loader; error messages begin with `name`."""
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if len(parts) == 3 and _are_labels(parts[2], parts[0]):
        parts = parts[:2]
    x, y = (*parts, None)[:2] if len(parts) in (1, 2) else (None, None)
    x, y = _several(x, y, name)
    if not isinstance(x, Tensor | dict) or not (y is None or isinstance(y, Tensor)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(
            f"{name}: wanted a tensor x, a dict of tensors, or a pair (x, y) with labels y; got {type(item).__name__} "
            f"({kinds})"
        )
    for key, each in [("x", x)] if isinstance(x, Tensor) else x.items():
        shown = key if isinstance(x, Tensor) else repr(key)
        if each.is_complex():
            what = f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}"
            raise TypeError(f"{name}: wanted {shown} of real numbers, got {what}")
        if each.ndim == 0 or len(each) == 0:
            raise ValueError(f"{name}: wanted {shown} of shape (N, ...) with N >= 1, got {tuple(each.shape)}")
        if len(each) != count_of(x):
            raise ValueError(f"{name}: {shown} has {len(each)} samples, wanted {count_of(x)} as the first input")
        if isinstance(x, dict) and each.dtype not in DTYPES.values():
            raise TypeError(f"{name}: {shown} is {str(each.dtype)[6:]}, wanted one of {', '.join(DTYPES)}")
    if y is not None and (y.ndim == 0 or len(y) != count_of(x)):
        raise ValueError(
            f"{name}: wanted one label for each of the {count_of(x)} samples, got y of shape {tuple(y.shape)}"
        )
    return x, y


def _several(x: object, y: object, name: str) -> tuple[object, object]:
    """Several inputs as a dict, without their labels; x and y as they are if x is something else."""
    if isinstance(x, tuple | list) and _are_inputs(x):
        return dict(enumerate(x)), y
    if not isinstance(x, Mapping):
        return x, y
    tensors = {key: each for key, each in x.items() if isinstance(each, Tensor)}
    labels = {key: tensors.pop(key) for key in LABELS if key in tensors}
    if len(labels) + (y is not None) > 1:
        raise ValueError(f"{name}: labels {', '.join(map(repr, labels))} and others beside them, wanted them once")
    if not tensors or not all(isinstance(key, str) for key in tensors):
        keys = ", ".join(f"{key!r}: {type(each).__name__}" for key, each in x.items())
        raise TypeError(f"{name}: wanted a dict with tensors of inputs by name, got {{{keys}}}")
    return tensors, next(iter(labels.values()), y)


def _are_inputs(x: object) -> bool:
    """Whether x is several tensors, each an input of the network."""
    return isinstance(x, tuple | list) and len(x) > 1 and all(isinstance(each, Tensor) for each in x)


def _are_labels(y: object, x: object) -> bool:
    """Whether y is a tensor of integers (N,), and x a tensor with N samples of more than one number."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.dim() < 2:
        return False
    return y.dim() == 1 and len(y) == len(x) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def _is_batch(data: object) -> bool:
    """Whether `data` is a list [x, y] or [x, y, index], as `next(iter(loader))` returns it."""
    return isinstance(data, list) and len(data) in (2, 3) and all(_are_labels(y, data[0]) for y in data[1:])


def _is_tuple_of_tensors(data: object) -> bool:
    """Whether `data` is a tuple (x, y). A list, or a tuple of pairs, counts as a loader."""
    if not isinstance(data, tuple):
        return False
    pair = len(data) == 2 and data[1] is None and (isinstance(data[0], Mapping) or _are_inputs(data[0]))
    return pair or any(isinstance(part, Tensor) for part in data)

# SPDX-License-Identifier: BSD-3-Clause
"""Turns tensors, pairs of tensors and data loaders into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.arguments import integer

Batch = tuple[Tensor, Tensor | None]


def batches(data: object, *, batch_size: int = 1000, name: str = "data") -> Iterable[Batch]:
    """Batches `(x, y)` of the given data, without copies. `y` is None if there are no labels.

    Args:
        data: a tensor `x` (N, ...); a tuple `(x, y)` of tensors with the same number of rows; or a `DataLoader` or
            another iterable over batches that can be iterated several times. Each of its batches is `x`, or a tuple or
            list `(x,)`, `(x, y)`, `(x, None)` or `(x, y, index)`, whose integers `index` (N,) are not used. A list
            `[x, y]` of two tensors is one batch if y is of integers (N,), the labels of x.
        batch_size: rows in each batch if `data` is a tensor or a tuple; a loader keeps its own batches.
        name: what error messages call the data.

    Returns:
        An iterable that can be iterated several times.

    Raises:
        TypeError: `data` or one of its batches is none of these (for example a generator, which can be iterated only
            once), the samples are complex, or `batch_size` is not an integer.
        ValueError: there are no samples, the labels do not match the samples, only some batches have labels, or
            `batch_size` is below 1.

    Errors in a batch of a loader are raised when the iteration reaches this batch.
    """
    batch_size = integer("batch_size", batch_size, 1)
    if isinstance(data, Tensor) or _is_tuple_of_tensors(data) or _is_batch(data):
        x, y = _batch(data, name)
        return _Batches(lambda: _slices(x, y, batch_size))
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name}: wanted data that can be iterated several times; got {type(data).__name__}, which can be "
            "iterated only once (a list of the batches or a DataLoader can be used)"
        )
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise TypeError(
            f"{name}: wanted a tensor, a tuple (x, y) of tensors, a DataLoader or another iterable over batches; "
            f"got {type(data).__name__}"
        )
    loader: Iterable[object] = data
    return _Batches(lambda: _checked(loader, name))


@dataclass(frozen=True)
class _Batches:
    """An iterable made from a function that starts a new iteration."""

    start: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def _slices(x: Tensor, y: Tensor | None, batch_size: int) -> Iterator[Batch]:
    """Views of consecutive rows."""
    for i in range(0, len(x), batch_size):
        yield x[i : i + batch_size], None if y is None else y[i : i + batch_size]


def _checked(loader: Iterable[object], name: str) -> Iterator[Batch]:
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


def _batch(item: object, name: str) -> Batch:
    """A checked pair from `x`, `(x,)`, `(x, y)` or `(x, None)`; error messages begin with `name`."""
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if len(parts) == 3 and _are_labels(parts[2], parts[0]):
        parts = parts[:2]
    x, y = (*parts, None)[:2] if len(parts) in (1, 2) else (None, None)
    if not isinstance(x, Tensor) or not (y is None or isinstance(y, Tensor)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"{name}: wanted a tensor x or a pair (x, y) of tensors, got {type(item).__name__} ({kinds})")
    if x.is_complex():
        raise TypeError(f"{name}: wanted x of real numbers, got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}")
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{name}: wanted x of shape (N, ...) with N >= 1, got {tuple(x.shape)}")
    if y is not None and (y.ndim == 0 or len(y) != len(x)):
        raise ValueError(f"{name}: wanted one label for each of the {len(x)} samples, got y of shape {tuple(y.shape)}")
    return x, y


def _are_labels(y: object, x: object) -> bool:
    """Whether y is a tensor of integers (N,), and x a tensor with N samples of more than one number."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.dim() < 2:
        return False
    return y.dim() == 1 and len(y) == len(x) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def _is_batch(data: object) -> bool:
    """Whether `data` is a list [x, y] or [x, y, index], as `next(iter(loader))` returns it."""
    return isinstance(data, list) and len(data) in (2, 3) and all(_are_labels(y, data[0]) for y in data[1:])


def _is_tuple_of_tensors(data: object) -> bool:
    """Whether `data` is a tuple (x, y) of tensors. A list, or a tuple of pairs, counts as a loader."""
    return isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data)

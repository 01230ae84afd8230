# SPDX-License-Identifier: BSD-3-Clause
"""What turns a user's data into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from rainbow_fast.arguments import integer

Batch = tuple[Tensor, Tensor | None]


def batches(data: object, *, batch_size: int = 1000, name: str = "data") -> Iterable[Batch]:
    """What a user calls data, as batches `(x, y)`, where `y` is None if there are no labels. Nothing is copied.

    Args:
        data: a tensor `x` (N, ...); a tuple `(x, y)` of tensors with as many rows; or a `DataLoader` or anything else
            that can be iterated again and again over batches, each of them `x`, `(x,)`, `(x, y)` or `(x, None)`, in a
            tuple or a list.
        batch_size: rows a batch where `data` is a tensor or a tuple; a loader keeps its own batches.
        name: what messages call the data.

    Returns:
        An iterable that starts afresh each time it is iterated.

    Raises:
        TypeError: `data` or one of its batches is none of these; a one-shot iterator or generator is not either, for
            several passes are made. Complex samples.
        ValueError: no samples, labels that do not match, batches with and without labels, a `batch_size` below 1.

    What is wrong with a batch of a loader is raised when the iteration gets there.
    """
    batch_size = integer("batch_size", batch_size, 1)
    if isinstance(data, Tensor) or _is_tuple_of_tensors(data):
        x, y = _batch(data, name)
        return _Batches(lambda: _slices(x, y, batch_size))
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name}: a re-iterable is wanted, for several passes are made; got {type(data).__name__}, which can be "
            "iterated only once (a list of the batches, or a DataLoader, would do)"
        )
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise TypeError(
            f"{name}: wanted a tensor, a tuple (x, y) of tensors, a DataLoader or another re-iterable of batches; "
            f"got {type(data).__name__}"
        )
    loader: Iterable[object] = data
    return _Batches(lambda: _checked(loader, name))


@dataclass(frozen=True)
class _Batches:
    """An iterable from a function that starts an iteration."""

    start: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def _slices(x: Tensor, y: Tensor | None, batch_size: int) -> Iterator[Batch]:
    """Views of consecutive rows."""
    for i in range(0, len(x), batch_size):
        yield x[i : i + batch_size], None if y is None else y[i : i + batch_size]


def _checked(loader: Iterable[object], name: str) -> Iterator[Batch]:
    """The batches of a loader, each checked on its way."""
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
    """`x`, `(x,)`, `(x, y)` or `(x, None)` as a checked pair; `name` opens the error messages."""
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
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


def _is_tuple_of_tensors(data: object) -> bool:
    """Whether `data` is meant as (x, y); a list, or a tuple of pairs, is a loader."""
    return isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data)

# SPDX-License-Identifier: BSD-3-Clause
"""The batches that `measure` reads, for networks of one input and of several."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import length_hint
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rainbow_fast.data.batching import Inputs, count_of
from rainbow_fast.data.batching import batches as batches_of
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.data.gather import gather
from rainbow_fast.joint_inputs import JointInputs, by_positions, is_plain
from rainbow_fast.rainbow.inputs import dtype_of_inputs, taking

WHOLE = 2**62  # rows of a batch: a tensor is one batch


class Batch(NamedTuple):
    """A batch as a network receives it.

    Attributes:
        x: the samples (n, ...), or the rows of several inputs.
        counted: by number of positions, which of them count (n, positions) bool; those of masks that leave some out.
    """

    x: Tensor
    counted: dict[int, Tensor]


def read(module: nn.Module, data: object) -> tuple[nn.Module, Iterator[Batch], int]:
    """The module as it takes the batches, the batches, and their number, 0 if it is unknown.

    Batches of several inputs are padded to the longest one.

    Raises:
        TypeError, ValueError: the data are no batches, as in `fit`; later batches raise when they are reached.
    """
    every = batches_of(data, batch_size=WHOLE, name="batches")
    items, number = iter(every), length_hint(every)
    x, _ = next(items)
    xs = chain([x], (x for x, _ in items))
    like = next(module.parameters())
    if isinstance(x, Tensor):
        return module, _tensors(xs, like, dtype_of_inputs(module, x[:1], like.device, like.dtype)), number
    together: list[Any] = list(xs)
    rows, _, layout = gather([_item(each) for each in together], "batches", labelled=False)
    assert layout is not None
    parts = rows.split([count_of(each) for each in together])
    if is_plain(layout, module):
        plain = [layout.split(part)[0] for part in parts]
        dtype = dtype_of_inputs(module, plain[0][:1], like.device, like.dtype)
        return module, _tensors(iter(plain), like, dtype), number
    joint = taking(module, layout, ("module", "batches"))
    padded = (Batch(part.to(like.device), _counted(layout, part.to(like.device))) for part in parts)
    return joint, padded, number


def _tensors(xs: Iterator[Any], like: Tensor, dtype: torch.dtype) -> Iterator[Batch]:
    for number, x in enumerate(xs):
        if not isinstance(x, Tensor):
            raise TypeError(f"batches: batch {number} has inputs {', '.join(map(repr, x))}, wanted a tensor as before")
        yield Batch(as_numbers(x, like.device, dtype), {})


def _item(x: Inputs) -> object:
    """x as an item of a loader."""
    return (tuple(x.values()), None) if isinstance(x, dict) and 0 in x else x


def _counted(layout: JointInputs, rows: Tensor) -> dict[int, Tensor]:
    return by_positions({mask.name: layout.attended(rows, mask) for mask in layout.masks}, "batches")

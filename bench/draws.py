# SPDX-License-Identifier: BSD-3-Clause
"""Random numbers in plain torch on all threads: randn and rand run on one, so each thread gets a generator."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def normal(rows: int, cols: int, out: Tensor | None = None) -> Tensor:
    """(rows, cols) float32 numbers, the same ones at each call with the same number of threads."""
    return _filled(Tensor.normal_, torch.empty(rows, cols) if out is None else out)


def uniform(rows: int, cols: int, out: Tensor | None = None) -> Tensor:
    """The same, uniform on [0, 1)."""
    return _filled(Tensor.uniform_, torch.empty(rows, cols) if out is None else out)


def _filled(draw: Callable[..., Tensor], target: Tensor) -> Tensor:
    parts = target.chunk(torch.get_num_threads())

    def fill(number: int) -> None:
        draw(parts[number], generator=torch.Generator().manual_seed(number + 1))

    if len(parts) == 1:
        fill(0)
    else:
        list(_pool(len(parts)).map(fill, range(len(parts))))
    return target

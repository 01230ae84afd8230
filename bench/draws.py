# SPDX-License-Identifier: BSD-3-Clause
"""Normal numbers in plain torch on all threads: torch.randn runs on one, so each thread gets a generator."""

import functools
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def normal(rows: int, cols: int, out: Tensor | None = None) -> Tensor:
    """(rows, cols) float32 numbers, the same ones at each call with the same number of threads."""
    target = torch.empty(rows, cols) if out is None else out
    parts = target.chunk(torch.get_num_threads())

    def fill(number: int) -> None:
        parts[number].normal_(generator=torch.Generator().manual_seed(number + 1))

    if len(parts) == 1:
        fill(0)
    else:
        list(_pool(len(parts)).map(fill, range(len(parts))))
    return target

# SPDX-License-Identifier: BSD-3-Clause
"""uniform against torch.rand and NumPy, into new memory and into given memory, in float32 and float64.

The error is the Kolmogorov-Smirnov distance of the first 10^5 values to the uniform law. A part of our values is also
compared with the reference, bit by bit. The best plain torch on two threads is one generator for each, because uniform_
itself runs on one. NumPy is a rival too.
"""

import math

import numpy as np
import torch
from draws import uniform as on_all_threads
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.uniform import uniform_reference

NUMPY = "numpy PCG64"


def distance(values: Tensor) -> float:
    x = values.flatten()[:100_000].double().sort().values
    return float((x - (torch.arange(len(x)) + 0.5) / len(x)).abs().max())


def exact_distance(U: Tensor) -> float:
    rows = min(64, len(U))
    expected = torch.from_numpy(uniform_reference([7, 3, 0, 0], rows, U.shape[1], U.dtype)).to(U.dtype)
    assert torch.equal(U[:rows], expected), "bits differ from the reference"
    return distance(U)


def uniform(rows: int, cols: int, memory: str, dtype_name: str, threads: int) -> Race:
    dtype, source = getattr(torch, dtype_name), torch.Generator().manual_seed(0)
    out, generator = torch.empty(rows, cols, dtype=dtype), np.random.default_rng(0)
    if memory == "new":
        ours = lambda: rf.uniform(rows, cols, seed=7, stream=3, dtype=dtype)  # noqa: E731
        plain = lambda: torch.rand(rows, cols, generator=source, dtype=dtype)  # noqa: E731
        third = lambda: torch.from_numpy(generator.random((rows, cols), dtype_name))  # noqa: E731
    else:
        ours = lambda: rf.uniform(rows, cols, seed=7, stream=3, out=out)  # noqa: E731
        plain = lambda: out.uniform_(generator=source)  # noqa: E731
        third = lambda: torch.from_numpy(generator.random(out=out.numpy(), dtype=dtype_name))  # noqa: E731
    candidates = {
        OURS: Candidate(ours, exact_distance),
        PLAIN: Candidate(plain, distance),
        NUMPY: Candidate(third, distance),
    }
    if threads > 1:
        own = lambda: torch.empty(rows, cols, dtype=dtype) if memory == "new" else out  # noqa: E731
        candidates[BEST] = Candidate(lambda: on_all_threads(rows, cols, own()), distance)
    return Race(
        f"uniform {dtype_name} {rows} x {cols}, {memory} memory",
        candidates,
        Floor(bytes=out.nbytes),
        threads=threads,
        variant=threads == 1 and rows == 10_000,
        slack=1.95 / math.sqrt(100_000),
    )


CASES = [(10_000, 1000, "new", "float32"), (10_000, 1000, "given", "float32"), (10_000, 1000, "given", "float64")]
bench_uniform = entries(uniform, [(*case, 2) for case in CASES], (OURS, PLAIN, BEST, NUMPY))
small = (128, 1000, "given", "float32")
bench_uniform_on_one_thread = entries(uniform, [(*case, 1) for case in (*CASES, small)], (OURS, PLAIN, NUMPY))

# SPDX-License-Identifier: BSD-3-Clause
"""gaussian against torch.randn and NumPy, into new memory and into given memory.

The error is the Kolmogorov-Smirnov distance of the first 10^5 values to the normal law. A part of our values is also
compared with the reference, bit by bit. The published codes draw with torch.randn. The best plain torch on two threads
is one generator for each, because normal_ itself runs on one. NumPy is a rival too.
"""

import math

import numpy as np
import torch
from draws import normal
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.gaussian import gaussian_reference

NUMPY = "numpy PCG64"


def distance(values: Tensor) -> float:
    x = torch.special.ndtr(values.flatten()[:100_000].double()).sort().values
    return float((x - (torch.arange(len(x)) + 0.5) / len(x)).abs().max())


def exact_distance(G: Tensor) -> float:
    rows = min(64, len(G))
    expected = gaussian_reference([7, 3, 0, 0], rows, G.shape[1])
    assert np.array_equal(G[:rows].numpy().view(np.uint32), expected.view(np.uint32)), "bits differ from the reference"
    return distance(G)


def gaussian(rows: int, cols: int, memory: str, threads: int) -> Race:
    out, source = torch.empty(rows, cols), torch.Generator().manual_seed(0)
    generator = np.random.default_rng(0)
    if memory == "new":
        ours = lambda: rf.gaussian(rows, cols, seed=7, stream=3)  # noqa: E731
        plain = lambda: torch.randn(rows, cols, generator=source)  # noqa: E731
        third = lambda: torch.from_numpy(generator.standard_normal((rows, cols), np.float32))  # noqa: E731
    else:
        ours = lambda: rf.gaussian(rows, cols, seed=7, stream=3, out=out)  # noqa: E731
        plain = lambda: out.normal_(generator=source)  # noqa: E731
        third = lambda: torch.from_numpy(generator.standard_normal(out=out.numpy(), dtype=np.float32))  # noqa: E731
    candidates = {
        OURS: Candidate(ours, exact_distance),
        PLAIN: Candidate(plain, distance),
        NUMPY: Candidate(third, distance),
    }
    if threads > 1:
        candidates[BEST] = Candidate(lambda: normal(rows, cols, None if memory == "new" else out), distance)
    return Race(
        f"gaussian {rows} x {cols}, {memory} memory",
        candidates,
        Floor(bytes=4 * rows * cols),
        threads=threads,
        variant=threads == 1 and rows == 10_000,
        slack=1.95 / math.sqrt(100_000),
    )


MEMORY = ("new", "given")
bench_gaussian = entries(gaussian, [(10_000, 1000, memory, 2) for memory in MEMORY], (OURS, PLAIN, BEST, NUMPY))
single = [(10_000, 1000, memory, 1) for memory in MEMORY]
bench_gaussian_on_one_thread = entries(gaussian, [*single, (128, 1000, "given", 1)], (OURS, PLAIN, NUMPY))

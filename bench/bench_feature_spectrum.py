# SPDX-License-Identifier: BSD-3-Clause
"""feature_spectrum against the same eigenvalues with every feature stored, and the memory of a large one.

The error is that of the sorted eigenvalues, relative in the Euclidean norm.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from floor import Floor
from race import OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.random_networks import feature_spectrum

DOUBLE = "torch, float64"  # has the accuracy of sums that ours gives
ROOM = 1024  # MiB


def spectrum(T: int, N: int, p: int) -> Race:
    source = torch.Generator().manual_seed(0)
    X = torch.randn(T, p, generator=source) / p**0.5

    def draw() -> Tensor:
        return torch.randn(N, p, generator=source.manual_seed(1))

    def plain() -> Tensor:
        phi = (X @ draw().T).relu()
        return torch.linalg.eigvalsh((phi @ phi.T).double() / T)

    def double() -> Tensor:
        phi = (X @ draw().T).relu().double()
        return torch.linalg.eigvalsh(phi @ phi.T / T)

    def error(weights: Callable[[], Tensor]) -> Callable[[Tensor], float]:
        def against_float64(got: Tensor) -> float:
            phi = (X.double() @ weights().double().T).relu()
            return relative(got, torch.linalg.eigvalsh(phi @ phi.T / T))

        return against_float64

    return Race(
        f"feature_spectrum, relu, T {T}, N {N}, p {p}",
        {
            OURS: Candidate(lambda: feature_spectrum(X, N, seed=1), error(lambda: rf.gaussian(N, p, seed=1))),
            PLAIN: Candidate(plain, error(draw)),
            DOUBLE: Candidate(double, error(draw)),
        },
        Floor({"f32": 2.0 * T * N * p + T * T * N, "f64": 4 / 3 * T**3}),
    )


bench_spectrum = entries(spectrum, [(1024, 4096, 256)], (OURS, PLAIN, DOUBLE))


PEAK = """
import torch
from rainbow_fast.random_networks import feature_spectrum
torch.set_num_threads(2)
X = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5
values = feature_spectrum(X, 16384, seed=1)
assert values.shape == (4096,) and bool(values.isfinite().all())
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def bench_memory() -> None:
    """A process with torch, 4096 samples and 16,384 features takes at most 1 GiB; the features alone are 256 MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    print(f"T 4096, N 16,384: {float(done.stdout):.0f} MiB at most, of {ROOM}")
    assert float(done.stdout) <= ROOM

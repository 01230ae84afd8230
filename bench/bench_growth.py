# SPDX-License-Identifier: BSD-3-Clause
"""How cost grows with size: the time for a unit of work should stay the same, and memory should not grow.

Each job has a line for each size, with the time scaled to the work of the first size. "x plain" is the time of the
first line over the time of this one. The times are CPU times of one thread.
"""

import gc
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from race import Result

import rainbow_fast as rf
from rainbow_fast.networks import mlp

ROUNDS = 5
WIDTHS = (10_000, 100_000, 1_000_000)


def covariance(n: int, N: int = 240) -> Callable[[], object]:
    u, x = torch.randn(N, 64), torch.randn(N, 32)
    return lambda: rf.random_features_covariance(x, u, n, seed=1)


def projection(n: int, N: int = 240) -> Callable[[], object]:
    u, A = torch.randn(N, 64), torch.randn(32, n)
    return lambda: rf.random_features_projection(u, A, seed=1)


def backward(n: int, N: int = 240) -> Callable[[], object]:
    u, A = torch.randn(N, 64).requires_grad_(), torch.randn(32, n)
    out = rf.random_features_projection(u, A, seed=1)
    return lambda: torch.autograd.grad(out, u, torch.ones_like(out), retain_graph=True)


def weights(n: int) -> Callable[[], object]:
    P, out = torch.randn(64, 240), torch.empty(n, 240)
    return lambda: rf.sample_project_align_(out, P, seed=1)


def by_rank(r: int) -> Callable[[], object]:
    P, out = torch.randn(r, 1200), torch.empty(1024, 1200)
    return lambda: rf.sample_project_align_(out, P, seed=1)


def by_columns(m: int) -> Callable[[], object]:
    P, out = torch.randn(256, m), torch.empty(1024, m)
    return lambda: rf.sample_project_align_(out, P, seed=1)


def by_samples(N: int) -> Callable[[], object]:
    return covariance(1000, N)


def sums(N: int) -> Callable[[], object]:
    x, y = torch.randn(N, 64), torch.randn(N, 64)
    return lambda: rf.cross_covariance(x, y)


def several_sides(count: int) -> Callable[[], object]:
    x, *ys = (torch.randn(20_000, 64) for _ in range(count + 1))
    return lambda: rf.cross_covariance(x, ys)


def sampling(depth: int) -> Callable[[], object]:
    x = torch.randn(2000, 128)
    model = rf.fit(mlp((128, *[128] * depth, 10), seed=0), x, holdout=0)
    return lambda: model.sample(width=512)


LAWS = {  # what runs at a size, and the sizes; time should be proportional to the size
    "cross_covariance, by samples": (sums, (10_000, 100_000, 1_000_000)),
    "cross_covariance, by sides": (several_sides, (1, 4, 16)),
    "random_features_covariance, by neurons": (covariance, WIDTHS),
    "random_features_covariance, by samples": (by_samples, (10_000, 100_000)),
    "random_features_projection, by neurons": (projection, WIDTHS),
    "random_features_projection, backward to u, by neurons": (backward, WIDTHS),
    "sample_project_align, by neurons": (weights, WIDTHS[:2]),
    "sample_project_align, by rank": (by_rank, (256, 1024, 4096)),
    "sample_project_align, by columns": (by_columns, (240, 960, 3840)),
    "sampling, by depth": (sampling, (2, 4, 8, 16)),
}


@pytest.mark.parametrize("law", LAWS)
def bench_growth(record, law: str) -> None:
    build, sizes = LAWS[law]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = [build(size) for size in sizes]
        seconds: list[list[float]] = [[] for _ in sizes]
        gc.collect()
        for number in range(ROUNDS + 1):
            for size, run, times in zip(sizes, runs, seconds, strict=True):
                repeats = max(1, sizes[-1] // size // 4)  # nearly the same work for all sizes
                began = time.process_time()
                for _ in range(repeats):
                    run()
                if number:  # the first round fills caches and touches pages
                    times.append((time.process_time() - began) / repeats * sizes[0] / size)
    finally:
        torch.set_num_threads(before)
    for size, times in zip(sizes, seconds, strict=True):
        ratio = min(seconds[0]) / min(times)
        record(Result(f"growth: {law}", f"{size:,}", times, ratio, error=0.0, share=0.0, rates={}))


PEAK = """
import torch, rainbow_fast as rf
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(2)
n, form = {n}, "{form}"
N, d = 8000, 4  # whole blocks of samples
x, u, A = torch.randn(N, d), torch.randn(N, 8), torch.randn(d, n)
def call(N, n):
    if form == "covariance":
        return rf.random_features_covariance(x[:N], u[:N], n, seed=1)
    if form == "projection":
        return (rf.random_features_projection(u[:N], A[:, :n], seed=1),)
    u.requires_grad_()
    return torch.autograd.grad(rf.random_features_projection(u[:N], A[:, :n], seed=1).sum(), u)
call(50, 1000)  # threads and code that come with the first call; its buffers are small
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
results = call(N, n)
print((peak() - before) / 1024 - sum(t.nbytes for t in results) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["covariance", "projection", "backward"])
def bench_memory(form: str) -> None:
    """At most 16 MiB beyond inputs and results, on two threads, for any number of neurons."""
    for n in WIDTHS:
        code = PEAK.format(n=n, form=form)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"{form}, n {n:,}: {float(done.stdout):.1f} MiB beyond inputs and results")
        assert float(done.stdout) <= 16

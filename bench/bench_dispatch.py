# SPDX-License-Identifier: BSD-3-Clause
"""What a call costs before there is anything to compute: microseconds on 2 x 2 operands, on one thread.

`python bench/bench_dispatch.py` prints the table. It runs with any installed version of the package, so that two
versions can be compared. `pytest bench/bench_dispatch.py` adds the same times to those of the other benches. A call
consists of reading the arguments in Python, torch's dispatcher, the checks, the allocation and a kernel for a few
numbers. The least time of many runs counts, because what is above it is due to the machine.
"""

import sys
import timeit
from collections.abc import Callable

import pytest
import torch
from torch import nn

import rainbow_fast as rf

X, OUT, SUM = torch.ones(2, 2), torch.empty(2, 2), torch.zeros(2, 2, dtype=torch.float64)
M = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
KEY = rf.key(1)
LEARNT = X.clone().requires_grad_()

CALLS: dict[str, Callable[[], object]] = {
    "torch.mm": lambda: X @ X,
    "key": lambda: rf.key(1),
    "gaussian": lambda: rf.gaussian(2, 2, seed=1),
    "gaussian, key": lambda: rf.gaussian(2, 2, seed=KEY),
    "gaussian, out": lambda: rf.gaussian(2, 2, seed=1, out=OUT),
    "cross_covariance": lambda: rf.cross_covariance(X),
    "cross_covariance, x and y": lambda: rf.cross_covariance(X, X),
    "cross_covariance_": lambda: rf.cross_covariance_(SUM, X),
    "cross_covariance of patches": lambda: rf.cross_covariance(X.view(1, 1, 2, 2), patch=1),
    "polar": lambda: rf.polar(M),
    "sample_project_align": lambda: rf.sample_project_align(2, X, seed=1),
    "sample_project_align, L and A": lambda: rf.sample_project_align(2, X, X, seed=1),
    "sample_project_align_": lambda: rf.sample_project_align_(OUT, X, seed=1),
    "random_features": lambda: rf.random_features(X, 2, seed=1),
    "random_features, with a gradient": lambda: rf.random_features(LEARNT, 2, seed=1),
    "random_features_covariance": lambda: rf.random_features_covariance(X, X, 2, seed=1),
    "random_features_projection": lambda: rf.random_features_projection(X, X, seed=1),
}


def sampled_network() -> Callable[[], object]:
    """A forward pass of a sampled network of one site: the cost of its Python code around the op."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    sampled, _ = rf.fit(network, torch.eye(2).repeat(8, 1), holdout=0.0).sample()
    x = torch.ones(1, 2)
    return lambda: sampled(x)


@pytest.mark.parametrize("name", CALLS)
def bench_dispatch(name: str, benchmark) -> None:
    torch.set_num_threads(1)
    with torch.enable_grad():
        benchmark(CALLS[name])
    benchmark.extra_info["microseconds"] = 1e6 * benchmark.stats.stats.min


def microseconds(call: Callable[[], object], runs: int = 30, number: int = 500) -> float:
    call()
    return 1e6 * min(timeit.repeat(call, number=number, repeat=runs)) / number


def main() -> None:
    torch.set_num_threads(1)
    for name, call in {**CALLS, "a sampled network of one site": sampled_network()}.items():
        sys.stdout.write(f"{name:<34}{microseconds(call):6.1f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

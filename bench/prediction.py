# SPDX-License-Identifier: BSD-3-Clause
"""What `plan` predicts, and what runs take: seconds, and memory at the peak. Each run has its own process.

    python bench/prediction.py [THREADS]

On one thread (the default) seconds are CPU time, which other work on the machine hardly changes. On more threads they
are wall-clock time. Memory is the most by which the process grows while it samples.
"""

import ctypes
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp


def pooled() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    )


NETWORKS = {
    "MLP 1024-512-256-10": (lambda: mlp(seed=0), (1024,)),
    "MLP 5 x 1024": (lambda: mlp([1024] * 5 + [10], seed=0), (1024,)),
    "MLP 4 x 256, GELU": (lambda: mlp([256] * 4 + [10], activation=nn.GELU, seed=0), (256,)),
    "CNN 5x5/2 1-32-64": (lambda: cnn(seed=0), (1, 32, 32)),
    "CNN 5x5, 3x3, pooled": (pooled, (1, 28, 28)),
}
MLP, DEEP, GELU, CNN, POOLED = NETWORKS
CASES: list[tuple[str, int, dict]] = [
    (MLP, 5000, {"factor": 4}),
    (MLP, 5000, {"factor": 16}),
    (MLP, 5000, {"factor": 4, "method": "calibrated"}),
    (MLP, 5000, {"factor": 4, "method": "regression"}),
    (MLP, 5000, {"factor": 4, "classifier": "refit"}),
    (DEEP, 4096, {"factor": 1}),
    (GELU, 20_000, {"factor": 4}),
    (CNN, 5000, {"factor": 4}),
    (CNN, 5000, {"factor": 16, "method": "calibrated"}),
    (CNN, 5000, {"factor": 4, "method": "regression"}),
    (CNN, 5000, {"factor": 1, "align_flattened": True}),
    (POOLED, 2000, {"factor": 4}),
]


def memory(line: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(text.split()[1]) for text in status if text.startswith(line))


def measure(number: int, threads: int) -> None:
    """One case: prints seconds predicted and taken, bytes predicted and taken."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, images, options = CASES[number]
    build, shape = NETWORKS[name]
    reference, x, y = build(), torch.randn(images, *shape), torch.arange(images) % 10
    small = {key: value for key, value in options.items() if key != "factor"}
    rf.sample(reference, (x[:200], y[:200]), **small)  # libraries have now done what they do once
    model = rf.fit(reference, (x, y))
    clock = time.process_time if threads == 1 else time.perf_counter
    machine = rf.Machine.measure(activation=model.sites[0].site.activation, clock=clock)
    cost = model.plan(machine=machine, **options)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), clock()
    sampled = model.sample(**options)
    seconds = clock() - start
    print(cost.seconds, seconds, cost.peak_bytes, memory("VmHWM") - before)
    del sampled


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print("| network, images, options | s predicted | taken | ratio | MB predicted | taken | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for number, (name, images, options) in enumerate(CASES):
        words = [sys.executable, __file__, "--case", str(number), str(threads)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        s, s_taken, peak, peak_taken = map(float, done.stdout.split())
        job = ", ".join([name, str(images), *(f"{value}" for value in options.values())])
        cells = (job, f"{s:.2f}", f"{s_taken:.2f}", f"{s / s_taken:.2f}")
        cells += (f"{peak / 1e6:.0f}", f"{peak_taken / 1e6:.0f}", f"{peak / peak_taken:.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        measure(*map(int, sys.argv[2:]))
    else:
        main()

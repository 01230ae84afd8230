# SPDX-License-Identifier: BSD-3-Clause
"""The limits of the machine, measured during every race: multiply-adds in registers, and copies of memory."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

KINDS = ("f32", "f64", "bf16")
ROUNDS = 1_000_000  # a few milliseconds
Clock = Callable[[], float]
COPIED = 1 << 27  # bytes: beyond any cache, and far more than a page fault would hide


def compiler() -> list[str]:
    """The command that compiles C++: CXX, else the first compiler that is installed; empty if there is none."""
    installed = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return shlex.split(os.environ["CXX"]) if os.environ.get("CXX") else [installed] if installed else []


@functools.cache
def _library() -> ctypes.CDLL | None:
    """peak.cpp, compiled for this machine; None if there is no compiler."""
    cxx = compiler()
    if not cxx:
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = f"{folder}/peak.so"
        source = str(Path(__file__).with_name("peak.cpp"))
        flags = "-std=gnu++20 -O3 -march=native -ffp-contract=fast -shared -fPIC -o".split()
        subprocess.run([*cxx, *flags, built, source], check=True)
        library = ctypes.CDLL(built)
    for kind in KINDS:
        getattr(library, f"run_{kind}").argtypes = [ctypes.c_int64, ctypes.c_double, ctypes.c_double]
        getattr(library, f"run_{kind}").restype = ctypes.c_double
        getattr(library, f"flops_{kind}").restype = ctypes.c_int64
    return library


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    start = clock()
    run()
    return clock() - start


@functools.cache
def _buffers() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(COPIED // 4), torch.zeros(COPIED // 4)


def multiply_adds(kind: str, threads: int, clock: Clock) -> float:
    """Flops per second that `threads` threads reach together now; 0 if nothing can be compiled."""
    library = _library()
    if library is None:
        return 0.0
    run = getattr(library, f"run_{kind}")  # ctypes releases the GIL
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: run(ROUNDS // 20, 0.5, 0.5), range(threads)))
        seconds = _seconds(lambda: list(pool.map(lambda _: run(ROUNDS, 0.5, 0.5), range(threads))), clock)
    return threads * ROUNDS * getattr(library, f"flops_{kind}")() / seconds


def copies(clock: Clock) -> float:
    """Bytes per second of a copy, read and written, on torch's threads."""
    source, target = _buffers()
    return 2 * COPIED / _seconds(lambda: target.copy_(source), clock)


def _rate_on_a_gpu(kind: str, device: torch.device, clock: Clock) -> float:
    """Flops per second of torch's products of large matrices, or for the kind "copy" bytes per second of a copy.

    The matrices are random: with equal numbers, a GPU takes less power, and may run faster.
    """
    if kind == "copy":
        source, target = (torch.ones(1 << 28, device=device) for _ in range(2))
        return 2 * source.nbytes / _seconds(lambda: target.copy_(source), clock)
    dtype = {"f64": torch.float64, "bf16": torch.bfloat16}.get(kind, torch.float32)
    size = 4096 if kind == "f64" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        return 2 * size**3 / _seconds(lambda: a @ b, clock)
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Floor:
    """The least time of a job: its flops at the peak rate of their kind, or its bytes at the rate of a copy.

    The bytes are those of inputs and results, each counted once. If a job has flops and bytes, the longer time counts.
    """

    flops: dict[str, float] = field(default_factory=dict)  # by kind
    bytes: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)  # the best of all rounds
    device: str = "cpu"

    def measure(self, threads: int, clock: Clock) -> None:
        if self.device == "cuda":
            for kind in (*self.flops, *["copy"] * bool(self.bytes)):
                rate = _rate_on_a_gpu(kind, torch.device(self.device), clock)
                self.rates[kind] = max(self.rates.get(kind, 0.0), rate)
            return
        for kind in self.flops:
            self.rates[kind] = max(self.rates.get(kind, 0.0), multiply_adds(kind, threads, clock))
        if self.bytes:
            self.rates["copy"] = max(self.rates.get("copy", 0.0), copies(clock))

    def seconds(self) -> float:
        """The least time of the job; 0 if it could not be measured."""
        if not all(self.rates.values()):
            return 0.0
        computed = sum(flops / self.rates[kind] for kind, flops in self.flops.items())
        return max(computed, self.bytes / self.rates["copy"] if self.bytes else 0.0)

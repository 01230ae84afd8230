# SPDX-License-Identifier: BSD-3-Clause
"""The micro-kernels of every instruction-set level that runs here, against the peak of multiply-adds at that level.

The times are CPU times of one thread. Kernel and peak run in turn, and the best of each counts.
"""

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from floor import KINDS, compiler

from rainbow_fast import backend

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from compilers import LEVELS  # noqa: E402

TURNS, SECONDS = 15, 0.02


def rate(run: Callable[[int], float]) -> float:
    """Flops per second, measured for about SECONDS. `run` does a number of rounds and returns their flops."""
    rounds = 1
    while True:
        start = time.process_time()
        flops = run(rounds)
        seconds = time.process_time() - start
        if seconds > SECONDS:
            return flops / seconds
        rounds *= 2


def build(level: str, flags: list[str], folder: str) -> ctypes.CDLL:
    """The micro-kernels of a level, and its peak."""
    common = [*compiler(), "-std=gnu++20", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-Wno-psabi", *flags]
    own = {"micro.cpp": ["-ffp-contract=off", f"-DRF_ISA={level}"], "peak.cpp": ["-ffp-contract=fast"]}
    objects = [f"{folder}/{level}-{source}.o" for source in own]
    for source, output in zip(own, objects, strict=True):
        path = [f"-I{ROOT}/csrc", "-c", f"{ROOT}/bench/{source}", "-o", output]
        subprocess.run([*common, *own[source], *path], check=True)
    subprocess.run([*common, "-shared", *objects, "-o", f"{folder}/{level}.so"], check=True)
    return ctypes.CDLL(f"{folder}/{level}.so")


def measure(level: str, library: ctypes.CDLL, kind: str) -> None:
    kernel, peak, flops = (getattr(library, f"{name}_{kind}") for name in ("micro", "run", "flops"))
    kernel.argtypes, kernel.restype = [ctypes.c_int64], ctypes.c_double
    peak.argtypes, peak.restype = [ctypes.c_int64, ctypes.c_double, ctypes.c_double], ctypes.c_double
    flops.restype = ctypes.c_int64

    def most(rounds: int) -> float:
        peak(rounds, 0.5, 0.5)
        return rounds * flops()

    rates = [(rate(kernel), rate(most)) for _ in range(TURNS)]
    best, limit = (max(column) / 1e9 for column in zip(*rates, strict=True))
    print(f"| {level} | {kind} | {best:.0f} | {limit:.0f} | {100 * best / limit:.0f} % |", flush=True)


def main() -> None:
    print("| level | type | micro-kernel, GFlop/s | peak, GFlop/s | share |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for level, flags in LEVELS.items():
            if level in backend.kernels().levels():
                library = build(level, flags.split(), folder)
                for kind in KINDS:
                    if hasattr(library, f"micro_{kind}"):
                        measure(level, library, kind)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-3-Clause
"""Compares two builds of the kernels: `make clang` compares clang with the usual build. A program, not a pytest file.

Both builds make the calls of `sanitize_calls.py`, on every instruction-set level of the other build that runs here.
They must write the same bits; any two NaNs are equal.
"""

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
from extensions import installed, load
from sanitize_calls import KERNELS
from sanitize_draw import Draw, Memory


def memory_after(C: ModuleType, kernel: str, seed: str) -> list[Memory]:
    draw = Draw(seed)
    arguments, _ = KERNELS[kernel](C, draw)
    getattr(C, kernel)(*arguments, 2)
    return draw.arrays


def differ(a: Memory, b: Memory) -> bool:
    bits = f"u{a.view.itemsize}"
    same = (a.view.view(bits) == b.view.view(bits)) | np.isnan(a.numbers()) & np.isnan(b.numbers())
    return not same.all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the extension of the other build")
    parser.add_argument("--calls", type=int, default=10, help="of each kernel on each level")
    parser.add_argument("--seed", default="", help="any text, for other calls")
    options = parser.parse_args()
    np.seterr(all="ignore")  # some numbers are infinite
    this, other = load(installed(), "this"), load(options.other, "other")
    if not set(other.levels()) <= set(this.levels()):
        sys.exit(f"this build has the levels {this.levels()}, the other one {other.levels()}")
    for level in other.levels():
        started = time.perf_counter()
        this.use(level)
        other.use(level)
        for kernel in KERNELS:
            for call in range(options.calls):
                seed = f"{kernel} {call}{options.seed}"
                memories = [memory_after(C, kernel, seed) for C in (this, other)]
                if any(differ(a, b) for a, b in zip(*memories, strict=True)):
                    sys.exit(f"{level}: {seed} has other bits in {options.other}")
        print(f"{level}: equal bits in {options.calls} calls of each kernel, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()

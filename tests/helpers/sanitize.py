# SPDX-License-Identifier: BSD-3-Clause
"""Every kernel under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`. A program, not a pytest file.

It imports NumPy and no torch. It makes the calls of `sanitize_calls.py` on every instruction-set level that runs here
and compares the results with float64. It makes them again on two threads and with the smallest blocks, as if there
were no caches, which must give the same bits. Before that, it makes calls in which one array is one element too short,
and checks that the sanitizer reports each. Memory that a kernel allocates is full of NaN. The CUDA kernels on the CPU
(`cuda_on_cpu/`) count as one more level: instead of on two threads, their blocks, warps and lanes run in two orders.
"""

import argparse
import ctypes
import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
from cuda_on_cpu import build
from extensions import ROOT, load
from sanitize_calls import KERNELS
from sanitize_draw import Draw

BUILT = ROOT / "build" / "sanitize" / "_C.so"
# What else the extension exports.
NO_KERNELS = {"caches", "set_caches", "amx_is_refused", "levels", "use", "advise_huge_pages", "cuda"}

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:leak_check_at_exit=0:malloc_fill_byte=255:max_malloc_fill_size=1073741824",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # so that the leak check sees the objects of Python
}


class Cuda:
    """The CUDA kernels as one more level. The number of threads selects the order of blocks, warps and lanes."""

    def __init__(self, kind: str = "sanitize") -> None:
        self.kind = kind
        module = build.load(kind).cuda
        for name in KERNELS:
            if hasattr(module, name):
                setattr(self, name, partial(self.call, getattr(module, name)))

    def call(self, kernel: Callable[..., None], *arguments) -> None:
        *values, order = arguments
        workspace = np.full(1 << 20, 0xFF, np.uint8)  # NaN
        build.set_order(order, self.kind)
        kernel(*values, (0, 0, workspace.ctypes.data, workspace.size))


def check(C: ModuleType | Cuda, kernel: str, seed: str, call: Callable[[str, Draw, tuple], None] | None = None) -> None:
    """One call on one thread and on two: close to float64, equal bits, nothing outside of the outputs.

    The second time, blocks are as small as without caches. `call` makes the call in place of C, with the memory of the
    draw.
    """
    blocks = []
    caches = C.caches() if isinstance(C, ModuleType) else None
    for threads in (1, 2):
        if isinstance(C, ModuleType):
            C.set_caches(*((1, 1) if threads == 2 else caches))
        draw = Draw(seed)
        arguments, expected = KERNELS[kernel](C, draw)
        if call is None:
            getattr(C, kernel)(*arguments, threads)
        else:
            call(kernel, draw, (*arguments, threads))
        blocks.append([e.memory.block.copy() for e in expected])
        for e in expected:
            if error := e.error():
                sys.exit(f"{seed}: {kernel}{arguments} is off by {error:.3e}")
            if not e.memory.gaps_are_untouched():
                sys.exit(f"{seed}: {kernel}{arguments} writes between the entries of its output")
    if isinstance(C, ModuleType):
        C.set_caches(*caches)
    if any((a != b).any() for a, b in zip(*blocks, strict=True)):
        sys.exit(f"{seed}: {kernel}{arguments} has other bits on two threads and in small blocks, or in another order")


def dies(call: Callable[[], None]) -> str:
    """What a process that makes the call writes to stderr; empty if it survives."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(into, 2)
        call()
        os._exit(0)
    os.close(into)
    with os.fdopen(out, errors="replace") as pipe:
        said = pipe.read()
    return said if os.waitpid(child, 0)[1] else ""


def check_that_overruns_are_found(C: ModuleType | Cuda, kernel: str) -> int:
    seed, count = f"{kernel} short", 0
    while True:
        draw = Draw(seed, regular=True, short=count)
        arguments, _ = KERNELS[kernel](C, draw)
        if count == len(draw.arrays):
            return count
        if "ERROR: AddressSanitizer" not in dies(lambda short=arguments: getattr(C, kernel)(*short, 1)):
            sys.exit(f"{kernel}: array {count} of {arguments} is one element short, and nothing was found")
        count += 1


def check_that_shared_memory_has_ends() -> None:
    """A toy kernel writes or reads a number outside the 64 of its shared memory (0, 1) or of a fixed array (2, 3)."""
    touch, out = build.library("sanitize").rf_touches, ctypes.byref(ctypes.c_int())
    for case in itertools.product(range(4), (-1, 64)):
        if "ERROR: AddressSanitizer" not in dies(partial(touch, out, *case)):
            sys.exit(f"touches{case}: a CUDA kernel leaves its shared memory, and nothing was found")


def leaks() -> str:
    """What LeakSanitizer reports about memory lost by the extension. Leaks of Python itself do not count."""
    look = ctypes.CDLL(None).__lsan_do_recoverable_leak_check
    said = dies(lambda: os._exit(look()))
    if "fatal error" in said:
        print("no leak check: LeakSanitizer may not trace a process here")
    return said if BUILT.name in said or "csrc/" in said else ""


def preload(runtime: str, environment: dict[str, str]) -> None:
    """Starts this program again with the runtime of a sanitizer, which must be the first library of a process."""
    if runtime in os.environ.get("LD_PRELOAD", ""):
        return
    cxx = shlex.split(os.environ.get("CXX") or "c++")
    files = [[*cxx, f"-print-file-name={name}"] for name in (runtime, "libstdc++.so")]
    libraries = [subprocess.run(file, check=True, capture_output=True, text=True).stdout.strip() for file in files]
    shared = {"LD_PRELOAD": " ".join(libraries), "OPENBLAS_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **shared, **environment})


def check_levels(
    machine: ModuleType | Cuda, levels: list[str], calls: int, chosen: list[str], options: argparse.Namespace
) -> None:
    """That overruns are found, and then so many calls of each chosen kernel on each level."""
    kernels = [kernel for kernel in chosen if hasattr(machine, kernel)]
    for kernel in kernels:
        count = check_that_overruns_are_found(machine, kernel)
        print(f"{kernel}: one element short, found in {count} arrays of it", flush=True)
    for level in levels:
        if isinstance(machine, ModuleType):
            machine.use(level)
        for kernel in kernels:
            started = time.process_time()
            for call in range(calls):
                if options.v:
                    print(level, kernel, call, flush=True)
                check(machine, kernel, f"{kernel} {call}{options.seed}")
            print(f"{level}: {calls} calls of {kernel} in {time.process_time() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=30, help="of each kernel on each level; of CUDA a third")
    parser.add_argument("--seed", default="", help="any text, for other calls")
    parser.add_argument("--kernels", nargs="*", default=[], help="these alone")
    parser.add_argument("-v", action="store_true", help="print each call before it is made")
    options = parser.parse_args()
    build.build("sanitize")
    preload("libasan.so", OPTIONS)
    np.seterr(all="ignore")  # some numbers are infinite
    C = load(BUILT, "sanitize")
    exported = {name for name in dir(C) if not name.startswith("_")} - NO_KERNELS
    if exported != set(KERNELS):
        sys.exit(f"the extension has the kernels {sorted(exported)}, this file {sorted(KERNELS)}")
    check_that_shared_memory_has_ends()
    chosen = options.kernels or list(KERNELS)
    other = os.fork()  # CUDA in a process of its own; nothing has started a thread yet
    if other == 0:
        check_levels(Cuda(), ["cuda"], -(-options.calls // 3), chosen, options)
        sys.exit(leaks() or 0)
    check_levels(C, C.levels(), options.calls, chosen, options)
    C.advise_huge_pages(np.empty(5 << 20, np.uint8)[1:].ctypes.data, (5 << 20) - 1)
    try:
        C.use("no such level")
    except ValueError:
        pass
    lost = leaks()
    if os.waitpid(other, 0)[1]:
        sys.exit(f"CUDA is not clean\n{lost}")
    if lost:
        sys.exit(lost)
    print("clean")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels on the CPU under ThreadSanitizer: part of `make sanitize`. A program, not a pytest file.

Each thread of a block is a thread to the sanitizer, and only barriers order them (cuda_on_cpu/ordering.h). So a missing
barrier is an error, in whatever order the threads run. First, toy kernels run with a barrier and without it, and the
sanitizer must be silent about the one and report the other. Then the calls of `sanitize_calls.py` are made, and their
results compared with float64.
"""

import argparse
import ctypes
import sys
import time
from functools import partial

import numpy as np
from cuda_on_cpu import build
from sanitize import Cuda, check, dies, preload
from sanitize_calls import KERNELS

KIND = "order"
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
NO_RANDOM_ADDRESSES, PRESENT = 0x0040000, 0xFFFFFFFF  # of personality(2): a flag, and the question which are set
FAULTS = {"none": False, "no wait": False, "no barrier": True, "overwrites what others read": True}  # of the pipeline
STEPS = 5


def check_that_missing_barriers_are_found() -> None:
    """A missing wait is no race: the copies of a thread are its own. The values show it, because they are NaN."""
    library = build.library(KIND)
    values, out = np.ones((STEPS, 256), np.float32), np.zeros((STEPS, 256), np.float32)
    integers = np.zeros(64, np.int32)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (out, values, integers)]
    cases = {
        f"pipeline, {fault}": (partial(library.rf_pipeline, addresses[0], addresses[1], STEPS, k), race)
        for k, (fault, race) in enumerate(FAULTS.items())
    }
    for ordered in (True, False):
        cases[f"neighbours, ordered {ordered}"] = (partial(library.rf_neighbours, addresses[2], ordered), not ordered)
    for order in (0, 1, 5):
        build.set_order(order, KIND)
        for case, (call, race) in cases.items():
            if ("data race" in (said := dies(call))) != race:
                sys.exit(f"{case}, order {order}: wanted {'a' if race else 'no'} data race, got\n{said}")
    print("a missing barrier is found, in every order", flush=True)


def keep_addresses() -> None:
    """From the next start of a program on, its addresses are not random: ThreadSanitizer wants memory at fixed ones."""
    personality = ctypes.CDLL(None).personality
    if personality(personality(PRESENT) | NO_RANDOM_ADDRESSES) == -1:
        print("personality(2) is refused here: ThreadSanitizer may not start, as addresses are random", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6, help="of each kernel")
    parser.add_argument("--seed", default="", help="any text, for other calls")
    options = parser.parse_args()
    build.build(KIND)
    keep_addresses()
    preload("libtsan.so", OPTIONS)
    np.seterr(all="ignore")  # some numbers are infinite
    check_that_missing_barriers_are_found()
    machine = Cuda(KIND)
    for kernel in filter(partial(hasattr, machine), KERNELS):
        started = time.process_time()
        for call in range(options.calls):
            check(machine, kernel, f"{kernel} {call}{options.seed}")
        print(f"{options.calls} calls of {kernel} in {time.process_time() - started:.1f} s", flush=True)
    print("no data race")


if __name__ == "__main__":
    main()

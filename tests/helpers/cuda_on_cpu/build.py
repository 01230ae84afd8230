# SPDX-License-Identifier: BSD-3-Clause
"""Builds csrc/cuda/*.cu for the CPU, in build/cuda_on_cpu/: an extension module _C whose `cuda` is the emulation.

`python tests/helpers/cuda_on_cpu/build.py` builds it; with `sanitize` under AddressSanitizer and
UndefinedBehaviorSanitizer, with `order` under ThreadSanitizer (ordering.h).
Objects are compiled again when their source, any header, this file or the compiler changes.
"""

import ctypes
import fcntl
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
JOBS = 2
EMULATION = "tests/helpers/cuda_on_cpu"
FLAGS = (
    "-std=c++20 -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi "
    "-Wno-maybe-uninitialized -Wno-unknown-pragmas -DRF_CUDA=1 -DRF_ISA=cuda -Icsrc "
    f"-I{EMULATION}"
)
OPTIMISE = "-O2"
SANITIZE = "-O1 -g1 -fsanitize=address,undefined -fsanitize-sections=rf_shared -fno-sanitize-recover=all"
ORDER = "-O1 -g1 -fsanitize=thread"
EMULATES = ("machine.cpp", "tensor_cores.cpp", "module.cpp")  # ThreadSanitizer does not look into these
BIND = f"-O0 -I{pybind11.get_include()} -I{sysconfig.get_paths()['include']}"  # most of its time is the compiler's
SOURCES = ["csrc/*.cpp", "csrc/cuda/*.cu", f"{EMULATION}/*.cpp", f"{EMULATION}/*.cu"]


KINDS = {"": OPTIMISE, "sanitize": SANITIZE, "order": ORDER}


def build(kind: str = "") -> Path:
    """Brings the module of a kind up to date and returns its path. Another process that asks for it waits."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(map(repr, KINDS))}")
    plain = ROOT / "build" / "cuda_on_cpu"
    folder = plain / kind
    folder.mkdir(parents=True, exist_ok=True)
    with open(plain / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return compiled(plain, folder, kind)


def compiled(plain: Path, folder: Path, kind: str) -> Path:
    cxx = shlex.split(os.environ.get("CXX") or "c++")
    used, said = folder / "toolchain", f"{shlex.join(cxx)}, pybind11 {pybind11.__version__}, Python {sys.version}"
    if not used.exists() or used.read_text() != said:
        used.write_text(said)
    changed = max(path.stat().st_mtime for path in [used, Path(__file__), *ROOT.glob("csrc/**/*.h"), *HERE.glob("*.h")])
    optimise = KINDS[kind]

    def compile(source: Path) -> Path:
        bind = source.name == "bind.cpp"
        object_file = (plain if bind else folder) / f"{source.name}.o"
        if not object_file.exists() or object_file.stat().st_mtime < max(changed, source.stat().st_mtime):
            how = BIND if bind else f"{OPTIMISE} -DRF_TSAN" if kind == "order" and source.name in EMULATES else optimise
            flags = f"{how} {FLAGS}".split()
            started = time.time()
            run([*cxx, *flags, "-x", "c++", "-c", source, "-o", object_file])
            os.utime(object_file, (started, started))  # a source edited while it was compiled is newer than its object
        return object_file

    sources = [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(compile, sources))
    target, list_of_objects = folder / "_C.so", folder / "objects"
    names = "\n".join(map(str, objects))
    if not list_of_objects.exists() or list_of_objects.read_text() != names:
        list_of_objects.write_text(names)
    newest = max(path.stat().st_mtime for path in [list_of_objects, *objects])
    if not target.exists() or target.stat().st_mtime < newest:
        run([*cxx, *optimise.split(), "-shared", *objects, "-o", target])
    return target


def run(command: list) -> None:
    words = list(map(str, command))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"this failed: {shlex.join(words)}\n{done.stderr}")
    sys.stderr.write(done.stderr)


@cache
def load(kind: str = "") -> ModuleType:
    """The extension. `load().cuda` takes the arguments of `rainbow_fast._C.cuda`, in the memory of the CPU."""
    # It must have this name: pybind11 returns an existing module of the same name.
    spec = importlib.util.spec_from_file_location("cuda_on_cpu._C", build(kind))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def library(kind: str = "") -> ctypes.CDLL:
    """The same file, for functions that the package does not have: `set_order`, `set_most_shared`, the toy kernels."""
    return ctypes.CDLL(str(build(kind)))


def set_order(seed: int, kind: str = "") -> None:
    """Sets the order in which blocks, warps and lanes run: 0 forward, 1 backward, else drawn from this seed."""
    library(kind).rf_set_order(seed)


def set_most_shared(kib: int = 163) -> None:
    """Sets the shared memory that a block may have; by default that of an A100."""
    library().rf_set_most_shared(ctypes.c_int64(kib * 1024))


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
